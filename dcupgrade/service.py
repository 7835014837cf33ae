"""`dcupgrade watch`: puts the parts together, keeps the vault running, and takes signals.

The agent may die or be restarted at any time: nodes and the vault are processes of their own and are found again.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import sdnotify
from aiohttp import web as aiohttp_web

from attestation.network import NetworkKeys
from chain_watcher.endpoints.pool import PoolLimits
from chain_watcher.endpoints.rpc import RpcLimits
from chain_watcher.proof.release import BlockRef
from chain_watcher.watch.config import WatcherConfig
from chain_watcher.watch.watcher import Watcher
from dcupgrade.adapters.early_fetch import Prefetcher
from dcupgrade.adapters.journal import Journal
from dcupgrade.adapters.node import KEPT_ENVIRONMENT, Nodes
from dcupgrade.adapters.node_containers import open_node_driver
from dcupgrade.adapters.vault import Chain, SystemClock, Vault, release_of
from dcupgrade.machine.actions import Budgets
from dcupgrade.machine.plan import plan
from dcupgrade.settings.schema import Settings
from dcupgrade.surfaces.chain_log import news
from dcupgrade.surfaces.http_api import Site, make_app
from dcupgrade.surfaces.webhooks import run_all, webhooks
from dcupgrade.upgrade.orchestrator import Orchestrator
from dcupgrade.upgrade.performer import Limits
from dcupgrade.upgrade.ports import JournalPort
from keyvault.client import VaultClient
from process_supervisor.driver import LaunchSpec, NodeDriver
from process_supervisor.process_driver import ProcessDriver

from .errors import DcupgradeError, failure_of
from .machine import gates
from .surfaces import logs
from .surfaces import systemd as notify

if TYPE_CHECKING:
    from process_supervisor.container_images import ImageStore


log = logging.getLogger("dcupgrade")

VAULT_NAME = "vault"
VAULT_LOOK_S = 15.0
CHAIN_LOOK_S = 1.0
RPC_TIMEOUT_S = 4.0
PROGRESS_EVERY_BLOCKS = 10
VAULT_READY_S = 30.0
VAULT_STOP_GRACE_S = 5.0
VAULT_STEADY_S = 10.0
VAULT_PAUSE_S_MAX = 2.0
"""A vault that is down keeps a new node waiting for its keys: the pause before its restart stays short."""
WrapJournal = Callable[[Journal], JournalPort]


def run(settings: Settings, *, first_install: bool = False) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit code. Raises DcupgradeError when it cannot begin."""
    logs.configure(settings.agent.log_format, settings.agent.log_level)
    try:
        asyncio.run(serve(settings, first_install=first_install))
    except KeyboardInterrupt:
        return 130
    return 0


