"""The units under a real systemd: `make install`, an upgrade, and a node that outlives its agent.

The commands are those of docs/operators/install.md. Only the TEE differs: a drop-in makes it a simulated one. Then the
pages stop-and-reboot.md, backup.md, quarantine-and-revert.md and several-nodes.md are followed word by word.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tomllib
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from attestation.simulated.root_keys import init_cpu
from devnet.chain import DevChain
from devnet.release_builder import ROOT, BuiltRelease
from devnet.systemd_host import CannotBootError, SystemdHost, missing_tools
from devnet.tools import free_port
from devnet.world import World, toml
from tests.doubles.doc_pages import block

pytestmark = [pytest.mark.e2e, pytest.mark.systemd, pytest.mark.timeout(1200)]

AGENT, VAULT = "dcupgrade.service", "dcupgrade-vault.service"
SIMULATED_VAULT = """[Service]
WorkingDirectory=/
ExecStart=
ExecStart=/usr/local/bin/keyvault watch --url http://127.0.0.1:%(port)d -- \
/usr/local/bin/keyvault serve --listen 127.0.0.1:%(port)d --store /var/lib/dcupgrade-vault/store \
--token-file /etc/dcupgrade/vault.token --auth-file /trial/vault-image/vault.auth --cpu /var/lib/dcupgrade-vault/cpu \
--image /trial/vault-image/vault.pyz --sigstruct /trial/vault-image/vault.sig
"""
SIMULATED_VAULT_OF_A_NAME = """[Service]
ExecStart=
ExecStart=/usr/local/bin/keyvault watch --url http://127.0.0.1:${VAULT_PORT} -- \
/usr/local/bin/keyvault serve --port-file /var/lib/dcupgrade-vaults/%i/settings/port \
--store /var/lib/dcupgrade-vaults/%i/store --token-file /var/lib/dcupgrade-vaults/%i/settings/token \
--auth-file /trial/vault-image/vault.auth --cpu /var/lib/dcupgrade-vaults/%i/cpu \
--image /trial/vault-image/vault.pyz --sigstruct /trial/vault-image/vault.sig
"""
VAULT_FILES = {"image": "pyz", "sigstruct": "sig", "auth_file": "auth"}
OVERRIDES: dict[str, Any] = {
    "agent": {"state_dir": "/var/lib/dcupgrade"},
    "node": {"data_dir": "/srv/dcnode"},
    "vault": {
        "start": False,
        "token_file": "/etc/dcupgrade/vault.token",
        **{key: f"/trial/vault-image/vault.{end}" for key, end in VAULT_FILES.items()},
    },
}
OBJECTS = {f"object-{index}": os.urandom(1 << (2 * index)) for index in range(10)}


def install(host: SystemdHost, world: World) -> None:
    """Do the steps of docs/operators/install.md."""
    # systemd-nspawn invents a boot id, which a unit with a /proc of its own does not see: on a host there is only one
    host.run("umount", "/proc/sys/kernel/random/boot_id")
    host.run("make", "-C", "/src", "install")
    host.run("systemd-sysusers", "/usr/local/lib/sysusers.d/dcupgrade.conf")
    host.write("/etc/dcupgrade/dcupgrade.toml", world.settings_path.read_text())
    host.write("/etc/dcupgrade/agent.env", "WATCH_OPTIONS=--first-install\n")
    token = ("install", "-m", "640", "-g", "dcvault", "/dev/stdin", "/etc/dcupgrade/vault.token")
    host.run(*token, stdin=os.urandom(32).hex())
    host.run("install", "-d", "-m", "700", "-o", "dcupgrade", "-g", "dcupgrade", "/srv/dcnode")
    # One simulated CPU for two users: each has a copy of its root keys. Hardware needs nothing of this.
    for user, state in (("dcupgrade", "/var/lib/dcupgrade"), ("dcvault", "/var/lib/dcupgrade-vault")):
        host.run("install", "-d", "-m", "700", "-o", user, "-g", user, state, f"{state}/cpu")
        host.run("install", "-m", "600", "-o", user, "-g", user, "/trial/cpu/root-keys", f"{state}/cpu/root-keys")
    host.write(f"/etc/systemd/system/{VAULT}.d/simulated.conf", SIMULATED_VAULT % {"port": world.ports["vault"]})
    host.write(f"/etc/systemd/system/{AGENT}.d/impatient.conf", "[Service]\nWatchdogSec=10\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "enable", "--now", VAULT, AGENT)


def node_pid(host: SystemdHost) -> int:
    """The enclave of the node, as a process inside."""
    return int(host.run("pgrep", "--full", "--newest", "--", "--upgrader"))


async def until(host: SystemdHost, unit: str, name: str, wanted: str) -> None:
    async with asyncio.timeout(90):
        while await asyncio.to_thread(host.shows, unit, name) != wanted:  # noqa: ASYNC110 - systemd tells by asking
            await asyncio.sleep(0.1)


async def see_it_outlive_its_agent(host: SystemdHost, world: World) -> None:
    """Restarted, killed, or ended by the watchdog: the node is never touched, and the agent finds it again."""
    node = node_pid(host)
    host.run("systemctl", "restart", AGENT)
    host.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", AGENT)
    await until(host, AGENT, "NRestarts", "1")
    await until(host, AGENT, "ActiveState", "active")
    host.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", AGENT)  # hangs: no word to the watchdog any more
    await until(host, AGENT, "NRestarts", "2")
    await until(host, AGENT, "ActiveState", "active")
    host.write(f"/run/systemd/system/{AGENT}.d/deaf.conf", "[Service]\nKillSignal=SIGCONT\nTimeoutStopSec=1\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", AGENT)  # does not hear the word to stop: SIGKILL after its time
    host.run("rm", f"/run/systemd/system/{AGENT}.d/deaf.conf")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "stop", AGENT)
    assert host.shows(AGENT, "ActiveState") == "inactive"
    health = await world.node.health()
    assert health is not None
    assert health["status"] == "serving"
    host.run("systemctl", "start", AGENT)
    assert node_pid(host) == node


async def see_the_vault_come_back(host: SystemdHost, world: World) -> None:
    host.run("systemctl", "kill", "--signal=KILL", VAULT)
    await until(host, VAULT, "NRestarts", "1")
    await until(host, VAULT, "ActiveState", "active")
    async with asyncio.timeout(90):  # systemd knows that it was started, not that it listens
        while not await listens(world.ports["vault"]):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    status = await world.status()
    assert status is not None
    assert status["state"]["name"] == "idle"


def follow(host: SystemdHost, page: str, fragment: str, *, without: str = "") -> str:
    """Run a block of an operators' page unchanged, except for one line; returns its output."""
    return run_lines(host, block(f"docs/operators/{page}", fragment), without=without)


