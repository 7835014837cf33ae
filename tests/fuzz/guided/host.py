"""What mirrors, engines, operators and the disk give to the agent: archives, sources, headers, settings, records."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from typing import Any, cast

from dcupgrade.adapters.fleet import decode_value
from dcupgrade.adapters.node_http import _decode_health
from dcupgrade.settings.load import decode, structure
from process_supervisor.archive import _Blocks, _members, _open_stream, safe_member_path
from process_supervisor.car_file import CarFile
from process_supervisor.container_template import (
    ContainerTemplate,
    parse_device,
    parse_mount,
    parse_pair,
    parse_ulimit,
)
from process_supervisor.content_id import ContentId, decode_cid, encode_varint
from process_supervisor.data_lock import _note
from process_supervisor.driver import NodeRecord
from process_supervisor.http_headers import continues_at, retry_after_s, strong_validator
from process_supervisor.limits import ArchiveLimits
from process_supervisor.outbound import _target
from process_supervisor.proxies import Proxies, is_this_machine
from process_supervisor.slots import StageFacts
from process_supervisor.sources import decode_source
from process_supervisor.unixfs import decode_block

from .target import Target, of_text

BLOCK = 512
#: A leaf and a root with two links to it, as dag-pb.
LEAF = b"\x0a\x09\x08\x02\x12\x03abc\x18\x03"
LEAF_LINK = b"\x12\x26\x0a\x24\x01\x70\x12\x20" + hashlib.sha256(LEAF).digest()
ROOT = 2 * LEAF_LINK + b"\x0a\x08\x08\x02\x18\x06\x20\x03\x20\x03"
LIMITS = ArchiveLimits(members_max=20, member_bytes_max=1 << 16, total_bytes_max=1 << 17, header_bytes_max=4096)
SETTINGS = b"""[agent]
state_dir = "/var/lib/dcupgrade"
[chain]
endpoints = ["wss://one.example"]
network_keys = ["bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"]
[node]
id = "node-1"
data_dir = "/srv/dcnode"
[vault]
start = false
"""
RECORD = (
    b'{"boot_id": "a", "command_digest": "a", "container_id": "", "image_id": "", "kind": "process", "log_path": "",'
    b' "name": "a", "pid": 1, "start_time_ticks": 1, "started_unix_s": 1.0}'
)


def _tar(kind: int) -> bytes:
    """An archive with what releases and engines put into theirs: long names, extended headers, folders."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name in ("enclave.pyz", "a/" * 5 + "b" * 120):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 5, {"comment": "é", "SCHILY.xattr.user.x": "y"}
            archive.addfile(info, io.BytesIO(b"hello"))
    return buffer.getvalue()


def _with_checksums(data: bytes) -> bytes:
    """The same with correct checksums of all headers: without them nearly every change would be refused at once."""
    out = bytearray(data)
    for at in range(0, len(out) - BLOCK + 1, BLOCK):
        block = out[at : at + BLOCK]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(out)


def _read_archive(data: bytes) -> None:
    blocks = _Blocks(_open_stream(io.BytesIO(data)))
    for member in _members(blocks, LIMITS):
        safe_member_path(member.name)
        if member.size <= LIMITS.member_bytes_max:
            for _ in blocks.chunks(member.size):
                pass


def _tree_cid(block: bytes) -> ContentId:
    return ContentId("dag-pb", "sha256", hashlib.sha256(block).digest())


def _section(block: bytes) -> bytes:
    """A block of a CAR under its own CID."""
    body = b"\x01\x70\x12\x20" + hashlib.sha256(block).digest() + block
    return encode_varint(len(body)) + body


def _car(data: bytes) -> object:
    """Read what comes for the file of `ROOT`, in pieces of uneven length."""
    car = CarFile(_tree_cid(ROOT))
    return [car.feed(data[at : at + 7 + at]) for at in _uneven(len(data))]


def _uneven(end: int) -> list[int]:
    places, at = [], 0
    while at < end:
        places.append(at)
        at += 7 + at
    return places


def _car_with_right_digests(data: bytes) -> object:
    """Make a CAR with correct CIDs from blocks (length in two bytes, content): otherwise none would be decoded."""
    blocks = []
    while len(data) > 2:
        size = int.from_bytes(data[:2], "big")
        blocks.append(data[2 : 2 + size])
        data = data[2 + size :]
    if not blocks:
        return None
    return CarFile(_tree_cid(blocks[0])).feed(b"\1\0" + b"".join(map(_section, blocks)))


