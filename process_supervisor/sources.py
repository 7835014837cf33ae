"""Sources of a release as the chain names them (URLs, image references), and the check of their content. Pure."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from .content_id import ContentId
from .errors import ProcessSupervisorError
from .known_layouts import KnownLayouts

SOURCE_CHARS_MAX = 4096
_ENCLAVE_ID = re.compile(r"[0-9a-f]{64}\Z")
# The grammar of https://github.com/distribution/reference (reference.go), lengths as there.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN = (
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])"
)
_IMAGE = re.compile(
    rf"(?P<name>(?:{_DOMAIN}(?::[0-9]+)?/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?\Z"
)


@dataclass(frozen=True, slots=True)
class UrlSource:
    """An archive at a URL; `scheme` is http, https or file. `sha256` (hex) is set if the URL's fragment gives it.

    `form` is how a gateway is asked for it: as it is, or in a CAR with the blocks that prove it. `own` marks a gateway
    of the settings: its address may be private, and what it gives speaks of the gateway alone.
    """

    scheme: str
    url: str
    sha256: str | None = None
    form: Literal["plain", "car"] = "plain"
    own: bool = False


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A container image: repository name, tag and digest (`sha256:<hex>`), of which either may be missing."""

    name: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}@{self.digest}" if self.digest else f"{self.name}{tag}"


def _unsupported(text: str, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="DOWNLOAD_SOURCE_UNSUPPORTED",
        what=f"source {text[:200]!r}",
        why=why,
        action="Publish the release with an http(s) URL of its archive, an image reference, or a raw CID",
    )


def is_enclave_id(text: str) -> bool:
    """Whether `text` is an MRENCLAVE as 64 lower-case hex characters; it is then safe as a folder's name too."""
    return _ENCLAVE_ID.match(text) is not None


def decode_source(text: str) -> UrlSource | ImageReference:
    """Decode one of the chain's URLs; a fragment `#sha256=<hex>` pins it. Raises DOWNLOAD_SOURCE_UNSUPPORTED."""
    if not text or len(text) > SOURCE_CHARS_MAX or not text.isascii() or not text.isprintable() or " " in text:
        raise _unsupported(text, "it is empty, too long or holds characters that no URL or image reference has")
    if "://" not in text:
        match = _IMAGE.match(text)
        if match is None or len(match["name"]) > 255:
            raise _unsupported(text, "it has no scheme and is not an image reference")
        return ImageReference(match["name"], match["tag"], match["digest"])
    try:
        parts = urlsplit(text)
        host = parts.hostname
        parts.port  # noqa: B018  (raises ValueError when it is not a port)
    except ValueError as error:
        raise _unsupported(text, str(error)) from error
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https", "file"):
        raise _unsupported(text, f"scheme {scheme!r} is not http, https or file")
    if scheme == "file" and (parts.netloc not in ("", "localhost") or not parts.path.startswith("/")):
        raise _unsupported(text, "a file URL must name an absolute path on this machine")
    if scheme != "file" and (not host or parts.username is not None):
        raise _unsupported(text, "it names no host, or holds credentials")
    # Cut the text instead of rebuilding the URL: a signed URL is valid only with exactly these bytes.
    url = scheme + text.partition("#")[0][len(scheme) :]
    return UrlSource(scheme, url, _decode_fragment(text, parts.fragment))


def _decode_fragment(text: str, fragment: str) -> str | None:
    if not fragment:
        return None
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    if match is None:
        raise _unsupported(text, "its fragment is not sha256=<64 lower-case hex characters>")
    return match[1]


class DigestCheck:
    """Hashes the received bytes, and finally verifies them against the digest of the source and the CIDs.

    `sha256` is always computed. Where there are CIDs the content has to match one of them: they name mirrors of the
    same artefact. `at_gateway` says that one of our gateways gives it: what contradicts a CID there, a page for
    instance, speaks of the gateway alone.
    """

    def __init__(self, sha256: str | None, cids: tuple[ContentId, ...], *, at_gateway: bool = False) -> None:
        self._expected_sha256 = sha256
        self._cids = cids
        self._at_gateway = at_gateway
        self._hashes = {name: hashlib.new(name) for name in {"sha256"} | {item.hash_name for item in cids}}
        self._trees = [KnownLayouts(version) for version in {item.version for item in cids if item.is_tree}]

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the artefact."""
        for digest in self._hashes.values():
            digest.update(data)
        for tree in self._trees:
            tree.update(data)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, as hex."""
        return self._hashes["sha256"].hexdigest()

    def verify(self, what: str) -> None:
        """Raise unless the complete content matches the digest and a CID; call it once.

        Raises DOWNLOAD_DIGEST_MISMATCH, and DOWNLOAD_LAYOUT_UNKNOWN if the content may still be right.
        """
        if self._expected_sha256 is not None and not hmac.compare_digest(self.sha256, self._expected_sha256):
            raise _mismatch(what, f"expected sha256 {self._expected_sha256}, received {self.sha256}")
        if not self._cids:
            return
        found = {ContentId("raw", name, value.digest()) for name, value in self._hashes.items()}
        if found.union(*(tree.roots() for tree in self._trees)).isdisjoint(self._cids):
            listed = ", ".join(item.text for item in self._cids)
            why = f"sha256 {self.sha256} is none of {listed}"
            if self._trees:
                raise _layout_unknown(what, why)
            raise _gateway_mismatch(what, why) if self._at_gateway else _mismatch(what, why)


def _mismatch(what: str, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="DOWNLOAD_DIGEST_MISMATCH",
        what=what,
        why=why,
        action="The source serves something else than the publisher named; tell the publisher",
        kind="rejected",
    )


def _gateway_mismatch(what: str, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="DOWNLOAD_DIGEST_MISMATCH",
        what=what,
        why=why,
        action="The gateway gives something else than the CID; look at it, or name another in download.ipfs_gateways",
    )


def _layout_unknown(what: str, why: str) -> ProcessSupervisorError:
    # Transient: another gateway may deliver the blocks, which show whether the content is right.
    return ProcessSupervisorError(
        code="DOWNLOAD_LAYOUT_UNKNOWN",
        what=what,
        why=f"{why} in any layout that is known here",
        action="Add a gateway that gives CARs to download.ipfs_gateways, or ask the publisher for a URL",
    )
