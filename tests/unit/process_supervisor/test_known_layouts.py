"""CIDs of trees, rebuilt from the plain bytes."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devnet.field import ipfs
from process_supervisor import known_layouts
from process_supervisor.content_id import decode_cid
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.known_layouts import KnownLayouts
from process_supervisor.sources import DigestCheck

PATTERN = bytes((31 * at + 7 * (at >> 8)) & 255 for at in range(1_000_003))
#: Made by an implementation that is neither this project's nor its tests'.
KNOWN = (
    (262145, "QmUeViBXjU2gAQjPhgfnkggXv2z9Fmc7bcyPURAQuVb5nr"),
    (1000000, "Qmaododz5TKnuhbj2m5Po3wJX9jA3wbLTfHj5ZZeUSQHb1"),
    (52428807, "QmX8ESZBo71RSug3utEJc8mtVZQnLrDCUKjQoQMzgoVYry"),
    (1000000, "bafybeifkndcs2kxv26zhmsrfb65w4z3jbkucauw4x3bobgaanr56obozha"),
    (3145733, "bafybeigc2efvrh7asyqam67d56mqi6wygd27gc7r5s6fejrypygup3m2qm"),
    (0, "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"),
)


def content(size: int) -> Iterator[bytes]:
    while size > 0:
        yield PATTERN[:size]
        size -= len(PATTERN)


@pytest.mark.parametrize(("size", "text"), KNOWN)
def test_known_answers(size: int, text: str) -> None:
    cid = decode_cid(text)
    check = DigestCheck(None, (cid,))
    for data in content(size):
        check.update(data)
    check.verify("x")


@pytest.mark.parametrize(("size", "text"), [item for item in KNOWN if item[0] < 10**7])
def test_the_development_networks_ipfs_gives_the_known_answers(size: int, text: str) -> None:
    data = b"".join(content(size))
    made = {
        ipfs.add(data, chunk=chunk, width=width, raw=raw, version=version).text
        for chunk, width in ((262144, 174), (1048576, 1024))
        for raw in (False, True)
        for version in (0, 1)
    }
    assert text in made


def test_bytes_in_no_known_layout_condemn_nothing() -> None:
    cid = decode_cid(ipfs.add(b"content" * 1000, chunk=1000).text)
    check = DigestCheck(None, (cid,))
    check.update(b"content" * 1000)
    with pytest.raises(ProcessSupervisorError) as caught:
        check.verify("x")
    assert (caught.value.code, caught.value.kind) == ("DOWNLOAD_LAYOUT_UNKNOWN", "transient")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules with chunks and blocks so small that few bytes make a deep tree."""
    monkeypatch.setattr(known_layouts, "CHUNK_BYTES", (3, 7))
    monkeypatch.setattr(known_layouts, "WIDTHS", (2, 5))


@pytest.mark.usefixtures("small")
def test_every_size_cut_anyhow() -> None:
    @given(
        st.binary(max_size=200),
        *(st.sampled_from(choice) for choice in ((3, 7), (2, 5), (False, True), (0, 1))),
        st.integers(1, 50),
    )
    @settings(max_examples=300, deadline=None)
    def check(data: bytes, chunk: int, width: int, raw: bool, version: int, piece: int) -> None:
        layouts = KnownLayouts(version)
        for at in range(0, len(data), piece):
            layouts.update(data[at : at + piece])
        roots = layouts.roots()
        made = ipfs.add(data, chunk=chunk, width=width, raw=raw, version=version)
        assert decode_cid(made.text) in roots
        if data:
            other = ipfs.add(data[:-1] + bytes([data[-1] ^ 1]), chunk=chunk, width=width, raw=raw, version=version)
            assert decode_cid(other.text) not in roots

    check()


@pytest.mark.usefixtures("small")
def test_memory_does_not_grow_with_the_file() -> None:
    layouts = KnownLayouts(0)
    for _ in range(2000):
        layouts.update(b"0123456")
    held = [len(level) for chunks in layouts._chunks for tree in chunks._trees for level in tree._levels]
    assert max(held) < 5
    assert len(held) < 8 * 16
