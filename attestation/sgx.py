"""SGX structures as frozen values with strict decoders, and the MAC of a report.

Layouts: Intel SDM volume 3D chapter 38; names and offsets as in intel/linux-sgx common/inc/sgx_report.h,
sgx_key.h, sgx_attributes.h; CET fields as in gramine's sgx_arch.h. All integers are little-endian. A decoder
accepts exactly the structure's length and refuses non-zero reserved bytes. Encoding returns the same bytes again.
"""

import hmac
import struct
from dataclasses import dataclass

from .errors import AttestationError

# ATTRIBUTES.FLAGS
INIT = 0x1
DEBUG = 0x2
MODE64BIT = 0x4
PROVISIONKEY = 0x10
EINITTOKENKEY = 0x20
CET = 0x40
KSS = 0x80
AEXNOTIFY = 0x400
FLAG_NAMES = {
    INIT: "INIT",
    DEBUG: "DEBUG",
    MODE64BIT: "MODE64BIT",
    PROVISIONKEY: "PROVISIONKEY",
    EINITTOKENKEY: "EINITTOKENKEY",
    CET: "CET",
    KSS: "KSS",
    AEXNOTIFY: "AEXNOTIFY",
}
XFRM_LEGACY = 0x3  # x87 and SSE: every enclave has both
# XCR0 bits of plain register state: x87, SSE, AVX, MPX, AVX-512, PKRU, AMX (SDM 1, 13.3).
XFRM_KNOWN = 0x602FF
# Components whose XCR0 bits must be set together, and only with others: these bits, and the bits that they need.
_XFRM_GROUPS = (
    (0x4, 0x2),  # AVX needs SSE
    (0x18, 0x18),  # MPX: bounds and their configuration
    (0xE0, 0xE6),  # AVX-512: opmask and both halves of the registers, needs AVX
    (0x60000, 0x60000),  # AMX: tile configuration and tiles
)
MISC_EXINFO = 0x1  # MISCSELECT: page faults are reported in the SSA


def xfrm_possible(xfrm: int) -> bool:
    """Tell whether a CPU with all known components accepts this XFRM of an enclave (SDM 1, 13.3: XSETBV)."""
    if xfrm & XFRM_LEGACY != XFRM_LEGACY or xfrm & ~XFRM_KNOWN:
        return False
    return all(xfrm & needed == needed for group, needed in _XFRM_GROUPS if xfrm & group)


# KEYREQUEST.KEYNAME
EINITTOKEN_KEY = 0
PROVISION_KEY = 1
PROVISION_SEAL_KEY = 2
REPORT_KEY = 3
SEAL_KEY = 4

# KEYREQUEST.KEYPOLICY
POLICY_MRENCLAVE = 0x01
POLICY_MRSIGNER = 0x02
POLICY_NOISVPRODID = 0x04
POLICY_CONFIGID = 0x08
POLICY_ISVFAMILYID = 0x10
POLICY_ISVEXTPRODID = 0x20
POLICY_KSS = POLICY_NOISVPRODID | POLICY_CONFIGID | POLICY_ISVFAMILYID | POLICY_ISVEXTPRODID
POLICY_ALL = POLICY_MRENCLAVE | POLICY_MRSIGNER | POLICY_KSS

# EGETKEY's error codes in RAX
EGETKEY_INVALID_ATTRIBUTE = 2
EGETKEY_INVALID_CPUSVN = 32
EGETKEY_INVALID_ISVSVN = 64
EGETKEY_INVALID_KEYNAME = 256

TARGETINFO_SIZE = 512
REPORT_SIZE = 432
REPORT_BODY_SIZE = 384  # what the MAC covers
REPORTDATA_SIZE = 64
KEYREQUEST_SIZE = 512
KEY_SIZE = 16

_ATTRIBUTES = struct.Struct("<QQ")
_TARGETINFO = struct.Struct("<32s16sBBHI8s64s384s")
_REPORT = struct.Struct("<16sIB11s16s16s32s32s32s32s64sHHH42s16s64s32s16s")
_KEYREQUEST = struct.Struct("<HHHH16s16s32sIH434s")

