"""Values that other parts need, derived from the settings."""

from __future__ import annotations

import os

from dcupgrade.machine import gates
from dcupgrade.machine.guards import Budgets
from dcupgrade.upgrade.tools import Limits
from process_supervisor.limits import GIB, ArchiveLimits, DownloadLimits
from process_supervisor.proxies import Proxies

from .schema import Settings


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
        early_hosts=settings.download.early_hosts,
        confirmed=("durable",) if node.protocol == "v2" else ("durable", "received", "delivered"),
    )


def budgets(settings: Settings) -> Budgets:
    """The machine's budgets."""
    upgrade = settings.upgrade
    return Budgets(attempts=upgrade.attempts, failures=upgrade.failure_budget, retention_s=upgrade.retention_s)


def proxies(settings: Settings) -> Proxies:
    """The proxies of downloads and webhooks."""
    return Proxies.from_environment(os.environ, settings.download.proxy)


def download_limits(settings: Settings) -> DownloadLimits:
    """Limits of downloads."""
    download = settings.download
    return DownloadLimits(
        size_bytes_max=download.size_max_bytes,
        idle_s_max=download.stall_s,
        slow_bytes_per_s=download.slow_bytes_per_s,
        private_addresses=download.private_addresses,
        own_hosts=frozenset(map(str.lower, download.early_hosts)),
        proxies=proxies(settings),
        ipfs_gateways=download.ipfs_gateways,
        archive=ArchiveLimits(
            member_bytes_max=min(2 * GIB, download.unpacked_max_bytes), total_bytes_max=download.unpacked_max_bytes
        ),
    )


def gate_rules(settings: Settings) -> gates.GateRules:
    """The gates' rules."""
    windows = tuple(
        gates.Window(item.days, item.start, item.duration_s, item.zone) for item in settings.upgrade.windows
    )
    return gates.GateRules(settings.node.id, settings.upgrade.approval, windows, settings.upgrade.stagger_s)
