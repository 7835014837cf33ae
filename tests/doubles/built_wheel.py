"""The wheel of this tree, built without a registry, and an installation of it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.conftest import ROOT

PACKAGES = ("dcupgrade", "chain_watcher", "attestation", "keyvault", "process_supervisor")
_BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the checkout in `folder`; returns its path."""
    source = folder / "source"
    for name in (*PACKAGES, "devnet", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "node_modules", "target")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-W", "ignore", "-c", _BUILD, str(folder / "dist")]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    return next((folder / "dist").glob("*.whl"))


def install_wheel(wheel: Path, folder: Path) -> Path:
    """Install the wheel into a virtual environment in `folder`; returns its `bin`.

    The packages that it needs are those of the environment that runs the tests; the checkout is not among them.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*command, str(wheel)], env=environ, check=True, capture_output=True, timeout=120)
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"
