"""The conformance suite passes for the node library, and finds each planted deviation."""

import inspect
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import aiohttp
import pytest

from keyvault import conformance
from keyvault.conformance import FLOOD, INSIDE, OUTSIDE, Node, as_json, as_text, find_genesis, run_suite
from keyvault.errors import KeyvaultError
from keyvault.handover import holder as handover
from keyvault.handover import messages
from keyvault.handover.guarded_server import GuardedServer
from keyvault.handover.holder import Holder, Limits
from keyvault.handover.http_server import add_handover_routes, new_app
from keyvault.handover.key_set import KeySet
from keyvault.node import NodeHandover, NodePolicy
from tests.doubles.vault_kit import GENESIS, KEYS, SECRET, CpuTee, Enclave, enclave_id, secs, sign


@asynccontextmanager
async def node(change: Callable[[Any], None] = lambda _: None) -> AsyncIterator[Node]:
    port = NodeHandover(
        CpuTee(secs("node")), NodePolicy(KEYS, GENESIS), sign(enclave_id("node")), lambda: KeySet(SECRET)
    )
    change(port)
    app = new_app()
    add_handover_routes(app, port)
    server = GuardedServer(app)
    bound = await server.start("127.0.0.1", 0)
    async with aiohttp.ClientSession() as session:
        yield Node(session, f"http://127.0.0.1:{bound}", GENESIS, Enclave("suite").party)
    await server.stop()


async def failed(change: Callable[[Any], None]) -> set[str]:
    async with node(change) as made:
        return {result.name for result in await run_suite(made) if result.found}


async def test_the_node_library_conforms() -> None:
    async with node() as made:
        results = await run_suite(made)
        assert as_json(results)["conforms"], as_text(results)
        assert len(results) == len(OUTSIDE) + len(INSIDE) + len(FLOOD)
        made.party = None
    async with node() as made:
        made.party = None
        assert [r.name for r in await run_suite(made)] == [name for name, _, _ in (*OUTSIDE, *FLOOD)]


async def test_a_node_that_is_not_there_fails_every_check_and_ends_the_suite() -> None:
    async with aiohttp.ClientSession() as session:
        results = await run_suite(Node(session, "http://127.0.0.1:1", GENESIS))
        assert all("HANDOVER_PEER_UNREACHABLE" in result.found for result in results)
        assert "FAILED" in as_text(results)
        with pytest.raises(KeyvaultError):
            await Node(session, "http://127.0.0.1:1", GENESIS).post("hello", b"")


async def test_a_node_is_asked_for_its_genesis_hash() -> None:
    async with node() as made:
        assert await find_genesis(made.session, made.url) == GENESIS


async def test_a_node_that_does_not_tell_its_genesis_hash_is_not_tried() -> None:
    def silent(port: Any) -> None:
        async def on_hello(_: bytes) -> bytes:
            return b"{}"

        port.on_hello = on_hello

    async with node(silent) as made:
        with pytest.raises(KeyvaultError, match="--genesis"):
            await find_genesis(made.session, made.url)


@pytest.fixture(autouse=True)
def small_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "FLOOD_HELLOS", 40)


def small_table(port: Any) -> None:
    port._holder._limits = Limits(sessions_max=30)


def few_for_one_id(port: Any) -> None:
    real, seen = port.on_hello, Counter[str]()

    async def on_hello(body: bytes) -> bytes:
        claimed = body.partition(b'"target_info":')[2]
        seen[claimed.decode()] += 1
        if seen[claimed.decode()] > 30:
            raise KeyvaultError(code="HANDOVER_OUT_OF_ORDER", what="hello", why="too many", kind="transient")
        return await real(body)  # type: ignore[no-any-return]

    port.on_hello = on_hello


def keeps_sessions(port: Any) -> None:
    class Kept(dict):  # type: ignore[type-arg]
        def pop(self, key: Any, default: Any = None) -> Any:
            return self.get(key, default)

    port._holder._sessions = Kept()


def loose_json(port: Any) -> None:
    real = port.on_hello

    async def on_hello(body: bytes) -> bytes:
        try:
            value = json.loads(body)
        except ValueError:
            value = {}
        known = {k: v for k, v in value.items() if k in messages.HELLO.fields} if isinstance(value, dict) else {}
        return await real(json.dumps(known).encode())  # type: ignore[no-any-return]

    port.on_hello = on_hello


def any_chain(port: Any) -> None:
    real = port.on_hello

    async def on_hello(body: bytes) -> bytes:
        value = json.loads(body)
        value["genesis"] = messages.encode_base64(GENESIS)
        return await real(json.dumps(value).encode())  # type: ignore[no-any-return]

    port.on_hello = on_hello


