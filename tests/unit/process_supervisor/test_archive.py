"""Archives that try to leave their folder or to fill the disk."""

import gzip
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from process_supervisor.archive import safe_member_path, unpack
from process_supervisor.errors import CODES, ProcessSupervisorError
from process_supervisor.limits import ArchiveLimits
from tests.doubles.release_archives import member, release_tar, tar_bytes

LIMITS = ArchiveLimits(members_max=8, member_bytes_max=10_000, total_bytes_max=15_000, header_bytes_max=2048)


def refused(tmp_path: Path, data: bytes, members: frozenset[str] | None = None) -> str:
    (tmp_path / "a.tar").write_bytes(data)
    folder = tmp_path / "box" / "in"
    folder.mkdir(parents=True)
    with pytest.raises(ProcessSupervisorError) as caught:
        unpack(tmp_path / "a.tar", folder, LIMITS, members)
    assert caught.value.kind == "transient"
    assert [path for path in tmp_path.rglob("*") if "in" not in path.parts and path.is_file()] == [tmp_path / "a.tar"]
    return caught.value.code


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_plain_archives_unpack(tmp_path: Path, compress: bool, fmt: int) -> None:
    long_name = "d/" + "n" * 120
    info, data = member(long_name, b"x" * 513)
    info.mtime = 1.5  # makes tarfile write a pax header
    archive = tmp_path / "a"
    parts = [member("./", kind=tarfile.DIRTYPE), member("./a.txt", b"hello"), member("empty")]
    if fmt != tarfile.USTAR_FORMAT:
        parts.append((info, data))
    archive.write_bytes(tar_bytes(*parts, compress=compress, fmt=fmt))
    box = tmp_path / "box"
    box.mkdir()
    files = {item.name: item.size for item in unpack(archive, box, LIMITS, None)}
    assert files.pop(long_name, 513) == 513
    assert files == {"a.txt": 5, "empty": 0}
    assert (box / "a.txt").read_bytes() == b"hello"
    assert (box / "a.txt").stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../evil", "ARCHIVE_PATH_REFUSED"),
        ("a/../../evil", "ARCHIVE_PATH_REFUSED"),
        ("/etc/evil", "ARCHIVE_PATH_REFUSED"),
        ("a\\..\\evil", "ARCHIVE_PATH_REFUSED"),
        (".hidden", "ARCHIVE_PATH_REFUSED"),
        ("a/.ssh/x", "ARCHIVE_PATH_REFUSED"),
        ("a\nb", "ARCHIVE_PATH_REFUSED"),
        ("C:evil", "ARCHIVE_PATH_REFUSED"),
        ("\u00e9", "ARCHIVE_PATH_REFUSED"),
        ("./", "ARCHIVE_PATH_REFUSED"),
        ("a/b/c/d/e/f/g/h/i", "ARCHIVE_PATH_REFUSED"),
        ("n" * 300, "ARCHIVE_PATH_REFUSED"),
    ],
)
@pytest.mark.parametrize("fmt", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, name: str, code: str, fmt: int) -> None:
    assert refused(tmp_path, tar_bytes(member(name, b"x"), fmt=fmt)) == code


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"S"],
)
def test_links_devices_and_sparse_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    assert refused(tmp_path, tar_bytes(member("x", kind=kind, link="../../out"))) == "ARCHIVE_MEMBER_REFUSED"


def test_a_link_planted_before_a_file_of_its_name_is_not_followed(tmp_path: Path) -> None:
    data = tar_bytes(member("x", kind=tarfile.SYMTYPE, link="../out"), member("x", b"evil"))
    assert refused(tmp_path, data) == "ARCHIVE_MEMBER_REFUSED"


def test_a_file_that_lies_there_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(member("x", b"evil")))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").symlink_to(tmp_path / "out")
    with pytest.raises(ProcessSupervisorError) as caught:
        unpack(tmp_path / "a.tar", tmp_path / "in", LIMITS, None)
    assert caught.value.code == "ARCHIVE_DUPLICATE_MEMBER"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("second", ["x", "./x", "x/y"])
