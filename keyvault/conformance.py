"""Conformance suite of handover v2 for any node that holds keys: run it against the node's own address.

Without a TEE it tries what everybody on the host can try. Inside a TEE whose enclave the node accepts (`--image`) it
also makes real handovers; the keys it is given are wiped at once and go nowhere.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from attestation.sgx import INIT, MODE64BIT, XFRM_LEGACY, Attributes, Report, TargetInfo
from keyvault.handover.party import Party
from keyvault.handover.requester import Requester
from keyvault.handover.transcript import CHALLENGE_TAG, REQUEST_TAG, add_request, opening

from .errors import KeyvaultError
from .handover import messages

_ANSWER_TIMEOUT_S: Final = 20.0
#: More than a small table of sessions has places, and sent within about two seconds.
FLOOD_HELLOS: Final = 1000


class NonconformanceError(Exception):
    """A check found something else than the protocol says."""


@dataclass(frozen=True)
class Result:
    """Outcome of one check: `found` is empty where the node conforms."""

    name: str
    why: str
    found: str


@dataclass
class Node:
    """The node under test. `party` is the suite's own side inside a TEE, or None."""

    session: aiohttp.ClientSession
    url: str
    genesis: bytes
    party: Party | None = None
    #: an enclave that does not exist; another one for each run
    nobody: bytes = field(default_factory=lambda: os.urandom(messages.ID_BYTES))

    async def post(self, step: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to one message."""
        try:
            async with self.session.post(
                f"{self.url}/v2/{step}", data=body, timeout=aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S)
            ) as answer:
                return answer.status, await answer.content.read(messages.MESSAGE_BYTES_MAX + 1)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KeyvaultError(
                code="HANDOVER_PEER_UNREACHABLE",
                what=f"{self.url}/v2/{step} does not answer",
                why=type(error).__name__,
                kind="transient",
            ) from error

    async def good(self, step: str, body: bytes) -> bytes:
        """Return the body of a 200 answer."""
        status, answer = await self.post(step, body)
        if status != 200:
            raise NonconformanceError(f"{step}: expected 200, found {status} {_code(answer)}")
        return answer

    async def refused(self, step: str, body: bytes, *codes: str) -> None:
        """The message must be refused with one of the codes, as JSON."""
        status, answer = await self.post(step, body)
        code = _code(answer)
        if status == 200 or code not in codes:
            raise NonconformanceError(f"{step}: expected {' or '.join(codes)}, found {status} {code or 'no code'}")

    def hello(self, **fields: Any) -> bytes:
        """Return a hello in the name of some enclave that may not even exist."""
        nobody = TargetInfo(self.nobody, Attributes(INIT | MODE64BIT, XFRM_LEGACY))
        values = {"versions": (2,), "genesis": self.genesis, "nonce": b"\x01" * 32, "target_info": nobody.encode()}
        return messages.HELLO.encode(**{**values, **fields})

    def requester(self, wanted: str = "") -> Requester:
        """Return a real requester (inside a TEE only)."""
        if self.party is None:
            raise NonconformanceError("this check needs a TEE")
        return Requester(self.party, wanted)

    async def request(self) -> tuple[Requester, bytes]:
        """Return a requester and its request, not yet sent."""
        requester = self.requester()
        return requester, requester.on_challenge(await self.good("hello", requester.hello()))


async def find_genesis(session: aiohttp.ClientSession, url: str) -> bytes:
    """Return the genesis hash (32 bytes) that a node names when it refuses a stranger's; raises CONFORMANCE_FAILED."""
    strange = os.urandom(32)
    _, answer = await Node(session, url, strange).post("hello", Node(session, url, strange).hello())
    named = set(re.findall(r"\b[0-9a-f]{64}\b", answer.decode("utf-8", "replace"))) - {strange.hex()}
    if len(named) != 1:
        raise KeyvaultError(
            code="CONFORMANCE_FAILED",
            what=f"{url} was not tried",
            why="it does not say which genesis hash it expects",
            action="Give its chain's with --genesis.",
        )
    return bytes.fromhex(named.pop())


def _code(body: bytes) -> str:
    try:
        value = json.loads(body)
    except ValueError:
        return ""
    code = value.get("code") if isinstance(value, dict) else None
    return code[:64] if isinstance(code, str) else ""


def _with(message: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(message), **fields}).encode()


