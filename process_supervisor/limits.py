"""Every limit of downloads and archives in one place, units in the names."""

from dataclasses import dataclass, field

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """What an archive may unpack to: members, bytes of one file, bytes of all files, bytes of one extended header."""

    members_max: int = 64
    member_bytes_max: int = 2 * GIB
    total_bytes_max: int = 4 * GIB
    header_bytes_max: int = 64 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """How much, how long and from where an artefact may be downloaded.

    `attempts_max` counts per source; an attempt that made progress resumes where the one before ended. `total_s_max`
    bounds all attempts of one source together. `ipfs_gateways` are base URLs, tried for each CID after the sources.
    """

    size_bytes_max: int = 2 * GIB
    chunk_bytes: int = 256 * KIB
    free_bytes_min: int = 64 * MIB
    connect_s_max: float = 10.0
    idle_s_max: float = 30.0
    total_s_max: float = 1800.0
    attempts_max: int = 4
    retry_delay_s: float = 0.5
    redirects_max: int = 5
    allow_file_urls: bool = False
    ipfs_gateways: tuple[str, ...] = ()
    archive: ArchiveLimits = field(default_factory=ArchiveLimits)
