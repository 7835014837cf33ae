"""The holders in Python and Go say the same of every message, however it is mangled: accepted, or the same code."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import aiohttp
import pytest

from keyvault.conformance import Node
from keyvault.handover.guarded_server import GuardedServer
from keyvault.handover.http_server import add_handover_routes, new_app
from keyvault.handover.key_set import KeySet
from keyvault.node import NodeHandover, NodePolicy
from tests.doubles.go_peer import go_holder
from tests.doubles.vault_kit import GENESIS, KEYS, SECRET, CpuTee, Enclave, enclave_id, secs, sign

pytestmark = pytest.mark.usefixtures("go")
ROUNDS = 250
STEPS = ("hello", "request", "received", "durable")


@asynccontextmanager
async def holders() -> AsyncIterator[tuple[Node, Node]]:
    """The same node twice: its holder in Python, and in Go."""
    port = NodeHandover(
        CpuTee(secs("node")), NodePolicy(KEYS, GENESIS), sign(enclave_id("node")), lambda: KeySet(SECRET)
    )
    app = new_app()
    add_handover_routes(app, port)
    server = GuardedServer(app)
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    try:
        with go_holder() as go_url:
            async with aiohttp.ClientSession() as session:
                suite = Enclave("suite").party
                yield Node(session, url, GENESIS, suite), Node(session, go_url, GENESIS, suite)
    finally:
        await server.stop()


async def conversation(node: Node, step: str) -> bytes:
    """Bring a conversation to a step and return the good message for it."""
    requester = node.requester()
    if step == "hello":
        return requester.hello()
    request = requester.on_challenge(await node.good("hello", requester.hello()))
    if step == "request":
        return request
    requester.on_delivery(await node.good("request", request)).wipe()
    receipt = requester.received()
    if step == "received":
        return receipt
    await node.good("received", receipt)
    return requester.durable(canary=True)


def flip(data: bytes, random: Random) -> bytes:
    """Mangle bytes at a few places."""
    out = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(out) + 1)
        piece = random.choice((b"", b'"', b"{", b"]", b"null", b"-1", b"1e999", b"\\u0000", b" ", b"\n", b"\xff", b"A"))
        out[at : at + random.choice((0, 0, 1, 4, 40, 4000))] = piece
    return bytes(out)


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 2, -1, 2.0, 255, 256, 10**30, "", "A", "AAAA", "AAA=", "AA==", "AB==", "A===", "\ud800"),
    *([], [2], [2, 2], [3, 2], [1, 2, 9], [True], [[]], {}, {"a": 1}, "0" * 64, "F" * 64, "f" * 63, [""], [" "] * 17),
)  # fmt: skip


def restructure(data: bytes, random: Random) -> bytes:
    """Replace, drop, double or reorder fields of a message, keeping it JSON."""
    pairs = list(json.loads(data).items())
    at = random.randrange(len(pairs))
    name, value = pairs[at]
    match random.randrange(7):
        case 0 | 1:
            pairs[at] = (name, random.choice(VALUES))
        case 2:
            del pairs[at]
        case 3:
            pairs.insert(random.randrange(len(pairs) + 1), random.choice(pairs))
        case 4:
            pairs.insert(at, (random.choice(("more", "", name.upper(), f"{name}\u0000")), random.choice(VALUES)))
        case 5:
            random.shuffle(pairs)
        case _ if isinstance(value, str):
            pairs[at] = (name, random.choice((value[:-4], value + "AAAA", value + "\n", value[:4] + "\n" + value[4:])))
    text = ",".join(f"{json.dumps(key)}:{json.dumps(item)}" for key, item in pairs)
    return random.choice(("{%s}", " {%s}\n", "{%s}x", "\ufeff{%s}", "[{%s}]")).replace("%s", text).encode()


async def verdict(node: Node, step: str, body: bytes) -> str:
    status, answer = await node.post(step, body)
    return "accepted" if status == 200 else str(json.loads(answer)["code"])


@pytest.mark.parametrize("mangle", [flip, restructure])
@pytest.mark.parametrize("step", STEPS)
async def test_both_holders_say_the_same(step: str, mangle: Callable[[bytes, Random], bytes]) -> None:
    seen: dict[str, int] = {}
    async with holders() as (python, go):
        for number in range(ROUNDS):
            said = []
            for node in (python, go):
                body = mangle(await conversation(node, step), Random(f"{step} {number}"))
                said.append(await verdict(node, step, body))
            assert said[0] == said[1], f"{step}, round {number}: Python says {said[0]}, Go {said[1]} of {body[:400]!r}"
            seen[said[0]] = seen.get(said[0], 0) + 1
    assert len(seen) > 1, f"nothing but {seen} was tried"


async def test_a_session_is_used_up_by_the_same_messages() -> None:
    """The answer to a good message after a mangled one shows whether that one consumed the session."""
    async with holders() as (python, go):
        for number in range(ROUNDS // 2):
            said = []
            for node in (python, go):
                good = await conversation(node, "request")
                first = await verdict(node, "request", restructure(good, Random(number)))
                said.append((first, await verdict(node, "request", good)))
            assert said[0] == said[1], f"round {number}"


async def test_a_planted_difference_is_found() -> None:
    async with holders() as (python, go):
        body = go.hello(versions=(1,))
        assert (
            await verdict(go, "hello", body) == await verdict(python, "hello", body) == "HANDOVER_VERSION_UNSUPPORTED"
        )
        good = await conversation(go, "request")
        assert (await verdict(go, "request", good), await verdict(python, "request", good)) == (
            "accepted",
            "HANDOVER_SESSION_UNKNOWN",
        )