def skips(name: str) -> Callable[[Any], None]:
    """A holder without one of its checks."""

    def change(port: Any) -> None:
        party = port._holder._party
        if name == "signature":
            tee = party.tee

            def verify(report: Any, _: Any) -> str:
                tee.verify(report)
                return str(report.enclave_id)

            object.__setattr__(party, "verify_peer", verify)
        elif name == "mac":
            object.__setattr__(party, "verify_peer", lambda report, _: report.enclave_id)
            party.tee.verify = lambda report: None
        elif name == "receipt":
            party.crypto.mac = lambda key, data: bytes(32)

    return change


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (small_table, {"flood"}),
        (few_for_one_id, {"flood"}),
        (keeps_sessions, {"forged-report", "consumed-first", "handover"}),
        (loose_json, {"strict-json"}),
        (any_chain, {"genesis"}),
        (skips("signature"), {"unsigned"}),
        (skips("mac"), {"forged-report", "mistargeted", "confirmations"}),
        (skips("receipt"), {"handover", "confirmations"}),
    ],
    ids=[
        "small-table",
        "few-for-one-id",
        "sessions-kept",
        "loose-json",
        "any-chain",
        "no-signature",
        "no-mac",
        "any-receipt",
    ],
)
async def test_the_suite_finds_a_node_that_leaves_something_out(change: Any, names: set[str]) -> None:
    assert names <= await failed(change)


async def test_the_suite_finds_reports_that_bind_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "check_report_data", lambda *_: None)
    assert {"bound", "confirmations"} <= await failed(lambda _: None)


async def test_the_suite_finds_durable_before_received(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Holder._delivery

    def delivery(self: Holder, session: bytes, now: float, what: str) -> Any:
        entry = real(self, session, now, what)
        entry.received = True
        return entry

    monkeypatch.setattr(Holder, "_delivery", delivery)
    assert await failed(lambda _: None) == {"confirmations"}


def without(check: str, instead: str) -> Callable[[Any], None]:
    """A holder whose source has one check replaced."""
    source = inspect.getsource(handover)
    start = source.index("class Holder")
    assert source[start:].count(check) == 1, check
    changed = ModuleType("keyvault.handover.changed")
    changed.__package__ = "keyvault.handover"
    with pytest.MonkeyPatch.context() as patch:  # dataclasses look their module up
        patch.setitem(sys.modules, changed.__name__, changed)
        exec(source[:start] + source[start:].replace(check, instead), changed.__dict__)  # noqa: S102 - our own source

    def change(port: Any) -> None:
        port._holder = changed.Holder(port._holder._party)

    return change


LOOSE = "messages.{0}.check({{k: v for k, v in __import__('json').loads({1}).items() if k in messages.{0}.fields}})"


@pytest.mark.parametrize(
    ("check", "instead", "names"),
    [
        ("class Holder", "class Holder", set()),
        ('if messages.VERSION not in fields["versions"]', "if False", {"version"}),
        ("if requester_id != session.requester_id", "if False", {"peer-changed"}),
        ('if request.wanted not in ("", key_set.key_set_id)', "if False", {"wanted"}),
        ('if fields["key_set_id"] != entry.key_set_id', "if False", {"confirmations"}),
        ("nonce = self._party.crypto.random(messages.NONCE_BYTES)", "nonce = bytes(32)", {"fresh"}),
        ("transcript.report_data(DELIVERY_TAG)", "bytes(64)", {"handover", "confirmations"}),
        ("messages.REQUEST.check(unchecked)", LOOSE.format("REQUEST", "body"), {"strict-json"}),
        ("messages.RECEIVED.decode(body)", LOOSE.format("RECEIVED", "body"), {"confirmations"}),
        ("messages.DURABLE.decode(body)", LOOSE.format("DURABLE", "body"), {"confirmations"}),
    ],
    ids=[
        "control", "any-version", "any-peer", "any-key-set", "any-durable", "same-nonce", "unbound-delivery",
        "loose-request", "loose-receipt", "loose-durable",
    ],
)  # fmt: skip
async def test_the_suite_finds_a_holder_without_one_of_its_checks(check: str, instead: str, names: set[str]) -> None:
    assert await failed(without(check, instead)) == names


async def test_the_suite_finds_small_messages_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover.messages, "HELLO", replace(messages.HELLO, limit=messages.MESSAGE_BYTES_MAX))  # type: ignore[attr-defined]
    assert await failed(lambda _: None) == {"oversized"}
