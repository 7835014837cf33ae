"""The sealed store: its format, and its state after crashes, torn or unsynced writes, and other enclaves."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.sgx import DEBUG, INIT, MODE64BIT, POLICY_MRSIGNER, REPORT_KEY
from attestation.simulated.cpu import RootKeys, SoftwareCpu
from keyvault.errors import KeyvaultError
from keyvault.handover.key_set import key_set_id
from keyvault.store import sealed_file as sealed
from keyvault.store.disk import FolderDisk
from keyvault.store.sealed_file import KIND_FACTS, KIND_KEY_SET
from keyvault.store.sealed_store import SealedStore
from tests.doubles.crash_disk import CrashDisk, PowerCutError
from tests.doubles.vault_kit import CPU, NAME, SECRET, SOURCE, CpuTee, code_of, enclave_id, header, put, secs, store


def payload(of: SealedStore, name: str = NAME) -> bytes:
    return bytes(of.get(KIND_KEY_SET, name).payload)


def test_what_was_put_is_there_for_the_next_start() -> None:
    disk = CrashDisk()
    assert put(store(disk)) == 1
    opened = store(disk).get(KIND_KEY_SET, NAME)
    assert (bytes(opened.payload), opened.header.source, opened.header.epoch) == (SECRET, SOURCE, 1)


def test_two_generations_are_kept_and_the_epoch_rises() -> None:
    disk = CrashDisk()
    one = store(disk)
    assert [put(one), put(one, b"second"), put(store(disk), b"third")] == [1, 2, 3]
    assert len(disk.files) == 2
    assert payload(store(disk)) == b"third"


def test_another_key_set_is_added_beside_never_over() -> None:
    disk = CrashDisk()
    one = store(disk)
    put(one)
    put(one, b"other keys", key_set_id(b"other keys"))
    assert payload(store(disk)) == SECRET


@pytest.mark.parametrize("folder_sync", [True, False], ids=["folder-sync-works", "folder-sync-does-nothing"])
@pytest.mark.parametrize("keep_names", [False, True], ids=["unsynced-names-lost", "unsynced-bytes-torn"])
def test_power_cut_after_every_step_leaves_the_old_or_the_new_value(keep_names: bool, folder_sync: bool) -> None:
    for steps in range(13):
        disk = CrashDisk(folder_sync=folder_sync)
        put(store(disk), b"old")
        disk.steps = steps
        done = True
        try:
            put(store(disk), b"new")
        except PowerCutError:
            done = False
        left = payload(store(disk.after_power_cut(keep_names)))
        assert left in ((b"new",) if done else (b"old", b"new")), steps
    assert done


def test_control_a_store_that_does_not_sync_loses_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrashDisk, "_commit_names", lambda self: None)
    disk = CrashDisk()
    put(store(disk))
    assert code_of(lambda: payload(store(disk.after_power_cut(False)))) == "STORE_MISSING"


def test_a_torn_newest_generation_gives_the_one_before() -> None:
    disk = CrashDisk()
    one = store(disk)
    put(one, b"old")
    put(one, b"new")
    newest = next(n for n in disk.files if sealed.decode_header(disk.files[n]).epoch == 2)
    for cut in (0, 1, sealed.HEADER_BYTES, len(disk.files[newest]) - 1):
        torn = CrashDisk(files={**disk.files, newest: disk.files[newest][:cut]})
        assert payload(store(torn)) == b"old"


def test_one_flipped_bit_anywhere_never_opens_to_anything() -> None:
    disk = CrashDisk()
    put(store(disk))
    ((name, data),) = disk.files.items()
    for at in range(0, len(data), 7):
        spoiled = bytearray(data)
        spoiled[at] ^= 1
        found = code_of(lambda spoiled=spoiled: payload(store(CrashDisk(files={name: bytes(spoiled)}))))
        assert found in ("STORE_FORMAT_INVALID", "STORE_UNSEAL_FAILED", "STORE_OTHER_ENCLAVE"), at


def test_what_cannot_be_unsealed_is_kept_under_another_name() -> None:
    disk = CrashDisk()
    put(store(disk))
    ((name, data),) = disk.files.items()
    disk.files[name] = spoiled = data[:-1] + bytes([data[-1] ^ 1])
    for number in (1, 2):
        one = store(disk)
        put(one)
        kept = f"{name}.kept-{number}"
        assert disk.files[kept] == spoiled
        assert payload(one) == SECRET
        for good in [n for n in disk.files if ".kept-" not in n]:
            disk.files[good] = spoiled
    assert sorted(n for n in disk.files if ".kept-" in n) == [f"{name}.kept-1", f"{name}.kept-2"]


def test_wiping_overwrites_and_unlinks_only_what_this_enclave_can_open() -> None:
    disk = CrashDisk()
    one = store(disk)
    put(one)
    put(one)
    put(store(disk, "another"))
    written: list[tuple[str, bytes]] = []
    real = disk.write
    disk.write = lambda name, data: (written.append((name, data)), real(name, data))[1]  # type: ignore[method-assign]
    first = next(n for n in disk.files if n.startswith(enclave_id("vault")))
    disk.files[first] = disk.files[first][:-1]
    one.wipe(KIND_KEY_SET, NAME)
    assert len(written) == 1
    assert not any(written[0][1])
    assert {n.split(".")[0] for n in disk.files} == {enclave_id("another"), enclave_id("vault")}
    assert first in disk.files


def test_wiping_takes_what_a_crash_left_aside_or_half_wiped() -> None:
    disk = CrashDisk()
    one = store(disk)
    put(one)
    put(one)
    first, second = sorted(disk.files)
    left = {f".{first}.aside": disk.files[first], second: bytes(len(disk.files[second]))}
    disk.files.update({**left, f".{second}.aside": b"torn"})
    one.wipe(KIND_KEY_SET, NAME)
    assert disk.files == {f".{second}.aside": b"torn"}


@pytest.mark.parametrize("step", ["write", "sync", "remove", "sync_folder"])
def test_a_wipe_that_the_disk_refuses_is_transient_and_can_be_done_again(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = CrashDisk()
    one = store(disk)
    put(one)

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(disk, step, fails, raising=False)
        with pytest.raises(KeyvaultError) as caught:
            one.wipe(KIND_KEY_SET, NAME)
    assert (caught.value.code, caught.value.kind) == ("STORE_WRITE_FAILED", "transient")
    one.wipe(KIND_KEY_SET, NAME)
    assert disk.files == {}


def test_an_older_generation_that_cannot_be_read_is_kept_and_does_not_stop_writing() -> None:
    disk = CrashDisk()
    one = store(disk)
    put(one, b"old")
    put(one, b"new")
    bad = next(n for n in disk.files if sealed.decode_header(disk.files[n]).epoch == 1)
    rotten, real = disk.files[bad], disk.read

    def read(name: str) -> bytes | None:
        data = real(name)
        if data == rotten:
            raise OSError(5, "Input/output error")
        return data

    disk.read = read  # type: ignore[method-assign]
    assert put(store(disk), b"newer") == 3
    assert disk.files[f"{bad}.kept-1"] == rotten
    assert payload(store(disk)) == b"newer"


def test_enclaves_share_a_folder_without_being_in_each_others_way() -> None:
    disk = CrashDisk()
    put(store(disk, "node 1"))
    put(store(disk, "node 2"), b"mine")
    assert payload(store(disk, "node 1")) == SECRET
    problems = {e.problem.code for e in store(disk, "node 1").entries() if e.problem is not None}
    assert problems == {"STORE_OTHER_ENCLAVE"}


def test_the_files_of_earlier_versions_are_listed_without_being_read() -> None:
    """A node's folder gets one more of them with each upgrade; they must not delay its start."""
    disk = CrashDisk()
    for number in range(50):
        put(store(disk, f"node {number}"))
    put(store(disk, "node 50"), b"mine")
    reading, read = store(disk, "node 50"), []
    real = disk.read
    disk.read = lambda name: (read.append(name), real(name))[1]  # type: ignore[method-assign]
    entries = reading.entries()
    assert len(entries) == 51
    assert [name[:64] for name in read] == [enclave_id("node 50")]
    assert [entry.sealer for entry in entries if entry.problem is None] == [enclave_id("node 50")]