def test_duplicates_are_refused(tmp_path: Path, second: str) -> None:
    assert refused(tmp_path, tar_bytes(member("x", b"1"), member(second, b"2"))) == "ARCHIVE_DUPLICATE_MEMBER"


def test_bombs_are_refused(tmp_path: Path) -> None:
    one = tmp_path / "1"
    two = tmp_path / "2"
    three = tmp_path / "3"
    four = tmp_path / "4"
    for folder in (one, two, three, four):
        folder.mkdir()
    assert refused(one, tar_bytes(member("x", bytes(10_001)))) == "ARCHIVE_TOO_LARGE"
    assert refused(two, tar_bytes(*(member(f"x{i}", bytes(9_000)) for i in range(2)))) == "ARCHIVE_TOO_LARGE"
    assert refused(three, tar_bytes(*(member(f"x{i}") for i in range(9)))) == "ARCHIVE_TOO_LARGE"
    folders = tar_bytes(*(member(f"d{i}", kind=tarfile.DIRTYPE) for i in range(40)))
    assert refused(four, folders) == "ARCHIVE_TOO_LARGE"


def test_a_huge_extended_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info, _ = member("x", kind=tarfile.XHDTYPE)
    info.size = 8 * 1024**3
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert refused(tmp_path, gzip.compress(header + bytes(100_000))) == "ARCHIVE_TOO_LARGE"


@pytest.mark.parametrize("record", [b"9 path=x\n", b"12 path=../x\n", b"xx", b"3 a", b"0 path=x\n", b"8 path\xff\n"])
def test_odd_pax_records(tmp_path: Path, record: bytes) -> None:
    info, _ = member("x", record, kind=tarfile.XHDTYPE)
    data = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    body = data + member("plain", b"")[0].tobuf() + bytes(1024)
    (tmp_path / "a").write_bytes(body)
    (tmp_path / "box").mkdir()
    outcome: object
    try:
        outcome = [item.name for item in unpack(tmp_path / "a", tmp_path / "box", LIMITS, None)]
    except ProcessSupervisorError as error:
        outcome = error.code
    assert outcome in (["x"], ["plain"], "ARCHIVE_CORRUPT", "ARCHIVE_PATH_REFUSED")


def test_a_global_header_may_comment_but_not_rename(tmp_path: Path) -> None:
    for record, expected in ((b"14 comment=git\n", None), (b"9 path=x\n", "ARCHIVE_MEMBER_REFUSED")):
        folder = tmp_path / str(len(record))
        folder.mkdir()
        record = str(len(record)).encode() + record[record.index(b" ") :]
        info, _ = member("pax_global_header", record, kind=tarfile.XGLTYPE)
        data = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + member("plain")[0].tobuf() + bytes(1024)
        if expected is None:
            (folder / "a").write_bytes(data)
            (folder / "box").mkdir()
            assert [item.name for item in unpack(folder / "a", folder / "box", LIMITS, None)] == ["plain"]
        else:
            assert refused(folder, data) == expected


@pytest.mark.parametrize("cut", [0, 1, 100, 512, 700, 1500])
@pytest.mark.parametrize("compress", [True, False])
def test_truncated_archives_are_corrupt(tmp_path: Path, cut: int, compress: bool) -> None:
    whole = tar_bytes(member("x", os.urandom(1500)), compress=compress)
    assert refused(tmp_path, whole[:cut]) == "ARCHIVE_CORRUPT"


def test_a_damaged_stream_is_corrupt(tmp_path: Path) -> None:
    whole = bytearray(tar_bytes(member("x", os.urandom(4000))))
    whole[2000] ^= 0xFF
    assert refused(tmp_path, bytes(whole)) in ("ARCHIVE_CORRUPT",)


