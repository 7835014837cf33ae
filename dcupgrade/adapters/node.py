"""The nodes port over the process supervisor: slots, the host, processes or containers, the node's HTTP face."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from attestation.artefact.files import verify_artefact
from attestation.network import decode_multibase, encode_multibase
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.state import Release
from dcupgrade.settings.schema import Settings
from dcupgrade.upgrade.ports import Finding, NodeExit, NodeHealth, Progress
from process_supervisor import data_lock, http_probe
from process_supervisor import host as probe
from process_supervisor.driver import LaunchSpec, NodeDriver, NodeHandle, NodeRecord
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.fetch import Progress as DownloadProgress
from process_supervisor.limits import GIB, ArchiveLimits, DownloadLimits
from process_supervisor.procfs import boot_id, process_facts
from process_supervisor.slots import remove_slot
from process_supervisor.stage import StageRequest, stage
from process_supervisor.threads import in_thread

from .node_containers import PYTHON_IN_IMAGE, in_container, other_managers

if TYPE_CHECKING:
    from process_supervisor.container_images import ImageStore


log = logging.getLogger("dcupgrade")

HEALTH_TIMEOUT_S = 5.0
UNLOCK_TIMEOUT_S = 10.0
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "SSL_CERT_FILE")
KEY_SET_MARKER = "keyset.json"
T = TypeVar("T")
_ENCLAVE_ID = re.compile(r"[0-9a-f]{64}")


class Nodes:
    """The nodes port: slots, processes, HTTP. One version runs at a time; each has a driver name of its own."""

    def __init__(
        self,
        settings: Settings,
        driver: NodeDriver,
        session: aiohttp.ClientSession,
        *,
        first_install_allowed: bool,
        sealed_copies: Callable[[], Any],
        images: ImageStore | None = None,
    ) -> None:
        self._settings, self._driver, self._session = settings, driver, session
        self._first_install_allowed = first_install_allowed
        self._sealed_copies = sealed_copies
        self._images = images
        self._lock = asyncio.Lock()
        self.slots = settings.agent.state_dir / "slots"
        self.run_dir = settings.agent.state_dir / "run"
        self.url = f"http://127.0.0.1:{settings.node.port}"
        self.give_way: Callable[[str], Awaitable[None]] = _nothing
        self._good: dict[str, tuple[tuple[int, ...], ...]] = {}

    # --- files -------------------------------------------------------------------------------------------------------

    async def stage(self, release: Release, progress: Progress) -> None:
        """Download, verify and name the release; an early fetch of it gives way, and what it has is gone on with."""
        await self.give_way(release.enclave_id)
        await self.fetch(release, progress)

    async def fetch(self, release: Release, progress: Progress, *, allow_file_urls: bool = False) -> None:
        """The same, for the early fetch itself."""

        def tell(item: DownloadProgress) -> None:
            progress(
                {
                    "phase": item.stage,
                    "source": item.source,
                    "done_bytes": item.received_bytes,
                    "total_bytes": item.total_bytes,
                }
            )

        download = self._settings.download
        await stage(
            StageRequest(
                enclave_id=release.enclave_id,
                sources=tuple(url for url in (release.origin_url, release.mirror_url) if url),
                cids=release.cids,
                extra_files={"network.sig": _signature_file(release)},
            ),
            self.slots,
            verify_folder,
            DownloadLimits(
                size_bytes_max=download.size_max_bytes,
                idle_s_max=download.stall_s,
                allow_file_urls=allow_file_urls,
                ipfs_gateways=download.ipfs_gateways,
                archive=ArchiveLimits(
                    member_bytes_max=min(2 * GIB, download.unpacked_max_bytes),
                    total_bytes_max=download.unpacked_max_bytes,
                ),
            ),
            tell,
            images=self._images,
        )

    async def slot_is_good(self, enclave_id: str) -> bool:
        """Measure the slot; files that did not change since they were measured are not read again."""
        folder = self.slots / enclave_id
        try:
            facts = [(folder / name).stat() for name in ("enclave.pyz", "enclave.sig", "network.sig")]
            mark = tuple((item.st_ino, item.st_size, item.st_mtime_ns, item.st_ctime_ns) for item in facts)
            if self._good.get(enclave_id) != mark:
                if await asyncio.to_thread(verify_folder, folder) != enclave_id:
                    return False
                self._good[enclave_id] = mark
        except Exception as error:
            log.warning("slot of %s: %s", enclave_id, error)
            return False
        return True

    async def remove_slot(self, enclave_id: str) -> None:
        """Delete the slot of a version that does not run."""
        if await self.is_alive(enclave_id):
            raise DcupgradeError(
                code="NODE_STILL_RUNS", what=f"slot of {enclave_id}", why="this version runs", kind="invariant"
            )
        await self._driver.remove(node_name(enclave_id))
        await in_thread(remove_slot, self.slots, enclave_id)

    async def discover(self) -> Release | None:
        """The version whose process lives, else the one that was started last on data that has keys."""
        found: list[tuple[bool, float, str]] = []
        for slot in self.slots.iterdir() if self.slots.is_dir() else ():
            record = await self._driver.find(node_name(slot.name)) if len(slot.name) == 64 else None
            if record is not None:
                found.append((await self._living(record) is not None, record.started_unix_s, slot.name))
        if not found or not (max(found)[0] or await self.key_set_id()):
            return None
        enclave_id = max(found)[2]
        slot = self.slots / enclave_id
        if not await self.slot_is_good(enclave_id):
            return None
        version = json.loads((slot / "release.json").read_text(encoding="utf-8")).get("version", "")
        texts = (slot / "network.sig").read_text(encoding="ascii").split()
        return Release(enclave_id, version=str(version), signatures=tuple(decode_multibase(item) for item in texts))

    # --- the host ----------------------------------------------------------------------------------------------------

    async def preflight(self, target: Release, source_id: str, first_install: bool) -> list[Finding]:
        """Checks of the host before an upgrade begins."""
        settings, found = self._settings, []
        free = probe.free_bytes(settings.agent.state_dir)
        if free < settings.upgrade.free_space_min_bytes:
            found.append(Finding("GATE_PREFLIGHT", f"only {free} bytes are free in {settings.agent.state_dir}"))
        others = probe.other_manager_processes()
        if settings.node.driver == "container":
            others += await other_managers(self._driver)
        if others:
            found.append(Finding("OTHER_MANAGER_RUNNING", ", ".join(others)))
        if not await self.slot_is_good(target.enclave_id):
            found.append(Finding("GATE_PREFLIGHT", "the staged files were changed; they are fetched anew"))
            await self.stage(target, lambda _: None)
        if first_install:
            found += await self._first_install_findings()
        elif await self.is_alive(source_id):
            health = await self.health(source_id)
            # one that waits for keys goes on: collecting then finds out whether there are any
            if health.status not in ("serving", "waiting_for_keys"):
                found.append(Finding("NODE_NOT_READY", f"the running version is {health.status}"))
        return found + await self._lock_findings(source_id)

    async def _lock_findings(self, source_id: str) -> list[Finding]:
        """A stranger that holds the data would be found after the node's stop otherwise, with nothing left to serve."""
        holder = data_lock.data_lock_holder(self._settings.node.data_dir)
        if holder is None:
            return []
        handle = await self._handle(source_id) if source_id else None
        if handle is not None:
            record = handle.record
            # whose lock it is can be told of processes of ours only; what a container does looks like anybody's
            facts = process_facts(holder.pid) if holder.pid is not None and record.kind == "process" else None
            if facts is None or facts.session == record.pid:
                return []
        return [Finding("DATA_LOCKED", f"{holder} works on {self._settings.node.data_dir}")]

    async def _first_install_findings(self) -> list[Finding]:
        port = self._settings.node.port
        if not probe.port_is_free(port):
            why = f"something listens on port {port}; if it is the node, stop the agent and `dcupgrade adopt` it"
            return [Finding("FIRST_INSTALL_REFUSED", why)]
        if not self._first_install_allowed:
            return [Finding("FIRST_INSTALL_REFUSED", "nothing runs here; allow it with `watch --first-install`")]
        data_dir = self._settings.node.data_dir
        names = [] if not data_dir.exists() else sorted(n for n in os.listdir(data_dir) if not n.startswith("."))
        if names:
            return [Finding("FIRST_INSTALL_REFUSED", f"{data_dir} is not empty ({', '.join(names[:3])})")]
        if await self._sealed_copies():
            return [Finding("FIRST_INSTALL_REFUSED", "the vault holds sealed keys of an earlier node")]
        return []

    # --- processes ---------------------------------------------------------------------------------------------------

    async def start(self, release: Release, *, first_install: bool) -> None:
        """Start a version, or find it running. Raises DATA_LOCKED, PORT_TAKEN, ANOTHER_NODE_RUNS, NODE_START_FAILED."""
        async with self._lock:
            record = await self._driver.find(node_name(release.enclave_id))
            handle = await self._driver.adopt(record) if record is not None else None
            if handle is not None:
                if handle.exit_status() is None:
                    return
                # its main process is dead, but children that it left may hold data and port
                await self._driver.stop(handle, 0.0)
            for name in await self._living_names():
                raise DcupgradeError(
                    code="ANOTHER_NODE_RUNS",
                    what=f"start of {release.enclave_id}",
                    why=f"{name} still runs on the same data",
                    kind="transient",
                )
            data_dir = self._settings.node.data_dir
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            _need_unlocked(data_dir)
            probe.require_ports_free([self._settings.node.port])
            await _to_the_end(self._driver.start(self._spec(release, first_install)))

    async def is_alive(self, enclave_id: str) -> bool:
        """Whether the version's process lives."""
        return await self._handle(enclave_id) is not None

    async def wait_exit(self, enclave_id: str) -> NodeExit:
        """Return when the version's process is gone."""
        record = await self._driver.find(node_name(enclave_id))
        if record is None:
            return NodeExit("it was never started")
        if record.kind == "process" and record.boot_id != boot_id():
            return NodeExit("the machine was restarted", rebooted=True)
        handle = await self._driver.adopt(record)
        if handle is None and record.kind == "container" and record.started_unix_s < _booted_unix_s():
            return NodeExit("the machine was restarted", rebooted=True)
        if handle is None:
            return NodeExit("its process is gone")
        return NodeExit(f"it ended with {await handle.wait()}; log: {record.log_path}")

    async def stop(self, enclave_id: str) -> None:
        """Stop a version and wait until data and port are free. Raises NODE_STOP_FAILED, DATA_LOCKED, PORT_TAKEN."""
        async with self._lock:
            record = await self._driver.find(node_name(enclave_id))
            handle = await self._driver.adopt(record) if record is not None else None
            if handle is not None:
                await self._driver.stop(handle, self._settings.node.stop_grace_s)
            if await self._living_names():
                return  # data and port are in use by another version of ours, and `start` sees to that
            try:
                await data_lock.wait_data_unlocked(self._settings.node.data_dir, UNLOCK_TIMEOUT_S)
            except ProcessSupervisorError as error:
                raise _locked(error) from error
            for _ in range(100):
                if probe.port_is_free(self._settings.node.port):
                    return
                await asyncio.sleep(0.05)
            probe.require_ports_free([self._settings.node.port])

    async def _handle(self, enclave_id: str) -> NodeHandle | None:
        record = await self._driver.find(node_name(enclave_id))
        return await self._living(record) if record is not None else None

    async def _living(self, record: NodeRecord) -> NodeHandle | None:
        handle = await self._driver.adopt(record)
        return handle if handle is not None and handle.exit_status() is None else None

    async def _living_names(self) -> list[str]:
        """Driver names of the versions here that run."""
        slots = self.slots.iterdir() if self.slots.is_dir() else ()
        names = sorted(node_name(item.name) for item in slots if len(item.name) == 64)
        records = [record for name in names if (record := await self._driver.find(name)) is not None]
        return [record.name for record in records if await self._living(record) is not None]

    def _spec(self, release: Release, first_install: bool) -> LaunchSpec:
        settings = self._settings
        slot = self.slots / release.enclave_id
        # once a key set exists, the node must unseal it; it never makes another one
        fresh = first_install and not (settings.node.data_dir / KEY_SET_MARKER).exists()
        values = {
            "python": sys.executable if settings.node.driver == "process" else PYTHON_IN_IMAGE,
            "cpu_dir": str(settings.cpu_dir.resolve()),
            "slot": str(slot.resolve()),
            "data_dir": str(settings.node.data_dir.resolve()),
            "port": str(settings.node.port),
            "vault_url": settings.vault.url,
            "enclave_id": release.enclave_id,
            "network_signature_file": str(slot.resolve() / "network.sig"),
            "first_install_flag": "--first-install" if fresh else "",
        }
        argv = tuple(text for item in settings.node.command if (text := item.format_map(values)))
        spec = LaunchSpec(
            name=node_name(release.enclave_id),
            argv=argv,
            env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
            cwd=settings.node.data_dir.resolve(),
            log_path=settings.agent.state_dir / "logs" / f"{node_name(release.enclave_id)}.log",
        )
        return spec if settings.node.driver == "process" else in_container(settings, spec, slot)

    # --- the node's HTTP face ----------------------------------------------------------------------------------------

    async def health(self, enclave_id: str) -> NodeHealth:
        """GET /health; an answer that is none counts as silence. `canary_url` fills in for nodes without one."""
        if self._settings.node.protocol == "v1":
            return await self._health_v1()
        answer = await http_probe.probe(f"{self.url}/health", HEALTH_TIMEOUT_S, self._session)
        if answer.status is None:
            return NodeHealth("silent", detail=answer.error or "")
        try:
            body = json.loads(answer.body)
            canary = body.get("canary")
            health = NodeHealth(
                status=str(body["status"]),
                enclave_id=str(body.get("enclave_id") or ""),
                version=str(body.get("version") or ""),
                canary=canary if isinstance(canary, bool) else None,
                committed=bool(body.get("committed")),
                key_set_id=str(body.get("key_set_id") or ""),
                detail=str(body.get("detail") or body.get("error") or ""),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return NodeHealth("silent", detail=f"its health report cannot be read (HTTP {answer.status})")
        if health.canary is None and self._settings.node.canary_url and health.status == "serving":
            probed = await http_probe.probe(self._settings.node.canary_url, HEALTH_TIMEOUT_S, self._session)
            health = NodeHealth(health.status, health.enclave_id, health.version, probed.ok, health.committed)
        return health

    async def _health_v1(self) -> NodeHealth:
        """Nodes of handover v1 know no health: they answer `/version` once they have their keys."""
        answer = await http_probe.probe(f"{self.url}/version", HEALTH_TIMEOUT_S, self._session)
        if answer.status is None:
            return NodeHealth("silent", detail=answer.error or "")
        enclave_id, _, version = answer.body.decode("utf-8", "replace").strip().partition("@")
        if not answer.ok or not _ENCLAVE_ID.fullmatch(enclave_id):
            return NodeHealth("starting", detail=f"/version answers HTTP {answer.status}")
        canary = None
        if self._settings.node.canary_url:
            canary = (await http_probe.probe(self._settings.node.canary_url, HEALTH_TIMEOUT_S, self._session)).ok
        return NodeHealth("serving", enclave_id, version, canary)

    async def key_set_id(self) -> str:
        """The marker's key-set id in the data folder."""
        try:
            text = (self._settings.node.data_dir / KEY_SET_MARKER).read_text(encoding="utf-8")
            return str(json.loads(text)["key_set_id"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    async def commit(self, enclave_id: str) -> None:
        """POST /commit; raises COMMIT_NOT_ACKNOWLEDGED unless the node took it. Over v1 there is nothing to tell."""
        if self._settings.node.protocol == "v1":
            return
        why = ""
        try:
            timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
            async with self._session.post(
                f"{self.url}/commit", json={"enclave_id": enclave_id}, timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status == 200:
                    return
                why = f"HTTP {answer.status}: {(await answer.content.read(500)).decode('utf-8', 'replace')}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
        raise DcupgradeError(code="COMMIT_NOT_ACKNOWLEDGED", what=f"commit of {enclave_id}", why=why, kind="transient")


def _booted_unix_s() -> float:
    """When this machine was started, by the wall clock; time asleep counts."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


async def _nothing(_: str) -> None:
    """No early fetch is under way."""


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even when cancelled meanwhile.

    What was asked of a container engine cannot be taken back: whoever stops the node next must find it.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


def verify_folder(folder: Path) -> str:
    """The enclave id of an unpacked release, measured and compared with its SIGSTRUCT. Blocking."""
    return verify_artefact(folder / "enclave.pyz", folder / "enclave.sig", production=True)


def _signature_file(release: Release) -> bytes:
    return "".join(f"{encode_multibase(item)}\n" for item in release.signatures).encode()


def node_name(enclave_id: str) -> str:
    """The name by which the driver knows a version."""
    return f"node-{enclave_id[:20]}" if enclave_id else f"node-{hashlib.sha256(b'').hexdigest()[:20]}"


def _need_unlocked(data_dir: Path) -> None:
    holder = data_lock.data_lock_holder(data_dir)
    if holder is not None:
        raise DcupgradeError(
            code="DATA_LOCKED",
            what=f"data folder {data_dir}",
            why=f"{holder} works on it",
            action="Let that process end; never delete the lock file.",
            kind="transient",
        )


def _locked(error: ProcessSupervisorError) -> DcupgradeError:
    return DcupgradeError(
        code="DATA_LOCKED", what=error.what, why=error.why, action=f"{error.action}.", kind="transient"
    )
