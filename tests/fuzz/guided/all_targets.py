"""Every target by its name."""

from . import canary, chain, enclaves, host, ports

ALL = {name: target for part in (chain, enclaves, host, ports, canary) for name, target in part.TARGETS.items()}
