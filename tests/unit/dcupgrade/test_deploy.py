"""Files for services, clusters and dashboards: valid, and in step with what the program really exposes."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from dcupgrade.metrics import AgentCollector
from dcupgrade.states import Name, State
from tests.conftest import ROOT

DEPLOY = ROOT / "dcupgrade" / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


STATUS: dict[str, Any] = {
    "state": {**State(Name.IDLE).to_json(), "running": {"enclave_id": "a" * 64, "version": "1"}},
    "since_unix_s": 1.0,
    "now_unix_s": 2.0,
    "block_number": 1,
    "alarms": [{"code": "RUNNING_REVOKED"}],
    "progress": {},
    "vault": {"sealed_unix_s": 1.0},
    "chain": {"finalized_age_s": 1.0, "endpoint": "a", "endpoints": [{"url": "a"}], "refused": {"X": 1}},
}


def exposed() -> dict[str, set[str]]:
    """Every metric that can be scraped, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in AgentCollector(lambda: STATUS, dict).collect():
        for sample in metric.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def names_in(text: str) -> set[str]:
    return set(re.findall(r"dcupgrade_[a-z_]+", text))


def test_dashboard_and_alerts_use_only_metrics_that_exist() -> None:
    dashboard = (DEPLOY / "grafana" / "dashboard.json").read_text()
    queries = [target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]]
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    queries += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    assert names_in(" ".join(queries)) <= set(exposed())


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    rows = re.findall(r"^\| `(dcupgrade_\w+)` \| \w+ \| (.*?) \|", (ROOT / "docs" / "metrics.md").read_text(), re.M)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert documented == exposed()


def test_alert_labels_exist() -> None:
    metrics = exposed()
    text = (DEPLOY / "prometheus" / "alerts.yaml").read_text()
    for name, labels in re.findall(r"(dcupgrade_\w+)\{([^}]*)\}", text):
        assert set(re.findall(r"(\w+)[=!]", labels)) <= metrics[name]


PROMTOOL = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on this machine (prometheus)")


def promtool(*arguments: str, stdin: bytes = b"") -> None:
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


@PROMTOOL
def test_each_alert_fires_when_it_should() -> None:
    tests = Path(__file__).with_name("alerts_test.yaml")
    named = {
        rule["alertname"] for case in yaml.safe_load(tests.read_text())["tests"] for rule in case["alert_rule_test"]
    }
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert named == {rule["alert"] for rule in rules}
    promtool("test", "rules", str(tests))


@PROMTOOL
def test_prometheus_finds_nothing_wrong_with_the_metrics() -> None:
    registry = CollectorRegistry()
    registry.register(AgentCollector(lambda: STATUS, dict))
    promtool("check", "metrics", stdin=generate_latest(registry))


def test_kubernetes_manifests_follow_the_published_schemas() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "daemonset.yaml").read_text()))
    assert {document["kind"] for document in documents} == {"Namespace", "ServiceAccount", "DaemonSet"}
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_sealed_keys_are_never_kept_in_a_volume_that_dies_with_the_pod() -> None:
    *_, daemonset = yaml.safe_load_all((DEPLOY / "kubernetes" / "daemonset.yaml").read_text())
    volumes = {volume["name"]: volume for volume in daemonset["spec"]["template"]["spec"]["volumes"]}
    assert "hostPath" in volumes["vault"]
    assert not any("emptyDir" in volume for volume in volumes.values())


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_hardened_and_agent_and_vault_are_different_users(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "LimitCORE=0",
        "CapabilityBoundingSet=",
        "Restart=always",
    ):
        assert line in lines
    assert len({next(line for line in u.read_text().splitlines() if line.startswith("User=")) for u in UNITS}) == 2


def test_stopping_the_agent_leaves_its_nodes_alone() -> None:
    lines = (DEPLOY / "systemd" / "dcupgrade.service").read_text().splitlines()
    assert {"KillMode=process", "Delegate=yes", "Type=notify"} <= set(lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        # the programs are not installed on a test machine; anything that exists may stand for them
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.M)
        text = re.sub(r"^(User|Group|Documentation)=.*\n", "", text, flags=re.M)
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in UNITS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if any(unit.name in line for unit in UNITS)]
    assert ours == []
