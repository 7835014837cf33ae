"""Whatever an endpoint answers or announces, in each mode: only documented errors, bounded memory, no lie believed."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chain_watcher.endpoints.messages import RpcError, parse
from chain_watcher.endpoints.rpc import RpcClient, RpcLimits
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.metadata import layout_of
from tests.doubles.chain_makers import attempt
from tests.doubles.metadata_maker import PROGRAM_FIELDS, make_metadata

from .endpoint_harness import FINALITIES, JSON, READERS, documented, one_run

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.mark.parametrize(("finality", "unproven"), FINALITIES)
@QUICK
@given(data=st.data())
def test_every_answer_and_notification(finality: str, unproven: bool, data: st.DataObject) -> None:
    asyncio.run(one_run(finality, unproven, data.draw))


class Silent:
    """A websocket to which nothing is written."""

    close_code = None


@QUICK
@given(st.lists(st.text(max_size=200) | JSON.map(json.dumps), max_size=6), JSON, st.booleans())
def test_every_message(texts: list[str], result: Any, opens: bool) -> None:
    async def run() -> None:
        client = RpcClient(url="ws://x", limits=RpcLimits(), _ws=cast(Any, Silent()), _now=lambda: 0.0)
        from chain_watcher.endpoints.rpc import Subscription, _Pending

        subscription = Subscription(client, "unsubscribe", 4)
        client._pending[1] = _Pending(asyncio.get_running_loop().create_future(), subscription if opens else None, 1000)
        shaped = [
            json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}),
            json.dumps({"jsonrpc": "2.0", "id": 1, "error": result}),
            json.dumps({"jsonrpc": "2.0", "method": "x", "params": result}),
            json.dumps({"jsonrpc": "2.0", "method": "x", "params": {"subscription": result, "result": result}}),
        ]
        for text in [*texts, *shaped]:
            try:
                client._take(text)
            except RpcError as problem:
                documented(problem)
        future = client._pending[1].future
        if future.done() and future.exception() is not None:
            assert isinstance(future.exception(), RpcError)

    asyncio.run(run())


@pytest.mark.parametrize("name", READERS)
@QUICK
@given(
    JSON
    | st.fixed_dictionaries({}, optional={"number": JSON, "methods": JSON, "specVersion": JSON, "proof": JSON})
    | st.fixed_dictionaries({"justifications": JSON | st.lists(st.tuples(st.just(list(b"FRNK")), JSON).map(list))})
    | st.lists(st.fixed_dictionaries({"block": st.just("0x00"), "changes": JSON}), max_size=2)
)
def test_every_reader_of_answers(name: str, value: Any) -> None:
    attempt(lambda: READERS[name](value))


METADATA = make_metadata(fields=(*PROGRAM_FIELDS, "mirr_cids"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(METADATA)), st.integers(0, 40))
def test_metadata_with_bytes_changed(data: bytes, at: int, count: int) -> None:
    attempt(lambda: layout_of(METADATA[:at] + data + METADATA[at + count :]))


def test_the_canary_is_found() -> None:
    """This harness finds a reader that passes an endpoint's number to `bytes`."""

    def broken(value: Any) -> bytes:
        return bytes(value["justifications"][0][1])

    @settings(max_examples=500, deadline=None, database=None, derandomize=True)
    @given(st.fixed_dictionaries({"justifications": st.lists(st.tuples(st.just(list(b"FRNK")), JSON).map(list))}))
    def harness(value: Any) -> None:
        attempt(lambda: broken(value))

    with pytest.raises(BaseException) as caught:
        harness()
    assert not isinstance(caught.value, ChainWatcherError)


@pytest.mark.parametrize(
    "text", ['{"id":1,"result":' + "[" * 50_000, "[[],[]," * 30_000, '{"a":"' + "\\u0041" * 20_000]
)
def test_structure_is_refused_before_it_is_parsed(text: str) -> None:
    with pytest.raises(RpcError, match="RPC_GARBAGE"):
        parse("ws://x", text, 16 << 20)
