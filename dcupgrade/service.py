"""`dcupgrade watch`: puts the parts together, keeps the vault running, and takes signals.

The agent may die or be restarted at any time: nodes and the vault are processes of their own and are found again.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import sdnotify

from attestation.network import NetworkKeys
from chain_watcher.watch.watcher import Watcher
from dcupgrade.adapters.chain import Chain, remember_progress, watcher_config
from dcupgrade.adapters.clock import SystemClock
from dcupgrade.adapters.container_changes import ContainerChanges
from dcupgrade.adapters.fleet import FleetGate
from dcupgrade.adapters.fleet_open import open_engine
from dcupgrade.adapters.journal import Journal
from dcupgrade.adapters.journal_thread import JournalThread, open_journal
from dcupgrade.adapters.node_containers import NodeContainers, open_node_driver
from dcupgrade.adapters.node_http import NodeHttp
from dcupgrade.adapters.node_preflight import Preflight
from dcupgrade.adapters.node_process import NodeProcesses
from dcupgrade.adapters.node_slots import NodeSlots
from dcupgrade.adapters.state_folder import lock_folders, read_or_draw_token
from dcupgrade.adapters.vault import Vault
from dcupgrade.adapters.vault_authorities import keep_authorities_current
from dcupgrade.adapters.vault_process import keep_vault
from dcupgrade.adapters.webhook_posts import poster
from dcupgrade.commands.explain import meaning_and_remedy
from dcupgrade.machine.plan import Plan, plan, with_launch
from dcupgrade.settings.derive import budgets, gate_rules, limits, proxies
from dcupgrade.settings.schema import Settings
from dcupgrade.surfaces.chain_log import log_chain_news
from dcupgrade.surfaces.http_api import Site, make_app
from dcupgrade.surfaces.webhooks import run_all, webhooks
from dcupgrade.upgrade.feed import Feed
from dcupgrade.upgrade.orchestrator import Orchestrator
from dcupgrade.upgrade.ports import JournalPort, NoFleet, Ports
from keyvault.client import VaultClient
from keyvault.handover.guarded_server import GuardedServer
from keyvault.vault.log_writer import LogWriter
from process_supervisor.driver import NodeDriver
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.host import port_is_free, port_owner
from process_supervisor.outbound import Outbound
from process_supervisor.process_driver import ProcessDriver
from process_supervisor.threads import in_thread

from .errors import DcupgradeError
from .machine import gates
from .surfaces import logs
from .surfaces import systemd as notify

if TYPE_CHECKING:
    from process_supervisor.container_images import ImageStore

log = logging.getLogger("dcupgrade")

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
IGNORED_SIGNALS = (
    *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO),
    *(signal.SIGPWR, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGSTKFLT),
)
REALTIME_SIGNALS = range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
"""Ignored too: the default of all of these would end the agent without a line.

There is no log file to open anew: the log is standard error.
"""

HTTP_CONNECTIONS_MAX = 256
"""Well below the limit of descriptors, of which the node, the vault and downloads need some."""

THREADS = 64
"""Of the pool for blocking work. asyncio's own has 6 on two processors; each look-up of a name holds one."""

TEND_EVERY_S = 30.0
LISTEN_AGAIN_S = 5.0

WrapJournal = Callable[[JournalThread], JournalPort]


def run(settings: Settings, *, first_install: bool = False) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit code. Raises DcupgradeError when it cannot begin."""
    logs.configure(LogWriter(), settings.agent.log_format, settings.agent.log_level)
    # until the loop runs; a handler and not SIG_IGN, which the nodes would inherit
    for number in (*IGNORED_SIGNALS, *REALTIME_SIGNALS):
        signal.signal(number, lambda *_: None)
    gc.collect()
    gc.freeze()  # the program itself stays: without this every full collection stops the loop for 11 ms to look at it
    try:
        asyncio.run(serve(settings, first_install=first_install))
    except KeyboardInterrupt:
        return 130
    return 0


async def serve(settings: Settings, *, first_install: bool = False, wrap_journal: WrapJournal | None = None) -> None:
    """Run the agent until a signal. `wrap_journal` lets tests stand between the orchestrator and its journal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="worker"))
    for number in ENDING_SIGNALS:
        loop.add_signal_handler(number, _end, stop, number)
    for ignored in (*IGNORED_SIGNALS, *REALTIME_SIGNALS):
        loop.add_signal_handler(ignored, _ignore, ignored)
    async with AsyncExitStack() as stack:
        await in_thread(lock_folders, settings, stack)
        journal = await stack.enter_async_context(open_journal(settings.agent.state_dir / "journal.sqlite3"))
        # all of these read what there is once, before anybody waits for it
        await journal.run(Journal.counts)
        if damaged := await journal.run(Journal.damaged_rows):
            log.error("JOURNAL_ROW_DAMAGED: %d rows: %s", len(damaged), ", ".join(damaged[:10]))
        await in_thread(meaning_and_remedy, "UNEXPECTED")
        session = await stack.enter_async_context(aiohttp.ClientSession())
        driver = await in_thread(ProcessDriver, settings.agent.state_dir / "run")
        stack.push_async_callback(driver.close)
        nodes_by = await stack.enter_async_context(open_node_driver(settings, driver))
        parts = await _assemble(settings, first_install, journal, wrap_journal, session, nodes_by, stack)
        await stack.enter_async_context(_face(settings, journal, parts))
        wanted = parts.tasks(settings, driver, nodes_by[0])
        tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in wanted]
        if settings.webhooks:
            outbound = await stack.enter_async_context(Outbound(proxies(settings)))
            receivers = settings.webhooks
            hooks = await in_thread(webhooks, receivers, journal, poster(outbound), SystemClock(), settings.node.id)
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
    log.info("the agent has stopped; nodes and vault continue", extra={"event": "stop"})


