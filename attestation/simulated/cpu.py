"""The instructions of a software CPU: EINIT, EREPORT and EGETKEY over values. Pure; protects nothing by itself.

Keys derive as in Intel's simulation mode (intel/linux-sgx sdk/simulation/tinst: deriv.h, deriv.cpp,
t_instructions.cpp), so that with Intel's published constants the keys equal Intel's. An installed CPU generates its own
root keys. EINIT is as strict as the instruction (SDM 3D, EINIT), unlike Intel's simulation, which verifies nothing.
"""

import struct
from dataclasses import dataclass, field

from attestation.artefact.sigstruct import SigStruct
from attestation.errors import AttestationError
from attestation.sgx import (
    DEBUG,
    EGETKEY_INVALID_ATTRIBUTE,
    EGETKEY_INVALID_CPUSVN,
    EGETKEY_INVALID_ISVSVN,
    EGETKEY_INVALID_KEYNAME,
    EINITTOKEN_KEY,
    INIT,
    KSS,
    MISC_EXINFO,
    MODE64BIT,
    POLICY_CONFIGID,
    POLICY_ISVEXTPRODID,
    POLICY_ISVFAMILYID,
    POLICY_KSS,
    POLICY_MRENCLAVE,
    POLICY_MRSIGNER,
    POLICY_NOISVPRODID,
    PROVISION_KEY,
    PROVISION_SEAL_KEY,
    REPORT_KEY,
    SEAL_KEY,
    XFRM_KNOWN,
    Attributes,
    KeyRequest,
    Report,
    TargetInfo,
    cmac,
    flag_text,
    need_bytes,
    need_ints,
    report_mac,
    xfrm_possible,
)

# CPUSVN names in Intel's simulation (rts_sim.h), oldest first: names of a level, not secrets.
CPUSVN_LEVELS = (
    bytes.fromhex("64ea4f3fa0030c36383c322d4f3a8d4f"),  # DOWNGRADED
    bytes.fromhex("4820f3376ae6b2f2034d3b7a4b48a778"),  # DEFAULT
    bytes.fromhex("5339ae8c93ae8f3ce432db924d0f0733"),  # UPGRADED
)
CPUSVN_DEFAULT = 1

_REPORT_DERIVATION = struct.Struct("<H6x16sI16s32s16sH64s32s2x")
_SEAL_DERIVATION = struct.Struct("<HH4x16s16sII16s16sHHH64s16s16s32s32s32s2x")


@dataclass(frozen=True, slots=True, repr=False)
class RootKeys:
    """The secrets of one CPU: root keys and OWNEREPOCH (16 bytes each), and the KEYID of its reports (32 bytes)."""

    seal: bytes
    report: bytes
    owner_epoch: bytes
    report_key_id: bytes
    cpusvn_level: int = CPUSVN_DEFAULT

    def __post_init__(self) -> None:
        need_bytes(
            "ROOT KEYS",
            seal=(self.seal, 16),
            report=(self.report, 16),
            owner_epoch=(self.owner_epoch, 16),
            report_key_id=(self.report_key_id, 32),
        )
        if self.cpusvn_level not in range(len(CPUSVN_LEVELS)):
            raise AttestationError(
                code="CPU_SETTING_INVALID",
                what="the CPUSVN level cannot be used",
                why=f"it is not one of 0 to {len(CPUSVN_LEVELS) - 1}",
            )

    def __repr__(self) -> str:
        return f"RootKeys(cpusvn_level={self.cpusvn_level})"


@dataclass(frozen=True, slots=True)
class Secs:
    """The identity of one initialised enclave. The CPU keeps it, so that a program cannot change its own."""

    mrenclave: bytes
    mrsigner: bytes
    attributes: Attributes
    miscselect: int = 0
    cet_attributes: int = 0
    isvprodid: int = 0
    isvsvn: int = 0
    configid: bytes = bytes(64)
    configsvn: int = 0
    isvfamilyid: bytes = bytes(16)
    isvextprodid: bytes = bytes(16)

    def __post_init__(self) -> None:
        need_bytes(
            "SECS",
            mrenclave=(self.mrenclave, 32),
            mrsigner=(self.mrsigner, 32),
            configid=(self.configid, 64),
            isvfamilyid=(self.isvfamilyid, 16),
            isvextprodid=(self.isvextprodid, 16),
        )
        need_ints(
            "SECS",
            miscselect=(self.miscselect, 32),
            cet_attributes=(self.cet_attributes, 8),
            isvprodid=(self.isvprodid, 16),
            isvsvn=(self.isvsvn, 16),
            configsvn=(self.configsvn, 16),
        )

    def target_info(self) -> TargetInfo:
        """Return the TARGETINFO of this enclave."""
        return TargetInfo(
            self.mrenclave, self.attributes, self.miscselect, self.cet_attributes, self.configsvn, self.configid
        )


