import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from attestation.artefact.files import build_sigstruct, measure_file, verify_artefact
from attestation.artefact.sigstruct import SigStruct
from attestation.errors import AttestationError
from attestation.sgx import DEBUG, INIT, Attributes
from attestation.simulated import __main__ as simulated
from attestation.simulated import image as image_module
from attestation.simulated.__main__ import load_enclave, main
from attestation.simulated.cpu import CPUSVN_LEVELS, SoftwareCpu
from attestation.simulated.image import is_native, private_copy
from attestation.simulated.root_keys import init_cpu, load_root_keys, set_cpusvn
from tests.doubles import intel_sim
from tests.doubles.elf import INTERPRETER, LOAD, elf
from tests.doubles.signed_enclaves import Key
from tests.unit.attestation.conftest import DATE


def refused(call: Callable[[], object]) -> AttestationError:
    with pytest.raises(AttestationError) as caught:
        call()
    return caught.value


def test_each_installation_draws_its_own_keys_and_keeps_them(tmp_path: Path) -> None:
    assert init_cpu(tmp_path / "deep" / "one")
    first = load_root_keys(tmp_path / "deep" / "one")
    assert not init_cpu(tmp_path / "deep" / "one")
    assert load_root_keys(tmp_path / "deep" / "one") == first
    assert init_cpu(tmp_path / "two")
    second = load_root_keys(tmp_path / "two")
    for name in ("seal", "report", "owner_epoch", "report_key_id"):
        assert getattr(first, name) != getattr(second, name)
    published = {intel_sim.SEAL, intel_sim.REPORT, intel_sim.OWNER_EPOCH, bytes(16)}
    assert not published & {first.seal, first.report, first.owner_epoch}
    assert SoftwareCpu(first).cpusvn == CPUSVN_LEVELS[1]


def test_root_keys_are_private_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    init_cpu(tmp_path / "cpu")
    assert stat.S_IMODE((tmp_path / "cpu").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "cpu" / "root-keys").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "cpu").iterdir()] == ["root-keys"]


def test_those_who_start_at_once_agree_on_one_cpu(tmp_path: Path) -> None:
    barrier, drawn = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        drawn.append(init_cpu(tmp_path / "cpu"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(drawn) == [False] * 7 + [True]
    assert [path.name for path in (tmp_path / "cpu").iterdir()] == ["root-keys"]


def test_a_crash_while_drawing_leaves_no_half_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulated.os, "link", crash)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        init_cpu(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_microcode_update_keeps_the_keys(tmp_path: Path) -> None:
    init_cpu(tmp_path)
    before = load_root_keys(tmp_path)
    set_cpusvn(tmp_path, 2)
    after = load_root_keys(tmp_path)
    assert (after.cpusvn_level, after.seal, after.report) == (2, before.seal, before.report)
    assert main(["svn", "--cpu", str(tmp_path), "0"]) == 0
    assert load_root_keys(tmp_path).cpusvn_level == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-2],
        lambda text: text.replace("v1", "v2"),
        lambda text: text.replace("seal", "seel"),
        lambda text: text + "more x\n",
        lambda text: text.replace("seal ", "seal  "),
        lambda text: text.replace("cpusvn_level 1", "cpusvn_level 3"),
        lambda text: text.replace("cpusvn_level 1", "cpusvn_level one"),
        lambda text: text.replace("cpusvn_level 1", "cpusvn_level 01"),
        lambda text: (
            "\n".join(line if "seal" not in line else "seal " + "00" * 16 for line in text.splitlines()) + "\n"
        ),
        lambda text: (
            "\n".join(line if "seal" not in line else "seal " + "zz" * 16 for line in text.splitlines()) + "\n"
        ),
        lambda text: text + "\xe9",
    ],
)
def test_a_damaged_cpu_is_reported_and_never_replaced(damage: Callable[[str], str], tmp_path: Path) -> None:
    init_cpu(tmp_path)
    path = tmp_path / "root-keys"
    damaged = damage(path.read_text()).encode()
    path.write_bytes(damaged)
    assert refused(lambda: load_root_keys(tmp_path)).code == "CPU_FOLDER_INVALID"
    assert refused(lambda: init_cpu(tmp_path)).code == "CPU_FOLDER_INVALID"
    assert path.read_bytes() == damaged


def test_keys_that_others_may_read_are_refused(tmp_path: Path) -> None:
    init_cpu(tmp_path)
    (tmp_path / "root-keys").chmod(0o640)
    error = refused(lambda: load_root_keys(tmp_path))
    assert (error.code, error.kind) == ("CPU_FOLDER_INVALID", "invariant")
    assert refused(lambda: load_root_keys(tmp_path / "none")).code == "CPU_FOLDER_INVALID"


def test_the_copy_that_runs_is_the_copy_that_was_measured(artefact: tuple[Path, Path]) -> None:
    image = artefact[0]
    data, expected = image.read_bytes(), measure_file(image)
    copy, measured = private_copy(image)
    try:
        image.write_bytes(b"swapped")
        assert measured == expected
        assert os.pread(copy, len(data) + 1, 0) == data
        for attempt in (lambda: os.pwrite(copy, b"x", 0), lambda: os.ftruncate(copy, 0), lambda: os.write(copy, b"x")):
            with pytest.raises(PermissionError):
                attempt()
        # A second way to the same memory is sealed as well.
        with pytest.raises(PermissionError), open(f"/proc/self/fd/{copy}", "r+b", buffering=0) as again:
            again.write(b"x")
    finally:
        os.close(copy)


