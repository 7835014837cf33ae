"""The wheel contains everything that an installation needs, and nothing of the development network."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.doubles.built_wheel import PACKAGES, build_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("build"))).extractall(unpacked)
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
