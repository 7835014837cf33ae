"""Whether to accept a peer, from its report and the network's signatures over its enclave id. Pure.

The caller verifies the report's MAC first (`TeeDriver.verify`); without it the fields prove nothing. Every refusal has
its own code and contains the expected and the found value; log it once.
"""

import enum
from collections.abc import Iterable, Set
from dataclasses import dataclass

from .errors import AttestationError
from .network import NetworkKeys, need_enclave_id
from .sgx import AEXNOTIFY, DEBUG, INIT, KSS, MISC_EXINFO, MODE64BIT, XFRM_KNOWN, XFRM_LEGACY, Report, flag_text


class Role(enum.Enum):
    """The peer's role in a handover, and the code that refuses a peer without it."""

    TARGET = "PEER_NOT_TARGET"
    SOURCE = "PEER_NOT_SOURCE"
    UPGRADER = "PEER_NOT_UPGRADER"


@dataclass(frozen=True, slots=True)
class Policy:
    """Requirements for a peer's report. The defaults are the strictest that a Gramine enclave meets.

    `flags_allowed` and `xfrm_allowed` limit ATTRIBUTES; DEBUG is always refused; `flags_required` must be set.
    `configids`: accepted CONFIGIDs (zeros: the enclave was given none). `configsvn_floor` and `isvsvn_floor`: lower
    bounds. `isvprodid`: None accepts any. ISVPRODID and ISVSVN are only the signer's claims, because a host can sign
    the same enclave with its own key: they order honest builds, but only MRENCLAVE identifies one.
    `transitions`: if given, keys may go only between these (source id, target id) pairs.
    """

    network: NetworkKeys
    isvsvn_floor: int = 0
    isvprodid: int | None = None
    flags_required: int = INIT | MODE64BIT
    flags_allowed: int = INIT | MODE64BIT | KSS | AEXNOTIFY
    xfrm_allowed: int = XFRM_KNOWN
    miscselect_allowed: int = MISC_EXINFO
    cet_attributes_allowed: int = 0
    configids: frozenset[bytes] = frozenset({bytes(64)})
    configsvn_floor: int = 0
    transitions: frozenset[tuple[str, str]] | None = None

    def __post_init__(self) -> None:
        why = None
        if self.flags_required & ~self.flags_allowed:
            why = "it requires attributes that it does not allow"
        elif self.flags_allowed & DEBUG:
            why = "it allows DEBUG, which lets the host read the enclave"
        elif not self.flags_required & INIT:
            why = "it does not require INIT"
        elif not 0 <= self.isvsvn_floor < 1 << 16 or not 0 <= self.configsvn_floor < 1 << 16:
            why = "a floor is no 16-bit number"
        elif not self.configids or any(len(configid) != 64 for configid in self.configids):
            why = "its CONFIGIDs are not one or more values of 64 bytes"
        if why is not None:
            raise AttestationError(code="POLICY_INVALID", what="an acceptance policy cannot be used", why=why)
        for pair in self.transitions or ():
            for enclave_id in pair:
                need_enclave_id(enclave_id)

    def need_transition(self, source: str, target: str) -> None:
        """Raise TRANSITION_FORBIDDEN unless keys may go from enclave id `source` to `target`."""
        if self.transitions is not None and (source, target) not in self.transitions:
            allowed = sorted(to for origin, to in self.transitions if origin == source)
            raise _refusal(
                "TRANSITION_FORBIDDEN", target, "the policy names other targets for this source",
                expected=f"{source} to {' or '.join(allowed) or 'nothing'}", found=f"{source} to {target}",
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class AcceptedPeer:
    """A peer that an acceptance policy accepted; made by `accept` only. `signed_by`: indexes of network keys."""

    role: Role
    enclave_id: str
    report: Report
    signed_by: frozenset[int]


def _refusal(code: str, enclave_id: str, why: str, *, expected: str, found: str) -> AttestationError:
    return AttestationError(
        code=code,
        what=f"enclave {enclave_id} is refused",
        why=f"{why} (expected {expected}, found {found})",
        action="Do not give it keys; find out who started it.",
        expected=expected,
        found=found,
    )


def _need_attributes(policy: Policy, report: Report) -> None:
    flags, xfrm, peer = report.attributes.flags, report.attributes.xfrm, report.enclave_id
    found = flag_text(flags)
    if flags & DEBUG:
        raise _refusal("PEER_DEBUG", peer, "its host can read its memory", expected="no DEBUG", found=found)
    if not flags & INIT:
        raise _refusal("PEER_NOT_INIT", peer, "it was never initialised", expected="INIT", found=found)
    missing, extra = policy.flags_required & ~flags, flags & ~policy.flags_allowed
    if missing:
        raise _refusal(
            "PEER_ATTRIBUTES", peer, f"it lacks {flag_text(missing)}",
            expected=flag_text(policy.flags_required), found=found,
        )  # fmt: skip
    if extra:
        raise _refusal(
            "PEER_ATTRIBUTES", peer, f"it has {flag_text(extra)}",
            expected=f"at most {flag_text(policy.flags_allowed)}", found=found,
        )  # fmt: skip
    if xfrm & ~policy.xfrm_allowed or xfrm & XFRM_LEGACY != XFRM_LEGACY:
        raise _refusal(
            "PEER_XFRM", peer, "it uses other processor state",
            expected=f"{XFRM_LEGACY:#x} and at most {policy.xfrm_allowed:#x}", found=hex(xfrm),
        )  # fmt: skip


def _need_identity(policy: Policy, report: Report) -> None:
    peer = report.enclave_id
    if report.miscselect & ~policy.miscselect_allowed:
        raise _refusal(
            "PEER_MISCSELECT", peer, "its MISCSELECT has more bits",
            expected=f"at most {policy.miscselect_allowed:#x}", found=hex(report.miscselect),
        )  # fmt: skip
    if report.cet_attributes & ~policy.cet_attributes_allowed:
        raise _refusal(
            "PEER_CET_ATTRIBUTES", peer, "its CET attributes have more bits",
            expected=f"at most {policy.cet_attributes_allowed:#x}", found=hex(report.cet_attributes),
        )  # fmt: skip
    if report.configid not in policy.configids:
        raise _refusal(
            "PEER_CONFIG", peer, "its host gave it another CONFIGID",
            expected=" or ".join(sorted(configid.hex() for configid in policy.configids)),
            found=report.configid.hex(),
        )  # fmt: skip
    if report.configsvn < policy.configsvn_floor:
        raise _refusal(
            "PEER_CONFIG", peer, "its CONFIGSVN is too low",
            expected=f"at least {policy.configsvn_floor}", found=str(report.configsvn),
        )  # fmt: skip
    if policy.isvprodid is not None and report.isvprodid != policy.isvprodid:
        raise _refusal(
            "PEER_ISVPRODID", peer, "it is another product",
            expected=str(policy.isvprodid), found=str(report.isvprodid),
        )  # fmt: skip
    if report.isvsvn < policy.isvsvn_floor:
        raise _refusal(
            "PEER_ISVSVN_TOO_LOW", peer, "its security version is too old",
            expected=f"at least {policy.isvsvn_floor}", found=str(report.isvsvn),
        )  # fmt: skip


def accept(
    policy: Policy,
    report: Report,
    signatures: Iterable[bytes],
    *,
    role: Role,
    expected: Set[str] | None,
) -> AcceptedPeer:
    """Accept the enclave that made a report whose MAC was verified, or raise the code of the first failed rule.

    `signatures`: claimed network signatures over its enclave id. `expected`: enclave ids that may have `role`. It is
    required for TARGET and SOURCE, because a network signature names no role. For UPGRADER (seen by a node), None
    accepts any enclave that the network signed.
    """
    if expected is None and role is not Role.UPGRADER:
        raise AttestationError(
            code="POLICY_INVALID",
            what="no peer was accepted",
            why=f"no enclave id is given for the {role.name.lower()}",
        )
    _need_attributes(policy, report)
    _need_identity(policy, report)
    if expected is not None and report.enclave_id not in expected:
        raise _refusal(
            role.value, report.enclave_id, f"it is not the expected {role.name.lower()}",
            expected=" or ".join(sorted(expected)) or "nobody", found=report.enclave_id,
        )  # fmt: skip
    signed_by = policy.network.verify(report.enclave_id, signatures)
    return AcceptedPeer(role, report.enclave_id, report, signed_by)
