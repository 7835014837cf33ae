"""Attacks on a vault, with real processes under the simulated CPU. Each must fail for the reason in its name."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devnet.tools import free_port
from keyvault.client import VaultClient
from tests.e2e.vault_parts.kit import GENESIS, TOKEN, Artefact, Bench, Process, ready

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def old(bench: Bench) -> Artefact:
    return bench.node("1.0.0")


@pytest.fixture(scope="module")
def new(bench: Bench) -> Artefact:
    return bench.node("1.1.0")


@pytest.fixture(scope="module")
def vault(bench: Bench) -> Artefact:
    return bench.vault()


class Upgrade:
    """A vault that holds the old node's keys and a permit for the new one."""

    def __init__(self, bench: Bench, vault: Artefact, old: Artefact, new: Artefact, store: str) -> None:
        self.bench, self.vault, self.old, self.new, self.store = bench, vault, old, new, store
        self.port = free_port()
        self.client = VaultClient(f"http://127.0.0.1:{self.port}", TOKEN)
        self.running: list[Process] = []

    async def __aenter__(self) -> "Upgrade":
        self.running.append(self.bench.start_vault(self.vault, self.port, store=self.store))
        source = self.bench.start_node(self.old, self.port, "make", upgraders=self.vault.enclave_id)
        self.running.append(source)
        listening, self.keys = source.event(), source.event()
        await ready(self.client)
        sealed = await self.client.collect(f"http://127.0.0.1:{listening['port']}", self.old.enclave_id)
        assert sealed["key_set_id"] == self.keys["key_set_id"]
        entries = [(5, self.old.enclave_id), (9, self.new.enclave_id)]
        evidence = self.bench.evidence(self.new, entries)
        await self.client.permit(self.old.enclave_id, self.new.enclave_id, sealed["key_set_id"], evidence)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        for process in self.running:
            process.stop()

    def ask(self, artefact: Artefact, **more: Any) -> dict[str, Any]:
        """Start a node that asks for keys; returns its result."""
        process = self.bench.start_node(artefact, self.port, "ask", **more)
        self.running.append(process)
        assert process.event()["event"] == "listening"
        return process.event(90)


async def test_who_is_not_the_permitted_target_on_this_cpu_gets_no_keys(
    bench: Bench, vault: Artefact, old: Artefact, new: Artefact
) -> None:
    other, debug = bench.node("0.9.0"), bench.node("1.2.0", debug=True)
    async with Upgrade(bench, vault, old, new, "store-a") as upgrade:
        asked = await asyncio.gather(
            asyncio.to_thread(upgrade.ask, other, folder="a"),
            asyncio.to_thread(upgrade.ask, debug, folder="b", debug=True),
            asyncio.to_thread(upgrade.ask, new, folder="c", signature=bench.sign(other.enclave_id)),
            asyncio.to_thread(upgrade.ask, new, folder="d", cpu="another-cpu"),
            asyncio.to_thread(upgrade.ask, new, folder="e", upgraders="0" * 64),
        )
        assert [found.get("code") for found in asked] == [
            "PERMIT_OTHER_TARGET",  # signed but older, and another id
            "PEER_DEBUG",
            "NETWORK_SIGNATURE_BAD",
            "REPORT_MAC_BAD",  # the same program on another CPU cannot verify the challenge
            "PEER_NOT_UPGRADER",  # and a node does not take keys from a vault it does not expect
        ]
        assert (await upgrade.client.delivery(new.enclave_id))["instances"] == 0
        good = await asyncio.to_thread(upgrade.ask, new, folder="f")  # the control
        assert good["digest"] == upgrade.keys["digest"]
        again = await asyncio.to_thread(upgrade.ask, new, folder="g")
        assert again["code"] == "PERMIT_ALREADY_DURABLE"


async def test_a_replaced_vault_build_does_not_open_the_store_and_the_old_build_still_does(
    bench: Bench, vault: Artefact, old: Artefact, new: Artefact
) -> None:
    replaced = bench.vault("replaced", permit_ttl_s=60)
    assert replaced.enclave_id != vault.enclave_id
    async with Upgrade(bench, vault, old, new, "store-b") as upgrade:
        upgrade.running[0].stop()
        second = bench.start_vault(replaced, upgrade.port, store="store-b")
        assert (await ready(upgrade.client))["status"] == "VAULT_REPLACED"
        asking = bench.start_node(old, upgrade.port, "ask", folder="back", upgraders=replaced.enclave_id)
        deadline = time.monotonic() + 90
        while (await upgrade.client.delivery(old.enclave_id))["state"] != "challenged":  # asks, and gets nothing
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert asking.stop() != 0
        assert asking.event()["event"] == "listening"
        with pytest.raises(AssertionError, match="no more output"):
            asking.event(0.1)
        second.stop()
        upgrade.running.append(bench.start_vault(vault, upgrade.port, store="store-b"))
        assert (await ready(upgrade.client))["status"] == "ok"
        back = await asyncio.to_thread(upgrade.ask, old, folder="back2")
        assert back["digest"] == upgrade.keys["digest"]


def start(bench: Bench, artefact: Artefact, store: str, *more: str) -> str:
    """Start a vault that must refuse to start; returns its output."""
    process = bench.start_vault(artefact, free_port(), store=store, more=more)
    assert process.popen.wait(60) == 1
    process.stop()
    return process.log.read_text()