def _headers(data: bytes) -> dict[str, str]:
    """Header lines as a client hands them on."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    return {name.strip(): value for name, _, value in (line.partition(":") for line in lines)}


def _resume(data: bytes) -> object:
    headers = _headers(data)
    return strong_validator(headers), continues_at(headers, 5, 10, '"a"')


def _settings(data: bytes) -> object:
    return structure(decode(data), environ={})


def _environment(data: bytes) -> object:
    lines = data.decode("utf-8", "replace").split("\n")
    pairs = {name: value for name, _, value in (line.partition("=") for line in lines)}
    return structure(decode(SETTINGS), environ=pairs)


def _proxies(text: str) -> object:
    proxy, _, url = text.partition("\n")
    return Proxies.from_environment({"HTTPS_PROXY": proxy, "NO_PROXY": url}).proxy_for(url)


def _template(text: str) -> object:
    return [cast(Any, parse)(text) for parse in (ContainerTemplate.from_json,)]


TARGETS = {
    "archive": Target(
        _read_archive, (_tar(tarfile.PAX_FORMAT), gzip.compress(_tar(tarfile.GNU_FORMAT), mtime=0)), bytes_max=10240
    ),
    "archive with right checksums": Target(
        lambda data: _read_archive(_with_checksums(data)),
        (_tar(tarfile.PAX_FORMAT), _tar(tarfile.GNU_FORMAT)),
        bytes_max=10240,
    ),
    "member path": Target(of_text(safe_member_path), (b"a/b.c",)),
    "source": Target(
        of_text(decode_source),
        (b"https://a.example/x#sha256=" + b"0" * 64, b"a.example:5000/b/c:tag@sha256:" + b"0" * 64),
    ),
    "CID": Target(
        of_text(decode_cid), (b"bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy", b"Qm" + b"a" * 44)
    ),
    "CAR": Target(_car, (b"\1\0" + _section(ROOT) + 2 * _section(LEAF),), (ValueError,)),
    "CAR with right digests": Target(
        _car_with_right_digests,
        (b"".join(len(block).to_bytes(2, "big") + block for block in (ROOT, LEAF, LEAF)),),
        (ValueError,),
    ),
    "block of a file": Target(lambda data: decode_block(_tree_cid(data), data), (ROOT, LEAF), (ValueError,)),
    "retry-after": Target(
        of_text(lambda text: retry_after_s({"Retry-After": text}, 1.8e9)), (b"7", b"Wed, 21 Oct 2026 07:28:00 GMT")
    ),
    "headers of a resumed download": Target(
        _resume,
        (
            b'ETag: "a"\nContent-Range: bytes 5-9/10',
            b"Last-Modified: Wed, 21 Oct 2026 07:28:00 GMT\nDate: Thu, 22 Oct 2026 07:28:00 GMT",
        ),
    ),
    "redirect": Target(
        of_text(lambda text: _target("https://a.example/b", text)), (b"/c?d=%2F", b"https://[::1]:80/x"), (ValueError,)
    ),
    "proxies": Target(
        of_text(_proxies), (b"http://u:p@proxy:3128\nhttps://a.example:444/", b"\n10.0.0.0/8,.b.example")
    ),
    "address": Target(of_text(is_this_machine), (b"[::ffff:127.0.0.1]", b"localhost")),
    "settings": Target(_settings, (SETTINGS,), (ValueError,)),
    "settings in the environment": Target(_environment, (b"DCUPGRADE_NODE__PORT=1\nDCUPGRADE_CHAIN__ENDPOINTS=a,b",)),
    "value of a fleet's engine": Target(decode_value, (b'{"holder": "n", "since_unix_s": 1}',), (ValueError,)),
    "health of a node": Target(_decode_health, (b'{"status": "serving", "canary": true, "version": "1"}',)),
    "slot's facts": Target(
        StageFacts.from_json, (StageFacts(digest="a", size=1, source="b").to_json(),), (ValueError,)
    ),
    "note in a data lock": Target(of_text(_note), (b'{"note": "x"}',)),
    "node's record": Target(of_text(NodeRecord.from_json), (RECORD,)),
    "container template": Target(of_text(_template), (b'{"config": {}, "host": {}, "name": "a"}',), (ValueError,)),
    **{
        f"container settings, {parse.__name__[6:]}": Target(of_text(parse), (seed,), (ValueError,))
        for parse, seed in (
            (parse_mount, b"/a:/b:ro"),
            (parse_device, b"/dev/sgx_enclave:/dev/x:rw"),
            (parse_ulimit, b"nofile=1:2"),
            (parse_pair, b"a=b"),
        )
    },
}
