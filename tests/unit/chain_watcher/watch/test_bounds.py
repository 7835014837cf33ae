"""Invented data of endpoints must not fill the memory: headers and states are limited by number and size."""

from __future__ import annotations

import asyncio
from unittest import mock

from chain_watcher.endpoints.endpoint import Endpoint
from chain_watcher.endpoints.event_queue import EventQueue
from chain_watcher.proof.header import DigestItem, Header
from chain_watcher.proof.layout import standard_layout
from chain_watcher.watch import read_ahead as ahead
from chain_watcher.watch.config import WatcherConfig, WatchLimits
from chain_watcher.watch.headers import FinalHeight, Headers
from chain_watcher.watch.state_reader import BlockState
from chain_watcher.watch.watcher import Watcher
from tests.doubles import chain_makers as makers
from tests.doubles.chain_endpoint import until


def state(header: Header, size: int) -> BlockState:
    values = (bytes(size), None)
    return BlockState(header, 0, None, (), (), values, standard_layout(fields=4), 1, True, "ws://x")


def test_headers_are_kept_by_number_and_by_size() -> None:
    small = [makers.header(number) for number in range(1, 6)]
    known = Headers(3)
    for header in small:
        known.add(header)
    assert [known.get(header.hash) for header in small] == [None, None, *small[2:]]
    large = [makers.header(number, b"\0" * 32, DigestItem(0, b"", bytes(5000))) for number in range(1, 9)]
    known = Headers(1000, bytes_max=12_000)
    for header in [*large, *large[-1:] * 5]:
        known.add(header)
    assert [header.number for header in large if known.get(header.hash)] == [7, 8]
    known.add(makers.header(9, b"\0" * 32, DigestItem(0, b"", bytes(13_000))))
    assert len(known) == 0
    known.add(large[0])
    assert known.get(large[0].hash) == large[0]


async def test_states_read_ahead_are_kept_by_number_and_by_size() -> None:
    headers = makers.chain(1, 8)
    sizes = {header.hash: 10 for header in headers}
    endpoint = Endpoint("ws://x")

    async def read(_endpoint: Endpoint, header: Header) -> BlockState:
        return state(header, sizes[header.hash])

    reader = ahead.ReadAhead(
        read,
        Headers(100),
        floor=lambda: FinalHeight(0, bytes(32)),
        states_max=4,
        on_state=lambda _state: True,
        on_problem=lambda _endpoint, problem: None,
    )
    run = asyncio.create_task(reader.run())
    with mock.patch.object(ahead, "STATES_BYTES_MAX", 100):
        for header in headers:
            sizes[header.hash] = 60 if header.number == 7 else 10
            reader.hint(endpoint, as_json(header))
            await until(lambda header=header: header.hash in reader._states)
        assert [one.header.number for one in reader._states.values()] == [5, 6, 7, 8]
        sizes[headers[0].hash] = 95
        reader.hint(endpoint, as_json(headers[0]))
        await until(lambda: headers[0].hash in reader._states)
        assert [one.header.number for one in reader._states.values()] == [1]
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)


async def test_an_endpoint_is_not_blamed_for_proofs_that_were_not_followed_yet() -> None:
    """After a long absence, a turn may be cancelled many times before the watcher has caught up with the chain."""
    config = WatcherConfig(("ws://slow", "ws://other"), "single", limits=WatchLimits(patience_s=0.001, given_up_max=2))
    watcher = Watcher(config, lambda _id, _signatures: None)
    slow, other = watcher.pool.endpoints
    with mock.patch.object(EventQueue, "has_finality_besides", lambda _queue, endpoint: endpoint is slow):
        slow.unproven_since = other.unproven_since = 1.0
        await watcher._in_turn(other, asyncio.sleep(0.01))
        assert (slow.unproven_since, other.problem) == (1.0, None)
        for expected in (None, "RPC_TIMEOUT"):
            await watcher._in_turn(slow, asyncio.sleep(3600))
            assert (slow.unproven_since, other.unproven_since) == (None, None)
            assert (slow.problem and slow.problem.code) == expected


def as_json(header: Header) -> dict[str, object]:
    return {
        "parentHash": "0x" + header.parent_hash.hex(),
        "number": hex(header.number),
        "stateRoot": "0x" + header.state_root.hex(),
        "extrinsicsRoot": "0x" + header.extrinsics_root.hex(),
        "digest": {"logs": []},
    }