def run_lines(host: SystemdHost, commands: str, *, without: str = "", folder: str = "/src") -> str:
    lines = [line for line in commands.splitlines() if not without or line != without]
    return host.run("bash", "-euo", "pipefail", "-c", f"cd {folder}\n" + "\n".join(lines))


async def until_status(world: World, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Wait for an answer of the agent: it loads its state and checks the node shortly after its start."""
    async with asyncio.timeout(90):
        while (status := await world.status()) is None or not wanted(status):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.2)


async def see_the_way_back_and_forward(host: SystemdHost, world: World, old: BuiltRelease, new: BuiltRelease) -> None:
    def back(rows: list[dict[str, Any]]) -> bool:
        return any(row["state_after"] == "reverted" for row in rows) and rows[-1]["state_after"] == "idle"

    page, seq = "quarantine-and-revert.md", world.last_seq()
    follow(host, page, "dcupgrade revert")
    await world.wait_for("the way back", back, within_s=90, after=seq)
    await world.wait_serving(old.enclave_id)
    seq = world.last_seq()
    assert "OPERATOR_REVERT" in follow(host, page, "dcupgrade retry")
    await world.wait_committed(new.enclave_id, after=seq)


async def see_the_node_stopped_and_started(host: SystemdHost, world: World, running: str) -> None:
    """The commands of stop-and-reboot.md, without the reboot."""
    page = "stop-and-reboot.md"
    node = node_pid(host)
    assert "serves, as pid" in follow(host, page, "node restart --reason")
    assert node_pid(host) != node
    follow(host, page, "new disk")
    await world.wait_serving(running)
    follow(host, page, "--hours 1 --reason reboot", without="reboot")
    assert await world.node.health() is None
    started = follow(host, page, "dcupgrade node start")
    assert "serves, as pid" in started
    node = node_pid(host)
    host.run("systemctl", "start", AGENT)
    assert node_pid(host) == node, "the agent takes over what was started by hand"
    follow(host, page, "node restart --reason")


async def see_backup_and_restore(host: SystemdHost, world: World, running: str) -> None:
    page = "backup.md"
    follow(host, page, ".backup(")
    for fragment in ("install -m 600 -o dcupgrade", "dcupgrade adopt", "node stop --vault"):
        follow(host, page, fragment)
        await world.wait_serving(running)
        await until_status(world, lambda status: (status["state"]["running"] or {}).get("enclave_id") == running)
    await until_status(world, lambda status: status["overview"]["level"] == "good")
    assert "1 sealed key set opened" in follow(host, page, "dcupgrade check")


def see_an_update_and_the_way_back(host: SystemdHost) -> None:
    """Both need a restart of the agent; the node continues."""
    node, current = node_pid(host), "/usr/local/lib/dcupgrade/current"
    before = host.run("readlink", current)
    printed = follow(host, "stop-and-reboot.md", "WHEELS=DIR")
    assert host.run("readlink", current) != before
    [back] = re.findall(r"to go back: (ln .*)$", printed, re.MULTILINE)
    host.run(*back.split())
    host.run("systemctl", "restart", AGENT)
    assert host.run("readlink", current) == before
    assert node_pid(host) == node


def see_the_state_folder_moved(host: SystemdHost) -> None:
    node = node_pid(host)
    follow(host, "stop-and-reboot.md", "cp -a /var/lib/dcupgrade /srv/dcupgrade")
    assert node_pid(host) != node
    moved = f"/etc/systemd/system/{AGENT}.d/state.conf"
    assert host.run("find", "/srv/dcupgrade/logs", "-name", "node-*.log", "-newer", moved)


async def see_a_second_node_beside_it(host: SystemdHost, world: World, running: str) -> None:
    """The same build of vault and node once more, under a name, with ports that are free here."""
    page = with_free_ports((ROOT / "docs/operators/several-nodes.md").read_text(encoding="utf-8"))
    built, start = "/srv/built-vault", "systemctl enable --now dcupgrade-vault@alpha dcupgrade@alpha"
    state = "/var/lib/dcupgrade-nodes/alpha"
    host.run("install", "-d", f"{built}/settings")
    host.run("install", "-d", "-m", "700", f"{built}/store", f"{built}/cpu")
    host.run("install", "-m", "600", "/trial/cpu/root-keys", f"{built}/cpu/root-keys")
    run_lines(host, next(text for text in page.split("```\n") if start in text), without=start, folder="/srv")
    settings = tomllib.loads(host.run("cat", "/etc/dcupgrade/dcupgrade.toml"))
    for section, values in tomllib.loads(page.partition("```toml\n")[2].partition("```")[0]).items():
        settings[section] |= values
    host.write("/etc/dcupgrade/alpha.toml", toml(settings))
    host.run("install", "-d", "-m", "700", "-o", "dcupgrade", "-g", "dcupgrade", state, f"{state}/cpu")
    key = ("install", "-m", "600", "-o", "dcupgrade", "-g", "dcupgrade", "/trial/cpu/root-keys", f"{state}/cpu")
    host.run(*key)
    host.write("/etc/systemd/system/dcupgrade-vault@.service.d/simulated.conf", SIMULATED_VAULT_OF_A_NAME)
    host.run("systemctl", "daemon-reload")
    host.run(*start.split())
    try:
        await until(host, "dcupgrade@alpha.service", "StatusText", f"idle; running 1.1.0 {running[:8]}")
    except TimeoutError:
        raise AssertionError(host.journal("dcupgrade@alpha") + host.journal("dcupgrade-vault@alpha")) from None
    assert "alpha" in follow(host, "several-nodes.md", "dcupgrade list")
    listed = {item["name"]: item for item in json.loads(host.run("dcupgrade", "list", "--json"))}
    assert {name: (item["version"], item["agent"], item["problems"]) for name, item in listed.items()} == {
        "alpha": ("1.1.0", "runs", []),
        "dcupgrade": ("1.1.0", "runs", []),
    }


def with_free_ports(text: str) -> str:
    for port in sorted(set(re.findall(r"\b6[67]\d\d\b", text))):
        text = text.replace(port, str(free_port()))
    return text


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def see_an_operators_hold_wait_for_the_agent(host: SystemdHost, world: World) -> None:
    """Root's commands reach the agent of another user, also if they were given while it was down."""
    host.run("systemctl", "stop", AGENT)
    host.run("dcupgrade", "hold", "--reason", "trial")
    host.run("systemctl", "start", AGENT)
    async with asyncio.timeout(90):
        while "hold" not in [row["kind"] for row in world.history()]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    host.run("dcupgrade", "check")
    host.run("dcupgrade", "unhold")
    status = json.loads(host.run("dcupgrade", "status", "--json"))
    assert status["state"]["name"] == "idle"


async def test_an_upgrade_under_hardened_units_and_a_node_that_outlives_its_agent(tmp_path: Path) -> None:
    if lacks := missing_tools():
        pytest.skip(f"no systemd of our own to boot: it needs {'; '.join(lacks)}")
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(DevChain(block_time_ms=500))
        world = await stack.enter_async_context(World.open(tmp_path / "world", chain.ws_url, overrides=OVERRIDES))
        init_cpu(world.folder / "cpu")
        for place in (world.state_dir, world.data_dir):
            place.mkdir()
        old, new = [await asyncio.to_thread(world.builder.good, version) for version in ("1.0.0", "1.1.0")]
        await world.publish(old)
        binds = {"/var/lib/dcupgrade": world.state_dir, "/srv/dcnode": world.data_dir}
        try:
            host = stack.enter_context(SystemdHost(binds, {"/src": ROOT, "/trial": world.folder}))
        except CannotBootError as error:
            pytest.skip(f"this machine does not boot a systemd: {error}")
        try:
            install(host, world)
            await world.wait_committed(old.enclave_id)
            await world.wait_serving(old.enclave_id)
            for name, data in OBJECTS.items():
                await world.node.put(name, data)
            await see_it_outlive_its_agent(host, world)
            await see_the_vault_come_back(host, world)
            await see_an_operators_hold_wait_for_the_agent(host, world)
            await world.publish(new)
            await world.wait_committed(new.enclave_id, after=world.last_seq())
            await world.wait_serving(new.enclave_id)
            assert {name: await world.node.get(name) for name in await world.node.names()} == OBJECTS
            await until(host, AGENT, "StatusText", f"idle; running 1.1.0 {new.enclave_id[:8]}")
            assert host.shows(AGENT, "NRestarts") == "0", "since it was started last"
            assert node_pid(host) not in map(int, host.run("pgrep", "-u", "dcvault").split())
            assert " ERROR " not in host.journal(AGENT, lines=1000)
            await see_the_way_back_and_forward(host, world, old, new)
            await see_the_node_stopped_and_started(host, world, new.enclave_id)
            await see_backup_and_restore(host, world, new.enclave_id)
            assert {name: await world.node.get(name) for name in await world.node.names()} == OBJECTS
            see_an_update_and_the_way_back(host)
            see_the_state_folder_moved(host)
            await see_a_second_node_beside_it(host, world, new.enclave_id)
            host.run("make", "-C", "/src", "uninstall")
            assert (world.state_dir / "journal.sqlite3").exists()
            host.run("test", "-d", "/var/lib/dcupgrade-vault/store")
        except Exception as error:
            raise AssertionError(f"{error}\n{host.journal(VAULT)}\n{host.journal(AGENT)}") from error
