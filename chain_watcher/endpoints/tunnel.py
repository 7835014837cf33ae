"""Connections through an HTTP proxy, by CONNECT for ws:// as for wss:// (RFC 6455, 4.1).

aiohttp tunnels TLS only; a plain websocket would reach the proxy as an ordinary request, which few proxies pass on.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import aiohttp

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.tracing import Trace

HEAD_BYTES_MAX: Final = 16 * 1024

#: Gives the HTTP proxy for a URL, or None. An endpoint's URL is written with http:// for ws:// and https:// for wss://.
ProxyFor = Callable[[str], str | None]


def no_proxy(_url: str) -> str | None:
    """Connect directly."""
    return None


def proxy_of(url: str, proxy_for: ProxyFor) -> str | None:
    """Return the proxy for an endpoint; None also for a URL that cannot be read, which is refused when it is opened."""
    try:
        return proxy_for("http" + url.removeprefix("ws"))
    except ValueError:
        return None


class TunnelConnector(aiohttp.BaseConnector):
    """Opens every connection through the HTTP proxy at `proxy` (http:// or https://, credentials in the URL)."""

    allowed_protocol_schema_set = frozenset({"ws", "wss", "http", "https", ""})

    def __init__(self, proxy: str) -> None:
        super().__init__(force_close=True)
        self._proxy = urlsplit(proxy)

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> ResponseHandler:
        """Connect to the proxy, ask for a tunnel, and hand the transport to aiohttp's protocol."""
        loop = asyncio.get_running_loop()
        proxy, host, port = self._proxy, req.url.host or "", req.url.port or 0
        tls = proxy.scheme == "https"
        try:
            reader, writer = await asyncio.open_connection(
                proxy.hostname, proxy.port or (443 if tls else 80), ssl=tls or None, limit=HEAD_BYTES_MAX
            )
        except OSError as problem:
            raise aiohttp.ClientConnectionError(f"proxy {proxy.hostname}: {problem}") from problem
        try:
            await self._ask_for_tunnel(reader, writer, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            protocol = self._factory()
            if req.is_ssl():
                context = req.ssl if isinstance(req.ssl, ssl.SSLContext) else ssl.create_default_context()
                secured = await loop.start_tls(writer.transport, protocol, context, server_hostname=host)
                if secured is None:
                    raise aiohttp.ClientConnectionError(f"{host}: the connection ended during the TLS handshake")
                protocol.connection_made(secured)
            else:
                writer.transport.set_protocol(protocol)
                protocol.connection_made(writer.transport)
        except BaseException:
            writer.transport.abort()
            raise
        return protocol

    async def _ask_for_tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
        head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
        if self._proxy.username is not None:
            user = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
            head += f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}\r\n"
        writer.write(f"{head}\r\n".encode())
        try:
            answer = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as problem:
            raise aiohttp.ClientConnectionError(f"proxy {self._proxy.hostname}: no answer to CONNECT") from problem
        status = answer.split(b" ", 2)[1:2]
        if status != [b"200"]:
            line = answer.split(b"\r\n", 1)[0][:80].decode("latin-1")
            raise aiohttp.ClientConnectionError(f"proxy {self._proxy.hostname} refused the tunnel to {target}: {line}")
