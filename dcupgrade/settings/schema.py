"""Settings: one TOML file, environment overrides, every mistake reported at once.

The classes below are the reference: each field carries its meaning, and `dcupgrade config example` and
docs/configuration.md are generated from them. Units stand in the names. What the key vault enforces (network keys,
genesis hash, evidence) is part of the vault's own measurement: the values here can only tighten it.
"""

from pathlib import Path
from typing import Any, Literal

import attrs

from . import checks
from .checks import Check

DEFAULT_NODE_COMMAND: tuple[str, ...] = (
    "{python}", "-P", "-m", "attestation.simulated", "run", "--cpu", "{cpu_dir}", "--image", "{slot}/enclave.pyz",
    "--sigstruct", "{slot}/enclave.sig", "--", "--data", "{data_dir}", "--port", "{port}", "--upgrader", "{vault_url}",
    "--network-signature-file", "{slot}/network.sig", "{first_install_flag}",
)  # fmt: skip


def _doc(text: str, *wanted: Check, default: Any = attrs.NOTHING) -> Any:
    return attrs.field(
        default=default, validator=attrs.validators.and_(*wanted) if wanted else None, metadata={"doc": text}
    )


@attrs.frozen(kw_only=True)
class AgentSettings:
    """Where the agent keeps its journal, slots and logs, and how it speaks."""

    state_dir: Path = _doc("Folder for journal, slots, logs and tokens; created with mode 0700.")
    http_listen: str = _doc(
        "Address of the status page, API and metrics; `off` to serve none.", checks.listen, default="127.0.0.1:6680"
    )
    log_format: Literal["human", "json"] = _doc("Form of the log lines on standard error.", default="human")
    log_level: Literal["debug", "info", "warning", "error"] = _doc("Least severe level that is logged.", default="info")
    allowed_hosts: tuple[str, ...] = _doc("Further Host headers the status page answers to.", default=())


@attrs.frozen(kw_only=True)
class ChainSettings:
    """Which chain is watched, through which endpoints, and what is believed."""

    endpoints: tuple[str, ...] = _doc(
        "WebSocket URLs of nodes of the chain, best first.", checks.not_empty, checks.urls("ws", "wss")
    )
    network_keys: tuple[str, ...] = _doc(
        "The DC network's ed25519 public keys, multibase base32 or hex.", checks.not_empty, checks.network_keys
    )
    threshold: int = _doc("How many of the network keys must have signed an enclave id.", checks.at_least(1), default=1)
    genesis_hash: str | None = _doc(
        "Genesis hash; an endpoint with another one is refused.", checks.hex32, default=None
    )
    finality: Literal["proven", "quorum", "single"] = _doc(
        "`proven`: GRANDPA justifications are verified; `quorum`: endpoints must agree; "
        "`single`: one endpoint is believed (unsafe).",
        default="proven",
    )
    quorum: int = _doc("How many endpoints must agree in mode `quorum`.", checks.at_least(2), default=2)
    checkpoint_file: Path | None = _doc(
        "Checkpoint (JSON of `chain checkpoint`) pinned for mode `proven`.", default=None
    )
    unsafe_unproven_reads: bool = _doc(
        "Accept values without a storage proof (development chains only).", default=False
    )
    layout_hashes: tuple[str, ...] = _doc(
        "Storage layouts (SHA-256 of their JSON) that mode `proven` accepts; none: the public pallet's two.", default=()
    )
    ca_file: Path | None = _doc("CA certificates that alone are accepted for wss endpoints.", default=None)
    heartbeat_s: float = _doc("WebSocket heartbeat, seconds.", checks.at_least(0.1), default=10.0)
    block_watchdog_s: float = _doc(
        "Seconds without a finalized block before the next endpoint is used.", checks.at_least(1), default=60.0
    )


