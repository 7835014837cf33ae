"""Proof verification: microseconds per read proof, header, justification and piece of evidence.

Run: python benchmarks/bench_proofs.py [seconds per line, default 0.5]

Medians over rounds of one process, nothing else measured. The known-answer proofs beside the checkout are used when
they are there; the rest is made here (signing is not timed).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.report import Row, emit  # noqa: E402
from chain_watcher.proof.evidence import verify_evidence  # noqa: E402
from chain_watcher.proof.grandpa import verify_justification  # noqa: E402
from chain_watcher.proof.header import Header  # noqa: E402
from chain_watcher.proof.release import decode_signature, encode_signature  # noqa: E402
from chain_watcher.proof.trie import read_proof  # noqa: E402
from tests.doubles import chain_makers as makers  # noqa: E402
from tests.doubles.state_maker import Case, entries_value  # noqa: E402

VECTORS = ROOT.parent / "shared" / "vectors" / "chain"


MICROSECONDS_AT_MOST = {"justification, 449 authorities, 300 precommits": 10_000.0}


def raw(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def measure(name: str, call: Callable[[], object], seconds: float) -> None:
    """Print the median and the fastest of rounds of about 10 ms."""
    call()
    begun = time.perf_counter()
    call()
    count = max(1, int(0.01 / max(time.perf_counter() - begun, 1e-7)))
    rounds: list[float] = []
    end = time.perf_counter() + seconds
    while not rounds or time.perf_counter() < end:
        begun = time.perf_counter()
        for _ in range(count):
            call()
        rounds.append((time.perf_counter() - begun) / count * 1e6)
    at_most = MICROSECONDS_AT_MOST.get(name)
    emit(Row(name, statistics.median(rounds), "us", at_most=at_most))
    print(f"{name:<64} {statistics.median(rounds):>10.1f} us   fastest {min(rounds):>10.1f} us")


def known(seconds: float) -> None:
    """Time the known answers."""
    genesis = json.loads((VECTORS / "trie_polkadot_genesis.json").read_text())
    items, root = [raw(item) for item in genesis["proof"]], raw(genesis["stateRoot"])
    keys = [raw(genesis["expect"][0]["key"])]
    name = f"read proof, Polkadot genesis, {len(items)} nodes"
    measure(name, lambda: read_proof(root, items, keys), seconds)
    own = json.loads((VECTORS / "readproof_solochain_v1.json").read_text())
    root = raw(own["stateRoot"])
    for proof in own["proofs"]:
        items, keys = [raw(item) for item in proof["proof"]], [raw(proof["key"])]
        name = f"read proof, {proof['name']}, {len(items)} nodes"
        measure(name, lambda items=items, keys=keys: read_proof(root, items, keys), seconds)
    encoded = raw(own["header_scale"])
    measure("header: decode and hash", lambda: Header.decode(encoded).hash, seconds)
    measure("header: JSON-RPC form and hash", lambda: Header.from_json(own["header"]).hash, seconds)
    polkadot = json.loads((VECTORS / "grandpa_polkadot_302592.json").read_text())
    expect = polkadot["justification_expect"]
    voters = tuple((raw(key), weight) for key, weight in expect["authorities"])
    data = raw(polkadot["justification"])
    name = "justification, Polkadot block 302592, 5 precommits"
    measure(name, lambda: verify_justification(data, 0, voters), seconds)


def made(seconds: float) -> None:
    """Time what is made here."""
    block = makers.header(5)
    for size in (4, 100, 449):
        voters = makers.authorities(*range(size))
        data = makers.finalize(block, range(size - (size - 1) // 3))
        name = f"justification, {size} authorities, {size - (size - 1) // 3} precommits"
        measure(name, lambda data=data, voters=voters: verify_justification(data, 0, voters), seconds)
    case = Case()
    evidence = case.json()
    name = f"evidence, two set changes, {len(json.dumps(evidence))} characters"
    measure(name, lambda: verify_evidence(evidence, case.trust), seconds)
    rows = [(height, f"{height:064x}") for height in range(1, 1001)]
    large = Case(changes=(("enclave_ids", entries_value(*rows)),))
    evidence = large.json()
    name = f"evidence, 1,000 enclave ids, {len(json.dumps(evidence))} characters"
    measure(name, lambda: verify_evidence(evidence, large.trust), seconds)
    text = encode_signature(bytes(range(64)))
    measure("network signature: canonical base32", lambda: decode_signature(text), seconds)


if __name__ == "__main__":
    per_line = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
    if VECTORS.is_dir():
        known(per_line)
    made(per_line)