async def serve(settings: Settings, *, first_install: bool = False, wrap_journal: WrapJournal | None = None) -> None:
    """Run the agent until a signal. `wrap_journal` lets tests stand between the orchestrator and its journal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        lock_folders(settings, stack)
        journal = Journal(settings.agent.state_dir / "journal.sqlite3")
        stack.callback(journal.close)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        driver = ProcessDriver(settings.agent.state_dir / "run")
        stack.push_async_callback(driver.close)
        nodes_by = await stack.enter_async_context(open_node_driver(settings, driver))
        parts = await _assemble(settings, first_install, journal, wrap_journal, session, nodes_by, stack)
        await stack.enter_async_context(_face(settings, journal, parts))
        wanted = parts.tasks(settings, driver, nodes_by[0])
        tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in wanted]
        if settings.webhooks:
            hooks = webhooks(settings.webhooks, journal, session, SystemClock(), settings.node.id)
            tasks.append(asyncio.create_task(run_all(hooks), name="webhooks"))
        notifier = sdnotify.SystemdNotifier()
        notifier.notify("READY=1")
        telling = notify.keep_telling(notifier, lambda: parts.orchestrator.state, notify.period_s(os.environ))
        tasks.append(asyncio.create_task(telling, name="systemd"))
        waiter = asyncio.create_task(stop.wait(), name="signal")
        try:
            done, _ = await asyncio.wait({waiter, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiter}:
                task.result()
                raise DcupgradeError(
                    code="UNEXPECTED", what=f"task {task.get_name()}", why="it ended by itself", kind="invariant"
                )
        finally:
            notifier.notify("STOPPING=1")
            for task in (waiter, *tasks):
                task.cancel()
            await asyncio.gather(waiter, *tasks, return_exceptions=True)
    log.info("the agent has stopped; nodes and vault go on", extra={"event": "stop"})


class _Parts:
    """What `serve` keeps running."""

    def __init__(self, orchestrator: Orchestrator, watcher: Watcher, vault: Vault, rules: gates.GateRules) -> None:
        self.orchestrator, self.watcher, self.vault, self.rules = orchestrator, watcher, vault, rules

    def tasks(self, settings: Settings, driver: ProcessDriver, of_nodes: NodeDriver) -> list[tuple[str, Any]]:
        """Names and coroutines of the tasks that never end by themselves."""
        out = [("orchestrator", self.orchestrator.run()), ("watcher", self.watcher.run())]
        out.append(("tend", _tend({driver, of_nodes})))
        out.append(("vault facts", _look_at_vault(self.vault)))
        out.append(("chain news", _tell_of_chain(self.watcher)))
        if settings.vault.start:
            out.append(("vault", _keep_vault(settings, driver)))
        return out


async def _assemble(
    settings: Settings,
    first_install: bool,
    journal: Journal,
    wrap_journal: WrapJournal | None,
    session: aiohttp.ClientSession,
    nodes_by: tuple[NodeDriver, ImageStore | None],
    stack: AsyncExitStack,
) -> _Parts:
    client = VaultClient(settings.vault.url, _token(settings.token_file))
    stack.push_async_callback(client.close)
    keys = NetworkKeys.parse(settings.chain.network_keys, settings.chain.threshold)
    watcher = Watcher(
        watcher_config(settings, journal.chain_progress()),
        keys.verify,
        on_progress=_remember_progress(settings, journal),
        on_speculation=lambda program: prefetcher(release_of(program)),
    )
    chain = Chain(watcher)
    vault = Vault(
        client,
        node_url=f"http://127.0.0.1:{settings.node.port}",
        protocol=settings.node.protocol,
        allow_simulated=settings.vault.unsafe_simulated_tee,
    )

    async def sealed_copies() -> Any:
        return (await vault.status()).get("key_sets")

    nodes = Nodes(
        settings,
        nodes_by[0],
        session,
        first_install_allowed=first_install,
        sealed_copies=sealed_copies,
        images=nodes_by[1],
    )
    clock = SystemClock()

    def wanted(enclave_id: str) -> bool:
        state = orchestrator.state
        known = (state.running, state.target, state.previous, state.chain.program if state.chain else None)
        return any(release is not None and release.enclave_id == enclave_id for release in known)

    prefetcher = Prefetcher(nodes, wanted, clock.sleep)
    stack.push_async_callback(prefetcher.close)
    nodes.give_way = prefetcher.give_way
    rules = gate_rules(settings)
    orchestrator = Orchestrator(
        journal=wrap_journal(journal) if wrap_journal else journal,
        chain=chain,
        vault=vault,
        nodes=nodes,
        clock=clock,
        limits=limits(settings),
        budgets=budgets(settings),
        rules=rules,
        commands_poll_s=0.25,
    )
    return _Parts(orchestrator, watcher, vault, rules)


# --- settings to values ----------------------------------------------------------------------------------------------


def limits(settings: Settings) -> Limits:
    """The performers' times and counts."""
    upgrade, node = settings.upgrade, settings.node
    return Limits(
        attempts=upgrade.attempts,
        backoff_s=upgrade.backoff_s,
        backoff_max_s=upgrade.backoff_max_s,
        ready_deadline_s=node.ready_deadline_s,
        delivery_deadline_s=upgrade.delivery_deadline_s,
        probation_s=node.probation_s,
        probe_interval_s=node.probe_interval_s,
        remove_previous=upgrade.remove_previous,
        confirmed=("durable",) if node.protocol == "v2" else ("durable", "received", "delivered"),
    )


def budgets(settings: Settings) -> Budgets:
    """The machine's budgets."""
    upgrade = settings.upgrade
    return Budgets(attempts=upgrade.attempts, failures=upgrade.failure_budget, retention_s=upgrade.retention_s)


def gate_rules(settings: Settings) -> gates.GateRules:
    """The gates' rules."""
    windows = tuple(
        gates.Window(item.days, item.start, item.duration_s, item.zone) for item in settings.upgrade.windows
    )
    return gates.GateRules(settings.node.id, settings.upgrade.approval, windows, settings.upgrade.stagger_s)


