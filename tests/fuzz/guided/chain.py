"""Bytes from chain and endpoints: SCALE, headers, justifications, proofs, metadata, releases, evidence, answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Frozen

from chain_watcher.endpoints.messages import parse, refusal, retry_after_s
from chain_watcher.proof.evidence import verify_evidence
from chain_watcher.proof.grandpa import Checkpoint, Justification, verify_justification
from chain_watcher.proof.header import Header, decode_authorities, decode_grandpa_log, encode_authorities
from chain_watcher.proof.layout import Layout, standard_layout
from chain_watcher.proof.metadata import layout_of
from chain_watcher.proof.release import decode_enclave_id, decode_signature, read_entries
from chain_watcher.proof.scale import Reader
from chain_watcher.proof.trie import ReadProof, decode_node, read_proof
from tests.doubles import chain_makers as makers
from tests.doubles.metadata_maker import make_metadata
from tests.doubles.state_maker import FIRST, Case
from tests.fuzz.endpoint_harness import CHAIN, FINALITIES, READERS, one_run

from .target import Target, of_json, of_text

CASE = Case(route_length=2)
LAYOUT = standard_layout(fields=5)
TARGET, CHILD = makers.chain(5, 2)
VOTES = [makers.vote(0, TARGET), makers.vote(1, CHILD), makers.vote(2, CHILD), makers.vote(2, TARGET)]
JUSTIFICATION = makers.justify(TARGET, VOTES, [CHILD])
HEADER = makers.header(5, b"\1" * 32, makers.scheduled(FIRST, 3), makers.forced(FIRST, 3, 1)).encoded
ITEMS = tuple(CASE.trie.items[:8])
EVIDENCE = json.dumps(CASE.json()).encode()
LOGS = (makers.scheduled(FIRST, 3).data, makers.forced(FIRST, 3, 1).data)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _proof(data: bytes) -> object:
    """Read a proof whose first item is the input and has the requested root hash, so that it is decoded."""
    items = [data, *CASE.proof]
    values = read_proof(makers.hash256(data), items, [LAYOUT.proof_keys[0], b"", data[:8]])
    return values, ReadProof(items).finish(makers.hash256(data))


def _entries(data: bytes) -> object:
    return read_entries(LAYOUT.decode_enclave_ids(data))


def _message(data: bytes) -> object:
    message = parse("ws://x", data.decode("utf-8", "surrogateescape"), 1 << 16)
    return refusal("ws://x", message.get("error"))


def _runs_of_hypothesis(finality: str, unproven: bool) -> Callable[[bytes], object]:
    """Two endpoints that answer and announce what the input says.

    `Frozen` is raised where the input came to its end inside a task of the watcher, which took that for an error.
    """

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        asyncio.run(one_run(finality, unproven, data.draw))

    take: Callable[[bytes], object] = run.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    return take


TARGETS = {
    "scale compact": Target(lambda data: Reader(data).compact(2**536), (b"\0", b"\x15\1", b"\2\3\4\5", b"\3\1\1\1\1")),
    "header": Target(Header.decode, (HEADER,)),
    "header as JSON": Target(of_json(Header.from_json), (json.dumps(CHAIN.best.json).encode(),)),  # type: ignore[arg-type]
    "grandpa log": Target(decode_grandpa_log, LOGS),
    "authorities": Target(decode_authorities, (encode_authorities(FIRST),)),
    "justification": Target(Justification.decode, (JUSTIFICATION,)),
    "justification, verified": Target(lambda data: verify_justification(data, 0, FIRST), (JUSTIFICATION,)),
    "checkpoint": Target(of_json(Checkpoint.from_json), (json.dumps(CASE.trust.checkpoint.to_json()).encode(),)),  # type: ignore[arg-type]
    "trie node": Target(decode_node, ITEMS),
    "storage proof": Target(_proof, ITEMS),
    "enclave ids": Target(_entries, tuple(value for value in CASE.trie.items if len(value) > 60)[:4]),
    "program": Target(LAYOUT.decode_dc_program, tuple(value for value in CASE.trie.items if len(value) > 60)[:4]),
    "now": Target(LAYOUT.decode_now, (bytes(8),)),
    "enclave id": Target(decode_enclave_id, (b"ab" * 32,)),
    "release signature": Target(decode_signature, (b"b" + b"a" * 103,)),
    "metadata": Target(layout_of, (make_metadata(),), bytes_max=8192),
    "layout": Target(of_json(Layout.from_json), (json.dumps(LAYOUT.to_json()).encode(),)),  # type: ignore[arg-type]
    "evidence": Target(
        of_json(lambda value: verify_evidence(value, CASE.trust)),  # type: ignore[arg-type]
        (EVIDENCE,),
        bytes_max=2 * len(EVIDENCE),
    ),
    "rpc message": Target(_message, (b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}',)),
    "rpc retry-after": Target(of_text(lambda text: retry_after_s(text, NOW)), (b"7", b"Wed, 21 Oct 2026 07:28:00 GMT")),
    **{
        f"rpc answer, {name}": Target(
            of_json(read), (b'{"specVersion": 1}', b'"0x00"', b'[{"changes": [["0x", null]]}]')
        )
        for name, read in READERS.items()
    },
    **{
        f"endpoints, {finality}{', unproven' if unproven else ''}": Target(
            _runs_of_hypothesis(finality, unproven), (bytes(64), bytes(range(256))), (Frozen,)
        )
        for finality, unproven in FINALITIES
    },
}