class KeyRefusedError(Exception):
    """EGETKEY ended with an error code (see `attestation.sgx.EGETKEY_*`)."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(code)


@dataclass(frozen=True, slots=True)
class SoftwareCpu:
    """One CPU: enclaves with the same root keys can attest to each other, and to no others."""

    root: RootKeys = field(repr=False)

    @property
    def cpusvn(self) -> bytes:
        """The CPUSVN of this CPU (16 bytes)."""
        return CPUSVN_LEVELS[self.root.cpusvn_level]

    def ereport(self, secs: Secs, target: TargetInfo, report_data: bytes) -> Report:
        """Make the caller's REPORT for `target` over 64 bytes of REPORTDATA."""
        bare = Report(
            self.cpusvn,
            secs.attributes,
            secs.mrenclave,
            secs.mrsigner,
            report_data,
            secs.miscselect,
            secs.cet_attributes,
            secs.isvextprodid,
            secs.configid,
            secs.isvprodid,
            secs.isvsvn,
            secs.configsvn,
            secs.isvfamilyid,
            self.root.report_key_id,
        )
        mac = report_mac(self._report_key(target, bare.key_id), bare)
        return Report.decode(bare.encode()[:416] + mac)

    def egetkey(self, secs: Secs, request: KeyRequest) -> bytes:
        """Return the 16-byte key that `request` names for the caller.

        Raises `KeyRefusedError` with EGETKEY's code, and SGX_FIELD_INVALID if the instruction would fault.
        """
        if not secs.attributes.flags & KSS and (request.key_policy & POLICY_KSS or request.configsvn):
            raise AttestationError(
                code="SGX_FIELD_INVALID",
                what="no key was derived",
                why="KEYREQUEST asks for KSS fields, which this enclave has not",
            )
        if request.key_name == REPORT_KEY:
            return self._report_key(secs.target_info(), request.key_id)
        if request.key_name == SEAL_KEY:
            return self._seal_key(secs, request)
        if request.key_name in (EINITTOKEN_KEY, PROVISION_KEY, PROVISION_SEAL_KEY):
            # EINIT grants no enclave the attributes that these keys need.
            raise KeyRefusedError(EGETKEY_INVALID_ATTRIBUTE)
        raise KeyRefusedError(EGETKEY_INVALID_KEYNAME)

    def _report_key(self, target: TargetInfo, key_id: bytes) -> bytes:
        derivation = _REPORT_DERIVATION.pack(
            REPORT_KEY, target.attributes.encode(), target.miscselect, self.root.owner_epoch, target.mrenclave,
            self.cpusvn, target.configsvn, target.configid, key_id,
        )  # fmt: skip
        return cmac(self.root.report, derivation)

    def _seal_key(self, secs: Secs, request: KeyRequest) -> bytes:
        policy = request.key_policy
        if request.isvsvn > secs.isvsvn:
            raise KeyRefusedError(EGETKEY_INVALID_ISVSVN)
        if request.configsvn > secs.configsvn:
            raise KeyRefusedError(EGETKEY_INVALID_ISVSVN)
        cpusvn = request.cpusvn if any(request.cpusvn) else CPUSVN_LEVELS[CPUSVN_DEFAULT]
        if cpusvn not in CPUSVN_LEVELS[: self.root.cpusvn_level + 1]:
            raise KeyRefusedError(EGETKEY_INVALID_CPUSVN)
        mask = request.attribute_mask
        derivation = _SEAL_DERIVATION.pack(
            SEAL_KEY,
            policy,
            (secs.attributes & Attributes(mask.flags | INIT | DEBUG, mask.xfrm)).encode(),
            mask.encode(),
            secs.miscselect & request.misc_mask,
            ~request.misc_mask & 0xFFFF_FFFF,
            self.root.owner_epoch,
            cpusvn,
            request.isvsvn,
            0 if policy & POLICY_NOISVPRODID else secs.isvprodid,
            request.configsvn if policy & POLICY_CONFIGID else 0,
            secs.configid if policy & POLICY_CONFIGID else b"",
            secs.isvfamilyid if policy & POLICY_ISVFAMILYID else b"",
            secs.isvextprodid if policy & POLICY_ISVEXTPRODID else b"",
            secs.mrenclave if policy & POLICY_MRENCLAVE else b"",
            secs.mrsigner if policy & POLICY_MRSIGNER else b"",
            request.key_id,
        )
        return cmac(self.root.seal, derivation)