_Bytes = bytes | bytearray | memoryview


def _field(structure: str, field: str, why: str) -> AttestationError:
    return AttestationError(code="SGX_FIELD_INVALID", what=f"{structure}.{field} cannot be used", why=why)


def need_bytes(structure: str, **fields: tuple[object, int]) -> None:
    """Raise SGX_FIELD_INVALID unless each `name=(value, length)` is bytes of that length."""
    for name, (value, length) in fields.items():
        if type(value) is not bytes or len(value) != length:
            raise _field(structure, name.upper(), f"it is not {length} bytes")


def need_ints(structure: str, **fields: tuple[int, int]) -> None:
    """Raise SGX_FIELD_INVALID unless each `name=(value, bits)` is an unsigned integer of that many bits."""
    for name, (value, bits) in fields.items():
        if type(value) is not int or value < 0 or value >> bits:
            raise _field(structure, name.upper(), f"it is not an unsigned integer of {bits} bits")


def need_length(structure: str, data: _Bytes, length: int) -> None:
    """Raise SGX_LENGTH_WRONG unless `data` has exactly `length` bytes."""
    if len(data) != length:
        raise AttestationError(
            code="SGX_LENGTH_WRONG",
            what=f"{structure} cannot be decoded",
            why=f"it has {len(data)} bytes instead of {length}",
            expected=str(length),
            found=str(len(data)),
        )


def need_zero(structure: str, *reserved: bytes | int) -> None:
    """Raise SGX_RESERVED_NOT_ZERO if a reserved field is not all zeros."""
    for value in reserved:
        if any(value) if isinstance(value, bytes) else value:
            raise AttestationError(
                code="SGX_RESERVED_NOT_ZERO",
                what=f"{structure} cannot be decoded",
                why="reserved bytes are not zero",
            )


def flag_text(flags: int) -> str:
    """Name the bits of ATTRIBUTES.FLAGS for an operator: "INIT|MODE64BIT", unknown bits as hex."""
    names = [name for bit, name in FLAG_NAMES.items() if flags & bit]
    unknown = flags & ~sum(FLAG_NAMES)
    return "|".join([*names, hex(unknown)] if unknown or not names else names)


@dataclass(frozen=True, slots=True)
class Attributes:
    """ATTRIBUTES (16 bytes), or a mask of the same shape: FLAGS and XFRM, 64 bits each."""

    flags: int
    xfrm: int

    def __post_init__(self) -> None:
        need_ints("ATTRIBUTES", flags=(self.flags, 64), xfrm=(self.xfrm, 64))

    @classmethod
    def decode(cls, data: _Bytes) -> "Attributes":
        """Decode 16 bytes. Every bit pattern is valid here; the acceptance policy checks the bits."""
        need_length("ATTRIBUTES", data, 16)
        return cls(*_ATTRIBUTES.unpack(data))

    def encode(self) -> bytes:
        """Encode to 16 bytes."""
        return _ATTRIBUTES.pack(self.flags, self.xfrm)

    def __and__(self, other: "Attributes") -> "Attributes":
        return Attributes(self.flags & other.flags, self.xfrm & other.xfrm)


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """TARGETINFO (512 bytes): the enclave that is to verify a report."""

    mrenclave: bytes
    attributes: Attributes
    miscselect: int = 0
    cet_attributes: int = 0
    configsvn: int = 0
    configid: bytes = bytes(64)

    def __post_init__(self) -> None:
        need_bytes("TARGETINFO", mrenclave=(self.mrenclave, 32), configid=(self.configid, 64))
        need_ints(
            "TARGETINFO",
            miscselect=(self.miscselect, 32),
            cet_attributes=(self.cet_attributes, 8),
            configsvn=(self.configsvn, 16),
        )

    @classmethod
    def decode(cls, data: _Bytes) -> "TargetInfo":
        """Decode 512 bytes. Raises SGX_LENGTH_WRONG, SGX_RESERVED_NOT_ZERO."""
        need_length("TARGETINFO", data, TARGETINFO_SIZE)
        mrenclave, attributes, cet, rsv1, configsvn, misc, rsv2, configid, rsv3 = _TARGETINFO.unpack(data)
        need_zero("TARGETINFO", rsv1, rsv2, rsv3)
        return cls(mrenclave, Attributes.decode(attributes), misc, cet, configsvn, configid)

    def encode(self) -> bytes:
        """Encode to 512 bytes."""
        return _TARGETINFO.pack(
            self.mrenclave,
            self.attributes.encode(),
            self.cet_attributes,
            0,
            self.configsvn,
            self.miscselect,
            b"",
            self.configid,
            b"",
        )

    @property
    def enclave_id(self) -> str:
        """MRENCLAVE as 64 lower-case hex digits."""
        return self.mrenclave.hex()


