"""Implementations of the ports of `dcupgrade.upgrade` for the real world: clock, journal, chain, vault, nodes."""
