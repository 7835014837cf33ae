"""Download of a large artefact over loopback against `curl | sha256sum` and aria2: throughput, memory, resuming.

    python benchmarks/bench_download.py [--mib 1024] [--rounds 3] [--folder /dev/shm]

Ours writes the file, hashes it, and syncs it before it counts as done; curl's bytes are hashed and dropped; aria2
writes the file and then verifies its digest. So the files lie in memory by default: on a disk that is slower than the
loopback, ours is as fast as that disk. The rounds take turns, so that a busy machine slows all. What a resume reads
twice is counted by the server: the bytes sent for it beyond those that were missing.
"""

import argparse
import asyncio
import hashlib
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
from devnet.tools import DevnetError, apt_install_missing
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
    print(first, sent, flush=True)
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


def aria2(url: str, folder: Path, digest: str) -> float:
    """aria2 into a file, with the digest verified; returns the seconds."""
    options = ["--quiet", "--file-allocation=none", "--max-connection-per-server=1", f"--checksum=sha-256={digest}"]
    began = time.perf_counter()
    subprocess.run(["aria2c", *options, "--dir", str(folder), "--out", "aria2", url], check=True)
    taken = time.perf_counter() - began
    (folder / "aria2").unlink()
    return taken


def missing_aria2() -> str:
    """Install aria2 where this is root on Debian; returns why it is missing, "" where it is there."""
    try:
        apt_install_missing({"aria2c": "aria2"}, "aria2")
    except DevnetError as error:
        return str(error).splitlines()[0]
    return "" if shutil.which("aria2c") else "aria2 is not installed (apt-get install aria2)"


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
    taken: dict[str, list[float]] = {"ours": [], "curl": [], "aria2": []}
    without_aria2 = missing_aria2()
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    asyncio.run(ours(url, part, limits, stop_at=1))  # imports and first allocations do not count
    part.unlink(missing_ok=True)
    before = peak_rss_kib()
    for _ in range(rounds):
        taken["ours"].append(asyncio.run(ours(url, part, limits)))
        part.unlink()
        taken["curl"].append(curl(url))
        if not without_aria2:
            taken["aria2"].append(aria2(url, part.parent, digest))
    growth = (peak_rss_kib() - before) / 1024
    ratio = statistics.median(theirs / mine for mine, theirs in zip(taken["ours"], taken["curl"], strict=True))
    print(f"{mib} MiB, {rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"throughput: {ratio:.2f} x that of curl | sha256sum; memory grew by {growth:.1f} MiB")
    emit(
        Row("throughput, part of `curl | sha256sum`", ratio, "x", at_least=0.95),
        Row("growth of memory", growth, "MiB", at_most=16.0),
        Row("bytes that a resume reads twice", float(resume(server, source, part, limits, url)), "B", at_most=0.0),
    )
    names = {"ours": "ours: written, hashed, synced", "curl": "`curl | sha256sum`", "aria2": "aria2, digest verified"}
    for name, seconds in taken.items():
        rate = mib / statistics.median(seconds) if seconds else None
        print(f"{names[name]}: {', '.join(f'{mib / one:.0f}' for one in seconds) or without_aria2} MiB/s")
        emit(Row(names[name], rate, "MiB/s", peer=name != "ours", note="" if seconds else without_aria2))


def resume(server: "subprocess.Popen[str]", source: Path, part: Path, limits: DownloadLimits, url: str) -> int:
    """Stop a download halfway and resume it; returns how many bytes the server sent twice. Ends the server."""
    assert server.stdout is not None
    size = source.stat().st_size
    asyncio.run(ours(url, part, limits, stop_at=size // 2))
    kept = part.stat().st_size
    asyncio.run(ours(url, part, limits))
    server.kill()
    first, sent = map(int, server.stdout.read().splitlines()[-1].split())
    print(f"resume: began at byte {first} and sent {sent}; {kept} were there")
    return max(0, kept - first) + max(0, sent - (size - first))


if __name__ == "__main__":
    main()