def test_a_vault_that_does_not_allow_the_simulated_tee_does_not_start(bench: Bench) -> None:
    assert "unsafe_simulated_tee = false" in start(bench, bench.vault("strict", unsafe_simulated_tee=False), "s1")


def test_host_settings_that_loosen_the_measured_policy_stop_the_start(bench: Bench, vault: Artefact) -> None:
    settings = bench.folder / "loosen.json"
    settings.write_text(json.dumps({"permit_ttl_s": 7200}))
    assert "VAULT_SETTING_LOOSENS" in start(bench, vault, "s2", "--tighten", str(settings))


def test_an_altered_image_does_not_start(bench: Bench, vault: Artefact) -> None:
    image = bench.folder / "altered.pyz"
    data = vault.image.read_bytes()
    image.write_bytes(data.replace(b'"require_listed_vault": false', b'"require_listed_vault":  true'))
    assert image.read_bytes() != data
    process = bench.start_vault(Artefact(image, vault.sigstruct, vault.enclave_id), free_port(), store="s3")
    assert process.popen.wait(60) == 125
    process.stop()
    assert "SIGSTRUCT_MRENCLAVE_MISMATCH" in process.log.read_text()


def test_a_vault_without_the_networks_signature_does_not_start(bench: Bench) -> None:
    stranger = Bench(bench.folder / "stranger", rsa=bench.rsa)
    stranger.folder.mkdir()
    unsigned = bench.vault("unsigned", retention_s=5)
    assert "NETWORK_SIGNATURE_BAD" in start(stranger, unsigned, "s4")


def test_a_second_vault_on_the_same_store_is_refused(bench: Bench, vault: Artefact) -> None:
    first = bench.start_vault(vault, free_port(), store="s5")
    deadline = time.monotonic() + 90
    while "listens on" not in first.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "another process uses it" in start(bench, vault, "s5")
    first.stop()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keyvault", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


async def test_the_command_line_verifies_inspects_and_tries_nodes(
    bench: Bench, vault: Artefact, old: Artefact, new: Artefact
) -> None:
    auth = bench.folder / f"{vault.enclave_id}.auth"
    async with Upgrade(bench, vault, old, new, "store-c") as upgrade:
        verified = run(
            "verify", "--image", str(vault.image), "--sigstruct", str(vault.sigstruct), "--auth-file", str(auth)
        )
        assert verified.stdout.splitlines()[0].startswith(vault.enclave_id)
        assert "UNSAFE: unsafe_simulated_tee" in verified.stdout
        inspected = json.loads(run("inspect", "--store", str(bench.folder / "store-c")).stdout)
        names = {row["name"] for row in inspected if row["kind"] == "key set"}
        assert names == {upgrade.keys["key_set_id"]}
        assert {row["sealer"] for row in inspected} == {vault.enclave_id}

        suite = bench.conformance()
        node = bench.start_node(old, upgrade.port, "make", upgraders=suite.enclave_id, folder="tried")
        upgrade.running.append(node)
        url = f"http://127.0.0.1:{node.event()['port']}"
        outside = await asyncio.to_thread(run, "conformance", url)
        assert outside.returncode == 0, outside.stdout + outside.stderr
        image = ["--image", str(suite.image), "--sigstruct", str(suite.sigstruct), "--cpu", str(bench.folder / "cpu")]
        signed = ["--auth-file", str(suite.image.parent / "auth")]
        inside = await asyncio.to_thread(run, "conformance", url, "--genesis", GENESIS, "--json", *signed, *image)
        assert inside.returncode == 0, inside.stdout + inside.stderr
        assert {check["name"] for check in json.loads(inside.stdout)["checks"]} >= {"handover", "bound", "flood"}
        nothing = await asyncio.to_thread(run, "conformance", "http://127.0.0.1:1", "--genesis", GENESIS)
        assert (nothing.returncode, "CONFORMANCE_FAILED" in nothing.stderr) == (1, True)


def process_facts(pid: int) -> tuple[list[str], int]:
    """Soft and hard limit of core files, and how many kB are locked."""
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    core = next(line for line in limits if line.startswith("Max core file size"))
    return core.split()[4:6], int(next(line for line in status if line.startswith("VmLck")).split()[1])


async def test_a_vault_forbids_dumps_locks_memory_and_writes_only_private_files(
    bench: Bench, vault: Artefact, old: Artefact, new: Artefact
) -> None:
    async with Upgrade(bench, vault, old, new, "store-d") as upgrade:
        hygiene = (await upgrade.client.status())["hygiene"]
        assert (hygiene["core_dumps"], hygiene["dumpable"]) == (False, False)
        core_limit, locked_kb = process_facts(upgrade.running[0].enclave_pid())
        assert core_limit == ["0", "0"]
        assert (hygiene["memory_locked"] == "all") == (locked_kb > 0)
        log = upgrade.running[0].log.read_text()
        assert upgrade.keys["key_set_id"] in log  # the control: the vault logged about this key set
        folder = bench.folder / "store-d"
        assert all(file.stat().st_mode & 0o077 == 0 for file in [folder, *folder.iterdir()])