def test_a_file_moved_to_another_name_or_kind_is_refused() -> None:
    disk = CrashDisk()
    put(store(disk))
    ((name, data),) = disk.files.items()
    other = name.replace(NAME, "0" * 64)
    assert code_of(lambda: payload(store(CrashDisk(files={other: data})), "0" * 64)) == "STORE_FORMAT_INVALID"
    facts = f"{enclave_id('vault')}.facts.a.sealed"
    assert code_of(lambda: store(CrashDisk(files={facts: data})).get(KIND_FACTS, "")) == "STORE_FORMAT_INVALID"
    stolen = name.replace(enclave_id("vault"), enclave_id("thief"))
    assert code_of(lambda: payload(store(CrashDisk(files={stolen: data}), "thief"))) == "STORE_OTHER_ENCLAVE"


def test_a_debug_twin_and_another_cpu_cannot_open_it() -> None:
    disk = CrashDisk()
    put(store(disk))
    twin = SealedStore(disk, CpuTee(secs("vault", INIT | MODE64BIT | DEBUG)), os.urandom, allow_simulated=True)
    assert code_of(lambda: payload(twin)) == "STORE_UNSEAL_FAILED"
    other = SoftwareCpu(RootKeys(bytes([9]) * 16, bytes([2]) * 16, bytes([3]) * 16, bytes(32)))
    assert code_of(lambda: payload(store(disk, cpu=other))) == "STORE_UNSEAL_FAILED"


