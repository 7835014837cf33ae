"""HTTP to other hosts: through the right proxy, with the URL sent unchanged, and only to allowed addresses."""

import base64
import errno
import ipaddress
import socket
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

import aiohttp
import yarl

from .errors import ProcessSupervisorError
from .limits import DownloadLimits
from .proxies import Proxies, is_public, is_this_machine, literal_address

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_URL_BYTES = "".join(map(chr, range(0x21, 0x7F)))


class AddressRefusedError(OSError):
    """A connection to an address that is not public; it was refused before it was opened."""

    def __init__(self) -> None:
        # The text is the same for each address, so that the client raises this error if all of them are refused.
        super().__init__(errno.EACCES, "it leads to a private, loopback or link-local address")


def _public_socket(address: Any) -> socket.socket:
    """Make the socket for a connection; called after DNS, with the address that will be connected to."""
    family, kind, protocol, _, sockaddr = address
    if not is_public(ipaddress.ip_address(str(sockaddr[0]).partition("%")[0])):
        raise AddressRefusedError
    return socket.socket(family, kind, protocol)


class Outbound:
    """A client for hosts that the chain or others name. Use it as a context manager."""

    def __init__(self, proxies: Proxies | None = None) -> None:
        self._proxies = proxies or Proxies()
        self._any = _session(aiohttp.TCPConnector())
        self._public = _session(aiohttp.TCPConnector(socket_factory=_public_socket))

    async def __aenter__(self) -> "Outbound":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._any.close()
        await self._public.close()

    async def request(
        self, method: str, url: str, *, public_only: bool = False, **options: Any
    ) -> aiohttp.ClientResponse:
        """Make one request without following redirects; the caller releases the response.

        With `public_only`, raises AddressRefusedError for an address that is not public. A proxy resolves names itself,
        so behind one only addresses that the URL spells out can be refused. Raises aiohttp.ClientError, OSError.
        """
        proxy = self._proxies.proxy_for(url)
        session = self._public if public_only else self._any
        if proxy is not None:
            host = unquote(urlsplit(url).hostname or "")  # as the proxy may read it
            address = literal_address(host)
            if public_only and (is_this_machine(host) or (address is not None and not is_public(address))):
                raise AddressRefusedError
            session = self._any  # the connection goes to the proxy, which the operator configured
            bare, credentials = _split_credentials(proxy)
            options["proxy"] = bare
            if url.startswith("https:"):
                options["proxy_headers"] = credentials  # for CONNECT only; the request itself goes through the tunnel
            else:
                options["headers"] = {**options.get("headers", {}), **credentials}
        try:
            # encoded=True: the URL from the chain or the Location header is sent unchanged.
            return await session.request(method, yarl.URL(url, encoded=True), allow_redirects=False, **options)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefusedError):
                raise error.os_error from error
            raise
        except ValueError as error:  # a proxy that the client cannot speak with, such as SOCKS; a host that is none
            raise aiohttp.ClientConnectionError(f"{proxy or url}: {error}") from error

    async def get(
        self, url: str, headers: dict[str, str], limits: DownloadLimits, *, own: bool = False
    ) -> aiohttp.ClientResponse:
        """GET with redirects followed by hand: only to http(s), never from https to http, a bounded number of times.

        Each of them is judged anew by its own host. With `own`, `url` is at a gateway that the settings name: its host
        and names below it may have private addresses (Kubo sends on from `localhost` to `<CID>.ipfs.localhost`).
        Raises DOWNLOAD_REDIRECT_REFUSED, DOWNLOAD_ADDRESS_REFUSED, aiohttp.ClientError, OSError.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s_max, sock_read=limits.idle_s_max)
        gateway = urlsplit(url).hostname if own else None
        secure, current = False, url
        for _ in range(limits.redirects_max + 1):
            scheme = urlsplit(current).scheme
            if scheme not in ("http", "https") or (secure and scheme != "https"):
                raise _redirect_refused(url, f"it leads to {current[:200]}")
            secure = secure or scheme == "https"
            public_only = not limits.private_addresses and not _is_named(current, limits.own_hosts, gateway)
            try:
                response = await self.request("GET", current, public_only=public_only, headers=headers, timeout=timeout)
            except AddressRefusedError as error:
                raise _address_refused(url, f"{current[:200]}: {error.strerror}") from error
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None:
                return response
            response.release()
            try:
                current = _target(current, location)
            except ValueError as error:
                raise _redirect_refused(url, f"it leads to {location[:200]!r}: {error}") from error
        raise _redirect_refused(url, f"more than {limits.redirects_max} redirects")


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "dcupgrade"},
    )


def _is_named(url: str, own_hosts: frozenset[str], gateway: str | None) -> bool:
    """Whether the settings name the host of `url`, or it is that of the gateway which was asked."""
    host = urlsplit(url).hostname or ""
    return host in own_hosts or (gateway is not None and (host == gateway or host.endswith(f".{gateway}")))


def _target(base: str, location: str) -> str:
    """Return a redirect's target; only bytes invalid in URLs are escaped. Raises ValueError if it is no URL."""
    text = quote(location.strip().encode("utf-8", "surrogateescape"), safe=_URL_BYTES)
    if not urlsplit(text).scheme:
        text = urljoin(base, text)
    parts = urlsplit(text)
    parts.port  # noqa: B018  (raises ValueError when it is not a port)
    return text.partition("#")[0]


def _split_credentials(proxy: str) -> tuple[str, dict[str, str]]:
    """A proxy's URL without user and password, and the header that carries those."""
    parts = urlsplit(proxy)
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))
    if parts.username is None:
        return bare, {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return bare, {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _redirect_refused(url: str, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="DOWNLOAD_REDIRECT_REFUSED",
        what=f"download of {url}",
        why=why,
        action="It is tried again; if it stays so, publish a URL that leads to the archive",
    )


def _address_refused(url: str, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="DOWNLOAD_ADDRESS_REFUSED",
        what=f"download of {url}",
        why=why,
        action="If that mirror is yours, name its host in download.early_hosts, or set download.private_addresses",
    )