def test_what_is_no_image_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big").write_bytes(b"x" * 100)
    monkeypatch.setattr(image_module, "IMAGE_BYTES_MAX", 99)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "big", Path("/dev/zero"), tmp_path / "pipe"):
        assert refused(lambda path=path: private_copy(path)).code == "ARTEFACT_TOO_LARGE"
    assert refused(lambda: private_copy(tmp_path / "none")).code == "ARTEFACT_UNREADABLE"


def test_a_native_image_is_one_by_its_measured_bytes_and_must_be_static(
    tmp_path: Path, artefact: tuple[Path, Path], signer: RSAPrivateKey
) -> None:
    image, sigstruct = artefact
    for content, native, why in (
        (image.read_bytes(), False, ""),
        (elf(LOAD, 2), True, ""),
        (elf(LOAD, INTERPRETER, LOAD), True, "not measured"),
        (elf(LOAD, elf_class=1), True, "64-bit"),
        (Path("/bin/true").read_bytes(), True, "not measured"),
        (b"\x7fELF", True, ""),  # left to the kernel, which refuses it
    ):
        image.write_bytes(content)
        sigstruct.write_bytes(build_sigstruct(image, signer, date=DATE))
        if why:
            error = refused(lambda: load_enclave(image, sigstruct, debug=False))
            assert error.code == "ENCLAVE_START_FAILED"
            assert why in error.why
            continue
        copy, secs = load_enclave(image, sigstruct, debug=False)
        try:
            assert is_native(copy) == native
            assert secs.mrenclave == measure_file(image)
            with pytest.raises(PermissionError):
                os.pwrite(copy, b"x", 0)
        finally:
            os.close(copy)


def test_only_a_native_image_lies_in_memory_that_can_be_executed(artefact: tuple[Path, Path]) -> None:
    image = artefact[0]
    for content, executable in ((image.read_bytes(), False), (elf(LOAD), True)):
        image.write_bytes(content)
        copy, _ = private_copy(image)
        try:
            assert bool(os.fstat(copy).st_mode & 0o100) == executable
        finally:
            os.close(copy)


def test_an_enclave_gets_the_identity_of_its_artefact(artefact: tuple[Path, Path]) -> None:
    copy, secs = load_enclave(*artefact, debug=False)
    os.close(copy)
    assert secs.mrenclave == measure_file(artefact[0])
    assert secs.attributes.flags & INIT
    assert not secs.attributes.flags & DEBUG


def test_a_host_cannot_make_a_signed_enclave_a_debug_one(artefact: tuple[Path, Path], signer: RSAPrivateKey) -> None:
    image, sigstruct = artefact
    descriptors = set(os.listdir("/proc/self/fd"))
    assert refused(lambda: load_enclave(image, sigstruct, debug=True)).code == "EINIT_ATTRIBUTES"
    # None more. That there are fewer can be: the garbage collector closes what earlier tests forgot.
    assert set(os.listdir("/proc/self/fd")) <= descriptors
    # The control: signed as a debug enclave it starts, and says so.
    sigstruct.write_bytes(build_sigstruct(image, signer, debug=True, date=DATE))
    copy, secs = load_enclave(image, sigstruct, debug=False)
    os.close(copy)
    assert secs.attributes.flags & DEBUG


def test_debug_that_the_signer_left_open_takes_the_hosts_word(
    artefact: tuple[Path, Path], signer: RSAPrivateKey
) -> None:
    image, sigstruct = artefact
    signed = SigStruct.decode(build_sigstruct(image, signer, debug=True, date=DATE))
    open_mask = Attributes(signed.attribute_mask.flags & ~DEBUG, signed.attribute_mask.xfrm)
    sigstruct.write_bytes(Key(signer).resign(replace(signed, attribute_mask=open_mask)).encode())
    for debug in (False, True):
        copy, secs = load_enclave(image, sigstruct, debug)
        os.close(copy)
        assert bool(secs.attributes.flags & DEBUG) == debug
    # Such a release is taken for production, and so has to start as one.
    assert verify_artefact(image, sigstruct, production=True) == signed.enclave_id


def test_the_command_line_reports_without_a_traceback(
    tmp_path: Path, artefact: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    cpu = str(tmp_path / "cpu")
    assert main(["init", "--cpu", cpu]) == 0
    assert main(["init", "--cpu", cpu]) == 0
    out = capfd.readouterr().out
    assert "drew" in out
    assert "were there" in out
    image, sigstruct = map(str, artefact)
    base = ["run", "--cpu", cpu, "--image", image, "--sigstruct"]
    assert main([*base, image]) == 125
    assert main([*base, sigstruct, "--uid", "0"]) == 125
    assert main([*base, sigstruct, "--debug", "--", "--x"]) == 125
    err = capfd.readouterr().err
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "SIGSTRUCT_INVALID",
        "CPU_SETTING_INVALID",
        "EINIT_ATTRIBUTES",
    ]
    (tmp_path / "file").write_text("")
    assert main(["init", "--cpu", str(tmp_path / "file" / "cpu")]) == 125
    assert capfd.readouterr().err.startswith("ENCLAVE_START_FAILED")
    with pytest.raises(SystemExit):
        main(["run"])
    capfd.readouterr()