@attrs.frozen(kw_only=True)
class NodeSettings:
    """The node that is run and upgraded."""

    id: str = _doc("Name of this node in the fleet; decides its turn.", checks.not_empty)
    driver: Literal["process", "container"] = _doc("How nodes are run.", default="process")
    data_dir: Path = _doc("Folder with the node's data; handed to every version.")
    port: int = _doc("Loopback port the node listens on.", checks.port, default=6667)
    protocol: Literal["v2", "v1"] = _doc("Handover protocol spoken with nodes.", default="v2")
    command: tuple[str, ...] = _doc(
        "Arguments that start a node; {python} {cpu_dir} {slot} {data_dir} {port} {vault_url} {enclave_id} "
        "{network_signature_file} {first_install_flag} "
        "are filled in, arguments that become empty are dropped. With containers it may be empty: each release's image "
        "then runs by its own command, or by `container.entrypoint`.",
        checks.command,
        default=DEFAULT_NODE_COMMAND,
    )
    ready_deadline_s: float = _doc(
        "A started node must serve within so many seconds.", checks.at_least(0.1), default=120.0
    )
    stop_grace_s: float = _doc("Seconds between TERM and KILL.", checks.at_least(0), default=30.0)
    probation_s: float = _doc("A new version must stay healthy for so many seconds.", checks.at_least(0), default=300.0)
    probe_interval_s: float = _doc("Seconds between health probes.", checks.at_least(0.01), default=2.0)
    canary_url: str | None = _doc(
        "Probe that proves old data readable, for nodes that speak v1.",
        checks.optional(checks.urls("http", "https")),
        default=None,
    )


@attrs.frozen(kw_only=True)
class ContainerSettings:
    """Nodes as containers, in `docker run`'s forms. What `adopt` stored of a container replaces all from `name` on."""

    engine: str = _doc("Docker Engine API.", default="unix:///var/run/docker.sock")
    registry_config: Path | None = _doc(
        "Credentials of registries, as `docker login` writes them; not set: those of the agent's user.", default=None
    )
    identity: Literal["measured", "sigstruct", "attested"] = _doc(
        "Weakest proof of an image's enclave id before the node is stopped for it. `measured`: its files in /release "
        "are measured; `sigstruct`: the signed enclave in it names that id; `attested`: nothing is proven before the "
        "new node attests itself to the vault.",
        default="measured",
    )
    signed_enclave: str = _doc(
        "Path in the image of the signed enclave (Open Enclave or EGo binary, Gramine .sig).",
        checks.inner_path,
        default="",
    )
    image: str = _doc("Image that runs releases which come as archives.", default="")
    cpu_volume: str = _doc("Volume or folder that holds the simulated CPU.", default="")
    name: str = _doc("Name of the container, whichever version runs; empty: made from `node.id`.", default="")
    network: str = _doc("Network mode.", default="host")
    entrypoint: tuple[str, ...] = _doc("Program; empty: the image's own.", default=())
    command: tuple[str, ...] = _doc("Arguments; empty: the image's own.", default=())
    environment: tuple[str, ...] = _doc("NAME=VALUE, over the image's own.", checks.container_pairs, default=())
    user: str = _doc(
        "User, `uid:gid` or a name; empty: the image's own, or with `node.command` the agent's own.", default=""
    )
    mounts: tuple[str, ...] = _doc(
        "SOURCE:TARGET[:ro,shared,…]: folders of the host, or volumes by name.", checks.container_mounts, default=()
    )
    devices: tuple[str, ...] = _doc("HOST[:CONTAINER[:rwm]].", checks.container_devices, default=())
    capabilities: tuple[str, ...] = _doc("Capabilities to add.", default=())
    confined: bool = _doc(
        "No capabilities but those named, no new privileges, no core dumps, at most 1,024 processes.", default=True
    )
    read_only_root: bool = _doc("Read-only root file system, with a /tmp in memory.", default=True)
    labels: tuple[str, ...] = _doc("NAME=VALUE.", checks.container_pairs, default=())
    ulimits: tuple[str, ...] = _doc("NAME=SOFT[:HARD].", checks.container_ulimits, default=())
    log_driver: str = _doc(
        "Log driver; `json-file` without options rotates as the agent's own logs do.", default="json-file"
    )
    log_options: tuple[str, ...] = _doc("NAME=VALUE, as `max-size=100m`.", checks.container_pairs, default=())
    stop_signal: str = _doc("Signal that stops the node; empty: the image's own.", default="")


