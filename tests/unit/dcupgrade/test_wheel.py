"""The wheel holds what an installation needs, and nothing of the development network."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("dcupgrade", "chain_watcher", "attestation", "keyvault", "process_supervisor")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files, built from a copy of the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "devnet", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "node_modules", "target")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-W", "ignore", "-c", build, str(source / "dist")]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    unpacked = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(next((source / "dist").glob("*.whl"))).extractall(unpacked)
    return unpacked


def test_the_wheel_explains_a_code_with_its_remedy(wheel: Path, tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(wheel)!r}); from dcupgrade.commands.main import main; main()"
    command = [sys.executable, "-P", "-c", program, "explain", "source_wont_start"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("SOURCE_WONT_START: ")
    assert "\nDo: " in done.stdout


def test_the_wheel_holds_schemas_page_and_units(wheel: Path) -> None:
    for name in (
        *("surfaces/schemas/status.schema.json", "surfaces/page/index.html", "deploy/systemd/dcupgrade.service"),
        *("deploy/systemd/dcupgrade.sysusers", "deploy/prometheus/alerts.yaml", "commands/runbook/README.md"),
        *("deploy/field/compose.yaml", "deploy/field/dcupgrade.conf"),
    ):
        assert (wheel / "dcupgrade" / name).is_file(), name


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == set(PACKAGES)
