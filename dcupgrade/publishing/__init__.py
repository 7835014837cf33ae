"""The release manager's side: keys, signing, the pallet's calls, publishing."""
