"""`dcupgrade check`: examines the host before an upgrade does. It changes nothing and touches no secret.

Every check ends in a finding: good, a warning, or a fault with a code and what to do.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import aiohttp
import click

from attestation.artefact.files import read_sigstruct
from chain_watcher.endpoints import answers
from chain_watcher.endpoints.rpc import RpcClient, RpcLimits, open_session
from chain_watcher.endpoints.tunnel import proxy_of
from dcupgrade.printable import one_line
from dcupgrade.settings import load
from dcupgrade.settings.derive import proxies
from dcupgrade.settings.folders import missing_files
from dcupgrade.settings.schema import Settings
from dcupgrade.surfaces.times import span
from keyvault.client import VaultClient
from process_supervisor import host as probe
from process_supervisor import http_probe

from .local_agent import ask_agent, running_version
from .progress import progress
from .tables import json_option

FINALITY_LAG_WARN_BLOCKS = 20
FINALITY_AGE_WARN_S = 120.0
TIMESTAMP_NOW = "0xf0c365c3cf59d671eb72da0e7a4113c49f1f0515f462cdcf84e0f1d6045dfcbb"
"""twox128("Timestamp") and twox128("Now"): the same on every Substrate chain with pallet-timestamp."""
CLOCK_SKEW_WARN_S = 30.0
CALL_S = 5.0
Grade = Literal["good", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report; ``code`` is empty where all is good."""

    check: str
    grade: Grade
    text: str
    code: str = ""

    def to_json(self) -> dict[str, str]:
        """JSON form."""
        return {"check": self.check, "grade": self.grade, "text": self.text, "code": self.code}


def good(check: str, text: str) -> Finding:
    """A check that found nothing to complain of."""
    return Finding(check, "good", text)


def failed(check: str, error: Exception) -> Finding:
    """A check that ended in an error."""
    if isinstance(error, PermissionError):
        text = f"{error}; run this as the agent's user or as root"
        return Finding(check, "fault", text, "AGENT_STATE_UNUSABLE")
    return Finding(check, "fault", str(error), getattr(error, "code", "UNEXPECTED"))


async def examine(settings: Settings) -> list[Finding]:
    """Run every check; a check that fails in an unforeseen way becomes a fault of its own."""
    async with aiohttp.ClientSession() as session:
        checks: list[tuple[str, Callable[[], Awaitable[list[Finding]]]]] = [
            ("folders", lambda: _sync(_folders, settings)),
            ("files", lambda: _sync(_files, settings)),
            ("disk", lambda: _sync(_disk, settings)),
            ("page", lambda: _sync(_page, settings)),
            ("ports", lambda: _sync(_ports, settings)),
            ("managers", lambda: _sync(_managers, settings)),
            *((f"chain {url}", partial(_endpoint, settings, url)) for url in settings.chain.endpoints),
            ("vault signature", lambda: _sync(_vault_signature, settings)),
            ("vault", lambda: _vault(settings)),
            ("node", lambda: _node(settings, session)),
        ]
        if settings.node.driver == "container":
            checks.append(("engine", lambda: _engine(settings)))
        return [finding for name, check in checks for finding in await _guarded(name, check)]


