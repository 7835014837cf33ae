"""Run nodes as processes, each in its own session. A node outlives the agent, and a later agent finds it again.

A start survives a crash of the agent at any instant. The child is first a shell that waits for a line on its standard
input. The driver writes and syncs the record (pid, start time, boot id), then sends the line. The shell then becomes
the node's program, under the same pid. If the agent dies before it sends the line, the pipe closes and the shell ends
without running anything. If it dies after that, the next agent finds the record.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .driver import RECORD_CHARS_MAX, ExitStatus, LaunchSpec, NodeHandle, NodeRecord, not_adoptable
from .errors import ProcessSupervisorError
from .log_files import LogPolicy, open_log, remove_logs, tail_log
from .process_handle import ProcessHandle, reap
from .procfs import ProcessFacts, Sessions, boot_id, living_sessions, open_pidfd, process_facts
from .slots import sync_folder
from .threads import in_thread

KILL_S_MAX = 10.0
POLL_S = 0.02
LEADER_POLL_S = 0.25
GO = "go"
# No core dumps: they would hold key material. `exec` keeps pid, session and start time.
_GATE = f'ulimit -c 0; IFS= read -r line && [ "$line" = {GO} ] && exec "$@" </dev/null; exit 125'


class ProcessDriver:
    """The `process` driver. `run_dir` has one record per node, `<name>.json`, which is synced before the node runs.

    Making one reads /proc. No method touches files on the event loop.
    """

    def __init__(
        self, run_dir: Path, log_policy: LogPolicy | None = None, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._run_dir = run_dir
        self._log_policy = log_policy or LogPolicy()
        self._wall_clock = wall_clock
        self._boot_id = boot_id()
        self._sessions: Sessions | None = None
        self._handles: dict[tuple[int, int], ProcessHandle] = {}

    async def start(self, spec: LaunchSpec) -> NodeRecord:
        """Start a node, or return its record if it already runs. Raises NODE_ALREADY_RUNNING, NODE_START_FAILED."""
        before = await self.find(spec.name)
        if before is not None:
            handle = await self.adopt(before)
            if handle is not None and handle.exit_status() is None:
                if before.command_digest == spec.digest:
                    return before
                raise ProcessSupervisorError(
                    code="NODE_ALREADY_RUNNING",
                    what=f"start of node {spec.name!r}",
                    why=f"pid {before.pid} runs under this name with another command",
                    action="Stop it first",
                    kind="invariant",
                )
            if handle is not None:
                await self.stop(handle, 0.0)
        try:
            record = await in_thread(self._spawn, spec)
            pidfd = os.pidfd_open(record.pid)
        except (OSError, ValueError) as error:
            raise _start_failed(spec, str(error)) from error
        # Only the handle reaps this child. Until it does, the kernel does not give the pid to another process.
        await self._watched(record, pidfd).find_log()
        return record

    def _watched(self, record: NodeRecord, pidfd: int) -> ProcessHandle:
        """Return the one handle of a living process; a second one would take its exit status from the first."""
        key = (record.pid, record.start_time_ticks)
        known = self._handles.get(key)
        if known is not None and known.exit_status() is None:
            os.close(pidfd)
            return known
        self._handles[key] = ProcessHandle(record, pidfd)
        return self._handles[key]

    def _spawn(self, spec: LaunchSpec) -> NodeRecord:
        """Start the process; it runs the node's program only once its record is synced. Blocking."""
        program = shutil.which(spec.argv[0], path=spec.env.get("PATH", os.defpath)) if spec.argv else None
        if program is None:
            raise _start_failed(spec, f"{spec.argv[:1]} is not an executable program")
        log = open_log(spec.log_path)
        try:
            child = subprocess.Popen(  # noqa: S603  (argv comes from the operator's settings)
                ["/bin/sh", "-c", _GATE, "sh", program, *spec.argv[1:]],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=spec.cwd,
                env=dict(spec.env),
                start_new_session=True,
            )
        finally:
            os.close(log)
        # The pidfd waits and reaps. Mark the Popen object as ended, or it would try to reap the child too.
        child.returncode = 0
        try:
            record = self._record_of(spec, child.pid)
            self._write_record(record)
        except BaseException:
            self._let_go(child.stdin)
            os.waitid(os.P_PID, child.pid, os.WEXITED)
            raise
        self._let_go(child.stdin, GO)
        return record

    @staticmethod
    def _let_go(pipe: IO[bytes] | None, line: str = "") -> None:
        if pipe is not None:
            # If the shell has already died, this is not an error: the handle reports its end.
            with contextlib.suppress(BrokenPipeError), pipe:
                pipe.write(f"{line}\n".encode() if line else b"")

    def _record_of(self, spec: LaunchSpec, pid: int) -> NodeRecord:
        facts = process_facts(pid)
        if facts is None:
            raise OSError(f"process {pid} is gone")
        return NodeRecord(
            kind="process",
            name=spec.name,
            started_unix_s=self._wall_clock(),
            command_digest=spec.digest,
            pid=pid,
            start_time_ticks=facts.start_time_ticks,
            boot_id=self._boot_id,
            log_path=str(spec.log_path),
        )

    def _record_path(self, name: str) -> Path:
        if not name or name.startswith(".") or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
            raise ValueError(f"{name!r} cannot name a node")
        return self._run_dir / f"{name}.json"

    def _write_record(self, record: NodeRecord) -> None:
        path = self._record_path(record.name)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.new")
        with aside.open("w", encoding="utf-8") as file:
            file.write(record.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(self._run_dir)

    async def find(self, name: str) -> NodeRecord | None:
        """Return the record of the node last started as `name`. Raises NODE_RECORD_INVALID, NODE_NOT_WATCHED."""
        path = self._record_path(name)
        try:
            text = await asyncio.to_thread(_read_record, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _not_watched(name, str(error)) from error
        return NodeRecord.from_json(text, str(path))

    async def adopt(self, record: NodeRecord) -> ProcessHandle | None:
        """Watch a node again if a process has the record's pid, start time and boot id; None if nothing is left of it.

        If its main process is dead but others of its session live, return a handle that has ended. Raises
        NODE_NOT_WATCHED if it cannot be determined now whether the node runs.
        """
        key = (record.pid, record.start_time_ticks)
        known = self._handles.get(key)
        if known is not None and known.exit_status() is None:
            return known
        if record.kind != "process" or record.boot_id != self._boot_id:
            return None
        try:
            return await self._adopt(record, known)
        except OSError as error:
            raise _not_watched(record.name, str(error)) from error

    async def _adopt(self, record: NodeRecord, known: ProcessHandle | None) -> ProcessHandle | None:
        pidfd = open_pidfd(record.pid)
        try:
            # Read the facts after opening the pidfd: if the pid was reused in between, the start time differs.
            facts = await in_thread(process_facts, record.pid)
            same = facts is not None and facts.start_time_ticks == record.start_time_ticks
            if pidfd is not None and same and facts is not None and facts.alive:
                handle, pidfd = self._watched(record, pidfd), None
                await handle.find_log()
                return handle
            if pidfd is not None and same:
                reap(pidfd)
        finally:
            if pidfd is not None:
                os.close(pidfd)
        if not await self._remains(record):
            return None
        return known or ProcessHandle(record, None)

    async def take_over(self, name: str, found: str, data_dir: Path) -> NodeRecord:
        """Record a running process as this node. Raises NODE_NOT_ADOPTABLE.

        The process must lead a session without a terminal, as services do. `stop` signals the whole session, so the
        session must contain only the node.
        """
        facts = await in_thread(process_facts, int(found)) if found.isdecimal() else None
        if facts is None or not facts.alive:
            raise not_adoptable(name, f"there is no process {found}", "Look with `ss -ltnp` which one the node is")
        if facts.session != facts.pid or facts.terminal:
            why = f"process {found} {'has a terminal' if facts.terminal else 'does not lead a session of its own'}"
            raise not_adoptable(name, why, "Start it as a service, or by `setsid --fork`, and take that over")
        try:
            os.kill(facts.pid, 0)
        except PermissionError as error:
            raise not_adoptable(
                name, f"process {found} belongs to another user", "Run agent and node as the same user"
            ) from error
        record = NodeRecord(
            kind="process",
            name=name,
            started_unix_s=self._wall_clock(),
            command_digest="",
            pid=facts.pid,
            start_time_ticks=facts.start_time_ticks,
            boot_id=self._boot_id,
        )
        await in_thread(self._write_record, record)
        return record

    async def _remains(self, record: NodeRecord) -> list[ProcessFacts]:
        """Return the living processes of the node's session: its leader, or the processes that a dead leader left.

        While any of them lives, the kernel does not reuse the leader's pid. If another process has that pid, the
        node's session is therefore over. The last scan of /proc is reused for sessions that were over at that time;
        there may be a record for each version that ever ran here.
        """
        leader = await in_thread(process_facts, record.pid)
        if leader is not None and leader.start_time_ticks != record.start_time_ticks:
            return []
        if self._sessions is None or not self._sessions.is_over(record.pid, record.start_time_ticks):
            self._sessions = await in_thread(living_sessions)
        members = self._sessions.members.get(record.pid, [])
        return [item for item in members if item.start_time_ticks >= record.start_time_ticks]

    async def stop(self, handle: NodeHandle, grace_s: float) -> ExitStatus:
        """Send TERM to the node's whole session, wait `grace_s` seconds, send KILL; return when all processes are gone.

        Raises NODE_STOP_FAILED if some remain after KILL (a process in an uninterruptible wait).
        """
        if not isinstance(handle, ProcessHandle):
            raise TypeError("not a handle of this driver")
        record = handle.record
        if await self._signal_until_gone(handle, signal.SIGTERM, grace_s):
            return await handle.wait()
        handle.kill_sent = True
        if await self._signal_until_gone(handle, signal.SIGKILL, KILL_S_MAX):
            return await handle.wait()
        left = [item.pid for item in await self._remains(record)]
        raise ProcessSupervisorError(
            code="NODE_STOP_FAILED",
            what=f"stop of node {record.name!r}",
            why=f"processes {left} do not end",
            action="They may hang in the kernel: look at the disk, then reboot",
            kind="invariant",
        )

    async def _signal_until_gone(self, handle: ProcessHandle, number: int, seconds: float) -> bool:
        """Signal the session's processes, including new ones, and wait up to `seconds`. Return whether all are gone."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        signalled: set[tuple[int, int]] = set()
        while True:
            remains = await self._remains(handle.record)
            if not remains and handle.exit_status() is not None:
                return True
            if loop.time() >= deadline and signalled:
                return False
            for item in remains:
                if (item.pid, item.start_time_ticks) not in signalled:
                    signalled.add((item.pid, item.start_time_ticks))
                    await self._signal(handle, item, number)
            with contextlib.suppress(TimeoutError):
                # The end of the leader wakes this wait at once. The other processes have to be polled.
                pause = LEADER_POLL_S if handle.exit_status() is None else POLL_S
                async with asyncio.timeout(min(pause, max(POLL_S, deadline - loop.time()))):
                    await (handle.wait() if handle.exit_status() is None else asyncio.sleep(POLL_S))

    async def _signal(self, handle: ProcessHandle, item: ProcessFacts, number: int) -> None:
        if item.pid == handle.record.pid:
            handle.signal_leader(number)
            # A stopped process handles TERM only after SIGCONT.
            handle.signal_leader(signal.SIGCONT)
            return
        pidfd = open_pidfd(item.pid)
        if pidfd is None:
            return
        try:
            facts = await in_thread(process_facts, item.pid)
            if facts is not None and facts.start_time_ticks == item.start_time_ticks:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        finally:
            os.close(pidfd)

    async def remove(self, name: str) -> None:
        """Remove a stopped node's record and logs. Raises NODE_ALREADY_RUNNING if any of its processes runs."""
        record = await self.find(name)
        if record is None:
            return
        if await self.adopt(record) is not None:
            raise ProcessSupervisorError(
                code="NODE_ALREADY_RUNNING",
                what=f"removal of node {name!r}",
                why=f"pid {record.pid} or its children still run",
                action="Stop it first",
                kind="invariant",
            )
        handle = self._handles.pop((record.pid, record.start_time_ticks), None)
        if handle is not None:
            handle.close()  # otherwise `tend` could restore the log
        await in_thread(self._forget, record)

    def _forget(self, record: NodeRecord) -> None:
        if record.log_path:
            remove_logs(Path(record.log_path))
        self._record_path(record.name).unlink(missing_ok=True)
        sync_folder(self._run_dir)

    async def logs(self, name: str, lines: int) -> list[str]:
        """Return the last lines of a node's output."""
        record = await self.find(name)
        if record is None or not record.log_path:
            return []  # another program started the node and chose where it logs
        return await asyncio.to_thread(tail_log, Path(record.log_path), lines)

    async def tend(self) -> None:
        """Rotate the logs of all watched nodes, and drop the handles of nodes that have ended."""
        for key, handle in list(self._handles.items()):
            if handle.exit_status() is not None and not await self._remains(handle.record):
                handle.close()
                del self._handles[key]
            else:
                await handle.tend_log(self._log_policy)

    async def close(self) -> None:
        """Stop watching every node; all continue to run. From then on the parent that inherits a child reaps it."""
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()


def _read_record(path: Path) -> str:
    """Return the text of a record; "", which is no valid record, if the path is not a regular file. Raises OSError."""
    # O_NONBLOCK: opening a FIFO must not hang.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.pread(fd, RECORD_CHARS_MAX + 1, 0).decode("utf-8", "replace")
    finally:
        os.close(fd)


def _not_watched(name: str, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="NODE_NOT_WATCHED",
        what=f"node {name!r}",
        why=f"whether it runs cannot be found out now: {why}",
        action="Look at the agent's limits of open files and memory; it is tried again",
    )


def _start_failed(spec: LaunchSpec, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="NODE_START_FAILED",
        what=f"start of node {spec.name!r}",
        why=why,
        action="Look at the node's command in the settings and at its log",
    )
