"""The committed runtimes are the ones their sources make."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUNTIME = Path(__file__).resolve().parents[3] / "devnet" / "runtime"
# The first bytes of a compressed runtime: the prefix of sp-maybe-compressed-blob.
MAGIC = bytes([82, 188, 83, 118, 70, 219, 142, 5])
NAMES = ("dcnode_runtime", "dcnode_runtime_moved")


def sums(path: Path) -> dict[str, str]:
    lines = [line.split() for line in path.read_text().splitlines()]
    return {name: digest for digest, name in lines}


def test_the_sources_are_those_the_wasm_was_built_from() -> None:
    recorded = sums(RUNTIME / "wasm" / "SOURCES")
    files = [RUNTIME / "Cargo.lock", RUNTIME / "Cargo.toml", *(RUNTIME / "src").glob("*.rs")]
    now = {str(file.relative_to(RUNTIME)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert now == recorded, "the runtime's sources changed: run devnet/runtime/build.sh and commit its output"


@pytest.mark.parametrize("name", NAMES)
def test_the_wasm_is_compressed_as_substrate_expects(name: str) -> None:
    assert (RUNTIME / "wasm" / f"{name}.compact.compressed.wasm").read_bytes()[:8] == MAGIC


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_file_holds_the_wasm_that_is_recorded(name: str) -> None:
    zstd = shutil.which("zstd")
    if zstd is None:
        pytest.skip("zstd is not installed: what is inside the committed runtimes was not looked at")
    packed = (RUNTIME / "wasm" / f"{name}.compact.compressed.wasm").read_bytes()[len(MAGIC) :]
    wasm = subprocess.run([zstd, "--decompress", "--stdout"], input=packed, capture_output=True, check=True).stdout
    assert hashlib.sha256(wasm).hexdigest() == sums(RUNTIME / "wasm" / "SHA256SUMS")[f"{name}.wasm"]


def test_both_builds_are_recorded_and_differ() -> None:
    recorded = sums(RUNTIME / "wasm" / "SHA256SUMS")
    assert set(recorded) == {f"{name}.wasm" for name in NAMES}
    assert len(set(recorded.values())) == 2


@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not os.environ.get("DEVNET_TEST_RUNTIME_BUILD"),
    reason="set DEVNET_TEST_RUNTIME_BUILD=1 to rebuild both runtimes and compare (4 minutes, Debian's rustc-web)",
)
def test_a_rebuild_gives_the_same_wasm(tmp_path: Path) -> None:
    done = subprocess.run(["sh", str(RUNTIME / "build.sh"), str(tmp_path)], capture_output=True, text=True, check=False)
    if done.returncode == 69:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-2000:]
    assert sums(tmp_path / "SHA256SUMS") == sums(RUNTIME / "wasm" / "SHA256SUMS")
