"""Sources as the chain names them: URLs, image references, CIDs, digests."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devnet.field.ipfs import add, raw_block
from process_supervisor.content_id import decode_cid
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.sources import (
    DigestCheck,
    ImageReference,
    UrlSource,
    decode_source,
    is_enclave_id,
)

CONTENT = b"the artefact"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
RAW_CID = raw_block(CONTENT).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://host/a.tar.gz", UrlSource("http", "http://host/a.tar.gz")),
        ("HTTPS://host:8443/a?b=c", UrlSource("https", "https://host:8443/a?b=c")),
        (f"https://host/a#sha256={DIGEST}", UrlSource("https", "https://host/a", DIGEST)),
        ("file:///srv/a.tar", UrlSource("file", "file:///srv/a.tar")),
        ("ghcr.io/dcnetio/dcnode:v1.2", ImageReference("ghcr.io/dcnetio/dcnode", "v1.2", None)),
        ("localhost:5000/x/y", ImageReference("localhost:5000/x/y", None, None)),
        (f"dcnode@sha256:{DIGEST}", ImageReference("dcnode", None, f"sha256:{DIGEST}")),
        (f"a/b:1@sha256:{DIGEST}", ImageReference("a/b", "1", f"sha256:{DIGEST}")),
    ],
)
def test_sources_are_recognised(text: str, expected: UrlSource | ImageReference) -> None:
    assert decode_source(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "ftp://host/a",
        "http://",
        "http://user:pass@host/a",
        "http://host:99999999/a",
        "file://elsewhere/a",
        "http://host/a#md5=00",
        f"http://host/a#sha256={DIGEST.upper()}",
        "a/UPPER",
        "a//b",
        "-option",
        "name:tag:tag",
        "name@sha256:00",
        "http://ho\nst/a",
        "x" * 5000,
        "http://[::1/a",
    ],
)
def test_other_sources_are_refused(text: str) -> None:
    with pytest.raises(ProcessSupervisorError) as caught:
        decode_source(text)
    assert caught.value.code == "DOWNLOAD_SOURCE_UNSUPPORTED"
    assert caught.value.kind == "transient"


@given(st.text(max_size=80) | st.from_regex(r"[a-z]+://[ -~]{0,40}"))
def test_only_documented_errors_leave_the_decoders(text: str) -> None:
    for decode in (decode_source, decode_cid):
        code = "DOWNLOAD_SOURCE_UNSUPPORTED"
        try:
            decode(text)
        except ProcessSupervisorError as error:
            code = error.code
        assert code == "DOWNLOAD_SOURCE_UNSUPPORTED"


def test_a_raw_cid_verifies_content() -> None:
    decoded = decode_cid(RAW_CID)
    assert (decoded.codec, decoded.hash_name, decoded.digest.hex()) == ("raw", "sha256", DIGEST)
    check = DigestCheck(None, (decoded,))
    check.update(CONTENT[:5])
    check.update(CONTENT[5:])
    check.verify("x")
    check.update(b"!")
    with pytest.raises(ProcessSupervisorError) as caught:
        check.verify("x")
    assert caught.value.code == "DOWNLOAD_DIGEST_MISMATCH"


def test_a_tree_cid_verifies_content() -> None:
    decoded = decode_cid(add(CONTENT).text)
    check = DigestCheck(None, (decoded,))
    check.update(CONTENT)
    check.verify("x")


def test_content_has_to_match_one_of_several_cids() -> None:
    other = decode_cid(raw_block(b"another").text)
    check = DigestCheck(DIGEST, (other, decode_cid(RAW_CID)))
    check.update(CONTENT)
    check.verify("x")
    assert check.sha256 == DIGEST


def test_enclave_ids() -> None:
    assert is_enclave_id("ab" * 32)
    assert not any(map(is_enclave_id, ["AB" * 32, "ab" * 31, "ab" * 32 + "\n", "../" + "a" * 61]))
