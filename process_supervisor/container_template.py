"""What every version's container is made from, in the form of the engine's own API. Pure.

A template is the body of `POST /containers/create` without the image: what the operator, or whoever started the node
before us, has set. What an image brings (its command, environment, user, stop signal) is not in it, so that each
release brings its own.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

LABEL_PREFIX = "dcupgrade."
TEMPLATE_CHARS_MAX = 1024 * 1024
TMP_BYTES = 64 * 1024 * 1024
PIDS_MAX = 1024
#: Labels by which these would take the agent's container for one of theirs.
_ORCHESTRATORS = ("com.docker.compose.", "com.docker.stack.", "com.docker.swarm.", "io.kubernetes.")
#: Of `Config`: kept where they differ from the image's.
_PLAIN = ("User", "WorkingDir", "StopSignal", "StopTimeout", "Healthcheck", "Domainname", "Tty", "OpenStdin")
_SETS = ("Volumes", "ExposedPorts")
#: Of `HostConfig`: not the operator's choice, or ours.
_NOT_KEPT = ("RestartPolicy", "AutoRemove", "ContainerIDFile", "ConsoleSize", "Links")
#: An empty list is another wish than none.
_EMPTY_MEANS = ("MaskedPaths", "ReadonlyPaths")
_SHARED_STACKS = ("host", "container:")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerTemplate:
    """`name` of the container (empty: one made from the node's), top level of the body, and its `HostConfig`."""

    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)

    def body(self, image: str, labels: Mapping[str, str]) -> dict[str, Any]:
        """The body that makes a container of `image`; `labels` are ours.

        The agent decides on restarts: an engine that did so too would run two nodes on the same data.
        """
        host = {**self.host, "RestartPolicy": {"Name": "no"}}
        return {
            **self.config,
            "Image": image,
            "Labels": {**self.config.get("Labels", {}), **labels},
            "HostConfig": host,
        }

    def to_json(self) -> str:
        """The template as a file that a person can read and change."""
        return (
            json.dumps({"name": self.name, "config": self.config, "host": self.host}, indent=2, sort_keys=True) + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Decode what `to_json` wrote; raises ValueError."""
        if len(text) > TEMPLATE_CHARS_MAX:
            raise ValueError("it is too long")
        try:
            values = json.loads(text)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        kinds = {"name": str, "config": dict, "host": dict}
        if not isinstance(values, dict) or {key: type(value) for key, value in values.items()} != kinds:
            raise ValueError(f"it is not an object with {', '.join(kinds)}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a template. `propagation` is empty where the engine's default applies."""

    kind: str
    source: str
    target: str
    read_only: bool = False
    propagation: str = ""


def mounts_of(host: Mapping[str, Any]) -> list[Mount]:
    """Binds and named volumes of a `HostConfig`, in both of its forms."""
    found = []
    for text in host.get("Binds") or ():
        found.append(parse_mount(text))
    for item in host.get("Mounts") or ():
        kind = str(item.get("Type", ""))
        if kind in ("bind", "volume") and item.get("Source"):
            propagation = str((item.get("BindOptions") or {}).get("Propagation") or "")
            read_only = bool(item.get("ReadOnly"))
            found.append(Mount(kind, str(item["Source"]), str(item.get("Target", "")), read_only, propagation))
    return found


def devices_of(host: Mapping[str, Any]) -> list[str]:
    """Paths of the host's devices that a container gets."""
    return [str(item["PathOnHost"]) for item in host.get("Devices") or () if item.get("PathOnHost")]


# --- from a container that runs --------------------------------------------------------------------------------------


def template_of(shown: Mapping[str, Any], image: Mapping[str, Any]) -> ContainerTemplate:
    """The settings of a container as the engine shows it, minus what came from its image (the engine's answer too)."""
    config, own = shown["Config"], image.get("Config") or {}
    host_config = shown.get("HostConfig") or {}
    kept = {key: config[key] for key in _PLAIN if config.get(key) and config[key] != own.get(key)}
    kept |= _command(config, own)
    inherited = set(own.get("Env") or ())
    if env := [item for item in config.get("Env") or () if item not in inherited]:
        kept["Env"] = env
    if labels := _labels(config.get("Labels") or {}, own.get("Labels") or {}):
        kept["Labels"] = labels
    for key in _SETS:
        extra: dict[str, Any] = {name: {} for name in config.get(key) or {} if name not in (own.get(key) or {})}
        if extra:
            kept[key] = extra
    network = str(host_config.get("NetworkMode") or "")
    hostname = str(config.get("Hostname") or "")
    if hostname and not network.startswith(_SHARED_STACKS) and hostname != str(shown["Id"])[:12]:
        kept["Hostname"] = hostname
    if endpoints := _endpoints(shown, network):
        kept["NetworkingConfig"] = {"EndpointsConfig": endpoints}
    name = str(shown["Name"]).lstrip("/")
    return ContainerTemplate(name=name, config=kept, host=_host(shown, host_config))


def _command(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Entrypoint and command, where they are not the image's. An entrypoint of one's own drops the image's command."""
    entrypoint, command = config.get("Entrypoint"), config.get("Cmd")
    if entrypoint != own.get("Entrypoint"):
        return {"Entrypoint": entrypoint or [], "Cmd": command or []}
    return {"Cmd": command} if command and command != own.get("Cmd") else {}


def _labels(labels: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    strange = (LABEL_PREFIX, *_ORCHESTRATORS)
    return {key: value for key, value in labels.items() if own.get(key) != value and not key.startswith(strange)}


def _endpoints(shown: Mapping[str, Any], network: str) -> dict[str, Any]:
    """Addresses and aliases in networks of the operator's own."""
    if network in ("", "default", "bridge", "host", "none") or network.startswith("container:"):
        return {}
    found = {}
    for name, facts in ((shown.get("NetworkSettings") or {}).get("Networks") or {}).items():
        aliases = [item for item in facts.get("Aliases") or () if item != str(shown["Id"])[:12]]
        wanted = {"IPAMConfig": facts.get("IPAMConfig"), "Aliases": aliases}
        found[name] = {key: value for key, value in wanted.items() if value}
    return found


def _host(shown: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in host.items()
        if key not in _NOT_KEPT and (value or (key in _EMPTY_MEANS and value is not None))
    }
    # A volume without a name that the engine made for the image: the data in it must go with the node.
    there = {item.target.rstrip("/") for item in mounts_of(host)}
    nameless = [
        {"Type": "volume", "Source": item["Name"], "Target": item["Destination"], "ReadOnly": not item.get("RW", True)}
        for item in shown.get("Mounts") or ()
        if item.get("Type") == "volume" and item.get("Name") and str(item["Destination"]).rstrip("/") not in there
    ]
    return {**kept, "Mounts": [*kept.get("Mounts", ()), *nameless]} if nameless else kept


# --- from settings, in the forms of `docker run` ---------------------------------------------------------------------

_PROPAGATIONS = ("shared", "slave", "private", "rshared", "rslave", "rprivate")


def parse_mount(text: str) -> Mount:
    """`SOURCE:TARGET[:ro,PROPAGATION]`, as `docker run --volume`; raises ValueError."""
    source, _, rest = text.partition(":")
    target, _, options = rest.partition(":")
    if not source or not target.startswith("/"):
        raise ValueError(f"{text!r} is not SOURCE:TARGET[:OPTIONS] with an absolute TARGET")
    if source.startswith((".", "~")) or ("/" in source and not source.startswith("/")):
        raise ValueError(f"{text!r}: its source is neither an absolute path nor a volume's name")
    kind = "bind" if source.startswith("/") else "volume"
    read_only, propagation = False, ""
    for option in filter(None, options.split(",")):
        if option in _PROPAGATIONS and kind == "bind":
            propagation = option
        elif option in ("ro", "rw"):
            read_only = option == "ro"
        elif option not in ("z", "Z", "nocopy", "delegated", "cached", "consistent"):
            raise ValueError(f"{text!r}: {option!r} is neither ro, rw nor a propagation ({', '.join(_PROPAGATIONS)})")
    return Mount(kind, source, target, read_only, propagation)


def parse_device(text: str) -> dict[str, str]:
    """`HOST[:CONTAINER[:rwm]]`, as `docker run --device`; raises ValueError."""
    on_host, *rest = text.split(":")
    permissions = rest.pop() if rest and not rest[-1].startswith("/") else "rwm"
    inside = rest[0] if rest else on_host
    if len(rest) > 1 or not on_host.startswith("/") or not inside.startswith("/") or set(permissions) - set("rwm"):
        raise ValueError(f"{text!r} is not HOST[:CONTAINER[:rwm]] with absolute paths")
    return {"PathOnHost": on_host, "PathInContainer": inside, "CgroupPermissions": permissions}


def parse_ulimit(text: str) -> dict[str, Any]:
    """`NAME=SOFT[:HARD]`, -1 for none, as `docker run --ulimit`; raises ValueError."""
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    try:
        return {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}
    except ValueError:
        raise ValueError(f"{text!r} is not NAME=SOFT[:HARD]") from None


def parse_pair(text: str) -> tuple[str, str]:
    """`NAME=VALUE`; raises ValueError."""
    name, found, value = text.partition("=")
    if not name or not found:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    return name, value


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOptions:
    """What a template is made from where nobody's container shows it; texts as `docker run` takes them.

    Empty means the image's own, or the engine's default. `confined`: no capabilities but those named, no new
    privileges, no core dumps, a bounded number of processes. `read_only_root` comes with a /tmp in memory.
    """

    name: str = ""
    network: str = "host"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    mounts: tuple[Mount, ...] = ()
    devices: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    read_only_root: bool = False
    confined: bool = False
    labels: tuple[str, ...] = ()
    ulimits: tuple[str, ...] = ()
    log_driver: str = "json-file"
    log_options: tuple[str, ...] = ()
    stop_signal: str = ""

    def template(self) -> ContainerTemplate:
        """The template; raises ValueError for a text that `docker run` would refuse too."""
        config: dict[str, Any] = {
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "Env": list(self.environment),
            "User": self.user,
            "WorkingDir": self.working_dir,
            "StopSignal": self.stop_signal,
            "Labels": dict(map(parse_pair, self.labels)),
        }
        host: dict[str, Any] = {
            "NetworkMode": self.network,
            "Mounts": [_mount_body(item) for item in self.mounts],
            "Devices": [parse_device(item) for item in self.devices],
            "CapAdd": list(self.capabilities),
            "CapDrop": ["ALL"] if self.confined else [],
            "SecurityOpt": ["no-new-privileges"] if self.confined else [],
            "ReadonlyRootfs": self.read_only_root,
            "Tmpfs": {"/tmp": f"rw,nosuid,nodev,size={TMP_BYTES}"} if self.read_only_root else {},  # noqa: S108  (its own)
            "PidsLimit": PIDS_MAX if self.confined else 0,
            "Ulimits": self._ulimits(),
            "LogConfig": {"Type": self.log_driver, "Config": dict(map(parse_pair, self.log_options))},
        }
        return ContainerTemplate(name=self.name, config=_set(config), host=_set(host))

    def _ulimits(self) -> list[dict[str, Any]]:
        limits = [parse_ulimit(item) for item in self.ulimits]
        if self.confined and not any(item["Name"] == "core" for item in limits):
            limits.append({"Name": "core", "Soft": 0, "Hard": 0})
        return limits


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}


def _mount_body(mount: Mount) -> dict[str, Any]:
    # `Mounts`, unlike `Binds`, refuses a source that is not there instead of making an empty folder of root's.
    body = {"Type": mount.kind, "Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}
    return {**body, "BindOptions": {"Propagation": mount.propagation}} if mount.propagation else body


# --- what the next release changes -----------------------------------------------------------------------------------


def differences(
    shown: Mapping[str, Any], template: ContainerTemplate, image: Mapping[str, Any], reference: str
) -> list[str]:
    """One line for each setting of the running container `shown` that a container of the new `image` has otherwise."""
    now, own = shown["Config"], image.get("Config") or {}
    lines = [] if shown["Image"] == image["Id"] else [f"Image: {now.get('Image', '')} -> {reference}"]
    entrypoint = template.config.get("Entrypoint") or own.get("Entrypoint")
    command = template.config.get("Cmd") or (None if template.config.get("Entrypoint") else own.get("Cmd"))
    then: dict[str, Any] = {"Entrypoint": entrypoint, "Cmd": command}
    then |= {key: template.config.get(key) or own.get(key) for key in _PLAIN}
    lines += [
        f"{key}: {_short(now.get(key))} -> {_short(value)}"
        for key, value in then.items()
        if (now.get(key) or None) != (value or None)
    ]
    env = _merged_env(own.get("Env") or (), template.config.get("Env") or ())
    lines += _changed("Env", now.get("Env") or (), env)
    volumes = [*(template.config.get("Volumes") or {}), *(own.get("Volumes") or {})]
    return lines + _changed("Volumes", now.get("Volumes") or (), volumes)


def _merged_env(of_image: Iterable[str], of_template: Iterable[str]) -> list[str]:
    merged = {item.partition("=")[0]: item for item in (*of_image, *of_template)}
    return list(merged.values())


def _changed(what: str, now: Iterable[str], then: Iterable[str]) -> list[str]:
    before, after = set(now), set(then)
    lines = [f"{what}: without {item}" for item in sorted(before - after)]
    return lines + [f"{what}: with {item}" for item in sorted(after - before)]


def _short(value: Any) -> str:
    if value in (None, "", [], {}):
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