def test_a_newer_cpusvn_opens_the_old_blob_and_reseals_it() -> None:
    disk = CrashDisk()
    put(store(disk))
    newer = SoftwareCpu(replace(CPU.root, cpusvn_level=2))
    assert payload(store(disk, cpu=newer)) == SECRET
    assert {sealed.decode_header(d).key_request.cpusvn for d in disk.files.values()} == {CPU.cpusvn, newer.cpusvn}
    assert payload(store(disk, cpu=newer)) == SECRET
    assert len(disk.files) == 2


def test_a_full_disk_does_not_keep_a_blob_of_an_older_cpusvn_from_opening(caplog: pytest.LogCaptureFixture) -> None:
    disk = CrashDisk()
    put(store(disk))
    newer = SoftwareCpu(replace(CPU.root, cpusvn_level=2))
    before = dict(disk.files)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    disk.write = full  # type: ignore[method-assign, assignment]
    assert payload(store(disk, cpu=newer)) == SECRET
    assert "STORE_WRITE_FAILED" in caplog.text
    del disk.write
    assert disk.files == before
    assert payload(store(disk, cpu=newer)) == SECRET
    assert len(disk.files) == 2  # the next time it is sealed anew


def test_a_blob_of_a_newer_cpusvn_is_kept_and_reported() -> None:
    disk = CrashDisk()
    put(store(disk, cpu=SoftwareCpu(replace(CPU.root, cpusvn_level=2))))
    before = dict(disk.files)
    with pytest.raises(KeyvaultError) as caught:
        payload(store(disk))
    assert (caught.value.code, caught.value.kind) == ("STORE_UNSEAL_FAILED", "invariant")
    assert "CPU security version" in caught.value.action
    assert disk.files == before


