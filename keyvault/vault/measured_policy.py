"""The vault's measured policy: a JSON file in its image, and so part of its enclave id.

Settings from the host can only make it stricter (`tighten`). docs/protocol.md and the README list the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from attestation.errors import AttestationError
from attestation.network import NetworkKeys
from keyvault.errors import KeyvaultError
from keyvault.handover.messages import is_hex_id, strict_json

from .chain_state import trust_root
from .decisions import Rules

FILE_NAME: Final = "vault_policy.json"
POLICY_BYTES_MAX: Final = 256 * 1024
MODES: Final = ("proven", "quorum", "single")
_YEARS_10_S: Final = 10 * 366 * 24 * 3600


@dataclass(frozen=True)
class VaultPolicy:
    """The measured policy. Times in seconds; `genesis_hash` 64 hex characters.

    `evidence_mode`: weakest accepted mode of chain evidence ("quorum" and "single" are only the agent's claim and need
    `unsafe_unproven_evidence`). `checkpoint`: pinned block and GRANDPA set for the mode "proven".
    `layouts`: SHA-256 hashes of the storage layouts accepted in that mode; empty: the standard layouts.
    `allow_v1`: enclave ids with which handover v1 is allowed, True for all.
    """

    network: NetworkKeys
    genesis_hash: str
    evidence_mode: str = "proven"
    checkpoint: Mapping[str, Any] | None = None
    layouts: tuple[str, ...] = ()
    unsafe_unproven_evidence: bool = False
    unsafe_simulated_tee: bool = False
    require_listed_vault: bool = True
    isvsvn_floor: int = 0
    permit_ttl_s: int = 3600
    retention_s: int = 7 * 24 * 3600
    evidence_age_max_s: int = 3600
    instances_max: int = 8
    allow_v1: bool | frozenset[str] = False
    transitions: frozenset[tuple[str, str]] | None = None

    def rules(self, vault_id: str) -> Rules:
        """Return the part of the policy that `keyvault.vault.decisions` uses."""
        modes = MODES[: MODES.index(self.evidence_mode) + 1] if self.unsafe_unproven_evidence else ("proven",)
        floor = self.checkpoint["block_number"] if self.checkpoint is not None else 0
        return Rules(
            genesis_hash=self.genesis_hash,
            vault_id=vault_id,
            evidence_modes=frozenset(modes),
            require_listed_vault=self.require_listed_vault,
            evidence_age_max_s=self.evidence_age_max_s,
            permit_ttl_s=self.permit_ttl_s,
            retention_s=self.retention_s,
            instances_max=self.instances_max,
            floor_number=floor,
            transitions=self.transitions,
        )

    def v1_allowed(self, enclave_id: str) -> bool:
        """Tell whether handover v1 is allowed with this enclave."""
        return self.allow_v1 if isinstance(self.allow_v1, bool) else enclave_id in self.allow_v1

    def unsafe(self) -> tuple[str, ...]:
        """Return the names of the unsafe switches that are on; they are shown wherever a person reads."""
        switches = {
            "unsafe_unproven_evidence": self.unsafe_unproven_evidence,
            "unsafe_simulated_tee": self.unsafe_simulated_tee,
        }
        return tuple(name for name, on in switches.items() if on)


class _Mistakes(Exception):  # noqa: N818 - carries one mistake to the list; stays in this module
    pass


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Mistakes("is neither true nor false")
    return value


def _number(low: int, high: int) -> Callable[[object], int]:
    def decode(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _Mistakes(f"is not a number from {low} to {high}")
        return value

    return decode


def _hash(value: object) -> str:
    text = value.removeprefix("0x") if isinstance(value, str) else value
    if not isinstance(text, str) or not is_hex_id(text):
        raise _Mistakes("is not a 32-byte hash in lower-case hex")
    return text


def _ids(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(is_hex_id(item) for item in value):
        raise _Mistakes("is not a list of 64-character lower-case hex values")
    return tuple(value)


def _mode(value: object) -> str:
    if not isinstance(value, str) or value not in MODES:
        raise _Mistakes(f"is none of {', '.join(MODES)}")
    return value


def _allow_v1(value: object) -> bool | frozenset[str]:
    return value if isinstance(value, bool) else frozenset(_ids(value))


def _transitions(value: object) -> frozenset[tuple[str, str]] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise _Mistakes("is not a list of [source id, target id] pairs")
    return frozenset((source, target) for source, target in (_ids(pair) for pair in value))


def _checkpoint(value: object) -> Mapping[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise _Mistakes("is neither null nor an object")
    return value


_DECODERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "genesis_hash": _hash,
    "evidence_mode": _mode,
    "checkpoint": _checkpoint,
    "layouts": _ids,
    "unsafe_unproven_evidence": _flag,
    "unsafe_simulated_tee": _flag,
    "require_listed_vault": _flag,
    "isvsvn_floor": _number(0, 65535),
    "permit_ttl_s": _number(1, 7 * 24 * 3600),
    "retention_s": _number(0, _YEARS_10_S),
    "evidence_age_max_s": _number(1, 30 * 24 * 3600),
    "instances_max": _number(1, 1000),
    "allow_v1": _allow_v1,
    "transitions": _transitions,
}
_REQUIRED: Final = ("network_keys", "genesis_hash", "evidence_mode")


def _invalid(mistakes: list[str]) -> KeyvaultError:
    return KeyvaultError(
        code="VAULT_POLICY_INVALID",
        what=f"the vault's policy has {len(mistakes)} mistake(s)",
        why="; ".join(mistakes),
        action="Fix the policy file and build the vault again.",
    )


def parse_policy(data: bytes) -> VaultPolicy:
    """Decode a policy file strictly: unknown fields are refused, and all mistakes are reported together.

    Raises `VAULT_POLICY_INVALID`.
    """
    try:
        value = strict_json(data, POLICY_BYTES_MAX, "vault policy")
    except KeyvaultError as error:
        raise _invalid([error.why]) from None
    known = {*_DECODERS, "network_keys", "threshold"}
    mistakes = [f"{name} is not a field of the policy" for name in sorted(value.keys() - known)]
    mistakes += [f"{name} is missing" for name in _REQUIRED if name not in value]
    decoded: dict[str, Any] = {}
    for name, decoder in _DECODERS.items():
        if name in value:
            try:
                decoded[name] = decoder(value[name])
            except _Mistakes as mistake:
                mistakes.append(f"{name} {mistake}")
    if "network_keys" in value:
        try:
            keys = value["network_keys"]
            if not isinstance(keys, list):
                raise _Mistakes("is not a list")
            decoded["network"] = NetworkKeys.parse(keys, value.get("threshold", 1))
        except (AttestationError, _Mistakes) as mistake:
            mistakes.append(f"network_keys: {getattr(mistake, 'why', mistake)}")
    mistakes += _contradictions(decoded)
    if mistakes:
        raise _invalid(mistakes)
    return VaultPolicy(**decoded)


def _contradictions(decoded: Mapping[str, Any]) -> list[str]:
    found = []
    mode = decoded.get("evidence_mode", "proven")
    if mode != "proven" and not decoded.get("unsafe_unproven_evidence", False):
        found.append(f"evidence_mode {mode} needs unsafe_unproven_evidence = true: it is only the agent's claim")
    checkpoint = decoded.get("checkpoint")
    if mode == "proven" and checkpoint is None and "evidence_mode" in decoded:
        found.append("evidence_mode proven needs a checkpoint")
    if checkpoint is not None and "genesis_hash" in decoded:
        try:
            trust_root(decoded["genesis_hash"], checkpoint, ())
        except KeyvaultError as error:
            found.append(f"checkpoint: {error.why}")
    return found


#: For each setting that a host may give: tells whether the new value is at least as strict as the measured one.
_TIGHTER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "evidence_mode": lambda new, old: MODES.index(new) <= MODES.index(old),
    "require_listed_vault": lambda new, old: new or not old,
    "isvsvn_floor": lambda new, old: new >= old,
    "permit_ttl_s": lambda new, old: new <= old,
    "retention_s": lambda new, old: new >= old,
    "evidence_age_max_s": lambda new, old: new <= old,
    "instances_max": lambda new, old: new <= old,
    "allow_v1": lambda new, old: old is True or new is False or (new is not True and old is not False and new <= old),
    "transitions": lambda new, old: new is not None and (old is None or new <= old),
    "unsafe_unproven_evidence": lambda new, old: old or not new,
    "unsafe_simulated_tee": lambda new, old: old or not new,
}


def tighten(policy: VaultPolicy, data: bytes) -> VaultPolicy:
    """Return the policy with the host's settings applied (a JSON object with some of the policy's fields).

    Raises `VAULT_SETTING_LOOSENS` if a setting is weaker than the measured value or may not come from the host, and
    `VAULT_POLICY_INVALID` if a setting is malformed.
    """
    try:
        value = strict_json(data, POLICY_BYTES_MAX, "host settings")
    except KeyvaultError as error:
        raise _invalid([error.why]) from None
    decoded: dict[str, Any] = {}
    for name, given in value.items():
        if name not in _TIGHTER:
            raise _loosens(name, "only the measured policy may contain it")
        try:
            decoded[name] = _DECODERS[name](given)
        except _Mistakes as mistake:
            raise _invalid([f"{name} {mistake}"]) from None
        if not _TIGHTER[name](decoded[name], getattr(policy, name)):
            raise _loosens(name, f"{given!r} is weaker than the measured value")
    return replace(policy, **decoded)


def _loosens(name: str, why: str) -> KeyvaultError:
    return KeyvaultError(
        code="VAULT_SETTING_LOOSENS",
        what=f"the host's setting {name} was refused",
        why=why,
        action="Build a vault with another measured policy; it has another enclave id and needs its own signature.",
    )