@attrs.frozen(kw_only=True)
class VaultSettings:
    """The key vault, which alone decides who gets keys."""

    url: str = _doc(
        "Where the vault listens, on loopback.",
        checks.urls("http"),
        checks.loopback_url,
        default="http://127.0.0.1:6666",
    )
    start: bool = _doc("Start and supervise the vault; false: it is a service of its own.", default=True)
    image: Path | None = _doc("Measured vault image, for `start`.", default=None)
    sigstruct: Path | None = _doc("SIGSTRUCT of that image.", default=None)
    auth_file: Path | None = _doc("Network signature over the vault's enclave id, multibase text.", default=None)
    store_dir: Path | None = _doc("Folder of the sealed store; default `<state_dir>/vault`.", default=None)
    token_file: Path | None = _doc(
        "Token shared by agent and vault; default `<state_dir>/vault.token`, drawn if absent.", default=None
    )
    cpu_dir: Path | None = _doc("Folder of the simulated CPU (development); default `<state_dir>/cpu`.", default=None)
    command: tuple[str, ...] = _doc("Arguments that start the vault; empty: `python -m keyvault serve`.", default=())
    unsafe_simulated_tee: bool = _doc("Allow a vault whose TEE is simulated (development only).", default=False)


@attrs.frozen(kw_only=True)
class Window:
    """A weekly maintenance window in local time of its zone."""

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = _doc(
        "Days on which it opens.", checks.not_empty
    )
    start: str = _doc("Opening time, HH:MM.", checks.time_of_day)
    duration_s: int = _doc(
        "How long it stays open, seconds; at most a week.", checks.at_least(60), checks.at_most(checks.WEEK_S)
    )
    zone: str = _doc("IANA time zone.", checks.zone, default="UTC")


@attrs.frozen(kw_only=True)
class UpgradeSettings:
    """When an upgrade may begin, how often it is tried, what is kept."""

    approval: bool = _doc("Wait for `dcupgrade approve` before stopping the node.", default=False)
    windows: tuple[Window, ...] = _doc("Maintenance windows; none: always open.", default=())
    stagger_s: float = _doc(
        "This node's turn falls at its own point within so many seconds after a release.",
        checks.at_least(0),
        default=0.0,
    )
    attempts: int = _doc(
        "Attempts to download or collect before a release is abandoned.", checks.at_least(1), default=5
    )
    backoff_s: float = _doc(
        "First pause between attempts, seconds; doubles up to `backoff_max_s`.", checks.at_least(0), default=2.0
    )
    backoff_max_s: float = _doc("Longest pause between attempts, seconds.", checks.at_least(0), default=300.0)
    failure_budget: int = _doc("Failed upgrades to a release before it is quarantined.", checks.at_least(1), default=1)
    delivery_deadline_s: float = _doc(
        "The new node must have confirmed the keys within so many seconds.", checks.at_least(1), default=120.0
    )
    retention_s: float = _doc(
        "Seconds to keep the previous version after commit.", checks.at_least(0), default=1209600.0
    )
    remove_previous: bool = _doc(
        "Remove the files of versions that cannot be gone back to any more; false keeps those of every version.",
        default=True,
    )
    free_space_min_bytes: int = _doc(
        "Free space that must remain before an upgrade, bytes.", checks.at_least(0), default=268435456
    )


