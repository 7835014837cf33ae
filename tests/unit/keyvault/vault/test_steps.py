"""The vault's steps: one after another in one thread, also with a slow disk and cancelled callers."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from attestation.errors import AttestationError
from keyvault import watchdog
from keyvault.errors import KeyvaultError
from keyvault.handover.key_set import KeySet
from keyvault.handover.v1 import V1Holder, V1Requester
from keyvault.vault.steps import Steps
from tests.doubles.crash_disk import CrashDisk
from tests.doubles.loop_watch import watched_loop
from tests.doubles.vault_host import KEYS_ID, Host, base_url, collect, permit, policy, refused, serving
from tests.doubles.vault_kit import SECRET, Enclave


class Gate:
    """Work that waits in its thread until it is let through."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        self.open.wait()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


async def test_steps_run_one_after_another_in_one_thread(gate: Gate) -> None:
    steps, done = Steps(), []

    def work(number: int) -> int:
        if number == 0:
            gate.wait()
        done.append((number, threading.get_ident()))
        return number

    tasks = [asyncio.create_task(steps.run(work, number)) for number in range(10)]
    await asyncio.to_thread(gate.reached.wait)
    assert done == []
    gate.open.set()
    assert await asyncio.gather(*tasks) == list(range(10))
    assert [number for number, _ in done] == list(range(10))
    assert len({thread for _, thread in done} | {threading.get_ident()}) == 2


async def test_a_cancellation_waits_for_the_step_and_wipes_keys_that_nobody_takes(gate: Gate) -> None:
    steps, keys = Steps(), KeySet(SECRET)

    def work() -> KeySet:
        gate.wait()
        return keys

    task = asyncio.create_task(steps.run(work))
    await asyncio.to_thread(gate.reached.wait)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(keys.buffer)


async def test_a_step_that_fails_says_so_to_its_caller_and_leaves_the_thread_alone() -> None:
    steps = Steps()

    def work() -> None:
        raise KeyvaultError(code="STORE_WRITE_FAILED", what="w", why="full")

    with pytest.raises(KeyvaultError, match="STORE_WRITE_FAILED"):
        await steps.run(work)
    assert await steps.run(lambda: 7) == 7


async def test_health_says_so_once_a_step_hangs_and_is_well_again_after_it(gate: Gate) -> None:
    """Without it, the vault answered "ok" indefinitely with a hanging disk and was not restarted."""
    host = Host()
    vault = host.vault()
    async with serving(vault) as client:
        step = asyncio.create_task(vault.steps.run(gate.wait))
        await asyncio.to_thread(gate.reached.wait)
        host.clock.monotonic_s += 60
        assert (await client.health())["status"] == "ok"
        host.clock.monotonic_s += 1
        assert await refused(client.health()) == "VAULT_STEP_HANGS"
        assert not await asyncio.to_thread(watchdog.answers, base_url(client))
        gate.open.set()
        await step
        assert (await client.health())["status"] == "ok"


async def test_what_strangers_ask_over_v1_is_answered_on_the_loop_and_queues_no_step(gate: Gate) -> None:
    """Otherwise "GET, close" during slow disk access would queue an unlimited number of steps before the agent's."""
    vault = Host(policy=policy(allow_v1=True)).vault()
    stranger, requester = V1Holder(Enclave("another holder").party), V1Requester(Enclave("node 2").party)
    unverified = requester.secret_query(stranger.challenge(requester.random_query(), now_s=0.0))
    step = asyncio.create_task(vault.steps.run(gate.wait))
    await asyncio.to_thread(gate.reached.wait)
    asked = [
        asyncio.create_task(vault.v1_challenge(requester.random_query())),
        asyncio.create_task(vault.v1_answer(unverified)),
    ]
    done, _ = await asyncio.wait(asked, timeout=10)
    was_running = not step.done()
    gate.open.set()
    await step
    challenge, refusal = await asyncio.gather(*asked, return_exceptions=True)
    assert was_running
    assert len(done) == 2
    assert isinstance(challenge, bytes)
    assert isinstance(refusal, KeyvaultError | AttestationError)


async def test_the_vault_answers_while_its_disk_is_slow_and_decides_in_order(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host()
    async with serving(host.vault()) as client:
        await collect(client)
        sync = CrashDisk.sync

        def slow(disk: CrashDisk, name: str) -> None:
            gate.wait()
            sync(disk, name)

        monkeypatch.setattr(CrashDisk, "sync", slow)
        with watched_loop() as held:
            permitting: asyncio.Task[dict[str, Any]] = asyncio.create_task(permit(client))
            await asyncio.to_thread(gate.reached.wait)
            retaining = asyncio.create_task(client.retain(KEYS_ID, 1))
            assert (await client.health())["status"] == "ok"
            assert (await client.status())["permits"] == []
            assert not permitting.done()
            assert not retaining.done()
            gate.open.set()
            assert await permitting
            assert await retaining
        assert held == []
