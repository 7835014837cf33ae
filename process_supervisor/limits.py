"""Every limit of downloads and archives in one place, units in the names."""

from dataclasses import dataclass, field

from .proxies import Proxies

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """What an archive may unpack to: members, bytes of one file, bytes of all files, bytes of one extended header."""

    members_max: int = 64
    member_bytes_max: int = 2 * GIB
    total_bytes_max: int = 4 * GIB
    header_bytes_max: int = 1 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """How much, how long and from where an artefact may be downloaded.

    `attempts_max` counts attempts in a row that brought nothing new from one source; `total_s_max` bounds everything
    that is asked of one source. Each artefact's worth of bytes that had to be thrown away adds `thrown_away_pause_s`
    to the next pause. A source that gave less than `slow_bytes_per_s` for `slow_s` is slow: the next one is then asked
    beside it. `ipfs_gateways` are base URLs, tried for each CID after the sources.

    Loopback, link-local and other addresses that are not public are connected to only with `private_addresses`, at one
    of `own_hosts`, which the operator named, or for what is asked of one of `ipfs_gateways`.
    """

    size_bytes_max: int = 2 * GIB
    chunk_bytes: int = 1 * MIB
    free_bytes_min: int = 64 * MIB
    connect_s_max: float = 10.0
    idle_s_max: float = 30.0
    total_s_max: float = 1800.0
    attempts_max: int = 4
    retry_delay_s: float = 0.5
    thrown_away_pause_s: float = 15.0
    slow_bytes_per_s: int = 32 * KIB
    slow_s: float = 5.0
    redirects_max: int = 5
    allow_file_urls: bool = False
    private_addresses: bool = False
    own_hosts: frozenset[str] = frozenset()
    proxies: Proxies = field(default_factory=Proxies)
    ipfs_gateways: tuple[str, ...] = ()
    archive: ArchiveLimits = field(default_factory=ArchiveLimits)
