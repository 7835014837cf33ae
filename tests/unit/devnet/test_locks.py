"""Installed packages are locked by version and hash; nothing depends on a registry's newest version."""

import json
import re

import pytest

from devnet.release_builder import ROOT
from devnet.tools import NODEJS_LOCK

LOCKS = (
    "requirements.build.lock",
    "requirements.lock",
    "requirements.runtime.lock",
    "requirements.publish.lock",
    "requirements.enclave.lock",
)
INSTALLERS = (".ci/setup", ".ci/install", "devnet/docker/Dockerfile", "devnet/tools.py", "docs/gramine.md")


def locked(name: str) -> dict[str, list[str]]:
    """Requirement to hashes."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return {line.split()[0]: re.findall(r"--hash=sha256:([0-9a-f]{64})(?= |$)", line) for line in lines}


@pytest.mark.parametrize("name", [*LOCKS, str(NODEJS_LOCK.relative_to(ROOT))])
def test_every_requirement_has_one_version_and_its_hashes(name: str) -> None:
    found = locked(name)
    assert found
    for requirement, hashes in found.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", requirement)
        assert hashes


@pytest.mark.parametrize("name", INSTALLERS)
def test_every_installation_asks_for_hashes_and_builds_with_nothing_that_is_not_locked(name: str) -> None:
    text = re.sub(r"\\\n\s*", "", (ROOT / name).read_text())
    for line in re.split(r"\n|&&", text):
        if re.search(r"pip[\"',]* *,? *[\"']?install\b", line) and not line.lstrip().startswith(("#", '"""')):
            assert "--require-hashes" in text
            assert "--no-deps" in line
        if re.search(r"-r .?requirements\.((runtime|publish|\$lock)\.)?lock", line):
            assert "--no-build-isolation --use-pep517" in line
            assert "-r requirements.build.lock" in text


def test_npm_installs_what_its_lock_knows_by_hash() -> None:
    packages = json.loads((ROOT / "devnet/chopsticks/package-lock.json").read_text())["packages"]
    assert all("integrity" in facts for place, facts in packages.items() if place)
