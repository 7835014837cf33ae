"""What `dcupgrade config example --profile` fills in: complete examples for hosts of a kind, and vault policies.

A value that nobody can know beforehand is a placeholder: its comment says where the right one comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

GENESIS_PLACEHOLDER: Final = "0x" + "0" * 64
MAIN_NET_KEY: Final = "bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"
#: Nobody has its private half: it is the hash of nothing.
KEY_PLACEHOLDER: Final = "b4oymiquy7qobjgx36tejs35zeqt24qpemsnzgtfeswmrw6csxbkq"
PINNED: Final = "from `dcupgrade chain checkpoint`, compared with what others see"

Values = Mapping[str, tuple[Any, str]]
"""Keys of one table with their value, and what is to be known of it (or an empty text)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of host: what it is, its settings by table, and the fields of its vault's policy."""

    about: str
    settings: Mapping[str, Values]
    policy: Mapping[str, Any]


def _chain(keys: str, why: str) -> Values:
    return {
        "endpoints": (["ws://127.0.0.1:9944"], "the chain's node beside it; name others of your trust too"),
        "network_keys": ([keys], why),
        "genesis_hash": (GENESIS_PLACEHOLDER, PINNED),
        "checkpoint_file": ("/etc/dcupgrade/checkpoint.json", PINNED),
    }


_VAULT_SERVICE: Final[Values] = {
    "start": (False, "dcupgrade-vault.service"),
    "token_file": ("/etc/dcupgrade/vault.token", "the same text as settings/token of the vault"),
}
#: Every field of a policy at its default, so that a sample shows what there is. No vault is built from placeholders.
_POLICY: Final[Mapping[str, Any]] = {
    "network_keys": ["b…"],
    "threshold": 1,
    "genesis_hash": "0x…",
    "evidence_mode": "proven",
    "checkpoint": None,
    "layouts": [],
    "unsafe_unproven_evidence": False,
    "unsafe_simulated_tee": False,
    "require_listed_vault": True,
    "isvsvn_floor": 0,
    "permit_ttl_s": 3600,
    "retention_s": 604800,
    "evidence_age_max_s": 3600,
    "instances_max": 8,
    "allow_v1": False,
    "transitions": None,
}

