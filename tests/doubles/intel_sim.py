"""Intel's published simulation constants (linux-sgx deriv.cpp). For known answers and forgeries, never installed."""

from attestation.sgx import Attributes
from attestation.simulated.cpu import RootKeys, Secs

SEAL = bytes.fromhex("00112233445566778899aabbccddeeff")
REPORT = bytes.fromhex("ff00" * 8)
OWNER_EPOCH = b"THISISOWNEREPOCH"
LEVELS = {"DOWNGRADED": 0, "DEFAULT": 1, "UPGRADED": 2}


def root_keys(level: str = "DEFAULT") -> RootKeys:
    """The CPU of Intel's simulation mode: its KEYID is its report key and 16 zeros."""
    return RootKeys(SEAL, REPORT, OWNER_EPOCH, REPORT + bytes(16), LEVELS[level])


def secs(first_320: bytes) -> Secs:
    """Read a SECS as Intel's simulation lays it out (family and extended product id behind CONFIGSVN)."""

    def number(offset: int, length: int) -> int:
        return int.from_bytes(first_320[offset : offset + length], "little")

    return Secs(
        first_320[64:96],
        first_320[128:160],
        Attributes.decode(first_320[48:64]),
        number(20, 4),
        0,
        number(256, 2),
        number(258, 2),
        first_320[192:256],
        number(260, 2),
        first_320[262:278],
        first_320[278:294],
    )
