"""A handover v2 between real processes, beside the sum of its own cryptographic primitives timed alone in the same run.

    python benchmarks/bench_handover.py [--rounds 60] [--realtime] [--replacing] [--holder go] [--requester go]

Two enclaves under two software CPU processes talk HTTP on loopback: the holder serves a key set of 64 bytes, the
requester runs whole handovers, from hello to the acknowledgement of ``durable``, sealing and reading back the key set
in between: each time into an empty store, as a new version does, or with ``--replacing`` over an earlier sealed copy,
as a vault does that collects again (a millisecond more on ext4: the old file's blocks are freed). Bounds of both:
median under 25 ms, and under 4 times the primitives.

The primitives are what this exchange cannot do without, on both sides, each timed alone between the handovers, so that
caches are as warm or cold as there: KEM key pair, HPKE seal and open, two ed25519 verifications, four reports made and
four verified by the TEE, the two seal keys of writing and reading back, AES-GCM both ways, HMAC both ways. Disk, HTTP,
JSON and process switches are not among them. On a busy machine the handover suffers more than they do: ``--busy`` keeps
every core at work beside it; with ``--realtime`` (root) the enclaves run ahead of everything else.

Each side is in Python or, by `--holder go` and `--requester go`, a static Go program as its image. A requester in Go
counts what else the exchange cannot do without among the primitives: sealing with its syncs, and four round trips of
messages of that size to another process. Bound between two in Go: median at most 1.2 times their sum.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it also runs as a file

from attestation.artefact.files import build_sigstruct, verify_artefact
from attestation.network import encode_multibase
from benchmarks.report import Row, emit
from devnet.go_image import build_go_program
from tests.e2e.vault_parts.kit import DATE, GENESIS, Artefact, Bench, Process

HOLDER_MAIN = "handover_enclaves:holder"
REQUESTER_MAIN = "handover_enclaves:requester"
BOUND_MS, BOUND_FACTOR, BOUND_FACTOR_GO = 25.0, 4.0, 1.2
#: What is aimed at on a quiet machine; the bound above is where this script fails.
TARGET_FACTOR, TARGET_FACTOR_BUSY = 3.5, 6.0
PARTS = Path(__file__).parent / "handover_enclaves.py"
SDK = Path(__file__).resolve().parent.parent / "sdk" / "go"


def go_enclave(bench: Bench) -> Artefact:
    """Build and sign the Go program that plays either side."""
    image, sigstruct = bench.folder / "peer", bench.folder / "peer.sig"
    if not image.exists():
        build_go_program(image, SDK, package="./internal/peer")
        sigstruct.write_bytes(build_sigstruct(image, bench.rsa, date=DATE))
    return Artefact(image, sigstruct, verify_artefact(image, sigstruct))


def start_go(bench: Bench, *words: str) -> Process:
    """Start the Go program as an enclave."""
    peer = go_enclave(bench)
    flags = ["-network", bench.network_key, "-genesis", GENESIS, "-keys", os.urandom(64).hex()]
    return bench.start_enclave(peer, [*flags, "-signatures", encode_multibase(bench.sign(peer.enclave_id)), *words])


def start_holder(bench: Bench, language: str) -> str:
    """Start the holder and return its address."""
    if language == "go":
        return str(start_go(bench, "hold").event()["url"])
    holder = bench.enclave("holder", {"handover_enclaves.py": PARTS}, HOLDER_MAIN)
    key = bench.network.public_key().public_bytes_raw().hex()
    served = bench.start_enclave(holder, [key, bench.sign(holder.enclave_id).hex()])
    return f"http://127.0.0.1:{served.event()['port']}"


@contextmanager
def busy_cores(number: int) -> Iterator[None]:
    """Keep so many cores at work."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both enclaves and return what the requester measured, in milliseconds."""
    bench = Bench(folder)
    rounds = str(arguments.rounds)
    try:
        url = start_holder(bench, arguments.holder)
        if arguments.requester == "go":
            echo = str(start_go(bench, "hold").event()["url"])
            return start_go(bench, "bench", url, rounds, str(folder / "sealed"), echo).event(120)
        requester = bench.enclave("requester", {"handover_enclaves.py": PARTS}, REQUESTER_MAIN)
        key = bench.network.public_key().public_bytes_raw().hex()
        into = "replacing" if arguments.replacing else "empty"
        words = [key, bench.sign(requester.enclave_id).hex(), url, str(folder / "sealed"), rounds, into]
        return bench.start_enclave(requester, words).event(120)
    finally:
        bench.stop()


def main() -> int:
    """Print the table and return 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--replacing", action="store_true", help="of a requester in Python")
    for side in ("--holder", "--requester"):
        parser.add_argument(side, choices=("python", "go"), default="python")
    arguments = parser.parse_args()
    if arguments.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(20))
    spinning = (os.cpu_count() or 1) if arguments.busy else 0
    with tempfile.TemporaryDirectory() as folder, busy_cores(spinning):
        found = measure(Path(folder), arguments)
    factor = found["handover_median_ms"] / found["primitives_ms"]
    bound = BOUND_FACTOR_GO if arguments.holder == arguments.requester == "go" else BOUND_FACTOR
    target = bound if bound == BOUND_FACTOR_GO else TARGET_FACTOR
    if arguments.busy:
        bound = target = TARGET_FACTOR_BUSY
    into = ", over an earlier copy" if arguments.replacing else ", every core busy" if arguments.busy else ""
    name = f"{arguments.holder} to {arguments.requester}{into}"
    emit(
        Row(f"{name}, part of its primitives", factor, "x", at_most=target),
        Row(
            f"{name}, hello to acknowledged",
            found["handover_median_ms"],
            "ms",
            at_most=None if arguments.busy else BOUND_MS,
        ),
        Row(f"{name}, its primitives alone", found["primitives_ms"], "ms", peer=True),
    )
    held = (arguments.busy or found["handover_median_ms"] < BOUND_MS) and factor < bound
    if arguments.json:
        print(json.dumps({**found, "factor": factor, "bounds_hold": held}))
        return 0 if held else 1
    print(f"{'handover v2, hello to acknowledged, median':<50}{found['handover_median_ms']:8.2f} ms")
    print(f"{'  slowest tenth begins at':<50}{found['handover_p90_ms']:8.2f} ms")
    print(f"{'its primitives alone, sum of medians':<50}{found['primitives_ms']:8.2f} ms")
    for name, value in found.items():
        if name.startswith("primitive "):
            print(f"  {name.removeprefix('primitive '):<48}{value:8.3f} ms")
    print(f"factor {factor:.2f} (bound {bound}), median bound {BOUND_MS} ms: {'held' if held else 'BROKEN'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
