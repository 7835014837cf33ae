"""Prometheus metrics, computed from the agent's snapshot and journal on each request.

This module keeps no counters: the journal and the watcher count, and their counts are read here. Names and meanings are
in docs/metrics.md; a test compares that page with the exposed metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from dcupgrade import __version__
from dcupgrade.machine.state import Name
from dcupgrade.printable import storable


class AgentCollector(Collector):
    """Turns the facts of one moment into metrics.

    `status` is the status answer of the HTTP API; `counts` maps a transition "from>to" to how often the journal holds
    it, and "downtime_s" to the seconds of the last upgrade without a serving node.
    """

    def __init__(self, status: Mapping[str, Any], counts: Mapping[str, float]) -> None:
        self._status, self._counts = status, counts

    def collect(self) -> Iterator[Metric]:
        """All metrics, named dcupgrade_*."""
        status = self._status
        yield InfoMetricFamily("dcupgrade_build", "The program that answers.", value={"version": __version__})
        yield from _machine(status)
        yield from _health(status)
        yield from _chain(status)
        yield from _upgrades(self._counts)
        if fleet := status.get("fleet"):
            yield from _fleet(fleet)
        progress = status.get("progress", {}).get("download", {})
        yield _gauge("download_bytes", "Bytes of the download under way.", progress.get("done_bytes", 0))


def _machine(status: Mapping[str, Any]) -> Iterator[Metric]:
    state = status["state"]
    family = GaugeMetricFamily("dcupgrade_state", "1 for the state the upgrade machine is in.", labels=["state"])
    for name in Name:
        family.add_metric([name.value], float(state["name"] == name.value))
    yield family
    held = state["name"], status["now_unix_s"] - status["since_unix_s"]
    yield _gauge("state_seconds", "Time in the present state.", held[1])
    alarms = GaugeMetricFamily("dcupgrade_alarm", "1 for each condition that needs an operator.", labels=["code"])
    for code in sorted({alarm["code"] for alarm in status.get("alarms", [])}):
        alarms.add_metric([code], 1.0)
    yield alarms
    running = state["running"] or {}
    info = {"enclave_id": running.get("enclave_id", ""), "version": running.get("version", "")}
    yield InfoMetricFamily("dcupgrade_running", "The version that owns the data.", value=info)


def _health(status: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield metrics of node and vault. Unknown facts (no node installed, vault not asked yet) are not exposed."""
    node, vault = status.get("node"), status.get("vault") or {}
    if node is not None:
        yield _gauge("node_up", "1 while the node says that it serves.", node.get("status") == "serving")
    if vault.get("reachable") is not None:
        yield _gauge("vault_up", "1 while the vault answers the agent.", bool(vault["reachable"]))
    if vault.get("sealed_unix_s"):
        age = status["now_unix_s"] - vault["sealed_unix_s"]
        yield _gauge("sealed_copy_age_seconds", "Age of the newest sealed copy in the vault.", age)


def _chain(status: Mapping[str, Any]) -> Iterator[Metric]:
    chain = status.get("chain") or {}
    if chain.get("last_number") is not None:
        yield _gauge("finalized_block", "Height of the last finalized block seen.", chain["last_number"])
    change = status.get("block_number") or 0
    yield _gauge("last_change_block", "Height of the last block that changed what is watched.", change)
    age = chain.get("finalized_age_s")
    if age is not None:
        yield _gauge("finalized_block_age_seconds", "Time since the last finalized block was seen.", age)
    in_use = GaugeMetricFamily("dcupgrade_endpoint_in_use", "1 for the endpoint that is leaned on.", labels=["url"])
    for endpoint in chain.get("endpoints", []):
        in_use.add_metric([endpoint["url"]], float(endpoint["url"] == chain.get("endpoint")))
    yield in_use
    refused = CounterMetricFamily("dcupgrade_releases_refused", "Releases refused, by code.", labels=["code"])
    for code, count in (chain.get("refused") or {}).items():
        refused.add_metric([code], count)
    yield refused


def _fleet(fleet: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield metrics of the fleet as of the engine's last answer; each agent of the fleet exposes the same."""
    held = sum(slot is not None for slot in fleet["slots"])
    yield _gauge("fleet_slots", "How many nodes of the fleet may upgrade at once.", len(fleet["slots"]))
    yield _gauge("fleet_slots_held", "How many nodes of the fleet hold a slot.", held)
    yield _gauge("fleet_halted", "1 while an operator's halt stops the fleet.", fleet["halt"] is not None)
    yield _gauge("fleet_waiting", "Nodes that wait for a slot, at most a hundred.", len(fleet["waiting"]))
    nodes = GaugeMetricFamily("dcupgrade_fleet_nodes", "Nodes of the fleet by version.", labels=["version"])
    for version, count in fleet["versions"].items():
        nodes.add_metric([storable(version)], count)
    yield nodes
    ended = Counter(item["outcome"] for item in fleet["outcomes"])
    outcomes = GaugeMetricFamily("dcupgrade_fleet_outcomes", "The fleet's last upgrades.", labels=["outcome"])
    for outcome in ("committed", "reverted", "abandoned"):
        outcomes.add_metric([outcome], ended[outcome])
    yield outcomes


def _upgrades(counts: Mapping[str, float]) -> Iterator[Metric]:
    outcomes = CounterMetricFamily("dcupgrade_upgrades", "Upgrades that ended, by outcome.", labels=["outcome"])
    for outcome, path in (
        ("committed", "probation>committed"),
        ("reverted", "reverting>reverted"),
        ("abandoned", ">abandoned"),
        ("halted", ">halted"),
    ):
        outcomes.add_metric([outcome], sum(n for key, n in counts.items() if key.endswith(path)))
    yield outcomes
    handovers = CounterMetricFamily("dcupgrade_handovers", "Handovers of keys, by direction and outcome.",
                                    labels=["direction", "outcome"])  # fmt: skip
    handovers.add_metric(["collect", "ok"], counts.get("collecting>sealed", 0))
    handovers.add_metric(["collect", "failed"], counts.get("collecting>abandoned", 0))
    handovers.add_metric(["deliver", "ok"], counts.get("delivering>probation", 0))
    handovers.add_metric(["deliver", "failed"], counts.get("delivering>reverting", 0))
    yield handovers
    yield _gauge(
        "last_downtime_seconds", "Time without a serving node in the last upgrade.", counts.get("downtime_s", 0)
    )


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dcupgrade_{name}", help_text, value=float(value))
