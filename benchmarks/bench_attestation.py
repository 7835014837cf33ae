"""Measuring an enclave and verifying a report, beside what they are made of: `python benchmarks/bench_attestation.py`.

Measuring is compared with hashing the same file by hashlib, read in pieces of the same size; the rounds of both take
turns, so that a busy machine slows both. The measured log is 1.266 times as long as the image. `--mib` sets the image's
size, `--folder` where it is written (default: memory, /dev/shm).
"""

import argparse
import hashlib
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from attestation.artefact.files import measure_file
from attestation.artefact.measure import BATCH, CHUNK, PAGE, READ, REG, image_enclave_size, measure_image, measure_sgxs
from attestation.sgx import Attributes, Report, cmac
from attestation.simulated.cpu import RootKeys, Secs, SoftwareCpu
from attestation.tee.driver import ReportVerifier
from benchmarks.report import Row, emit

ROUNDS = 7
#: Bytes that are measured for each byte of an image: a page's EADD record and the header of each EEXTEND come with it.
COVERS = 1 + (64 + 16 * 64) / 4096
AT_MOST = 1.15
STREAM_MIB_MAX = 64  # a stream is made record by record here, which takes longer than measuring it


def hash_file(path: Path) -> None:
    digest, buffer = hashlib.sha256(), bytearray(BATCH)
    window = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(window):
            digest.update(window[:count])
    digest.digest()


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall clock and processor time of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(rows: Mapping[str, Callable[[], object]], base: str, covers: float = 1.0) -> None:
    """Print the rows beside `base`, which hashes one byte where the measurement covers `covers`."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for _ in range(ROUNDS):
        for name, call in rows.items():
            taken[name].append(seconds(call))
    best = {name: (min(wall for wall, _ in all_), min(cpu for _, cpu in all_)) for name, all_ in taken.items()}
    for name, (wall, cpu) in best.items():
        print(
            f"{name:44} {wall:7.3f} s wall ({wall / best[base][0]:4.2f} x)"
            f" {cpu:7.3f} s processor ({cpu / best[base][1]:4.2f} x)"
        )
        if name != base:
            part = wall / (best[base][0] * covers)
            emit(Row(f"{name}, part of hashing as many bytes", part, "x", at_most=AT_MOST))


def bench_measuring(mib: int, folder: Path | None) -> None:
    size = mib << 20
    print(f"measuring {mib} MiB, best of {ROUNDS}; target: {AT_MOST} x hashing the {COVERS:.3f}-fold")
    with tempfile.TemporaryDirectory(dir=folder) as where:
        path = Path(where) / "image"
        piece = hashlib.shake_128(b"image").digest(1 << 20)
        with path.open("wb") as file:
            for n in range(mib):
                file.write(n.to_bytes(8, "little") + piece[8:])
        rows = {
            "hashlib, the same file": lambda: hash_file(path),
            "measuring an image file": lambda: measure_file(path),
        }
        compare(rows, "hashlib, the same file", COVERS)
        data = path.read_bytes()
    window = memoryview(data)
    pieces = [window[at : at + (1 << 20)] for at in range(0, size, 1 << 20)]
    print("the same bytes in memory")
    rows = {
        "hashlib, the same bytes": lambda: hashlib.sha256(data).digest(),
        "measuring an image in memory": lambda: measure_image(pieces, size),
    }
    compare(rows, "hashlib, the same bytes", COVERS)


def bench_stream(mib: int) -> None:
    size = mib << 20
    page = hashlib.shake_128(b"stream").digest(PAGE)
    parts = [struct.pack("<8sIQ44x", b"ECREATE", 1, image_enclave_size(size))]
    for offset in range(0, size, PAGE):
        parts.append(struct.pack("<8sQQ40x", b"EADD", offset, REG | READ))
        for at in range(0, PAGE, CHUNK):
            parts += [struct.pack("<8sQ48x", b"EEXTEND", offset + at), page[at : at + CHUNK]]
    stream = b"".join(parts)
    del parts
    window = memoryview(stream)
    pieces = [window[at : at + (1 << 20)] for at in range(0, len(stream), 1 << 20)]
    print(f"an SGXS stream of {mib} MiB of pages")
    rows = {
        "hashlib, the same stream": lambda: hashlib.sha256(stream).digest(),
        "measuring an SGXS stream": lambda: measure_sgxs(pieces),  # type: ignore[arg-type]
    }
    compare(rows, "hashlib, the same stream")


def bench_reports() -> None:
    cpu = SoftwareCpu(RootKeys(b"\1" * 16, b"\2" * 16, b"\3" * 16, b"\4" * 32))
    secs = Secs(b"\5" * 32, b"\6" * 32, Attributes(5, 3))
    encoded = cpu.ereport(secs, secs.target_info(), bytes(64)).encode()
    verifier = ReportVerifier(lambda request: cpu.egetkey(secs, request))
    rows: dict[str, Callable[[], object]] = {
        "AES-CMAC over 384 bytes alone": lambda: cmac(b"\7" * 16, encoded[:384]),
        "decode and verify, report key known": lambda: verifier.verify(Report.decode(encoded)),
        "decode, derive the report key, and verify": lambda: ReportVerifier(
            lambda request: cpu.egetkey(secs, request)
        ).verify(Report.decode(encoded)),
    }
    print("one report; limit: 50 us")
    for name, call in rows.items():
        times = []
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(200):
                call()
            times.append((time.perf_counter() - start) / 200 * 1e6)
        print(f"{name:44} {statistics.median(times):7.1f} us median {min(times):7.1f} us best")
        alone = name.startswith("AES")
        emit(Row(f"report: {name}", statistics.median(times), "us", at_most=None if alone else 50.0, peer=alone))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm") if Path("/dev/shm").is_dir() else None)  # noqa: S108
    options = parser.parse_args()
    bench_reports()
    bench_measuring(options.mib, options.folder)
    bench_stream(min(options.mib, STREAM_MIB_MAX))


if __name__ == "__main__":
    main()
