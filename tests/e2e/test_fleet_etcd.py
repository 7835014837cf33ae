"""Fleets on a real etcd: the limit of simultaneous upgrades, the halt, and failures of the server."""

import asyncio
import base64
import json
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dcupgrade.adapters.fleet import FleetGate
from dcupgrade.adapters.fleet_etcd import EtcdFleet
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.fleet import Fleet, Halt, Member, Outcome
from dcupgrade.machine.state import Release
from devnet.etcd import EtcdServer
from devnet.tools import find_tool

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_tool("etcd") is None, reason="etcd is not installed (apt-get install etcd-server)"),
]
NEW = Release("b" * 64, "1.1.0", added_height=2)


class Clock:
    def now(self) -> float:
        return 1000.0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "server") as server:
        yield server


@asynccontextmanager
async def fleet(
    server: EtcdServer, slots: int | None = None, name: str = "trial", **more: Any
) -> AsyncIterator[EtcdFleet]:
    engine = EtcdFleet(name, [server.url], **more)
    try:
        if slots is not None:
            await engine.set_limit(slots)
        yield engine
    finally:
        await engine.aclose()


def gate(engine: EtcdFleet, node: str, reverts_max: int = 2) -> FleetGate:
    return FleetGate(engine, node, reverts_max, Clock())


def put(server: EtcdServer, key: str, value: bytes) -> None:
    """Write a value as an operator with etcdctl would."""
    body = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}
    request = urllib.request.Request(f"{server.url}/v3/kv/put", json.dumps(body).encode())  # noqa: S310
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - our own loopback address
        pass


async def test_fifty_agents_never_hold_more_than_three_slots_and_all_get_their_turn(etcd: EtcdServer) -> None:
    at_work: set[str] = set()
    most = 0
    full = asyncio.Event()

    async def agent(node: str) -> None:
        nonlocal most
        async with fleet(etcd) as engine:
            mine = gate(engine, node)
            while await mine.take(NEW):  # noqa: ASYNC110 - the engine is asked again, as an agent does
                await asyncio.sleep(0.2)
            at_work.add(node)
            most = max(most, len(at_work))
            if len(at_work) == 3:
                full.set()
            await full.wait()  # the first holders keep their slots until all three are held
            at_work.remove(node)
            number = (await engine.read()).slot_of(node)
            assert number is not None
            await engine.clear(number, node, Outcome(node, NEW.enclave_id, NEW.version, "committed", 1.0))

    async with fleet(etcd, slots=3) as engine:
        await asyncio.gather(*(agent(f"n{number}") for number in range(50)))
        found = await engine.read()
    assert most == 3
    assert found.slots == (None, None, None)
    assert len(found.outcomes) == 50


async def test_a_halt_is_for_all_and_for_this_fleet_only(etcd: EtcdServer) -> None:
    async with fleet(etcd, 3) as engine, fleet(etcd, 3, name="other") as other:
        await engine.set_halt(Halt("eve", "bad release", 1.0))
        assert [item.code for item in await gate(engine, "n").take(NEW)] == ["FLEET_HALTED"]
        assert await gate(other, "n").take(NEW) == ()
        await engine.set_halt(None)
        assert await gate(engine, "n").take(NEW) == ()


async def test_a_halt_between_question_and_taking_is_seen_by_the_transaction(etcd: EtcdServer) -> None:
    async with fleet(etcd, 1) as engine:
        read = engine.read

        async def read_and_halt() -> Any:
            found = await read()
            engine.read = read  # type: ignore[method-assign]
            await engine.set_halt(Halt("eve", "just now", 1.0))
            return found

        engine.read = read_and_halt  # type: ignore[method-assign]
        assert [item.code for item in await gate(engine, "n").take(NEW)] == ["FLEET_HALTED"]
        assert (await engine.read()).slots == (None,)


async def test_a_server_that_is_killed_in_mid_upgrade_shuts_the_gate_and_keeps_the_slot(etcd: EtcdServer) -> None:
    async with fleet(etcd, 1) as engine:
        assert await gate(engine, "n").take(NEW) == ()
        etcd.kill()
        assert [item.code for item in await gate(engine, "m").take(NEW)] == ["FLEET_UNREACHABLE"]
        etcd.start()
        assert [item.code for item in await gate(engine, "m").take(NEW)] == ["FLEET_FULL"]
        assert await gate(engine, "n").take(NEW) == ()