async def _guarded(name: str, check: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    try:
        return await check()
    except Exception as error:
        return [failed(name, error)]


async def _sync(check: Callable[[Settings], list[Finding]], settings: Settings) -> list[Finding]:
    return await asyncio.to_thread(check, settings)


def _files(settings: Settings) -> list[Finding]:
    missing = missing_files(settings)
    return [Finding("files", "fault", line, "SETTINGS_INVALID") for line in missing] or [good("files", "all are there")]


def _folders(settings: Settings) -> list[Finding]:
    found = []
    for name, folder in (("state folder", settings.agent.state_dir), ("sealed store", settings.store_dir)):
        if not folder.exists():
            found.append(Finding(name, "warning", f"{folder} is not there yet; it is made at the first start"))
            continue
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o077:
            text = f"{folder} is open to others (mode {mode:o}); chmod 700 it"
            found.append(Finding(name, "fault", text, "FOLDER_OPEN_TO_OTHERS"))
        elif not os.access(folder, os.W_OK):
            found.append(Finding(name, "fault", f"{folder} cannot be written", "AGENT_STATE_UNUSABLE"))
        else:
            found.append(good(name, f"{folder}, mode {mode:o}"))
    return found


def _disk(settings: Settings) -> list[Finding]:
    found = []
    for folder in (settings.agent.state_dir, settings.node.data_dir):
        free = probe.free_bytes(_existing(folder))
        enough = free >= settings.upgrade.free_space_min_bytes
        text = f"{free / 2**30:.1f} GiB free at {folder}"
        found.append(good("disk", text) if enough else Finding("disk", "fault", text, "DISK_SPACE_LOW"))
    return found


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _ports(settings: Settings) -> list[Finding]:
    found = []
    for name, port in (("node", settings.node.port), ("vault", _vault_port(settings))):
        taken = not probe.port_is_free(port)
        found.append(good("ports", f"{name}: {port} is {f'in use: see `{name}` below' if taken else 'free'}"))
    return found


def _vault_port(settings: Settings) -> int:
    return int(settings.vault.url.rsplit(":", 1)[1].rstrip("/"))


def _page(settings: Settings) -> list[Finding]:
    """Reading needs no token: whoever reaches the address sees what the page shows."""
    listen = settings.agent.http_listen
    if listen != "off" and not _is_loopback(listen.rpartition(":")[0].strip("[]")):
        text = f"agent.http_listen {listen} is not loopback: others can read the status page without a token"
        return [Finding("page", "warning", text, "HTTP_OPEN_TO_OTHERS")]
    return [good("page", "off" if listen == "off" else f"http://{listen}")]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _managers(_: Settings) -> list[Finding]:
    others = probe.other_manager_processes()
    if others:
        text = f"another manager runs on this host: {', '.join(others)}; stop it before this agent starts a node"
        return [Finding("managers", "fault", text, "OTHER_MANAGER_RUNNING")]
    return [good("managers", "no other manager of DCNodes runs here")]


async def _endpoint(settings: Settings, url: str) -> list[Finding]:
    name = f"chain {url}"
    ca_file = str(settings.chain.ca_file) if settings.chain.ca_file else None
    async with open_session(proxy_of(url, proxies(settings).proxy_for)) as session, asyncio.timeout(CALL_S):
        client = await RpcClient.connect(session, url, RpcLimits(), ca_file=ca_file)
        try:
            genesis = await client.call("chain_getBlockHash", [0])
            finalized = await client.call("chain_getFinalizedHead", [])
            header = await client.call("chain_getHeader", [finalized])
            best = await client.call("chain_getHeader", [])
            stamp = await client.call("state_getStorage", [TIMESTAMP_NOW, finalized])
            methods = await client.call("rpc_methods", [])
        finally:
            await client.close()
    if settings.chain.genesis_hash not in (None, genesis):
        text = f"genesis {genesis}, expected {settings.chain.genesis_hash}"
        return [Finding(name, "fault", text, "ENDPOINT_WRONG_GENESIS")]
    number = answers.head_number(url, header)
    lag = answers.head_number(url, best) - number
    found = [good(name, f"block {number} is final, the best block is {lag} ahead")]
    if lag > FINALITY_LAG_WARN_BLOCKS:
        found = [Finding(name, "warning", f"finality at {number} is {lag} blocks behind", "FINALITY_LAGS")]
    found += _clock(name, stamp)
    lacking = {"state_getReadProof", "grandpa_proveFinality"} - answers.method_names(url, methods)
    if lacking and settings.chain.finality == "proven":
        text = f"it does not offer {', '.join(sorted(lacking))}, which mode `proven` needs"
        found.append(Finding(name, "fault", text, "ENDPOINT_WITHOUT_PROOFS"))
    return found


def _clock(name: str, stamp: object) -> list[Finding]:
    """Age of the last finalized block by its own timestamp (u64 milliseconds, little-endian) against this clock."""
    if not isinstance(stamp, str) or len(stamp) != 18:
        return []
    age_s = time.time() - int.from_bytes(answers.hex_bytes(name, stamp, 8, "the timestamp"), "little") / 1000
    if age_s < -CLOCK_SKEW_WARN_S:
        text = f"the chain's time is {span(-age_s)} ahead of this host's clock"
        return [Finding(name, "warning", text, "CLOCK_SKEWED")]
    if age_s > FINALITY_AGE_WARN_S:
        text = f"the last finalized block is {span(age_s)} old by this host's clock, or this clock is ahead"
        return [Finding(name, "warning", text, "FINALITY_LAGS")]
    return [good(name, f"the last finalized block is {max(0.0, age_s):.0f} s old")]


def _vault_signature(settings: Settings) -> list[Finding]:
    """Compare what the vault is signed with and what its seal key depends on. Empty where the agent starts no image."""
    if settings.vault.sigstruct is None:
        return []
    read_sigstruct(settings.vault.sigstruct).need_pinned_attributes()
    return [good("vault signature", "what its seal key depends on is pinned")]


async def _vault(settings: Settings) -> list[Finding]:
    if not settings.token_file.exists():
        if settings.vault.start:
            return [Finding("vault", "warning", "it was never started: there is no token yet")]
        text = f"there is no {settings.token_file}: put the token of the vault's service there (vault.token_file)"
        return [Finding("vault", "fault", text, "AGENT_STATE_UNUSABLE")]
    if settings.vault.start and probe.port_is_free(_vault_port(settings)) and ask_agent(settings, "/healthz") is None:
        return [Finding("vault", "warning", "it does not run; neither does the agent, which starts it")]
    async with VaultClient(settings.vault.url, settings.token_file.read_text().strip()) as client:
        status: dict[str, Any] = await client.status()
        tested = await client.self_test()
    found = [good("vault", f"{status['enclave_id']}, TEE {status['tee']}, attested itself")]
    if status["condition"] is not None:
        condition = status["condition"]
        found.append(Finding("vault", "fault", f"{condition['what']}: {condition['why']}", condition["code"]))
    if status["tee"] == "simulated":
        found.append(Finding("vault", "warning", "its TEE is SIMULATED: it protects nothing", "TEE_SIMULATED"))
    for name in status["unsafe"]:
        found.append(Finding("vault", "warning", f"it was measured with {name} = true", "VAULT_MEASURED_UNSAFE"))
    for key_set_id, code in tested["failed"].items():
        found.append(Finding("vault", "fault", f"sealed key set {key_set_id} does not open any more", code))
    count = tested["opened"]
    found.append(good("vault", f"{count} sealed key set{'s' * (count != 1)} opened"))
    return found


async def _node(settings: Settings, session: aiohttp.ClientSession) -> list[Finding]:
    answer = await http_probe.probe(f"http://127.0.0.1:{settings.node.port}/version", CALL_S, session)
    if answer.status is None:
        wanted = await asyncio.to_thread(running_version, settings)
        if wanted:
            text = f"{wanted} should run, and nobody answers on port {settings.node.port} ({answer.error})"
            return [Finding("node", "fault", text, "NODE_NOT_READY")]
        return [Finding("node", "warning", f"none is installed; nobody answers on port {settings.node.port}")]
    return [good("node", answer.body.decode("utf-8", "replace")[:200])]


async def _engine(settings: Settings) -> list[Finding]:
    """The engine, and what it and the host lack for the node's container; without a template of a node, no volumes."""
    from dcupgrade.adapters.node_containers import NodeContainers, owner
    from process_supervisor.container_driver import ContainerDriver
    from process_supervisor.container_images import ImageStore
    from process_supervisor.engine_client import engine, engine_errors

    async with engine(settings.container.engine) as docker:
        with engine_errors("version of the engine"):
            version = await docker.version()
        driver = ContainerDriver(docker, owner=owner(settings), notes=settings.agent.state_dir / "run")
        containers = NodeContainers(settings, driver, ImageStore(docker))
        lacking = await containers.host_findings(first_install=not containers.template_path.exists())
    faults = [Finding("engine", "fault", item.detail, item.code) for item in lacking]
    return [good("engine", f"container engine {version.get('Version')}"), *faults]


@click.command()
@json_option
@click.pass_obj
def check(config_path: Path, as_json: bool) -> None:
    """Examine host, chain endpoints, vault and node. Changes nothing; exit code 1 where there is a fault."""
    loaded = load.load(config_path)
    with progress("examining host, chain, vault and node"):
        findings = asyncio.run(examine(loaded))
    if as_json:
        click.echo(json.dumps([finding.to_json() for finding in findings], indent=2))
    else:
        print_findings(findings)
    sys.exit(any(finding.grade == "fault" for finding in findings))


def print_findings(findings: Sequence[Finding]) -> None:
    """A line for each finding."""
    for finding in findings:
        mark = {"good": "ok  ", "warning": "warn", "fault": "FAIL"}[finding.grade]
        code = f"  [{finding.code}]" if finding.code else ""
        click.echo(one_line(f"{mark}  {finding.check}: {finding.text}{code}"))