def test_nothing_may_follow_the_end(tmp_path: Path) -> None:
    for number, rest in enumerate((b"x", bytes(5 * 1024 * 1024))):
        (tmp_path / str(number)).mkdir()
        assert refused(tmp_path / str(number), tar_bytes(member("x"), compress=False) + rest) == "ARCHIVE_CORRUPT"


def test_only_and_all_of_the_named_members(tmp_path: Path) -> None:
    names = frozenset({"release.json", "enclave.pyz", "enclave.sig"})
    for sub in "abc":
        (tmp_path / sub).mkdir()
    extra = tar_bytes(member("release.json"), member("enclave.pyz"), member("enclave.sig"), member("more"))
    assert refused(tmp_path / "a", extra, names) == "ARCHIVE_PATH_REFUSED"
    assert refused(tmp_path / "b", tar_bytes(member("release.json")), names) == "ARCHIVE_MEMBER_MISSING"
    assert refused(tmp_path / "c", tar_bytes(), names) == "ARCHIVE_MEMBER_MISSING"


SEED = release_tar(b"i" * 700)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.data())
def test_only_documented_errors_escape_and_nothing_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    blob = bytearray(SEED)
    for _ in range(data.draw(st.integers(0, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(0, len(blob)))] if data.draw(st.booleans()) else blob
    base = tmp_path_factory.mktemp("fuzz")
    (base / "a").write_bytes(gzip.compress(bytes(blob)) if data.draw(st.booleans()) else bytes(blob))
    (base / "box").mkdir()
    code = None
    try:
        unpack(base / "a", base / "box", LIMITS, None)
    except ProcessSupervisorError as error:
        code = error.code
    assert code is None or code in CODES
    assert {item.name for item in base.iterdir()} == {"a", "box"}


def test_safe_paths() -> None:
    assert str(safe_member_path("./a//b/c.txt")) == "a/b/c.txt"


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    info, _ = member("pax", records, kind=kind)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length))
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"SCHILY.xattr.security.capability", b"\x01\0\0\x02\xff\xfe\n=\x80" * 30),
        (b"LIBARCHIVE.xattr.user.x", b"\xff\xfe"),
        (b"SCHILY.acl.access", b"user::rw-\n"),
        (b"uname", b"\xe9\xff"),
        (b"\xff\xfe.vendor", b"x"),
        (b"atime", b"not a number"),
        (b"hdrcharset", b"BINARY"),
        (b"SCHILY.xattr.user.large", bytes(range(256)) * 7),
    ],
)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_attributes_that_are_not_used_are_not_decoded(tmp_path: Path, key: bytes, value: bytes, kind: bytes) -> None:
    info, data = member("a.txt", b"hello")
    body = (
        pax(record(key, value) + record(b"mtime", b"1.5"), kind) + info.tobuf() + data.ljust(512, b"\0") + bytes(1024)
    )
    (tmp_path / "a").write_bytes(body)
    (tmp_path / "box").mkdir()
    assert [item.name for item in unpack(tmp_path / "a", tmp_path / "box", LIMITS, None)] == ["a.txt"]
    assert (tmp_path / "box" / "a.txt").read_bytes() == b"hello"


def test_header_fields_that_are_not_used_are_not_decoded(tmp_path: Path) -> None:
    info, data = member("a.txt", b"hello")
    block = bytearray(info.tobuf())
    block[100:124] = b"\xff" * 24  # mode, uid, gid
    block[136:148] = b"yesterday..."  # mtime
    block[265:297] = b"\xe9" * 32  # owner's name
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a").write_bytes(bytes(block) + data.ljust(512, b"\0") + bytes(1024))
    (tmp_path / "box").mkdir()
    assert [item.size for item in unpack(tmp_path / "a", tmp_path / "box", LIMITS, None)] == [5]
    block[0:1] = b"b"
    (tmp_path / "odd").mkdir()
    assert refused(tmp_path / "odd", bytes(block) + bytes(1024)) == "ARCHIVE_CORRUPT"
