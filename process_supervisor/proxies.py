"""Which proxy a request goes through, and which addresses are not public. Pure."""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: What Python's `is_global` does not know, or not in each version: local NAT64, site-local addresses, and old forms of
#: addresses with an IPv4 address inside (compatible, translated).
_NOT_PUBLIC = tuple(map(ipaddress.IPv6Network, ("64:ff9b:1::/48", "fec0::/10", "::/96", "::ffff:0:0:0/96")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxies:
    """Proxies by the scheme of the URL that is requested ("" for none), and the hosts that are reached without one."""

    http: str = ""
    https: str = ""
    exceptions: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], setting: str = "") -> "Proxies":
        """Read HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; names in lower case come first, as for curl.

        `setting` replaces the proxies of the environment: a URL, or "off" for none. NO_PROXY applies to it too.
        """

        def value(name: str) -> str:
            return environ.get(name.lower()) or environ.get(name.upper()) or ""

        exceptions = tuple(value("no_proxy").replace(",", " ").split())
        if setting:
            url = "" if setting == "off" else _with_scheme(setting)
            return cls(http=url, https=url, exceptions=exceptions)
        every = value("all_proxy")
        return cls(
            http=_with_scheme(value("http_proxy") or every),
            https=_with_scheme(value("https_proxy") or every),
            exceptions=exceptions,
        )

    def proxy_for(self, url: str) -> str | None:
        """The proxy for a request to `url`; None where there is none, and always for this machine itself."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        proxy = self.https if parts.scheme == "https" else self.http
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if not proxy or is_this_machine(host) or any(_matches(item, host, port) for item in self.exceptions):
            return None
        return proxy


def _with_scheme(proxy: str) -> str:
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _matches(item: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY covers a host: `*`, a host or its domain, an address or network."""
    if item == "*":
        return True
    name, colon, number = item.rpartition(":")
    if colon and number.isdigit() and (":" not in name or name.endswith("]")):
        if int(number) != port:
            return False
        item = name
    item = item.strip("[]").removeprefix("*").strip(".").lower()
    address = literal_address(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(item, strict=False)
        except ValueError:
            return False
    return bool(item) and (host.lower() == item or host.lower().endswith(f".{item}"))


def literal_address(host: str) -> Address | None:
    """The IP address that `host` spells, also in old forms (`127.1`, `0x7f000001`, `10.0.0.1.`); None for a name."""
    host = host.rstrip(".")
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if host[:1].isdigit() else None
    except (OSError, ValueError):  # ValueError: characters that no address has
        return None


def is_this_machine(host: str) -> bool:
    """Whether a host names the machine's own loopback; the unspecified address connects there too."""
    name = host.lower().rstrip(".")
    address = literal_address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def is_public(address: Address) -> bool:
    """Whether an address is one of the public Internet, also where it carries an IPv4 address inside."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if any(address in network for network in _NOT_PUBLIC):
            return False
    return address.is_global and not address.is_multicast
