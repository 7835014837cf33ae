"""Every limit of downloads and archives in one place, units in the names."""

from dataclasses import dataclass, field

from .proxies import Proxies

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """Limits of an unpacked archive: members, bytes of one file, bytes of all files, bytes of one extended header."""

    members_max: int = 64
    member_bytes_max: int = 2 * GIB
    total_bytes_max: int = 4 * GIB
    header_bytes_max: int = 1 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """Limits of a download: size, time and allowed sources.

    `attempts_max` limits consecutive attempts at one source that bring no new bytes. `total_s_max` limits the total
    time spent on one source. Discarded bytes lengthen the next pause: by `thrown_away_pause_s` for each full artefact
    size. A source that delivers less than `slow_bytes_per_s` for `slow_s` seconds is slow; the next source is then used
    in parallel. `ipfs_gateways` are base URLs, tried for each CID after the sources.

    Addresses that are not public (loopback, link-local and others) are used only with `private_addresses`, at one of
    `own_hosts`, which the operator named, or for what is asked of one of `ipfs_gateways`.
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