def test_simulated_and_all_zero_seal_keys_are_refused_unless_the_measured_policy_allows_the_former() -> None:
    assert code_of(lambda: put(store(CrashDisk(), allow_simulated=False))) == "STORE_SEAL_KEY_UNSAFE"

    class ZeroTee(CpuTee):
        def seal_key(self, request: object) -> bytes:
            return bytes(16)

    for kind, allowed in (("gramine", False), ("gramine", True), ("simulated", True)):
        zero = SealedStore(CrashDisk(), ZeroTee(secs("v"), kind=kind), os.urandom, allow_simulated=allowed)
        assert code_of(lambda zero=zero: put(zero)) == "STORE_SEAL_KEY_UNSAFE"
    real = SealedStore(CrashDisk(), CpuTee(secs("v"), kind="gramine"), os.urandom, allow_simulated=False)
    assert put(real) == 1


@pytest.mark.parametrize("step", ["write", "sync", "rename", "sync_folder"])
def test_a_full_disk_is_transient_and_leaves_the_earlier_copy(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = CrashDisk()
    put(store(disk), b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, step, full, raising=False)
        with pytest.raises(KeyvaultError) as caught:
            put(store(disk), b"new")
        assert (caught.value.code, caught.value.kind) == ("STORE_WRITE_FAILED", "transient")
        assert "No space left" in caught.value.why
    assert payload(store(disk)) in (b"old", b"new")
    assert step == "sync_folder" or payload(store(disk)) == b"old"


def test_a_disk_that_lies_is_found_by_reading_back() -> None:
    class Liar(CrashDisk):
        def write(self, name: str, data: bytes) -> None:
            super().write(name, data[:-1] + bytes([data[-1] ^ 1]))

    assert code_of(lambda: put(store(Liar()))) == "STORE_READ_BACK_FAILED"


def test_a_disk_that_gives_an_older_file_is_found_by_reading_back() -> None:
    class Stale(CrashDisk):
        old: bytes | None = None

        def read(self, name: str) -> bytes | None:
            data = super().read(name)
            self.old = self.old or data
            return self.old if data is not None else None

    one = store(Stale())
    assert [put(one), code_of(lambda: put(one))] == [1, "STORE_READ_BACK_FAILED"]


@pytest.mark.parametrize(("kind", "name"), [(KIND_KEY_SET, ""), (KIND_KEY_SET, "../x"), (KIND_FACTS, NAME), (9, "")])
def test_unusable_names_are_refused(kind: int, name: str) -> None:
    assert code_of(lambda: store(CrashDisk()).put(kind, name, bytes(32), b"x")) == "STORE_NAME_INVALID"


def test_damaged_files_are_listed_with_their_problem() -> None:
    file = f"{enclave_id('vault')}.facts.b.sealed"
    (entry,) = store(CrashDisk(files={file: b"rubbish"})).entries()
    assert (entry.file, entry.header) == (file, None)
    assert entry.problem is not None
    assert entry.problem.code == "STORE_FORMAT_INVALID"


def test_foreign_files_are_neither_listed_nor_touched() -> None:
    disk = CrashDisk(files={"notes.txt": b"hello", f"{enclave_id('vault')}.facts.c.sealed": b""})
    one = store(disk)
    put(one)
    assert len(one.entries()) == 1
    assert disk.files["notes.txt"] == b"hello"


# the format alone


def test_the_layout_is_the_documented_one() -> None:
    made = header(epoch=7)
    data = made.encode()
    assert (len(data), data[:8], data[8:12]) == (652, b"DCSEALED", b"\1\0\1\0")
    assert (data[12:20], data[532:564].hex(), data[564:596]) == ((7).to_bytes(8, "little"), enclave_id("vault"), SOURCE)
    assert (data[596:628].hex(), data[20:532]) == (NAME, made.key_request.encode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d[: sealed.HEADER_BYTES + 15],
        lambda d: b"X" + d[1:],
        lambda d: d[:8] + b"\2" + d[9:],
        lambda d: d[:10] + b"\3" + d[11:],
        lambda d: d[:651] + b"\1" + d[652:],
        lambda d: d + b"x",
        lambda d: d + bytes(sealed.FILE_BYTES_MAX),
        lambda d: d[:30] + b"\1" * 400 + d[430:],
    ],
    ids=["short", "magic", "version", "kind", "reserved", "trailing", "huge", "keyrequest"],
)
def test_a_file_that_is_not_of_the_format_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    data = sealed.seal(header(), bytes([1]) * 16, SECRET)
    assert sealed.open_sealed(data, bytes([1]) * 16)[1] == SECRET
    assert code_of(lambda: sealed.open_sealed(spoil(data), bytes([1]) * 16)) == "STORE_FORMAT_INVALID"