@attrs.frozen(kw_only=True)
class DownloadSettings:
    """Limits of downloads."""

    prefer: Literal["origin", "mirror"] = _doc("Which of a release's two addresses is tried first.", default="origin")

    size_max_bytes: int = _doc("Largest artefact, bytes.", checks.at_least(1), default=2147483648)
    unpacked_max_bytes: int = _doc("Largest unpacked artefact, bytes.", checks.at_least(1), default=8589934592)
    stall_s: float = _doc("Seconds without data before the next source is used.", checks.at_least(0.1), default=30.0)
    slow_bytes_per_s: int = _doc(
        "While a source gives less, the next one is asked beside it; bytes per second.",
        checks.at_least(1),
        default=32768,
    )
    proxy: str = _doc(
        "Proxy for downloads, webhooks and the chain, a URL; `off`: none; empty: HTTPS_PROXY and HTTP_PROXY of the "
        "environment. NO_PROXY applies in each case, and loopback is never reached through a proxy.",
        checks.proxy,
        default="",
    )
    private_addresses: bool = _doc(
        "Fetch from private, loopback and link-local addresses, also where a release, a redirect or the registry of an "
        "image leads there. Hosts of `early_hosts` may always have such addresses; those of `ipfs_gateways` only for "
        "what is asked of the gateway.",
        default=False,
    )
    early_hosts: tuple[str, ...] = _doc(
        "Hosts that are asked for a release before its block is final, beside those that final releases name.",
        checks.hosts,
        default=(),
    )
    ipfs_gateways: tuple[str, ...] = _doc(
        "Gateways for CIDs; {cid} is filled in.", checks.urls("http", "https"), default=()
    )


@attrs.frozen(kw_only=True)
class FleetSettings:
    """The fleet this node belongs to: how many may upgrade at once is decided by an engine that exists."""

    engine: Literal["none", "etcd", "kubernetes"] = _doc("Who counts the upgrades of the fleet.", default="none")
    name: str = _doc("Name of the fleet within the engine.", checks.fleet_name, default="dcupgrade")
    reverts_max: int = _doc(
        "Once so many nodes went back from a release, no other node begins it.", checks.at_least(1), default=2
    )
    endpoints: tuple[str, ...] = _doc(
        "etcd's client URLs, or the Kubernetes API server's (default: the pod's own).",
        checks.urls("http", "https"),
        default=(),
    )
    ca_file: Path | None = _doc("CA certificates of the engine.", default=None)
    cert_file: Path | None = _doc("Client certificate for etcd.", default=None)
    key_file: Path | None = _doc("Its key.", default=None)
    user: str = _doc("etcd's user; empty: no authentication.", default="")
    password_file: Path | None = _doc("File with that user's password.", default=None)
    namespace: str = _doc("Namespace of the Leases (engine `kubernetes`).", default="dcupgrade")
    token_file: Path | None = _doc("Bearer token for `kubernetes`; default: the pod's service account.", default=None)


@attrs.frozen(kw_only=True)
class WebhookSettings:
    """One receiver of events."""

    url: str = _doc("Where events are posted.", checks.urls("http", "https"))
    secret_file: Path | None = _doc("Key of the HMAC-SHA-256 signature over the body.", default=None)
    events: tuple[str, ...] = _doc(
        "Names of events sent (`upgrade.` and a state); empty: all.", checks.events, default=()
    )


@attrs.frozen(kw_only=True)
class Settings:
    """All settings of the agent."""

    agent: AgentSettings
    chain: ChainSettings
    node: NodeSettings
    container: ContainerSettings = attrs.field(factory=ContainerSettings)
    vault: VaultSettings = attrs.field(factory=VaultSettings)
    upgrade: UpgradeSettings = attrs.field(factory=UpgradeSettings)
    download: DownloadSettings = attrs.field(factory=DownloadSettings)
    fleet: FleetSettings = attrs.field(factory=FleetSettings)
    webhooks: tuple[WebhookSettings, ...] = ()

    @property
    def store_dir(self) -> Path:
        """Folder of the vault's sealed store."""
        return self.vault.store_dir or self.agent.state_dir / "vault"

    @property
    def token_file(self) -> Path:
        """File of the token that agent and vault share."""
        return self.vault.token_file or self.agent.state_dir / "vault.token"

    @property
    def cpu_dir(self) -> Path:
        """Folder of the simulated CPU."""
        return self.vault.cpu_dir or self.agent.state_dir / "cpu"