def _with_more(message: bytes) -> bytes:
    return _with(message, more=1)


def _with_twice(message: bytes) -> bytes:
    """Return the message with its first field in it twice, both times alike."""
    name, value = next(iter(json.loads(message).items()))
    return message[:-1] + b"," + json.dumps({name: value})[1:].encode()


def _spoiled(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[-1] ^= 1
    return base64.b64encode(data).decode("ascii")


MALFORMED: Final = "HANDOVER_MESSAGE_MALFORMED"
UNKNOWN: Final = "HANDOVER_SESSION_UNKNOWN"


async def _challenge(node: Node) -> dict[str, Any]:
    return messages.CHALLENGE.decode(await node.good("hello", node.hello()))


async def _check_challenge(node: Node) -> None:
    hello = messages.HELLO.decode(node.hello())
    fields = await _challenge(node)
    report = Report.decode(fields["report"])
    target = TargetInfo.decode(hello["target_info"])
    transcript = opening(
        (2,), node.genesis, hello["nonce"], target, fields["session"], fields["nonce"], report.mrenclave
    )
    if fields["version"] != 2:
        raise NonconformanceError(f"expected version 2, found {fields['version']}")
    if report.report_data != transcript.report_data(CHALLENGE_TAG):
        raise NonconformanceError("REPORTDATA of the challenge is not SHA-512 over its tag and T0")


async def _check_fresh(node: Node) -> None:
    one, two = await _challenge(node), await _challenge(node)
    if one["session"] == two["session"] or one["nonce"] == two["nonce"]:
        raise NonconformanceError("two sessions share a session id or nonce")


async def _check_strict(node: Node) -> None:
    hello = node.hello()
    value = json.loads(hello)
    await node.refused("hello", _with_twice(hello), MALFORMED)
    await node.refused("hello", _with_more(hello), MALFORMED)
    await node.refused("hello", hello + b"x", MALFORMED)
    await node.refused("hello", b"[]", MALFORMED)
    await node.refused("hello", b"", MALFORMED)
    for name in value:
        left = {k: v for k, v in value.items() if k != name}
        await node.refused("hello", json.dumps(left).encode(), MALFORMED)
    await node.refused("hello", _with(hello, nonce=base64.b64encode(bytes(31)).decode()), MALFORMED)
    await node.refused("hello", _with(hello, nonce=value["nonce"].rstrip("=")), MALFORMED)
    await node.refused("hello", _with(hello, nonce=value["nonce"][:-2] + "F="), MALFORMED)
    reserved = base64.b64encode(bytes(511) + b"\1").decode()
    await node.refused("hello", _with(hello, target_info=reserved), MALFORMED)
    for spoil in (_with_more, _with_twice):
        await node.refused("request", spoil(_forged_request((await _challenge(node))["session"])), MALFORMED)


async def _check_oversized(node: Node) -> None:
    too_large = "HANDOVER_MESSAGE_TOO_LARGE"
    await node.refused("hello", b" " * (messages.MESSAGE_BYTES_MAX + 1), too_large)
    await node.refused("hello", node.hello().ljust(messages.SMALL_MESSAGE_BYTES_MAX + 1), too_large)
    await node.good("hello", node.hello())


async def _check_version(node: Node) -> None:
    await node.refused("hello", node.hello(versions=(1, 9)), "HANDOVER_VERSION_UNSUPPORTED")


async def _check_genesis(node: Node) -> None:
    other = bytes(byte ^ 0xFF for byte in node.genesis)
    await node.refused("hello", node.hello(genesis=other), "HANDOVER_GENESIS_MISMATCH")


def _forged_request(session: bytes) -> bytes:
    report = Report(bytes(16), Attributes(INIT | MODE64BIT, XFRM_LEGACY), b"\x5a" * 32, bytes(32), bytes(64))
    return messages.REQUEST.encode(
        session=session,
        kem_public_key=bytes(messages.KEM_PUBLIC_KEY_BYTES),
        key_set_id="",
        report=report.encode(),
        network_signatures=(bytes(64),),
    )


async def _check_forged(node: Node) -> None:
    session = (await _challenge(node))["session"]
    await node.refused("request", _forged_request(session), "REPORT_MAC_BAD")
    await node.refused("request", _forged_request(session), UNKNOWN)


async def _check_consumed_first(node: Node) -> None:
    session = (await _challenge(node))["session"]
    broken = _with(_forged_request(session), report="!")
    await node.refused("request", broken, MALFORMED)
    await node.refused("request", _forged_request(session), UNKNOWN)


async def _check_unknown(node: Node) -> None:
    session = b"\x77" * 16
    await node.refused("request", _forged_request(session), UNKNOWN)
    await node.refused("received", messages.RECEIVED.encode(session=session, mac=bytes(32)), UNKNOWN)
    durable = messages.DURABLE.encode(session=session, key_set_id="0" * 64, canary=False, report=bytes(432))
    await node.refused("durable", durable, UNKNOWN)
    challenge = (await _challenge(node))["session"]  # open, but nothing was delivered in it
    await node.refused("received", messages.RECEIVED.encode(session=challenge, mac=bytes(32)), UNKNOWN)


async def _check_handover(node: Node) -> None:
    requester, request = await node.request()
    requester.on_delivery(await node.good("request", request)).wipe()
    for _ in range(2):
        requester.acknowledged(await node.good("received", requester.received()), "received")
    for _ in range(2):
        requester.acknowledged(await node.good("durable", requester.durable(canary=False)), "durable")
    await node.refused("request", request, UNKNOWN)


async def _check_bound(node: Node) -> None:
    """A request must be refused once anything in it was altered, and must not fit into another session."""
    mismatch = "HANDOVER_REPORTDATA_MISMATCH"
    _, request = await node.request()
    key = json.loads(request)["kem_public_key"]
    await node.refused("request", _with(request, kem_public_key=_spoiled(key)), mismatch)
    _, request = await node.request()
    await node.refused("request", _with(request, key_set_id="0" * 64), mismatch)
    _, first = await node.request()
    _, second = await node.request()
    await node.refused("request", _with(first, session=json.loads(second)["session"]), mismatch)


async def _check_peer_changed(node: Node) -> None:
    """A session that was opened for one enclave is no other's, even if everything else is in order."""
    party = node.party
    if party is None:
        raise NonconformanceError("this check needs a TEE")
    hello = messages.HELLO.decode(node.hello())
    fields = await _challenge(node)
    holder = Report.decode(fields["report"])
    target = TargetInfo.decode(hello["target_info"])
    transcript = opening(
        (2,), node.genesis, hello["nonce"], target, fields["session"], fields["nonce"], holder.mrenclave
    )
    public_key = party.crypto.kem_generate()[1]
    add_request(transcript, public_key, "")
    request = messages.REQUEST.encode(
        session=fields["session"],
        kem_public_key=public_key,
        key_set_id="",
        report=party.tee.report(holder.target_info(), transcript.report_data(REQUEST_TAG)).encode(),
        network_signatures=party.network_signatures,
    )
    await node.refused("request", request, "HANDOVER_PEER_CHANGED")


async def _check_wanted(node: Node) -> None:
    """Who asks for one key set must not be given another."""
    requester = node.requester("0" * 64)
    request = requester.on_challenge(await node.good("hello", requester.hello()))
    await node.refused("request", request, "HANDOVER_KEY_SET_MISMATCH")


async def _check_unsigned(node: Node) -> None:
    _, request = await node.request()
    signatures = [_spoiled(text) for text in json.loads(request)["network_signatures"]]
    await node.refused("request", _with(request, network_signatures=signatures), "NETWORK_SIGNATURE_BAD")


async def _check_mistargeted(node: Node) -> None:
    requester, request = await node.request()
    party = node.party
    if party is not None:
        data = Report.decode(base64.b64decode(json.loads(request)["report"])).report_data
        own = party.tee.report(party.tee.target_info(), data).encode()
        if requester.holder.mrenclave != party.tee.target_info().mrenclave:
            await node.refused("request", _with(request, report=messages.encode_base64(own)), "REPORT_MAC_BAD")


async def _check_receipts(node: Node) -> None:
    requester, request = await node.request()
    requester.on_delivery(await node.good("request", request)).wipe()
    receipt = requester.received()
    await node.refused("received", _with(receipt, mac=base64.b64encode(bytes(32)).decode()), "HANDOVER_RECEIPT_BAD")
    durable = requester.durable(canary=False)
    await node.refused("durable", durable, "HANDOVER_OUT_OF_ORDER")
    for spoil in (_with_more, _with_twice):
        await node.refused("received", spoil(receipt), MALFORMED)
    await node.good("received", receipt)
    for spoil in (_with_more, _with_twice):
        await node.refused("durable", spoil(durable), MALFORMED)
    await node.refused("durable", _with(durable, key_set_id="0" * 64), "HANDOVER_KEY_SET_MISMATCH")
    await node.refused("durable", _with(durable, canary=True), "HANDOVER_REPORTDATA_MISMATCH")
    report = json.loads(durable)["report"]
    await node.refused("durable", _with(durable, report=_spoiled(report)), "REPORT_MAC_BAD")
    await node.good("durable", durable)


async def _check_flood(node: Node) -> None:
    """Hellos in an enclave's name, which anybody can send, must not end a session that was opened before them."""
    session = (await _challenge(node))["session"]
    for _ in range(FLOOD_HELLOS):
        await node.good("hello", node.hello())
    await node.refused("request", _forged_request(session), "REPORT_MAC_BAD")


Check = Callable[[Node], Awaitable[None]]

#: Checks that need no TEE: name, why it matters, check.
OUTSIDE: Final[tuple[tuple[str, str, Check], ...]] = (
    ("challenge", "the challenge must bind version, chain, session, nonces and both ids", _check_challenge),
    ("fresh", "a repeated nonce would let an old conversation be replayed", _check_fresh),
    ("strict-json", "two readings of one message are two messages", _check_strict),
    ("oversized", "a node's memory must not be the caller's to fill", _check_oversized),
    ("version", "an unknown version must be refused, not guessed", _check_version),
    ("genesis", "nodes of another chain are strangers", _check_genesis),
    ("forged-report", "a report that this CPU did not make must be refused, and uses its session up", _check_forged),
    ("consumed-first", "a session is used up before anything else of the request is read", _check_consumed_first),
    ("unknown-session", "no step works outside a session of its own", _check_unknown),
)
#: Checks by an enclave that the node accepts.
INSIDE: Final[tuple[tuple[str, str, Check], ...]] = (
    ("handover", "the whole exchange works, receipts may be repeated, a request may not", _check_handover),
    ("bound", "every part of a request is bound to its session", _check_bound),
    ("peer-changed", "a session belongs to the enclave it was opened for", _check_peer_changed),
    ("wanted", "a node that knows its key set must not be given another", _check_wanted),
    ("unsigned", "an enclave without the network's signature gets nothing", _check_unsigned),
    ("mistargeted", "a report for another enclave must be refused", _check_mistargeted),
    ("confirmations", "received and durable cannot be forged, and durable follows received", _check_receipts),
)
#: The slowest check, so it comes last.
FLOOD: Final[tuple[tuple[str, str, Check], ...]] = (
    ("flood", "a stranger's hellos must not cost an honest requester its place", _check_flood),
)


async def run_suite(node: Node) -> list[Result]:
    """Run every check that is possible here; one failing does not keep the others from running."""
    results = []
    for name, why, check in (*OUTSIDE, *(INSIDE if node.party is not None else ()), *FLOOD):
        found = ""
        try:
            await check(node)
        except NonconformanceError as error:
            found = str(error)
        except Exception as error:
            # Whatever a foreign node answers, the suite continues; it reports codes, never values.
            found = str(getattr(error, "code", type(error).__name__)) + ": " + str(getattr(error, "why", ""))
        results.append(Result(name, why, found))
    return results


def as_text(results: list[Result]) -> str:
    """Return the results for a person."""
    rows = []
    for result in results:
        rows.append(f"{'FAILED' if result.found else 'ok    '}  {result.name:<16} {result.why}")
        if result.found:
            rows.append(f"        {result.found}")
    return "\n".join(rows) + "\n"


def as_json(results: list[Result]) -> Mapping[str, Any]:
    """Return the results for a program."""
    return {
        "conforms": not any(result.found for result in results),
        "checks": [{"name": r.name, "why": r.why, "found": r.found} for r in results],
    }
