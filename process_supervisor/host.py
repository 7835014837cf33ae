"""What the host and a node say when asked: readiness over HTTP, ports, data lock, free space, other managers."""

import asyncio
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import aiohttp

from .errors import ProcessSupervisorError
from .limits import KIB
from .procfs import PROC

BODY_BYTES_MAX = 64 * KIB
# Executables of the field's Go manager and upgrader, whose containers carry these words in name or image.
OTHER_MANAGERS = ("dcmanager", "dcupgrade")


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """An answer to a probe: `ok` means status 200; `error` says why there was no answer at all."""

    ok: bool
    status: int | None
    body: bytes
    error: str | None


async def probe(url: str, timeout_s: float, session: aiohttp.ClientSession | None = None) -> ProbeResult:
    """GET `url` once, within `timeout_s` seconds over all; never raises for what the other side does."""
    try:
        async with asyncio.timeout(timeout_s):
            if session is not None:
                return await _probe(session, url)
            async with aiohttp.ClientSession() as own:
                return await _probe(own, url)
    except TimeoutError:
        return ProbeResult(False, None, b"", f"no answer within {timeout_s:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return ProbeResult(False, None, b"", str(error) or type(error).__name__)


async def _probe(session: aiohttp.ClientSession, url: str) -> ProbeResult:
    async with session.get(url, allow_redirects=False) as response:
        body = bytearray()
        async for data in response.content.iter_chunked(16 * KIB):
            body += data
            if len(body) > BODY_BYTES_MAX:
                return ProbeResult(False, response.status, b"", f"the answer exceeds {BODY_BYTES_MAX} bytes")
        return ProbeResult(response.status == 200, response.status, bytes(body), None)


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nothing listens on a TCP port (connections in TIME_WAIT do not count)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def require_ports_free(ports: Iterable[int], host: str = "127.0.0.1") -> None:
    """Raise PORT_TAKEN, naming all that are taken."""
    taken = [port for port in ports if not port_is_free(port, host)]
    if taken:
        raise ProcessSupervisorError(
            code="PORT_TAKEN",
            what=f"port {', '.join(map(str, taken))} of {host}",
            why="something listens there",
            action="Stop that program or change the port in the settings (`ss -ltnp` shows who it is)",
        )


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged user may still write where `folder` lies (its nearest existing parent)."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds a data lock: pid and command where the kernel tells, and the note that it left in the file."""

    pid: int | None
    command: str
    note: str

    def __str__(self) -> str:
        return f"pid {self.pid or '?'} ({self.command or 'unknown'}{'; ' + self.note if self.note else ''})"


class DataLock:
    """An exclusive flock on `<data folder>/.lock`: the guard of "never two nodes at work on the same data".

    The kernel lets it go when its holder dies, however it dies; so there are no stale locks to break.
    """

    def __init__(self, data_dir: Path, note: str) -> None:
        self.path = data_dir / ".lock"
        self._note = note
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock at once or raise DATA_LOCK_HELD, which says who has it."""
        if self._fd is not None:
            return
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps({"pid": os.getpid(), "note": self._note}).encode(), 0)
        except BlockingIOError as error:
            os.close(fd)
            raise ProcessSupervisorError(
                code="DATA_LOCK_HELD",
                what=f"data folder {self.path.parent}",
                why=f"{data_lock_holder(self.path.parent) or 'another process'} works on it",
                action="Let that process end; never delete the lock file",
            ) from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Let the lock go; safe to do twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> "DataLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def data_lock_holder(data_dir: Path) -> LockHolder | None:
    """Who holds the lock on a data folder, or None if it is free.

    The kernel's list names the holder, but hides those in other pid namespaces (containers), and some file systems show
    other device numbers there. So a shared lock is tried after it and let go at once; ask while no node is starting.
    """
    path = data_dir / ".lock"
    try:
        status = path.stat()
        note = path.read_bytes()[:KIB].decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in (PROC / "locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        # "1: FLOCK  ADVISORY  WRITE 1234 fe:00:12345 0 EOF"; waiting ones have "->" as their second field.
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted:
            pid = int(fields[4])
            return LockHolder(pid if pid > 0 else None, _command(pid), _note(note))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return LockHolder(None, "", _note(note))
    finally:
        os.close(fd)
    return None


def _note(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return ""
    return str(value.get("note", ""))[:200] if isinstance(value, dict) else ""


def _command(pid: int) -> str:
    try:
        data = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return data.replace(b"\0", b" ").decode("utf-8", "replace").strip()[:200]


async def wait_data_unlocked(
    data_dir: Path,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Return once nobody holds the data folder's lock; raises DATA_LOCK_HELD after `timeout_s` seconds."""
    deadline = clock() + timeout_s
    while (holder := data_lock_holder(data_dir)) is not None:
        if clock() >= deadline:
            raise ProcessSupervisorError(
                code="DATA_LOCK_HELD",
                what=f"data folder {data_dir}",
                why=f"{holder} still works on it after {timeout_s:g} s",
                action="Let that process end; never delete the lock file",
            )
        await sleep(0.05)


def other_manager_processes(names: Iterable[str] = OTHER_MANAGERS) -> list[str]:
    """Processes of other managers, as `name (pid n)`: those whose executable file has one of `names`.

    The executable counts, not the command line: our own `dcupgrade` command is a script that Python runs.
    """
    wanted = frozenset(names)
    found = []
    for entry in os.listdir(PROC):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                name = os.path.basename(os.readlink(PROC / entry / "exe")).removesuffix(" (deleted)")
            except OSError:
                continue  # gone meanwhile, a kernel thread, or another user's
            if name in wanted:
                found.append(f"{name} (pid {entry})")
    return sorted(found)


def other_manager_containers(
    containers: Iterable[Mapping[str, object]], ours: str = "dcupgrade.node", names: Iterable[str] = OTHER_MANAGERS
) -> list[str]:
    """Running containers of other managers in the engine's `/containers/json` answer; ours carry the label `ours`."""
    found = []
    for item in containers:
        labels = item.get("Labels")
        if isinstance(labels, Mapping) and ours in labels:
            continue
        titles = item.get("Names")
        title = str(titles[0]).lstrip("/") if isinstance(titles, list) and titles else str(item.get("Id", ""))[:12]
        image = str(item.get("Image", "")).rsplit("/", 1)[-1]
        if any(name == title or image.split(":")[0].split("@")[0] == name for name in names):
            found.append(f"container {title} of {item.get('Image', '?')}")
    return sorted(found)


def require_no_other_manager(found: Iterable[str]) -> None:
    """Raise OTHER_MANAGER_RUNNING if anything was found: two managers would stop and start the same node."""
    listed = list(found)
    if listed:
        raise ProcessSupervisorError(
            code="OTHER_MANAGER_RUNNING",
            what="this machine",
            why=f"{', '.join(listed)} runs here too",
            action="Stop and disable it, then let this agent go on",
        )