def watcher_config(settings: Settings, progress: Mapping[str, Any] | None = None) -> WatcherConfig:
    """The watcher's configuration; `progress` is what it had seen when the agent last ran."""
    chain = settings.chain
    checkpoint, since, chain_state = None, None, None
    if chain.checkpoint_file is not None:
        checkpoint = _read_checkpoint(chain.checkpoint_file)
    if progress and progress.get("genesis") == chain.genesis_hash:
        with suppress(KeyError, TypeError, ValueError):
            since = BlockRef(int(progress["number"]), str(progress["hash"]))
        chain_state = progress.get("chain_state")
    return WatcherConfig(
        endpoints=chain.endpoints,
        finality=chain.finality,
        genesis_hash=chain.genesis_hash,
        quorum=chain.quorum,
        checkpoint=checkpoint,
        chain_state=chain_state,
        unsafe_unproven_reads=chain.unsafe_unproven_reads,
        layout_hashes=chain.layout_hashes,
        ca_file=str(chain.ca_file) if chain.ca_file else None,
        since=since,
        pool=PoolLimits(block_silence_s=chain.block_watchdog_s),
        rpc=RpcLimits(heartbeat_s=chain.heartbeat_s, request_timeout_s=RPC_TIMEOUT_S),
    )


def _read_checkpoint(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DcupgradeError(
            code="CHECKPOINT_UNREADABLE",
            what=f"chain.checkpoint_file {path}",
            why=str(error),
            action="Make one with `dcupgrade chain checkpoint`, compare it, and name it in the settings.",
        ) from error


def _remember_progress(settings: Settings, journal: Journal) -> Callable[[Mapping[str, Any]], None]:
    """Store the watcher's progress, seldom while nothing but the height moves."""
    last: dict[str, Any] = {}

    def remember(facts: Mapping[str, Any]) -> None:
        moved = facts["number"] - last.get("number", -PROGRESS_EVERY_BLOCKS)
        if moved >= PROGRESS_EVERY_BLOCKS or facts.get("chain_state") != last.get("chain_state"):
            last.update(facts)
            journal.set_chain_progress({**facts, "genesis": settings.chain.genesis_hash})

    return remember


# --- folders, tokens, locks ------------------------------------------------------------------------------------------


def lock_folders(settings: Settings, stack: AsyncExitStack) -> None:
    """One agent per state folder, and one per data folder. Raises AGENT_ALREADY_RUNNING, AGENT_STATE_UNUSABLE."""
    try:
        for folder in (settings.agent.state_dir, settings.node.data_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(folder / ".agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in ("logs", "run", "slots"):
            (settings.agent.state_dir / name).mkdir(mode=0o700, exist_ok=True)
        settings.store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except BlockingIOError as error:
        raise DcupgradeError(
            code="AGENT_ALREADY_RUNNING",
            what=f"folder {folder}",
            why="another agent holds its lock",
            action="Let one agent work on a node; `dcupgrade status` shows what it does.",
        ) from error
    except OSError as error:
        raise DcupgradeError(
            code="AGENT_STATE_UNUSABLE",
            what=f"folder {settings.agent.state_dir}",
            why=str(error),
            action="Create it for the agent's user, or name another one in agent.state_dir.",
        ) from error


def _token(path: Path) -> str:
    """The token in a file; drawn and written with mode 0600 when there is none. Raises AGENT_STATE_UNUSABLE."""
    try:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            token = path.read_text(encoding="ascii").strip()
            if len(token) < 16:
                raise ValueError("it is too short to be a token") from None
            return token
    except (OSError, ValueError) as error:
        raise DcupgradeError(
            code="AGENT_STATE_UNUSABLE",
            what=f"token file {path}",
            why=str(error),
            action="It must be one line of text that the agent's user can read; where there is no file, one is drawn.",
        ) from error
    with os.fdopen(fd, "w") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token


# --- the vault -------------------------------------------------------------------------------------------------------


def vault_spec(settings: Settings) -> LaunchSpec:
    """How the vault is started: the settings' command, else `python -m keyvault serve` with the settings' files."""
    vault = settings.vault
    listen = vault.url.removeprefix("http://").rstrip("/")
    argv = vault.command or (
        *(sys.executable, "-m", "keyvault", "serve", "--listen", listen, "--store", str(settings.store_dir.resolve())),
        *("--token-file", str(settings.token_file.resolve()), "--auth-file", _path(vault.auth_file)),
        *("--cpu", str(settings.cpu_dir.resolve()), "--image", _path(vault.image)),
        *("--sigstruct", _path(vault.sigstruct)),
    )
    return LaunchSpec(
        name=VAULT_NAME,
        argv=tuple(argv),
        env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
        cwd=settings.agent.state_dir,
        log_path=settings.agent.state_dir / "logs" / "vault.log",
    )


def _path(path: Path | None) -> str:
    return "" if path is None else str(path.resolve())


async def _look_at_vault(vault: Vault) -> None:
    """Ask the vault now and then what it is and holds, for status page and metrics."""
    told = ""
    while True:
        problem = ""
        try:
            await vault.status()
        except Exception as error:
            problem = failure_of(error).detail
            if problem != told and vault.last:
                log.warning("the vault: %s", problem)
        told = problem
        await asyncio.sleep(VAULT_LOOK_S if vault.last else 1.0)


async def _tell_of_chain(watcher: Watcher) -> None:
    """Log what changes about the chain's endpoints, for whoever reads the log instead of the status."""
    before = None
    while True:
        try:
            now = watcher.health()
            for item in news(before, now):
                extra = {"event": "chain", **({"code": item.code} if item.code else {})}
                log.log(logging.getLevelNamesMapping()[item.level], "%s", item.text, extra=extra)
            before = now
        except Exception as error:  # a line less in the log is no reason to end
            log.warning("the chain's news cannot be told: %s", failure_of(error).detail)
        await asyncio.sleep(CHAIN_LOOK_S)


async def _keep_vault(settings: Settings, driver: ProcessDriver) -> None:
    """Keep the vault's process up; it is found again after the agent's restart."""
    tries = 0
    while True:
        try:
            record = await driver.start(vault_spec(settings))
            handle = await driver.adopt(record)
            if handle is not None:
                began = asyncio.get_running_loop().time()
                ended = await handle.wait()
                tries = 0 if asyncio.get_running_loop().time() - began > VAULT_STEADY_S else tries
                log.error("VAULT_START_FAILED: the vault ended with %s; log: %s", ended, record.log_path)
        except Exception as error:
            failure = failure_of(error)
            if failure.code == "NODE_ALREADY_RUNNING":
                await _stop_by_name(driver, VAULT_NAME)  # it was started with other settings
                continue
            log.error("VAULT_START_FAILED: %s", failure.detail)
        tries += 1
        await asyncio.sleep(min(VAULT_PAUSE_S_MAX, 0.1 * 2.0 ** min(tries, 10)))


async def _stop_by_name(driver: ProcessDriver, name: str) -> None:
    record = await driver.find(name)
    handle = await driver.adopt(record) if record is not None else None
    if handle is not None:
        await driver.stop(handle, VAULT_STOP_GRACE_S)


async def _tend(drivers: Collection[NodeDriver]) -> None:
    while True:
        await asyncio.sleep(30)
        try:
            for driver in drivers:
                await driver.tend()
        except OSError as error:
            log.warning("logs cannot be rotated: %s", error)


# --- faces -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _face(settings: Settings, journal: Journal, parts: _Parts) -> AsyncIterator[None]:
    if settings.agent.http_listen == "off":
        yield
        return
    orchestrator = parts.orchestrator

    def status() -> dict[str, Any]:
        vault = parts.vault.facts()
        facts = {"node_id": settings.node.id, "tee": vault["tee"], "vault": vault, "chain": parts.watcher.health()}
        return {**orchestrator.snapshot(), **facts}

    def plan_now() -> dict[str, Any]:
        state = orchestrator.state
        now = SystemClock().now()
        host = orchestrator.snapshot()["progress"].get("gates", {}).get("shut", ())
        return plan(state, parts.rules, now, state.target_since_unix_s or now, host)

    site = Site(
        status=status,
        plan=plan_now,
        events=orchestrator.subscribe,
        history=lambda limit, every: journal.history(limit, all_events=every),
        counts=journal.counts,
        enqueue=journal.enqueue,
        token=_token(settings.agent.state_dir / "operator.token"),
        allowed_hosts=frozenset(settings.agent.allowed_hosts),
    )
    host, _, port = settings.agent.http_listen.rpartition(":")
    runner = aiohttp_web.AppRunner(make_app(site), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await aiohttp_web.TCPSite(runner, host.strip("[]"), int(port)).start()
    except OSError as error:
        await runner.cleanup()
        raise DcupgradeError(
            code="AGENT_STATE_UNUSABLE",
            what=f"agent.http_listen {settings.agent.http_listen}",
            why=str(error),
            action="Choose another port, or `off`.",
        ) from error
    try:
        yield
    finally:
        await runner.cleanup()