def _end(stop: asyncio.Event, number: signal.Signals) -> None:
    log.info("%s: the agent stops", number.name, extra={"event": "stop"})
    stop.set()


def _ignore(number: int) -> None:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    log.info("%s is ignored; SIGTERM stops the agent", name)


class _Parts:
    """What `serve` keeps running."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        chain: Chain,
        vault: Vault,
        processes: NodeProcesses,
        rules: gates.GateRules,
        slots: NodeSlots,
        containers: NodeContainers | None,
        fleet: FleetGate | None,
    ) -> None:
        self.orchestrator, self.chain, self.vault, self.rules = orchestrator, chain, vault, rules
        self.processes, self.slots, self.fleet = processes, slots, fleet
        self.images = containers.images if containers is not None else None
        self.changes = ContainerChanges(containers, lambda: orchestrator.state) if containers is not None else None

    def tasks(self, settings: Settings, driver: ProcessDriver, of_nodes: NodeDriver) -> list[tuple[str, Any]]:
        """Names and coroutines of the tasks that never end by themselves."""
        out = [("orchestrator", self.orchestrator.run()), ("watcher", self.chain.watcher.run())]
        tended: set[NodeDriver | ImageStore] = {driver, of_nodes}
        if self.images is not None:
            tended.add(self.images)
        out.append(("tend", _tend(tended)))
        out.append(("vault authorities", keep_authorities_current(self.chain, self.vault)))
        out.append(("chain news", log_chain_news(self.chain.watcher.health)))
        if self.fleet is not None:
            out.append(("fleet", self.fleet.keep(lambda: self.orchestrator.state)))
        if settings.vault.start:
            out.append(("vault", keep_vault(settings, driver)))
        if self.changes is not None:
            out.append(("containers", self.changes.look()))
        return out

    async def identities(self) -> dict[str, str]:
        """How the enclave ids of the versions at hand are proven, by enclave id."""
        state = self.orchestrator.state
        known = {release.enclave_id for release in (state.running, state.target, state.previous) if release}
        return await self.slots.identities(sorted(known))


async def _assemble(
    settings: Settings,
    first_install: bool,
    journal: JournalThread,
    wrap_journal: WrapJournal | None,
    session: aiohttp.ClientSession,
    nodes_by: tuple[NodeDriver, NodeContainers | None],
    stack: AsyncExitStack,
) -> _Parts:
    client = VaultClient(settings.vault.url, await in_thread(read_or_draw_token, settings.token_file))
    stack.push_async_callback(client.close)
    keys = NetworkKeys.parse(settings.chain.network_keys, settings.chain.threshold)
    config = await in_thread(watcher_config, settings, await journal.run(Journal.chain_progress))
    chain = Chain(await in_thread(Watcher, config, keys.verify, on_progress=remember_progress(settings, journal)))
    vault = Vault(
        client,
        node_url=f"http://127.0.0.1:{settings.node.port}",
        protocol=settings.node.protocol,
        allow_simulated=settings.vault.unsafe_simulated_tee,
    )

    async def sealed_copies() -> Any:
        return (await vault.status()).get("key_sets")

    driver, containers = nodes_by
    slots = NodeSlots(settings, driver, containers)
    node_http = NodeHttp(settings, session)
    preflight = Preflight(
        settings,
        driver,
        slots,
        node_http,
        first_install_allowed=first_install,
        sealed_copies=sealed_copies,
        containers=containers,
    )
    clock = SystemClock()

    rules = gate_rules(settings)
    fleet = None
    if (engine := open_engine(settings)) is not None:
        stack.push_async_callback(engine.aclose)
        fleet = FleetGate(engine, settings.node.id, settings.fleet.reverts_max, clock)
    processes = NodeProcesses(settings, driver, containers)
    ports = Ports(
        chain=chain,
        vault=vault,
        slots=slots,
        processes=processes,
        node_http=node_http,
        host=preflight,
        clock=clock,
        fleet=fleet or NoFleet(),
    )
    orchestrator = Orchestrator(
        ports,
        wrap_journal(journal) if wrap_journal else journal,
        limits=limits(settings),
        budgets=budgets(settings),
        rules=rules,
        commands_poll_s=0.25,
    )
    return _Parts(orchestrator, chain, vault, processes, rules, slots, containers, fleet)


async def _tend(tended: Collection[NodeDriver | ImageStore]) -> None:
    while True:
        for one in tended:
            try:
                await one.tend()
            except (OSError, ProcessSupervisorError) as error:
                log.warning("logs are not rotated, or tags of a load not removed: %s; it is tried again", error)
        await asyncio.sleep(TEND_EVERY_S)


@asynccontextmanager
async def _face(settings: Settings, journal: JournalThread, parts: _Parts) -> AsyncIterator[None]:
    if settings.agent.http_listen == "off":
        yield
        return
    orchestrator = parts.orchestrator

    async def status() -> dict[str, Any]:
        facts = orchestrator.feed.snapshot(orchestrator.state)
        vault, node = {**facts["vault"], **parts.vault.facts()}, facts["node"]
        return {
            **facts,
            "node": node and {**node, "process": parts.processes.runs_as(node["enclave_id"])},
            "node_id": settings.node.id,
            "tee": vault["tee"],
            "vault": vault,
            "chain": parts.chain.watcher.health(),
            "identity": await parts.identities(),
            **({"fleet": parts.fleet.facts()} if parts.fleet is not None else {}),
        }

    async def plan_now() -> Plan:
        state = orchestrator.state
        now = SystemClock().now()
        found = plan(state, parts.rules, now, state.target_since_unix_s or now, orchestrator.feed.shut_gates)
        changes = parts.changes.of(found.target) if parts.changes is not None else []
        return with_launch(found, (await parts.slots.identities([found.target])).get(found.target, ""), changes)

    async def outcome(number: int) -> dict[str, Any] | None:
        found = await journal.run(Journal.outcome, number)
        return found.to_json() if found is not None else None

    site = Site(
        status=status,
        plan=plan_now,
        events=orchestrator.feed.subscribe,
        history=lambda limit, every: journal.run(Journal.history, limit, all_events=every),
        counts=lambda: journal.run(Journal.counts),
        enqueue=lambda kind, who, arguments: journal.run(Journal.enqueue, kind, who, arguments),
        outcome=outcome,
        explain=meaning_and_remedy,
        token=await in_thread(read_or_draw_token, settings.agent.state_dir / "operator.token"),
        allowed_hosts=frozenset(settings.agent.allowed_hosts),
    )
    host, _, port = settings.agent.http_listen.rpartition(":")
    address = (host.strip("[]"), int(port))
    async with AsyncExitStack() as opened:
        try:
            await _listen(site, address, opened)
        except DcupgradeError as error:
            if error.code != "HTTP_PORT_TAKEN":
                raise
            later = asyncio.create_task(_listen_later(site, address, opened, orchestrator.feed, error))
            opened.callback(later.cancel)
        yield


async def _listen(site: Site, address: tuple[str, int], opened: AsyncExitStack) -> None:
    """Serve the page until `opened` ends. Raises HTTP_PORT_TAKEN; AGENT_STATE_UNUSABLE if nobody could listen there."""
    server = GuardedServer(make_app(site), connections_max=HTTP_CONNECTIONS_MAX, shutdown_timeout_s=1.0)
    try:
        await server.start(*address)
    except OSError as error:
        await server.stop()
        taken = error.errno == errno.EADDRINUSE
        owner = await in_thread(port_owner, address[1]) if taken else ""
        raise DcupgradeError(
            code="HTTP_PORT_TAKEN" if taken else "AGENT_STATE_UNUSABLE",
            what=f"agent.http_listen, {address[0]} port {address[1]}",
            why=f"{owner} listens there" if owner else str(error),
            action="End that program, or choose another port." if taken else "Choose another port, or `off`.",
            kind="transient" if taken else "rejected",
        ) from error
    opened.push_async_callback(server.stop)


async def _listen_later(
    site: Site, address: tuple[str, int], opened: AsyncExitStack, feed: Feed, error: DcupgradeError
) -> None:
    """Serve the page once its port is free. Whoever took it must not keep the node without its agent."""
    host, port = address
    with feed.alarm() as alarm:
        while True:
            alarm(error.code, str(error))
            await asyncio.sleep(LISTEN_AGAIN_S)
            if await in_thread(port_is_free, port, host):
                try:
                    await _listen(site, address, opened)
                except DcupgradeError as again:
                    error = again
                else:
                    log.info("the page is served at port %d now", port)
                    return