async def test_reverts_stop_a_release_and_resume_lets_it_continue(etcd: EtcdServer) -> None:
    async with fleet(etcd, 1) as engine:
        for node in ("x", "y"):
            assert await gate(engine, node).take(NEW) == ()
            await engine.clear(0, node, Outcome(node, NEW.enclave_id, NEW.version, "reverted", 1.0))
        assert [item.code for item in await gate(engine, "z").take(NEW)] == ["FLEET_HALTED"]
        await engine.set_halt(None)
        assert await gate(engine, "z").take(NEW) == ()


@pytest.mark.parametrize("value", [b"", b"[]", b"{", b'{"holder": 5}', b"[" * 50_000, b"\xff" * 10])
async def test_what_a_hand_wrote_into_a_slot_is_a_held_slot(etcd: EtcdServer, value: bytes) -> None:
    async with fleet(etcd, 1) as engine:
        put(etcd, "/dcupgrade/trial/slots/0", value)
        put(etcd, "/dcupgrade/trial/outcomes/x", value)
        assert [item.code for item in await gate(engine, "n").take(NEW)] == ["FLEET_FULL"]


async def test_what_nodes_say_of_themselves_is_read_apart_from_what_decides(etcd: EtcdServer) -> None:
    told = Member("x", "1.0.0", "1.1.0", 1.0)
    async with fleet(etcd, 1) as engine:
        await engine.publish(told)
        put(etcd, "/dcupgrade/trial/versions/hand", b"{")
        assert await engine.members() == (told,)
        assert await engine.read() == Fleet((None,))


async def test_a_limit_that_is_missing_or_none_shuts_the_gate_and_says_how_to_set_it(etcd: EtcdServer) -> None:
    async with fleet(etcd) as engine:
        for value in (None, b"many", b"-1", b"9" * 30):
            if value is not None:
                put(etcd, "/dcupgrade/trial/limit", value)
            (found,) = await gate(engine, "n").take(NEW)
            assert found.code == "FLEET_UNREACHABLE"
            assert "dcupgrade fleet limit" in found.detail


async def test_a_second_endpoint_is_asked_where_the_first_is_down(etcd: EtcdServer) -> None:
    engine = EtcdFleet("trial", ["http://127.0.0.1:1", etcd.url])
    try:
        await engine.set_limit(1)
        assert await gate(engine, "n").take(NEW) == ()
    finally:
        await engine.aclose()


@pytest.mark.skipif(find_tool("etcdctl") is None, reason="etcdctl is not installed (apt-get install etcd-client)")
async def test_a_user_with_a_password_is_let_in_and_one_with_a_wrong_one_is_told(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    for command in ("user add root:secret", "user grant-role root root", "auth enable"):
        etcd.ctl(*command.split())
    (tmp_path / "good").write_text("secret\n")
    (tmp_path / "bad").write_text("guess\n")
    async with fleet(etcd, 1, user="root", password_file=tmp_path / "good") as engine:
        assert await gate(engine, "n").take(NEW) == ()
    async with fleet(etcd, user="root", password_file=tmp_path / "bad") as engine:
        with pytest.raises(DcupgradeError) as caught:
            await engine.read()
    assert caught.value.code == "FLEET_UNREACHABLE"


@pytest.mark.slow
def test_the_operator_sets_up_stops_and_looks_at_a_fleet_by_commands(etcd: EtcdServer, tmp_path: Path) -> None:
    settings = tmp_path / "dcupgrade.toml"
    settings.write_text(
        f'[agent]\nstate_dir = "{tmp_path}/state"\n[chain]\nendpoints = ["ws://127.0.0.1:1"]\nfinality = "single"\n'
        'network_keys = ["bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"]\n'
        f'[node]\nid = "n"\ndata_dir = "{tmp_path}/data"\n[vault]\nstart = false\n'
        f'[fleet]\nengine = "etcd"\nname = "trial"\nendpoints = ["{etcd.url}"]\n'
    )

    def run(*arguments: str) -> str:
        argv = [sys.executable, "-m", "dcupgrade", "--config", str(settings), "fleet", *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "2 nodes may upgrade at once" in run("limit", "2")
    assert run("status").count("free") == 2
    run("halt", "--reason", "bad release")
    assert "bad release" in run("status")
    assert json.loads(run("status", "--json"))["halt"]["why"] == "bad release"
    run("resume")
    assert "HALTED" not in run("status")
    put(etcd, "/dcupgrade/trial/slots/1", b'{"holder": "dead", "enclave_id": "b", "version": "1", "since_unix_s": 1}')
    assert "dead" in run("status")
    assert "counts as reverted" in run("release", "dead")
    assert "holds no slot" in run("release", "dead")
