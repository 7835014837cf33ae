"""Download of a large artefact over loopback against `curl | sha256sum`: throughput, memory, and what a resume reads.

    python benchmarks/bench_download.py [--mib 1024] [--rounds 3] [--folder /dev/shm]

Ours writes the file, hashes it, and syncs it before it counts as done; curl's bytes are hashed and dropped. So the
files lie in memory by default: on a disk that is slower than the loopback, ours is as fast as that disk. The rounds of
both take turns, so that a busy machine slows both.
"""

import argparse
import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import Row, emit
from process_supervisor.fetch import Progress, fetch
from process_supervisor.limits import MIB, DownloadLimits
from process_supervisor.outbound import Outbound
from process_supervisor.sources import UrlSource

SERVER = """
import os, socket, sys
path, size = sys.argv[1], os.path.getsize(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += connection.recv(65536)
    first = 0
    for line in head.split(b"\\r\\n"):
        if line.lower().startswith(b"range: bytes="):
            first = int(line[13:].rstrip(b"-"))
    status = b"206 Partial Content" if first else b"200 OK"
    range_ = b"Content-Range: bytes %d-%d/%d\\r\\n" % (first, size - 1, size) if first else b""
    head = b'HTTP/1.1 %s\\r\\nETag: "1"\\r\\n%sContent-Length: %d\\r\\n\\r\\n'
    connection.sendall(head % (status, range_, size - first))
    sent = 0
    try:
        with open(path, "rb") as file:
            sent = connection.sendfile(file, first) or 0
    except OSError:
        pass
    connection.close()
    print(first, flush=True)
"""
PIECE = os.urandom(MIB)


def peak_rss_kib() -> int:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def ours(url: str, part: Path, limits: DownloadLimits, stop_at: int | None = None) -> float:
    """Download; returns the seconds. With `stop_at` it is cancelled once that many bytes are there."""
    reached = asyncio.Event()

    def progress(item: Progress) -> None:
        if stop_at is not None and item.received_bytes >= stop_at:
            reached.set()

    began = time.perf_counter()
    async with Outbound() as outbound:
        work = asyncio.ensure_future(fetch(outbound, UrlSource("http", url), (), part, limits, progress))
        if stop_at is not None:
            waiting = asyncio.ensure_future(reached.wait())
            await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()  # raises where it failed before so many bytes were there
            waiting.cancel()
            work.cancel()
            await asyncio.gather(work, waiting, return_exceptions=True)
        else:
            await work
    return time.perf_counter() - began


def curl(url: str) -> float:
    """`curl | sha256sum`; returns the seconds."""
    began = time.perf_counter()
    subprocess.run(f"curl -s '{url}' | sha256sum", shell=True, check=True, stdout=subprocess.DEVNULL)  # noqa: S602
    return time.perf_counter() - began


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))  # noqa: S108 - memory, not a place for secrets
    arguments = parser.parse_args()
    if shutil.which("curl") is None:
        sys.exit("curl is not installed: apt-get install curl")
    with tempfile.TemporaryDirectory(prefix="bench-download-", dir=arguments.folder) as folder:
        source, part = Path(folder) / "artefact", Path(folder) / "part"
        with source.open("wb") as file:
            for _ in range(arguments.mib):
                file.write(PIECE)
        command = [sys.executable, "-c", SERVER, str(source)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                run(server, source, part, arguments.rounds)
            finally:
                server.kill()


def run(server: "subprocess.Popen[str]", source: Path, part: Path, rounds: int) -> None:
    """Measure in turns."""
    assert server.stdout is not None
    url, mib = f"http://127.0.0.1:{server.stdout.readline().strip()}/a", source.stat().st_size // MIB
    limits = DownloadLimits(size_bytes_max=source.stat().st_size, private_addresses=True)
    pairs: list[tuple[float, float]] = []
    asyncio.run(ours(url, part, limits, stop_at=1))  # imports and first allocations do not count
    part.unlink(missing_ok=True)
    before = peak_rss_kib()
    for _ in range(rounds):
        pairs.append((asyncio.run(ours(url, part, limits)), curl(url)))
        part.unlink()
    growth = peak_rss_kib() - before
    half = source.stat().st_size // 2
    asyncio.run(ours(url, part, limits, stop_at=half))
    kept = part.stat().st_size
    asyncio.run(ours(url, part, limits))
    server.kill()
    resumed_at = int(server.stdout.read().split()[-1])
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    print(f"{mib} MiB, {rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"ours: {', '.join(f'{mib / mine:.0f}' for mine, _ in pairs)} MiB/s (written, hashed, synced)")
    print(f"curl | sha256sum: {', '.join(f'{mib / theirs:.0f}' for _, theirs in pairs)} MiB/s (hashed)")
    print(f"throughput: {ratio:.2f} x curl's (target: at least 0.95)")
    print(f"memory: grew by {growth / 1024:.1f} MiB (target: under 16)")
    emit(
        Row("throughput, part of `curl | sha256sum`", ratio, "x", at_least=0.95),
        Row("growth of memory", growth / 1024, "MiB", at_most=16.0),
        Row("bytes that a resume reads twice", float(kept - resumed_at), "B", at_most=1.0),
    )
    print(f"resume: began at byte {resumed_at}, {kept} were there (target: nothing is read twice)")


if __name__ == "__main__":
    main()
