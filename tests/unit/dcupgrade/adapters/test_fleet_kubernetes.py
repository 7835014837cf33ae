"""A fleet of Leases, against a double of the API that is strict about rights and resource versions."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from dcupgrade.adapters.fleet_kubernetes import KubernetesFleet
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.fleet import Halt, Outcome, Slot
from tests.doubles.lease_api import LeaseApi

SLOT = Slot("me", "b" * 64, "1.1.0", 1000.0)


@pytest.fixture
async def api() -> AsyncIterator[tuple[LeaseApi, str]]:
    double = LeaseApi()
    for name in ("f-slot-0", "f-slot-1", "f-halt"):
        double.add(name, "f")
    for name in ("other-slot-0", "other-halt"):
        double.add(name, "other")
    async with TestServer(double.app()) as server:
        yield double, str(server.make_url(""))


@pytest.fixture
async def agent(api: tuple[LeaseApi, str], tmp_path: Path) -> AsyncIterator[KubernetesFleet]:
    (tmp_path / "token").write_text(LeaseApi.agent_token + "\n")
    engine = KubernetesFleet("f", api[1], "dcupgrade", token_file=tmp_path / "token", ca_file=None)
    yield engine
    await engine.aclose()


@pytest.fixture
async def operator(api: tuple[LeaseApi, str], tmp_path: Path) -> AsyncIterator[KubernetesFleet]:
    (tmp_path / "operator").write_text(LeaseApi.operator_token)
    engine = KubernetesFleet("f", api[1], "dcupgrade", token_file=tmp_path / "operator", ca_file=None)
    yield engine
    await engine.aclose()


async def test_a_slot_is_taken_seen_and_freed_with_its_outcome(agent: KubernetesFleet) -> None:
    assert (await agent.read()).slots == (None, None)
    assert await agent.put(1, SLOT)
    assert (await agent.read()).slots == (None, SLOT)
    ended = Outcome("me", SLOT.enclave_id, SLOT.version, "committed", 2.0)
    await agent.clear(1, "me", ended)
    found = await agent.read()
    assert (found.slots, found.outcomes) == ((None, None), (ended,))


async def test_of_two_who_read_the_same_version_one_gets_the_slot(agent: KubernetesFleet) -> None:
    other = Slot("other", SLOT.enclave_id, SLOT.version, 1.0)
    taken = await asyncio.gather(agent.put(0, SLOT), agent.put(0, other))
    assert sorted(taken) == [False, True]


async def test_an_agent_cannot_stop_the_fleet_and_an_operator_can(
    agent: KubernetesFleet, operator: KubernetesFleet
) -> None:
    halt = Halt("eve", "bad", 1.0)
    with pytest.raises(DcupgradeError, match="403"):
        await agent.set_halt(halt)
    await operator.set_halt(halt)
    assert (await agent.read()).halt == halt
    assert not await agent.put(0, SLOT)
    await operator.set_halt(None)
    assert (await agent.read()).halt is None


async def test_a_halt_between_question_and_taking_is_seen(agent: KubernetesFleet, api: tuple[LeaseApi, str]) -> None:
    update = agent._update

    async def halt_first(lease: Any) -> bool:
        agent._update = update  # type: ignore[method-assign]
        api[0].leases["f-halt"]["spec"] = {"holderIdentity": "eve"}
        return await update(lease)

    agent._update = halt_first  # type: ignore[method-assign]
    assert not await agent.put(0, SLOT)
    assert (await agent.read()).slots == (None, None)


async def test_each_slot_keeps_its_share_of_the_outcomes(agent: KubernetesFleet) -> None:
    for number in range(60):
        assert await agent.put(0, SLOT)
        await agent.clear(0, "me", Outcome(f"n{number}", SLOT.enclave_id, SLOT.version, "committed", 2.0))
    assert [item.node for item in (await agent.read()).outcomes] == [f"n{number}" for number in range(10, 60)]


async def test_resuming_counts_reverts_anew(agent: KubernetesFleet, operator: KubernetesFleet) -> None:
    await agent.put(0, SLOT)
    await agent.clear(0, "me", Outcome("me", SLOT.enclave_id, SLOT.version, "reverted", 2.0))
    assert (await agent.read()).reverted(SLOT.enclave_id) == ("me",)
    await operator.set_halt(None)
    assert (await agent.read()).reverted(SLOT.enclave_id) == ()


async def test_a_lease_that_a_hand_edited_counts_by_its_holder(
    agent: KubernetesFleet, api: tuple[LeaseApi, str]
) -> None:
    double, _ = api
    double.leases["f-slot-0"]["spec"] = {"holderIdentity": "somebody"}
    double.leases["f-slot-1"]["metadata"]["annotations"] = {"dcupgrade/slot": "[" * 9000, "dcupgrade/outcomes": "{}"}
    double.leases["f-halt"]["spec"] = {"holderIdentity": "kubectl"}
    found = await agent.read()
    assert found.slots[0] is not None
    assert (found.slots[0].holder, found.slots[1]) == ("somebody", None)
    assert found.halt == Halt("kubectl", "set by hand", 0.0)


async def test_two_fleets_in_one_namespace_do_not_see_each_other(
    agent: KubernetesFleet, api: tuple[LeaseApi, str]
) -> None:
    double, _ = api
    double.leases["other-slot-0"]["spec"] = {"holderIdentity": "theirs"}
    double.leases["other-halt"]["spec"] = {"holderIdentity": "theirs"}
    found = await agent.read()
    assert (found.slots, found.halt) == ((None, None), None)


async def test_a_fleet_without_its_halt_is_halted(agent: KubernetesFleet, api: tuple[LeaseApi, str]) -> None:
    del api[0].leases["f-halt"]
    assert (await agent.read()).halt is not None


async def test_another_nodes_slot_is_not_freed(agent: KubernetesFleet) -> None:
    await agent.put(0, SLOT)
    await agent.clear(0, "other", None)
    assert (await agent.read()).slots[0] == SLOT


@pytest.mark.parametrize("fault", ["token", "down", "gone"])
async def test_an_api_that_cannot_be_asked_has_one_code(
    agent: KubernetesFleet, api: tuple[LeaseApi, str], tmp_path: Path, fault: str
) -> None:
    if fault == "token":
        (tmp_path / "token").write_text("expired")
    elif fault == "gone":
        (tmp_path / "token").unlink()
    api[0].down = fault == "down"
    with pytest.raises(DcupgradeError) as caught:
        await agent.read()
    assert caught.value.code == "FLEET_UNREACHABLE"


async def test_a_rotated_token_is_read_anew(agent: KubernetesFleet, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("expired")
    with pytest.raises(DcupgradeError):
        await agent.read()
    (tmp_path / "token").write_text(LeaseApi.agent_token)
    assert (await agent.read()).slots == (None, None)
