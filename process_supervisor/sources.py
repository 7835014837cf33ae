"""What the chain names as a source of a release: URLs, image references, CIDs. Pure decoding."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from .errors import ProcessSupervisorError

SOURCE_CHARS_MAX = 4096
# Multihash codes (https://github.com/multiformats/multicodec/blob/master/table.csv) that hashlib computes.
_HASHES = {0x12: ("sha256", 32), 0x13: ("sha512", 64), 0x14: ("sha3_512", 64), 0x16: ("sha3_256", 32)}
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
    """An archive behind a URL; `scheme` is http, https or file. `sha256` (hex) where the fragment gives it."""

    scheme: str
    url: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A container image: repository name, tag and digest (`sha256:<hex>`), of which either may be missing."""

    name: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}@{self.digest}" if self.digest else f"{self.name}{tag}"


@dataclass(frozen=True, slots=True)
class ContentId:
    """A decoded IPFS CID. `hash_name` is None where the content cannot be verified as one stream of bytes.

    Only the `raw` codec names the hash of the bytes themselves; `dag-pb` (every CIDv0) names the root of a tree whose
    shape depends on how the file was added, so it is reported as not verifiable instead of being guessed.
    """

    text: str
    codec: str
    hash_name: str | None
    digest: bytes


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
    # Cut, not put together anew: a signed URL holds only for the very bytes that the chain names.
    url = scheme + text.partition("#")[0][len(scheme) :]
    return UrlSource(scheme, url, _decode_fragment(text, parts.fragment))


def _decode_fragment(text: str, fragment: str) -> str | None:
    if not fragment:
        return None
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    if match is None:
        raise _unsupported(text, "its fragment is not sha256=<64 lower-case hex characters>")
    return match[1]


def decode_cid(text: str) -> ContentId:
    """Decode a CID (version 0 or 1, any multibase). Raises DOWNLOAD_SOURCE_UNSUPPORTED."""
    if not text or len(text) > 256 or not text.isascii() or not text.isalnum():
        raise _unsupported(text, "it is not a CID")
    try:
        import cid as py_cid  # large, and most releases name no CID

        decoded = py_cid.make_cid(text)
        # <hash code> <length> <digest>; both numbers are varints, of one byte each for every hash known here.
        code, length, digest = decoded.multihash[0], decoded.multihash[1], bytes(decoded.multihash[2:])
        codec = str(decoded.codec)
    except Exception as error:  # py-cid and its parts raise many types for bad text
        raise _unsupported(text, f"it is not a CID ({type(error).__name__})") from error
    known = _HASHES.get(code)
    if known is not None and not len(digest) == length == known[1]:
        raise _unsupported(text, "its digest has the wrong length")
    verifiable = known is not None and codec == "raw"
    return ContentId(text, codec, known[0] if known and verifiable else None, digest)


class DigestCheck:
    """Hashes what is received, and afterwards verifies it against the digest of the source and the CIDs.

    `sha256` is always computed. With verifiable CIDs the content has to match one of them: they name mirrors of the
    same artefact.
    """

    def __init__(self, sha256: str | None, cids: tuple[ContentId, ...]) -> None:
        self._expected_sha256 = sha256
        self._cids = tuple(item for item in cids if item.hash_name is not None)
        names = {"sha256"} | {item.hash_name for item in self._cids if item.hash_name is not None}
        self._hashes = {name: hashlib.new(name) for name in names}

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the artefact."""
        for digest in self._hashes.values():
            digest.update(data)

    @property
    def sha256(self) -> str:
        """SHA-256 of what came so far, as hex."""
        return self._hashes["sha256"].hexdigest()

    def verify(self, what: str) -> None:
        """Raise DOWNLOAD_DIGEST_MISMATCH if the whole content is not what was named."""
        if self._expected_sha256 is not None and not hmac.compare_digest(self.sha256, self._expected_sha256):
            raise _mismatch(what, f"expected sha256 {self._expected_sha256}, received {self.sha256}")
        if self._cids and not any(self._matches(item) for item in self._cids):
            listed = ", ".join(item.text for item in self._cids)
            raise _mismatch(what, f"sha256 {self.sha256} is none of the CIDs {listed}")

    def _matches(self, item: ContentId) -> bool:
        return item.hash_name is not None and self._hashes[item.hash_name].digest() == item.digest


def _mismatch(what: str, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="DOWNLOAD_DIGEST_MISMATCH",
        what=what,
        why=why,
        action="The source serves something else than the publisher named; tell the publisher",
        kind="rejected",
    )
