"""The agent's dependencies are those of decision 22, and it runs with nothing else installed."""

import re
import subprocess
import sys
import tomllib

from tests.conftest import ROOT

DECISION = ROOT / "docs" / "decisions" / "0022-dependencies-by-who-needs-them.md"
PACKAGES = ("attestation", "chain_watcher", "dcupgrade", "keyvault", "process_supervisor")
ONLY_WHAT_IS_LOCKED = """
import importlib.metadata as metadata, re, sys
from importlib.machinery import PathFinder
owners = metadata.packages_distributions()
locked = set(sys.argv.pop(1).split(","))
class OnlyLocked(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        owner = owners.get(name.partition(".")[0], ())
        if owner and not locked & {re.sub("[-_.]+", "-", one).lower() for one in owner}:
            return None
        return super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyLocked
"""
IMPORT_ALL = """
import importlib, pkgutil
for package in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
"""
COMMAND_LINE = "from dcupgrade.commands.main import main; sys.exit(main())"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(name: str) -> set[str]:
    return {normal(found) for found in re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / name).read_text(), re.MULTILINE)}


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def listed(heading: str) -> set[str]:
    """The distributions in the first column of the table below a heading of the decision."""
    section = DECISION.read_text().split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    return {
        normal(name) for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`([^`]+)`", row)
    }


def run_with_the_lock(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        ONLY_WHAT_IS_LOCKED + program,
        ",".join(sorted(locked("requirements.runtime.lock"))),
    ]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_each_distribution_on_an_agents_host_is_justified() -> None:
    assert listed("The agent and the vault") == locked("requirements.runtime.lock")


def test_what_release_managers_need_beyond_is_justified_and_does_not_come_with_the_agent() -> None:
    beyond = locked("requirements.publish.lock") - locked("requirements.runtime.lock")
    assert listed("Release managers: extra `publish`") == beyond
    assert locked("requirements.runtime.lock") < locked("requirements.publish.lock") < locked("requirements.lock")


def test_the_enclave_gets_a_part_of_what_the_agent_has() -> None:
    assert locked("requirements.enclave.lock") < locked("requirements.runtime.lock")


def test_every_module_imports_with_nothing_but_what_is_locked_for_the_agent() -> None:
    done = run_with_the_lock(IMPORT_ALL, *PACKAGES)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_extra_the_agents_commands_work_and_publishing_names_it() -> None:
    done = run_with_the_lock(COMMAND_LINE, "config", "example")
    assert (done.returncode, "[chain]" in done.stdout) == (0, True), done.stderr
    reach = "from dcupgrade.publishing.pallet import PublisherChain as C; C.connect('ws://127.0.0.1:9').__enter__()"
    assert "PUBLISH_EXTRA_MISSING" in run_with_the_lock(reach).stderr
