"""A decoder with a planted bug. Only a fuzzer that finds it says something by finding nothing elsewhere."""

from __future__ import annotations

from .target import Target


def after_a_long_way(data: bytes) -> int:
    """Each condition is a branch of its own: chance alone would need 2^28 tries, coverage some ten thousand."""
    if len(data) > 3 and data[0] == 0x64 and data[1] == 0x63 and data[2] == 0x75 and data[3] > 0xF0:
        return data[len(data)]  # the bug
    return 0


TARGETS = {"canary": Target(after_a_long_way, (bytes(8),))}
