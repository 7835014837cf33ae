"""The sealed store: sealed files, the disk they lie on, two generations of each."""