def _forbidden(sigstruct: SigStruct, code: str, why: str, expected: str, found: str) -> AttestationError:
    return AttestationError(
        code=code,
        what=f"the enclave {sigstruct.enclave_id} was not initialised",
        why=f"{why} (expected {expected}, found {found})",
        expected=expected,
        found=found,
    )


def einit(sigstruct: SigStruct, measured: bytes, attributes: Attributes, miscselect: int = 0) -> Secs:
    """Initialise an enclave: verify its SIGSTRUCT against measurement and attributes, and return its identity.

    `measured`: the 32-byte MRENCLAVE of the loaded image; `attributes`: those given to ECREATE (without INIT).
    Raises SIGSTRUCT_SIGNATURE_BAD, SIGSTRUCT_MRENCLAVE_MISMATCH, EINIT_ATTRIBUTES, EINIT_FORBIDDEN.
    """
    sigstruct.verify()
    sigstruct.need_mrenclave(measured)
    flags = attributes.flags
    if flags & INIT or not flags & MODE64BIT or not xfrm_possible(attributes.xfrm) or miscselect & ~MISC_EXINFO:
        raise _forbidden(
            sigstruct, "EINIT_ATTRIBUTES", "ECREATE takes no such ATTRIBUTES or MISCSELECT",
            f"MODE64BIT without INIT, an XFRM that XSETBV takes within {XFRM_KNOWN:#x}, MISCSELECT at most 1",
            f"{flag_text(flags)}, XFRM {attributes.xfrm:#x}, MISCSELECT {miscselect:#x}",
        )  # fmt: skip
    if flags & ~(DEBUG | MODE64BIT | KSS):
        raise _forbidden(
            sigstruct, "EINIT_FORBIDDEN", "this CPU never grants these attributes",
            flag_text(DEBUG | MODE64BIT | KSS), flag_text(flags),
        )  # fmt: skip
    mask, wanted = sigstruct.attribute_mask, sigstruct.attributes
    if attributes & mask != wanted & mask:
        raise _forbidden(
            sigstruct, "EINIT_ATTRIBUTES", "SIGSTRUCT.ATTRIBUTES under its mask are others",
            f"{flag_text((wanted & mask).flags)}, XFRM {(wanted & mask).xfrm:#x}",
            f"{flag_text((attributes & mask).flags)}, XFRM {(attributes & mask).xfrm:#x}",
        )  # fmt: skip
    if miscselect & sigstruct.miscmask != sigstruct.miscselect & sigstruct.miscmask:
        raise _forbidden(
            sigstruct, "EINIT_ATTRIBUTES", "SIGSTRUCT.MISCSELECT under its mask is another",
            hex(sigstruct.miscselect & sigstruct.miscmask), hex(miscselect & sigstruct.miscmask),
        )  # fmt: skip
    if not flags & KSS and (any(sigstruct.isvfamilyid) or any(sigstruct.isvextprodid)):
        raise _forbidden(
            sigstruct, "EINIT_ATTRIBUTES", "family and extended product ids need KSS", "zeros", "other bytes"
        )
    if sigstruct.cet_attributes & sigstruct.cet_mask:
        raise _forbidden(sigstruct, "EINIT_ATTRIBUTES", "this CPU has no CET", "0", hex(sigstruct.cet_attributes))
    return Secs(
        measured,
        sigstruct.mrsigner,
        Attributes(flags | INIT, attributes.xfrm),
        miscselect,
        isvprodid=sigstruct.isvprodid,
        isvsvn=sigstruct.isvsvn,
        isvfamilyid=sigstruct.isvfamilyid,
        isvextprodid=sigstruct.isvextprodid,
    )
