"""The vault's authority set is brought up to date in steps, however many times the chain's set has changed."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest

from chain_watcher.proof.evidence import SetChange
from dcupgrade.adapters.vault import Vault
from dcupgrade.adapters.vault_authorities import CHECK_EVERY_S, RETRY_S, catch_up, keep_authorities_current
from dcupgrade.errors import DcupgradeError
from keyvault.client import VaultClient
from keyvault.errors import KeyvaultError
from tests.doubles import chain_makers as makers
from tests.doubles.vault_host import Host, policy, serving

SETS = 3000
STEP = 256


@cache
def set_changes() -> tuple[dict[str, Any], ...]:
    """3,000 changes of the authority set, ten blocks apart; each set is one authority."""
    made = []
    for number in range(SETS):
        last = makers.header(10 * (number + 1), b"\x11" * 32, makers.scheduled(makers.authorities((number + 1) % 2)))
        made.append(SetChange((last,), makers.finalize(last, [number % 2], number)).to_json())
    return tuple(made)


def start() -> dict[str, Any]:
    (authority, weight), *_ = makers.authorities(0)
    return {"block_number": 0, "set_id": 0, "authorities": [["0x" + authority.hex(), weight]]}


def host() -> Host:
    measured = policy(evidence_mode="proven", unsafe_unproven_evidence=False, checkpoint=start())
    return Host(policy=measured)


class Chain:
    """The chain adapter's answer: one step after the set that the vault says it knows."""

    def __init__(self) -> None:
        self.asked_from: list[int] = []

    async def next_set_changes(self, vault_state: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        known = (vault_state["chain"]["authorities"] or start())["set_id"]
        self.asked_from.append(known)
        return set_changes()[known : known + STEP]


def adapter(client: VaultClient) -> Vault:
    return Vault(client, node_url="http://127.0.0.1:9", protocol="v2", allow_simulated=True)


async def test_a_chain_of_3000_set_changes_is_caught_up_and_survives_a_restart_in_the_middle() -> None:
    machine, chain = host(), Chain()
    async with serving(machine.vault()) as client:
        reached = await adapter(client).advance(set_changes()[:1000])
        assert reached == 1000
    async with serving(machine.vault()) as client:
        assert await catch_up(chain, adapter(client)) == 8
        assert chain.asked_from[0] == 1000
        assert chain.asked_from[-1] == SETS
        known = (await client.status())["chain"]["authorities"]
        assert (known["set_id"], known["block_number"]) == (SETS, 10 * SETS)
    async with serving(machine.vault()) as client:
        assert (await client.status())["chain"]["authorities"] == known


async def test_too_many_at_once_are_refused_and_change_nothing() -> None:
    """The control: it takes the steps."""
    async with serving(host().vault()) as client:
        with pytest.raises(KeyvaultError, match="EVIDENCE_TOO_LARGE"):
            await client.advance(set_changes()[:1100])
        assert (await client.status())["chain"]["authorities"] is None


async def test_a_step_that_is_repeated_or_overtaken_does_not_take_the_vault_back() -> None:
    async with serving(host().vault()) as client:
        first, second = await asyncio.gather(client.advance(set_changes()[:20]), client.advance(set_changes()[:10]))
        assert first["set_id"] == 20
        assert second["set_id"] in (10, 20)
        assert (await client.advance(set_changes()[:10]))["set_id"] == 20
        assert (await client.status())["chain"]["authorities"]["set_id"] == 20


async def test_a_step_with_a_gap_or_of_another_set_is_refused_whole() -> None:
    async with serving(host().vault()) as client:
        for wrong in (set_changes()[1:3], (*set_changes()[:2], set_changes()[3])):
            with pytest.raises(KeyvaultError, match="JUSTIFICATION_"):
                await client.advance(wrong)
        assert (await client.status())["chain"]["authorities"] is None


async def test_a_vault_without_a_checkpoint_has_nothing_to_advance() -> None:
    async with serving(Host().vault()) as client:
        with pytest.raises(KeyvaultError, match="VAULT_EVIDENCE_MALFORMED"):
            await client.advance(set_changes()[:1])


class StuckVault:
    """A vault that accepts a step but does not advance."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.steps, self.problem = 0, problem

    async def status(self) -> Mapping[str, Any]:
        if self.problem is not None:
            raise self.problem
        return {"chain": {"authorities": None}}

    async def advance(self, _changes: Sequence[Mapping[str, Any]]) -> int:
        self.steps += 1
        return 1


async def test_a_vault_that_does_not_move_is_not_asked_forever() -> None:
    vault = StuckVault()
    await catch_up(Chain(), vault)
    assert vault.steps == 2


@pytest.mark.parametrize(("kind", "pause_s", "logged"), [("transient", RETRY_S, 0), ("rejected", CHECK_EVERY_S, 1)])
async def test_a_failure_is_logged_once_and_tried_again(
    kind: str, pause_s: float, logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    problem = DcupgradeError(code="VAULT_UNREACHABLE", what="the vault", why="no answer", kind=kind)  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await keep_authorities_current(Chain(), StuckVault(problem), sleep)
    assert pauses == [pause_s] * 3
    assert len(caplog.records) == logged
