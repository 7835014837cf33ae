"""The targets of `make fuzz`: seeds and earlier finds pass, and the engine finds a planted bug."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .guided.all_targets import ALL
from .guided.target import COMMON_SEEDS, KEPT, Target, kept, slug

HARMLESS = [name for name in ALL if name != "canary"]


@pytest.mark.parametrize("name", HARMLESS)
def test_seeds_and_kept_inputs_end_in_documented_errors_only(name: str) -> None:
    for data in (*ALL[name].seeds, *COMMON_SEEDS, *kept(name)):
        ALL[name](data)


@pytest.mark.parametrize("name", HARMLESS)
def test_seeds_reach_what_is_behind_the_first_refusal(name: str) -> None:
    """A target's good input must not be longer than the tried inputs, or it would never be used."""
    assert max(len(seed) for seed in ALL[name].seeds) <= ALL[name].bytes_max


def test_what_is_kept_belongs_to_a_target() -> None:
    assert {path.stem for path in KEPT.iterdir()} <= {slug(name) for name in ALL}
    assert sum(path.stat().st_size for path in KEPT.iterdir()) < 256 * 1024


def test_an_undocumented_error_leaves_a_target() -> None:
    with pytest.raises(IndexError):
        ALL["canary"](bytes.fromhex("646375f1"))
    with pytest.raises(KeyError):
        Target(lambda _: dict[str, object]()["x"], (b"",), (ValueError,))(b"")


@pytest.mark.slow
def test_the_planted_bug_is_found(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is installed by `make fuzz`", exc_type=ImportError)
    command = [sys.executable, "-m", "tests.fuzz.guided", "--only", "canary", "--out", str(tmp_path)]
    # The same mutations in every run, and no clock: the number of runs is what ends it.
    done = subprocess.run(
        [*command, "--minutes", "600", "--runs", "500000", "--seed", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "IndexError" in done.stdout
    assert re.search(r"found: canary$", done.stdout)
    (find,) = (tmp_path / "finds").iterdir()
    assert find.read_bytes().startswith(b"dcu")
