"""Checks of the settings' values. Each check is an attrs validator and raises ValueError with the reason."""

import difflib
import re
import string
import zoneinfo
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from dcupgrade.machine.state import Name
from process_supervisor import container_template

Check = Callable[[Any, Any, Any], None]
WEEK_S = 7 * 86400
COMMAND_FIELDS = frozenset(
    {"python", "cpu_dir", "slot", "data_dir", "port", "vault_url", "enclave_id", "network_signature_file"}
) | {"first_install_flag"}
"""Names that `node.command` may contain in braces."""


def at_most(high: float) -> Check:
    """Require a number of at most `high`."""

    def check(_: Any, field: Any, value: Any) -> None:
        if value > high:
            raise ValueError(f"{value!r} is above {high}")

    return check


def at_least(low: float) -> Check:
    """Require a number of at least `low`, or no value."""

    def check(_: Any, field: Any, value: Any) -> None:
        if value is not None and value < low:
            raise ValueError(f"{value!r} is below {low}")

    return check


def port(_: Any, field: Any, value: int) -> None:
    """Require a TCP port."""
    if not 1 <= value <= 65535:
        raise ValueError(f"{value!r} is not a TCP port (1 to 65535)")


def urls(*schemes: str) -> Check:
    """Require a URL, or a list of URLs, with one of the schemes."""

    def check(_: Any, field: Any, value: Any) -> None:
        for url in (value,) if isinstance(value, str) else value:
            if not url.startswith(tuple(f"{scheme}://" for scheme in schemes)):
                raise ValueError(f"{url!r} is not a URL of {' or '.join(schemes)}")

    return check


def hosts(_: Any, field: Any, value: tuple[str, ...]) -> None:
    """Require names or addresses of hosts, as they stand in a URL: a scheme, port or path would match nothing."""
    for host in value:
        if not re.fullmatch(
            r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*", host
        ):
            raise ValueError(f"{host!r} is not the name or address of a host alone, without scheme, port and path")


def proxy(_: Any, field: Any, value: str) -> None:
    """Require a proxy's URL, `off`, or an empty text."""
    if value not in ("", "off") and not re.match(r"https?://[^/]", value):
        raise ValueError(f"{value!r} is neither a URL of http or https nor `off`")


def optional(check: Check) -> Check:
    """Apply `check` if there is a value."""

    def checked(instance: Any, field: Any, value: Any) -> None:
        if value is not None:
            check(instance, field, value)

    return checked


def not_empty(_: Any, field: Any, value: Any) -> None:
    """Require a value that is not empty."""
    if not value:
        raise ValueError("must not be empty")


def network_keys(_: Any, field: Any, value: tuple[str, ...]) -> None:
    """Require ed25519 keys that the vault accepts too."""
    from attestation.errors import AttestationError
    from attestation.network import NetworkKeys

    try:
        NetworkKeys.parse(value)
    except AttestationError as error:
        raise ValueError(str(error)) from error


def hex32(_: Any, field: Any, value: str | None) -> None:
    """Require 32 bytes in hex, or no value."""
    # with the prefix, as endpoints send it, because it is compared as text
    if value is not None and not re.fullmatch(r"0x[0-9a-f]{64}", value):
        raise ValueError(f"{value!r} is not 0x and 64 lower-case hexadecimal digits")


def listen(_: Any, field: Any, value: str) -> None:
    """Require an address to listen on, or `off`."""
    host, _colon, port = value.rpartition(":")
    if value != "off" and (not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535):
        raise ValueError(f"{value!r} is neither host:port nor `off`")


def loopback_url(_: Any, field: Any, value: str) -> None:
    """Require a loopback URL: this connection is not encrypted, so it must not leave the host."""
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if port is None or not (host in ("localhost", "::1") or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host)):
        raise ValueError(f"{value!r} is not http://127.0.0.1:PORT: agent and vault talk on loopback only")


def events(_: Any, field: Any, value: tuple[str, ...]) -> None:
    """Require names of events for webhooks."""
    known = [f"upgrade.{name.value}" for name in Name]
    for event in value:
        if event not in known:
            near = difflib.get_close_matches(event, known, 1)
            meant = f" (is {near[0]} meant?)" if near else f"; known are {', '.join(known)}"
            raise ValueError(f"{event!r} is not an event{meant}")


def fleet_name(_: Any, field: Any, value: str) -> None:
    """Require a name that can be part of etcd keys and of names of Kubernetes objects."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?", value):
        raise ValueError(f"{value!r} is not 1 to 42 of a-z, 0-9 and -, beginning and ending with a letter or digit")


def time_of_day(_: Any, field: Any, value: str) -> None:
    """Require a time of day, HH:MM."""
    if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", value):
        raise ValueError(f"{value!r} is not a time of day, HH:MM")


def zone(_: Any, field: Any, value: str) -> None:
    """Require an IANA time zone that this host knows."""
    try:
        zoneinfo.ZoneInfo(value)
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError(f"{value!r} is not an IANA time zone, such as Europe/Berlin") from None


def command(_: Any, field: Any, value: tuple[str, ...]) -> None:
    """Require arguments whose names in braces are in COMMAND_FIELDS."""
    for item in value:
        try:
            names = {name for _text, name, _form, _conversion in string.Formatter().parse(item) if name is not None}
        except ValueError as error:
            raise ValueError(f"{item!r}: {error}; a brace that is meant is written twice") from None
        if unknown := sorted(names - COMMAND_FIELDS):
            raise ValueError(
                f"{item!r} names {{{unknown[0]}}}, which is not one of {', '.join(sorted(COMMAND_FIELDS))}"
            )


def inner_path(_: Any, field: Any, value: str) -> None:
    """Require an absolute path in an image, or an empty text."""
    if value and (not value.startswith("/") or ".." in value.split("/")):
        raise ValueError(f"{value!r} is not an absolute path in the image")


def _each(parse: Callable[[str], object]) -> Check:
    def check(_: Any, field: Any, value: tuple[str, ...]) -> None:
        for item in value:
            parse(item)

    return check


container_mounts = _each(container_template.parse_mount)
container_devices = _each(container_template.parse_device)
container_ulimits = _each(container_template.parse_ulimit)
container_pairs = _each(container_template.parse_pair)
