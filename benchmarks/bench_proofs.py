"""Proof verification: microseconds of processor time per read proof, header, justification and piece of evidence.

Run: python benchmarks/bench_proofs.py [--seconds 0.5]

Medians over rounds of one process. Read proofs and justifications are also verified by the crates that Substrate itself
uses (`peers/rust/proofs`: sp-trie, finality-grandpa, sp-consensus-grandpa), from the same bytes and by the same clock;
the ratio is ours to theirs. The known-answer proofs beside the checkout are used when they are there; the rest is made
here (signing is not timed).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.peer_clients import of_rust  # noqa: E402
from benchmarks.report import Row, emit  # noqa: E402
from chain_watcher.proof.evidence import verify_evidence  # noqa: E402
from chain_watcher.proof.grandpa import verify_justification  # noqa: E402
from chain_watcher.proof.header import Authorities, Header  # noqa: E402
from chain_watcher.proof.release import decode_signature, encode_signature  # noqa: E402
from chain_watcher.proof.trie import read_proof  # noqa: E402
from devnet.tools import DevnetError  # noqa: E402
from tests.doubles import chain_makers as makers  # noqa: E402
from tests.doubles.state_maker import Case, entries_value  # noqa: E402

VECTORS = ROOT.parent / "shared" / "vectors" / "chain"
MICROSECONDS_AT_MOST = {"justification, 449 authorities, 300 precommits": 10_000.0}


def raw(text: str) -> bytes:
    """Bytes of a hex text, with or without 0x."""
    return bytes.fromhex(text.removeprefix("0x"))


@dataclass(slots=True)
class Bench:
    """Times calls, and keeps what the Rust program is to verify too."""

    seconds: float
    medians: dict[str, float] = field(default_factory=dict)
    read_proofs: list[dict[str, Any]] = field(default_factory=list)
    justifications: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, name: str, call: Callable[[], object]) -> None:
        """Print and report the median of rounds of about 10 ms."""
        call()
        begun = time.perf_counter()
        call()
        count = max(1, int(0.01 / max(time.perf_counter() - begun, 1e-7)))
        rounds: list[float] = []
        end = time.perf_counter() + self.seconds
        while not rounds or time.perf_counter() < end:
            begun = time.process_time()
            for _ in range(count):
                call()
            rounds.append((time.process_time() - begun) / count * 1e6)
        self.medians[name] = median = statistics.median(rounds)
        emit(Row(name, median, "us", at_most=MICROSECONDS_AT_MOST.get(name)))
        print(f"{name:<64} {median:>10.1f} us   fastest {min(rounds):>10.1f} us", flush=True)

    def read_proof(self, name: str, root: bytes, items: list[bytes], keys: list[bytes]) -> None:
        """Time a storage proof."""
        self.measure(name, lambda: read_proof(root, items, keys))
        proof, wanted = [item.hex() for item in items], [key.hex() for key in keys]
        self.read_proofs.append({"name": name, "root": root.hex(), "proof": proof, "keys": wanted})

    def justification(self, name: str, data: bytes, voters: Authorities) -> None:
        """Time a justification of set 0."""
        self.measure(name, lambda: verify_justification(data, 0, voters))
        pairs = [(key.hex(), weight) for key, weight in voters]
        self.justifications.append({"name": name, "data": data.hex(), "set_id": 0, "voters": pairs})


def known(bench: Bench) -> None:
    """Time the known answers."""
    genesis = json.loads((VECTORS / "trie_polkadot_genesis.json").read_text())
    items, keys = [raw(item) for item in genesis["proof"]], [raw(genesis["expect"][0]["key"])]
    bench.read_proof(f"read proof, Polkadot genesis, {len(items)} nodes", raw(genesis["stateRoot"]), items, keys)
    own = json.loads((VECTORS / "readproof_solochain_v1.json").read_text())
    for proof in own["proofs"]:
        items, keys = [raw(item) for item in proof["proof"]], [raw(proof["key"])]
        bench.read_proof(f"read proof, {proof['name']}, {len(items)} nodes", raw(own["stateRoot"]), items, keys)
    encoded = raw(own["header_scale"])
    bench.measure("header: decode and hash", lambda: Header.decode(encoded).hash)
    bench.measure("header: JSON-RPC form and hash", lambda: Header.from_json(own["header"]).hash)
    polkadot = json.loads((VECTORS / "grandpa_polkadot_302592.json").read_text())
    expect = polkadot["justification_expect"]
    voters = tuple((raw(key), weight) for key, weight in expect["authorities"])
    bench.justification("justification, Polkadot block 302592, 5 precommits", raw(polkadot["justification"]), voters)


def made(bench: Bench) -> None:
    """Time what is made here."""
    state = {makers.hash256(f"key {number}".encode()): f"value {number}".encode() * 9 for number in range(20_000)}
    trie = makers.Trie(state)
    keys = list(state)[:2]
    items = trie.prove(keys)
    bench.read_proof(f"read proof, 2 of 20,000 keys, {len(items)} nodes", trie.root, items, keys)
    block = makers.header(5)
    for size in (4, 100, 449):
        voters = makers.authorities(*range(size))
        count = size - (size - 1) // 3
        data = makers.finalize(block, range(count))
        bench.justification(f"justification, {size} authorities, {count} precommits", data, voters)
    case = Case()
    evidence = case.json()
    name = f"evidence, two set changes, {len(json.dumps(evidence)):,} characters"
    bench.measure(name, lambda: verify_evidence(evidence, case.trust))
    rows = [(height, f"{height:064x}") for height in range(1, 1001)]
    large = Case(changes=(("enclave_ids", entries_value(*rows)),))
    evidence = large.json()
    name = f"evidence, 1,000 enclave ids, {len(json.dumps(evidence)):,} characters"
    bench.measure(name, lambda: verify_evidence(evidence, large.trust))
    text = encode_signature(bytes(range(64)))
    bench.measure("network signature: canonical base32", lambda: decode_signature(text))


def against_rust(bench: Bench) -> None:
    """Verify the same by Substrate's crates, and report their times and the ratios."""
    try:
        program = of_rust("proofs")
    except DevnetError as error:
        why = str(error).splitlines()[0]
        print(f"Substrate's crates are left out: {why}")
        emit(Row("the same by Substrate's crates", None, "us", peer=True, note=why))
        return
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"read_proofs": bench.read_proofs, "justifications": bench.justifications}, file)
        file.flush()
        done = subprocess.run([*program, file.name, str(bench.seconds)], check=True, capture_output=True, text=True)
    for name, theirs in json.loads(done.stdout).items():
        ratio = bench.medians[name] / theirs
        print(f"{name:<64} {theirs:>10.1f} us in Rust   ours {ratio:>6.2f} x")
        emit(Row(f"{name}, by Substrate's crates", theirs, "us", peer=True))
        emit(Row(f"{name}, ours to Substrate's crates", ratio, "x"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line")
    bench = Bench(parser.parse_args().seconds)
    if VECTORS.is_dir():
        known(bench)
    made(bench)
    against_rust(bench)


if __name__ == "__main__":
    main()
