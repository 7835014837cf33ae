"""Which registries an engine may be told to ask: none at a private address unless the settings say so."""

import asyncio
import contextlib
import ipaddress
import socket

from .errors import ProcessSupervisorError
from .limits import DownloadLimits
from .proxies import is_public, is_this_machine, literal_address
from .registry_credentials import DOCKER_HUB, registry_of


async def require_registry_allowed(repository: str, limits: DownloadLimits) -> None:
    """Raise DOWNLOAD_ADDRESS_REFUSED if the registry of `repository` is at an address that is not public.

    With `private_addresses`, or for a host of `own_hosts`, any address is allowed. A name is resolved as this host
    resolves it; the engine resolves it again by itself. A name that is unknown here is left to the engine, which may
    have a proxy. The engine's own registry, of names without a host, is the operator's choice.
    """
    registry = registry_of(repository)
    if registry == DOCKER_HUB or limits.private_addresses:
        return
    host = (registry[1:].partition("]")[0] if registry.startswith("[") else registry.partition(":")[0]).lower()
    if host in limits.own_hosts:
        return
    found = [str(address)] if (address := literal_address(host)) is not None else await _addresses(host, limits)
    private = [text for text in found if not is_public(ipaddress.ip_address(text.partition("%")[0]))]
    if private or is_this_machine(host):
        raise ProcessSupervisorError(
            code="DOWNLOAD_ADDRESS_REFUSED",
            what=f"pull of {repository}",
            why=f"registry {registry} is at a private, loopback or link-local address ({', '.join(private) or host})",
            action="If that registry is yours, name its host in download.early_hosts, or set "
            "download.private_addresses",
        )


async def _addresses(host: str, limits: DownloadLimits) -> list[str]:
    """Return the addresses of a name; none if it cannot be resolved here."""
    with contextlib.suppress(OSError, UnicodeError, TimeoutError):
        async with asyncio.timeout(limits.connect_s_max):
            rows = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
            return sorted({str(row[4][0]) for row in rows})
    return []
