"""The EGETKEY extension, built with a stand-in for the instruction, so that no SGX machine is needed."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from attestation.egetkey import build as build_module
from attestation.egetkey.build import FLAGS, SOURCE, build, compiler, main
from attestation.errors import AttestationError
from attestation.sgx import SEAL_KEY, KeyRequest, cmac, report_key_request, report_mac
from attestation.simulated.cpu import Secs, SoftwareCpu
from attestation.tee.gramine import GramineDriver
from tests.doubles.dev_attestation import DevAttestationDouble

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which(compiler()[0]) is None, reason="takes a C compiler on x86-64"
)
STAND_IN_ROOT = b"test stand-in k\0"  # as in module.c


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = build(tmp_path_factory.mktemp("egetkey"), ["-DEGETKEY_STAND_IN"])
    spec = importlib.util.spec_from_file_location("_egetkey", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_core_is_clean_under_the_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "harness"
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-DEGETKEY_STAND_IN"]
    sources = [str(SOURCE / "egetkey.c"), str(Path(__file__).parent / "egetkey_harness.c")]
    flags = [flag for flag in FLAGS if flag != "-fPIC"]
    subprocess.run([*compiler(), *flags, *sanitize, f"-I{SOURCE}", "-o", str(program), *sources], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_sanitizers_see_a_planted_overread(tmp_path: Path) -> None:
    source = tmp_path / "planted.c"
    text = '#include "egetkey.h"\n#include <stdlib.h>\n'
    text += "uint32_t egetkey_stand_in(const void *r, void *k) { (void)r; (void)k; return 0; }\n"
    text += "int main(void) { uint8_t mac[16]; uint8_t *d = malloc(31); if (!d) return 0;"
    text += " aes_cmac(mac, d, 32, mac); free(d); return 0; }\n"
    source.write_text(text)
    program = tmp_path / "planted"
    flags = ["-O0", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DEGETKEY_STAND_IN"]
    subprocess.run(
        [*compiler(), *flags, f"-I{SOURCE}", "-o", str(program), str(source), str(SOURCE / "egetkey.c")], check=True
    )
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr


def test_the_real_instruction_is_in_the_real_build(tmp_path: Path) -> None:
    assert main_with(["--out", str(tmp_path)]) == 0
    data = (tmp_path / "_egetkey.abi3.so").read_bytes()
    assert b"\x0f\x01\xd7" in data  # enclu
    assert b"stand-in" not in data


def test_python_gets_key_and_code(extension: ModuleType) -> None:
    request = KeyRequest(SEAL_KEY, 1, 3, bytes(range(16)), key_id=bytes(range(32))).encode()
    assert extension.egetkey(request) == (0, cmac(STAND_IN_ROOT, request))
    assert extension.egetkey(KeyRequest(SEAL_KEY, 1, 99).encode()) == (64, bytes(16))
    for wrong in (b"", request[:-1], request + b"\0"):
        with pytest.raises(ValueError, match="bytes instead of"):
            extension.egetkey(wrong)
        with pytest.raises(ValueError, match="bytes instead of"):
            extension.verify_report(wrong)
    with pytest.raises(TypeError):
        extension.egetkey("text")


def test_the_gramine_driver_works_through_the_extension(extension: ModuleType, cpu: SoftwareCpu, alice: Secs) -> None:
    own = GramineDriver(DevAttestationDouble(cpu, alice), extension)
    report = cpu.ereport(alice, alice.target_info(), bytes(range(64)))
    key = cmac(STAND_IN_ROOT, report_key_request(report.key_id).encode())
    good = replace(report, mac=report_mac(key, report))
    own.verify(good)
    for bad in (replace(good, isvsvn=9), replace(good, mac=bytes(16)), replace(good, key_id=bytes(32))):
        with pytest.raises(AttestationError) as caught:
            own.verify(bad)
        assert caught.value.code == "REPORT_MAC_BAD"
    request = KeyRequest(SEAL_KEY, 1)
    assert own.seal_key(request) == cmac(STAND_IN_ROOT, request.encode())
    with pytest.raises(AttestationError) as caught:
        own.seal_key(KeyRequest(SEAL_KEY, 1, 99))
    assert (caught.value.code, caught.value.found) == ("TEE_KEY_REFUSED", "64")


def test_a_build_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "false --unused")
    assert main_with(["--out", str(tmp_path)]) == 1
    assert "was not built" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def main_with(arguments: list[str]) -> int:
    before = sys.argv
    sys.argv = [build_module.__name__, *arguments]
    try:
        return main()
    finally:
        sys.argv = before


def test_two_builds_from_different_folders_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is measured under Gramine: no path, time or build id goes into it."""
    built = []
    for name in ("one", "another folder"):
        source, out = tmp_path / name / "source", tmp_path / name / "out"
        shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        out.mkdir()
        monkeypatch.setattr(build_module, "SOURCE", source)
        built.append(build(out).read_bytes())
    assert built[0] == built[1]
    assert str(tmp_path).encode() not in built[0]