@dataclass(frozen=True, slots=True)
class Report:
    """REPORT (432 bytes). `mac` is AES-128-CMAC over the first 384 bytes under the target's report key.

    `key_id` names that key and is not covered by the MAC; altering it only changes the key, so the MAC fails.
    """

    cpusvn: bytes
    attributes: Attributes
    mrenclave: bytes
    mrsigner: bytes
    report_data: bytes
    miscselect: int = 0
    cet_attributes: int = 0
    isvextprodid: bytes = bytes(16)
    configid: bytes = bytes(64)
    isvprodid: int = 0
    isvsvn: int = 0
    configsvn: int = 0
    isvfamilyid: bytes = bytes(16)
    key_id: bytes = bytes(32)
    mac: bytes = bytes(16)

    def __post_init__(self) -> None:
        need_bytes(
            "REPORT",
            cpusvn=(self.cpusvn, 16),
            mrenclave=(self.mrenclave, 32),
            mrsigner=(self.mrsigner, 32),
            reportdata=(self.report_data, 64),
            isvextprodid=(self.isvextprodid, 16),
            configid=(self.configid, 64),
            isvfamilyid=(self.isvfamilyid, 16),
            keyid=(self.key_id, 32),
            mac=(self.mac, 16),
        )
        need_ints(
            "REPORT",
            miscselect=(self.miscselect, 32),
            cet_attributes=(self.cet_attributes, 8),
            isvprodid=(self.isvprodid, 16),
            isvsvn=(self.isvsvn, 16),
            configsvn=(self.configsvn, 16),
        )

    @classmethod
    def decode(cls, data: _Bytes) -> "Report":
        """Decode 432 bytes. Raises SGX_LENGTH_WRONG, SGX_RESERVED_NOT_ZERO. Does not verify the MAC."""
        need_length("REPORT", data, REPORT_SIZE)
        (
            cpusvn, misc, cet, rsv1, ext, attributes, mrenclave, rsv2, mrsigner, rsv3, configid,
            prodid, svn, configsvn, rsv4, family, report_data, key_id, mac,
        ) = _REPORT.unpack(data)  # fmt: skip
        need_zero("REPORT", rsv1, rsv2, rsv3, rsv4)
        return cls(
            cpusvn, Attributes.decode(attributes), mrenclave, mrsigner, report_data, misc, cet, ext, configid,
            prodid, svn, configsvn, family, key_id, mac,
        )  # fmt: skip

    def encode(self) -> bytes:
        """Encode to 432 bytes."""
        return _REPORT.pack(
            self.cpusvn, self.miscselect, self.cet_attributes, b"", self.isvextprodid, self.attributes.encode(),
            self.mrenclave, b"", self.mrsigner, b"", self.configid, self.isvprodid, self.isvsvn, self.configsvn,
            b"", self.isvfamilyid, self.report_data, self.key_id, self.mac,
        )  # fmt: skip

    @property
    def enclave_id(self) -> str:
        """MRENCLAVE as 64 lower-case hex digits."""
        return self.mrenclave.hex()

    def target_info(self) -> TargetInfo:
        """Return the TARGETINFO for a report that answers this one: its maker becomes the target."""
        return TargetInfo(
            self.mrenclave, self.attributes, self.miscselect, self.cet_attributes, self.configsvn, self.configid
        )


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """KEYREQUEST (512 bytes), the operand of EGETKEY."""

    key_name: int
    key_policy: int = 0
    isvsvn: int = 0
    cpusvn: bytes = bytes(16)
    attribute_mask: Attributes = Attributes(0, 0)
    key_id: bytes = bytes(32)
    misc_mask: int = 0
    configsvn: int = 0

    def __post_init__(self) -> None:
        need_bytes("KEYREQUEST", cpusvn=(self.cpusvn, 16), keyid=(self.key_id, 32))
        need_ints(
            "KEYREQUEST",
            keyname=(self.key_name, 16),
            isvsvn=(self.isvsvn, 16),
            miscmask=(self.misc_mask, 32),
            configsvn=(self.configsvn, 16),
        )
        if type(self.key_policy) is not int or self.key_policy & ~POLICY_ALL:
            raise _field("KEYREQUEST", "KEYPOLICY", "it has reserved bits")

    @classmethod
    def decode(cls, data: _Bytes) -> "KeyRequest":
        """Decode 512 bytes. Raises SGX_LENGTH_WRONG, SGX_RESERVED_NOT_ZERO, SGX_FIELD_INVALID (KEYPOLICY)."""
        need_length("KEYREQUEST", data, KEYREQUEST_SIZE)
        name, policy, svn, rsv1, cpusvn, mask, key_id, misc, configsvn, rsv2 = _KEYREQUEST.unpack(data)
        need_zero("KEYREQUEST", rsv1, rsv2)
        return cls(name, policy, svn, cpusvn, Attributes.decode(mask), key_id, misc, configsvn)

    def encode(self) -> bytes:
        """Encode to 512 bytes."""
        return _KEYREQUEST.pack(
            self.key_name, self.key_policy, self.isvsvn, 0, self.cpusvn, self.attribute_mask.encode(),
            self.key_id, self.misc_mask, self.configsvn, b"",
        )  # fmt: skip