def test_a_key_request_under_a_weaker_policy_is_refused() -> None:
    made = header()
    for request in (
        replace(made.key_request, key_policy=POLICY_MRSIGNER),
        replace(made.key_request, key_name=REPORT_KEY),
    ):
        data = sealed.seal(replace(made, key_request=request), bytes([1]) * 16, SECRET)
        assert code_of(lambda data=data: sealed.decode_header(data)) == "STORE_FORMAT_INVALID"


# a real folder


def test_a_real_folder_has_private_modes_and_follows_no_links(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    disk = FolderDisk(folder)
    put(store(disk))
    assert folder.stat().st_mode & 0o777 == 0o700
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert payload(store(disk)) == SECRET
    target = tmp_path / "elsewhere"
    target.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(target)
    assert disk.names() == []
    assert code_of(lambda: payload(store(disk))) == "STORE_READ_FAILED"
    assert disk.read("absent") is None
    file.unlink()
    one = store(disk)
    put(one)
    one.wipe(KIND_KEY_SET, NAME)
    assert disk.names() == []
    disk.close()
    disk.close()


def test_a_file_is_overwritten_where_it_lies_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truncating first would free its blocks, and the zeros would be written to other blocks."""
    disk = FolderDisk(tmp_path)
    disk.write("file", b"sealed keys")
    flags = []
    real = os.open

    def record(name: str, flag: int, *more: int, **fields: int) -> int:
        flags.append(flag)
        return real(name, flag, *more, **fields)

    monkeypatch.setattr(os, "open", record)
    disk.write("file", bytes(11))
    assert flags
    assert not any(flag & os.O_TRUNC for flag in flags)
    assert disk.read("file") == bytes(11)
    disk.write("file", b"short")
    assert disk.read("file") == b"short"
    disk.close()


def test_a_new_folder_is_synced_into_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync

    def record(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", record)
    FolderDisk(tmp_path / "a" / "b").close()
    assert synced == [tmp_path / "a", tmp_path]
    FolderDisk(tmp_path / "a" / "b").close()
    assert len(synced) == 2


@pytest.mark.parametrize("taken", [True, False])
def test_reading_back_asks_the_disk_and_not_the_pages_that_were_written(
    taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, fadvise = os.fsync, os.posix_fadvise

    def synced(fd: int) -> None:
        steps.append("fsync")
        fsync(fd)

    def forgotten(fd: int, offset: int, length: int, advice: int) -> None:
        steps.append("forget" if (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED) else "?")
        if not taken:
            raise OSError(38, "Function not implemented")
        fadvise(fd, offset, length, advice)

    disk = FolderDisk(tmp_path)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "posix_fadvise", forgotten)
    put(store(disk))
    assert steps == ["fsync", "forget", "fsync", "fsync", "forget"]  # the file, the folder, the renamed file
    disk.close()


def test_two_processes_cannot_use_one_folder(tmp_path: Path) -> None:
    first, second = FolderDisk(tmp_path), FolderDisk(tmp_path)
    first.lock()
    with pytest.raises(KeyvaultError) as caught:
        second.lock()
    assert caught.value.kind == "transient"
    first.close()
    second.lock()
    second.close()
