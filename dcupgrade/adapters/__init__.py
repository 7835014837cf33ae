"""The ports of `dcupgrade.upgrade` over the real world: clock, journal, chain, vault, nodes."""