def cmac(key: bytes, data: bytes) -> bytes:
    """AES-128-CMAC (NIST SP 800-38B) of `data` under a 16-byte key: 16 bytes."""
    if len(key) != KEY_SIZE:
        raise _field("AES-128-CMAC", "KEY", f"it is not {KEY_SIZE} bytes")
    # imported here because the agent decodes these structures but makes no MAC, and must use little memory
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.cmac import CMAC

    state = CMAC(AES(key))
    state.update(data)
    return state.finalize()


def report_mac(key: bytes, report: Report) -> bytes:
    """Return the MAC that `report` must carry under the 16-byte report key of its target."""
    return cmac(key, report.encode()[:REPORT_BODY_SIZE])


def verify_report_mac(key: bytes, report: Report) -> None:
    """Raise REPORT_MAC_BAD unless the report's MAC verifies under `key`; compares in constant time."""
    if not hmac.compare_digest(report_mac(key, report), report.mac):
        raise AttestationError(
            code="REPORT_MAC_BAD",
            what=f"the report of enclave {report.enclave_id} does not verify",
            why="its MAC was not made by this CPU for this enclave",
            action="Target the report at this enclave, on this machine.",
        )


def report_key_request(key_id: bytes) -> KeyRequest:
    """Return the KEYREQUEST for the caller's own report key under a report's KEYID."""
    return KeyRequest(REPORT_KEY, key_id=key_id)


def seal_key_request(own: Report, key_id: bytes) -> KeyRequest:
    """Return the KEYREQUEST for a key that only this MRENCLAVE can get again.

    `own`: a report of the caller (for its CPUSVN and ISVSVN); `key_id`: 32 random bytes. All attribute and MISCSELECT
    bits are part of the key, so a debug enclave with the same MRENCLAVE gets another key. XFRM is not, because a kernel
    may enable a new state component between two starts.
    """
    return KeyRequest(
        SEAL_KEY,
        POLICY_MRENCLAVE,
        own.isvsvn,
        own.cpusvn,
        Attributes(0xFFFF_FFFF_FFFF_FFFF, 0),
        key_id,
        0xFFFF_FFFF,
    )
