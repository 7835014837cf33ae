"""Connections through an HTTP proxy, by CONNECT for both ws:// and wss:// (RFC 6455, 4.1).

aiohttp itself tunnels only TLS. It would send a plain websocket to the proxy as an ordinary request, and few proxies
forward that.
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

#: Returns the HTTP proxy for a URL, or None. The URL has http:// in place of ws://, and https:// in place of wss://.
ProxyFor = Callable[[str], str | None]


def no_proxy(_url: str) -> str | None:
    """Connect directly."""
    return None


def proxy_of(url: str, proxy_for: ProxyFor) -> str | None:
    """Return the proxy for an endpoint, or None. An invalid URL also gives None; opening it later raises the error."""
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
            transport, answer = await loop.create_connection(
                _ProxyAnswer, proxy.hostname or "", proxy.port or (443 if tls else 80), ssl=tls or None
            )
        except OSError as problem:
            raise aiohttp.ClientConnectionError(f"proxy {proxy.hostname}: {problem}") from problem
        try:
            await self._ask_for_tunnel(transport, answer, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            protocol = self._factory()
            tunnel: asyncio.BaseTransport | None = transport
            if req.is_ssl():
                context = req.ssl if isinstance(req.ssl, ssl.SSLContext) else ssl.create_default_context()
                try:
                    tunnel = await loop.start_tls(transport, protocol, context, server_hostname=host)
                except ssl.SSLCertVerificationError as problem:  # as aiohttp does for a direct connection
                    raise aiohttp.ClientConnectorCertificateError(req.connection_key, problem) from problem
            else:
                transport.set_protocol(protocol)
            if tunnel is None:
                raise aiohttp.ClientConnectionError(f"{host}: the connection ended during the TLS handshake")
            protocol.connection_made(tunnel)
        except BaseException:
            transport.abort()
            raise
        return protocol

    async def _ask_for_tunnel(self, transport: asyncio.Transport, answer: _ProxyAnswer, target: str) -> None:
        head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
        if self._proxy.username is not None:
            user = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
            head += f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}\r\n"
        transport.write(f"{head}\r\n".encode())
        line = await answer.first_line
        if line.split(b" ", 2)[1:2] != [b"200"]:
            text = line[:80].decode("latin-1") or "no answer"
            raise aiohttp.ClientConnectionError(f"proxy {self._proxy.hostname} refused the tunnel to {target}: {text}")


class _ProxyAnswer(asyncio.Protocol):
    """Receives the proxy's answer to CONNECT. No bytes of the tunnel can follow it before we send some."""

    def __init__(self) -> None:
        self.first_line: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._head = b""

    def data_received(self, data: bytes) -> None:
        """Collect bytes until the empty line that ends the head."""
        self._head += data
        if b"\r\n\r\n" in self._head or len(self._head) > HEAD_BYTES_MAX:
            self._end(self._head.split(b"\r\n", 1)[0] if len(self._head) <= HEAD_BYTES_MAX else b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Treat an answer that ends early as no answer."""
        self._end(b"")

    def _end(self, line: bytes) -> None:
        if not self.first_line.done():
            self.first_line.set_result(line)