PROFILES: Final[Mapping[str, Profile]] = {
    "dcnet-container": Profile(
        "A node of the field: container `dcstorage` of the DC network, which speaks handover v1. The vault runs under "
        "Gramine as a service of its own.",
        {
            "agent": {"state_dir": ("/var/lib/dcupgrade", "")},
            "chain": _chain(MAIN_NET_KEY, "the DC main net's"),
            "node": {
                "id": ("node-1", "another one on each host"),
                "driver": ("container", ""),
                "data_dir": ("/opt/dcnetio/disks", ""),
                "protocol": ("v1", "nodes of the field speak nothing newer"),
                "command": ([], "the image runs by its own command, or by container.entrypoint"),
                "ready_deadline_s": (300.0, "large disks are looked through before a node answers"),
                "stop_grace_s": (120.0, ""),
            },
            "container": {
                "identity": ("sigstruct", "`attested` proves nothing before the old node is stopped"),
                "signed_enclave": (
                    "/usr/bin/dcstorage",
                    "docker run --rm --entrypoint sh IMAGE -c 'command -v dcstorage'; while it is wrong, nothing is "
                    "stopped",
                ),
                "name": ("dcstorage", "from here on: what `adopt --container dcstorage` stores replaces it"),
                "entrypoint": (["dcstorage"], "`dcstorage_native` where the CPU has no SGX2"),
                "mounts": (
                    [
                        "dcstorage:/opt/dcnetio/data",
                        "/opt/dcnetio/disks:/opt/dcnetio/disks:shared",
                        "/opt/dcnetio/etc:/opt/dcnetio/etc",
                    ],
                    "",
                ),
                "devices": (["/dev/sgx_enclave:/dev/sgx/enclave:rwm", "/dev/sgx_provision:/dev/sgx/provision:rwm"], ""),
                "confined": (False, "as the field's manager runs it"),
                "read_only_root": (False, ""),
                "log_options": (["max-size=100m", "max-file=3"], ""),
            },
            "vault": _VAULT_SERVICE,
            "upgrade": {"stagger_s": (86400.0, "the manager slept up to a day, so that not all hosts restart at once")},
            "download": {
                "prefer": ("origin", "`mirror` where the manager's registry was `cn`"),
                "ipfs_gateways": (["https://ipfs.io"], "need not be trusted: what they give is verified"),
            },
        },
        {**_POLICY, "network_keys": [MAIN_NET_KEY], "require_listed_vault": False, "allow_v1": True},
    ),
    "gramine-process": Profile(
        "A node that speaks handover v2, as a process of the host. Vault and node run under Gramine.",
        {
            "agent": {"state_dir": ("/var/lib/dcupgrade", "")},
            "chain": _chain(KEY_PLACEHOLDER, "a placeholder: your network's"),
            "node": {
                "id": ("node-1", "another one on each host"),
                "data_dir": ("/srv/dcnode", ""),
                "command": (
                    [
                        *("/opt/dcnode/start-in-gramine", "{slot}", "--data", "{data_dir}", "--port", "{port}"),
                        *("--upgrader", "{vault_url}", "--network-signature-file", "{slot}/network.sig"),
                        "{first_install_flag}",
                    ],
                    "of your node's publisher: it starts what lies in the slot by gramine-sgx",
                ),
            },
            "vault": _VAULT_SERVICE,
        },
        _POLICY,
    ),
    "reference": Profile(
        "Development: the reference node and a vault that the agent starts, both in a simulated TEE; one endpoint is "
        "believed without proofs.",
        {
            "agent": {"state_dir": ("/var/lib/dcupgrade", "")},
            "chain": {
                "endpoints": (["ws://127.0.0.1:9944"], "`python -m devnet up` starts one and prints its own"),
                "network_keys": ([KEY_PLACEHOLDER], "a placeholder: your network's"),
                "finality": ("single", "a development chain gives no proofs"),
                "unsafe_unproven_reads": (True, ""),
            },
            "node": {
                "id": ("node-1", ""),
                "data_dir": ("/srv/dcnode", ""),
                "probation_s": (10.0, ""),
            },
            "vault": {
                "image": ("/etc/dcupgrade/vault/vault.pyz", "all three by `keyvault build`"),
                "sigstruct": ("/etc/dcupgrade/vault/vault.sig", ""),
                "auth_file": ("/etc/dcupgrade/vault/vault.auth", ""),
                "unsafe_simulated_tee": (True, "its keys protect nothing from this host"),
            },
        },
        {
            **_POLICY,
            "evidence_mode": "single",
            "unsafe_unproven_evidence": True,
            "unsafe_simulated_tee": True,
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Pinned:
    """What replaces placeholders: network keys, and what `dcupgrade chain checkpoint` printed."""

    network_keys: tuple[str, ...] = ()
    checkpoint: Mapping[str, Any] | None = None


def filled_settings(name: str, pinned: Pinned) -> dict[str, dict[str, tuple[Any, str]]]:
    """The settings of a profile by table, placeholders replaced where the right values are given."""
    tables = {table: dict(values) for table, values in PROFILES[name].settings.items()}
    chain = tables["chain"]
    if pinned.network_keys:
        chain["network_keys"] = (list(pinned.network_keys), "")
    if pinned.checkpoint is not None and "genesis_hash" in pinned.checkpoint:
        chain["genesis_hash"] = (pinned.checkpoint["genesis_hash"], PINNED)
    return tables


def filled_policy(name: str, pinned: Pinned) -> dict[str, Any]:
    """The `policy.json` of a profile's vault, with every field, placeholders replaced as in the settings."""
    policy = dict(PROFILES[name].policy)
    if pinned.network_keys:
        policy["network_keys"] = list(pinned.network_keys)
    if pinned.checkpoint is not None:
        policy["genesis_hash"] = pinned.checkpoint.get("genesis_hash", policy["genesis_hash"])
        if policy["evidence_mode"] == "proven":
            policy["checkpoint"] = dict(pinned.checkpoint)
    return policy
