"""Files for services, clusters and dashboards: valid, and consistent with what the program exposes."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import attrs
import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from dcupgrade.machine.state import Name, State
from dcupgrade.settings import load
from dcupgrade.settings.reference import example_toml
from dcupgrade.settings.schema import Settings
from dcupgrade.surfaces.metrics import AgentCollector
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
    "fleet": {
        "slots": [None],
        "halt": None,
        "waiting": [],
        "versions": {"1": 1},
        "outcomes": [{"outcome": "committed"}],
    },
    "node": {"status": "serving"},
    "vault": {"sealed_unix_s": 1.0, "reachable": True},
    "chain": {
        "last_number": 1,
        "finalized_age_s": 1.0,
        "endpoint": "a",
        "endpoints": [{"url": "a"}],
        "refused": {"X": 1},
    },
}


def exposed() -> dict[str, set[str]]:
    """Every metric that can be scraped, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in AgentCollector(STATUS, {}).collect():
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
    registry.register(AgentCollector(STATUS, {}))
    promtool("check", "metrics", stdin=generate_latest(registry))


def manifests(folder: str) -> list[dict[str, Any]]:
    """The objects that a kustomization lists."""
    place = DEPLOY / "kubernetes" / folder
    files = yaml.safe_load((place / "kustomization.yaml").read_text())["resources"]
    return [document for name in files for document in yaml.safe_load_all((place / name).read_text())]


def pod() -> dict[str, Any]:
    """The pod that runs on each host."""
    (daemonset,) = (document for document in manifests("base") if document["kind"] == "DaemonSet")
    found: dict[str, Any] = daemonset["spec"]["template"]["spec"]
    return found


def test_kubernetes_manifests_follow_the_published_schemas() -> None:
    documents = [one for folder in ("base", "fleet") for one in manifests(folder)]
    kinds = {"Namespace", "ServiceAccount", "DaemonSet", "Lease", "Role", "RoleBinding"}
    assert {document["kind"] for document in documents} == kinds
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_sealed_keys_are_never_kept_in_a_volume_that_dies_with_the_pod() -> None:
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert "hostPath" in volumes["vault"]
    assert not any("emptyDir" in volume for volume in volumes.values())


def test_the_agents_container_runs_the_agent_as_the_user_of_its_image() -> None:
    agent, vault = pod()["containers"]
    dockerfile = (ROOT / "devnet" / "docker" / "Dockerfile").read_text()
    # the image has no entry point: arguments alone would be taken for the program
    assert "ENTRYPOINT" not in dockerfile
    assert agent["command"][:3] == ["python3", "-m", "dcupgrade"]
    assert f"USER {agent['securityContext']['runAsUser']}:" in dockerfile
    for container in (agent, vault):
        assert "token" in {mount["name"] for mount in container["volumeMounts"]}
    assert agent["securityContext"]["runAsUser"] != vault["securityContext"]["runAsUser"]
    # folders that the kubelet makes belong to root: neither container could write there
    paths = {volume["name"]: volume.get("hostPath") for volume in pod()["volumes"]}
    assert {paths[name]["type"] for name in ("vault", "state", "data")} == {"Directory"}


def test_the_engines_group_is_the_agents_alone() -> None:
    agent, vault = pod()["containers"]
    engine = agent["securityContext"]["runAsGroup"]
    assert vault["securityContext"]["runAsGroup"] != engine
    assert "supplementalGroups" not in pod()["securityContext"]  # those would be every container's
    assert pod()["securityContext"]["fsGroup"] != engine


def test_the_api_servers_token_is_mounted_by_the_agent_alone_and_only_in_a_fleet() -> None:
    assert pod()["automountServiceAccountToken"] is False
    patch = yaml.safe_load((DEPLOY / "kubernetes" / "fleet" / "agent.yaml").read_text())["spec"]["template"]["spec"]
    assert [container["name"] for container in patch["containers"]] == ["agent"]
    assert "serviceAccountToken" in patch["volumes"][0]["projected"]["sources"][0]


def test_the_prometheus_operators_rules_are_the_alert_rules() -> None:
    (rules,) = (one for one in manifests("monitoring") if one["kind"] == "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    assert (DEPLOY / "helm" / "alerts.yaml").read_text() == (DEPLOY / "prometheus" / "alerts.yaml").read_text()


def test_environment_variables_of_the_manifests_are_settings() -> None:
    texts = [path.read_text() for path in (DEPLOY / "kubernetes").rglob("*.yaml")]
    names = set(re.findall(r"DCUPGRADE_([A-Z_]+)__([A-Z_]+)", " ".join(texts)))
    assert len(names) > 4
    for section, field in names:
        assert hasattr(getattr(attrs.fields(Settings), section.lower()).type, field.lower())


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_hardened_and_agent_and_vault_are_different_users(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "LimitCORE=0",
        "LimitNOFILE=8192",
        "CapabilityBoundingSet=",
        "Restart=always",
    ):
        assert line in lines
    assert len({next(line for line in u.read_text().splitlines() if line.startswith("User=")) for u in UNITS}) == 2


@pytest.mark.parametrize("name", ["dcupgrade", "dcupgrade-vault"])
def test_the_template_differs_from_the_single_nodes_unit_by_the_nodes_name_alone(name: str) -> None:
    def lines(unit: str) -> list[str]:
        text = (DEPLOY / "systemd" / unit).read_text()
        return [line for line in text.splitlines() if not line.startswith("#")]

    single, template = lines(f"{name}.service"), lines(f"{name}@.service")
    changed = [(one, other) for one, other in zip(single, template, strict=True) if one != other]
    assert all("%i" in other or "${VAULT_PORT}" in other for _, other in changed)
    assert {one.partition("=")[0] for one, _ in changed} <= {
        *("Description", "Wants", "After", "EnvironmentFile", "ExecStart", "WorkingDirectory"),
        *("StateDirectory", "RuntimeDirectory", "ReadWritePaths"),
    }


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


FAKE_PYTHON = """#!/bin/sh
# stands for the interpreter of `make install`: makes an empty virtual environment, installs nothing
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" "$3/site"; cp "$0" "$3/bin/python" ;;
"-m pip") ;;
*purelib*) echo "$(dirname "$0")/../site" ;;
*) echo "$0" ;;
esac
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's root folder, with the interpreter that stands in."""
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def installer_process(
    host: Path, action: str, prefix: str = "/usr/local", **more: str
) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "PYTHON": str(host / "python"), "DESTDIR": str(host), "PREFIX": prefix}
    environ |= more
    return subprocess.run(
        [ROOT / ".ci" / "install", action], env=environ, capture_output=True, text=True, check=False, timeout=60
    )


def installer(host: Path, action: str, prefix: str = "/usr/local", **more: str) -> str:
    done = installer_process(host, action, prefix, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_neither_another_installation_nor_removal_takes_away_a_vault_build(host: Path) -> None:
    installer(host, "install")
    lib = host / "usr/local/lib/dcupgrade"
    store = lib / "vault" / "store"
    store.mkdir(parents=True)
    (store / "keys.sealed").write_text("sealed")
    installer(host, "install")
    assert (store / "keys.sealed").exists()
    assert str(lib) in installer(host, "uninstall")
    assert (store / "keys.sealed").exists()
    assert not (lib / "versions").exists()


def test_what_is_installed_knows_where_it_is(host: Path) -> None:
    installer(host, "install", "/opt/dcupgrade")
    units = host / "opt/dcupgrade/lib/systemd/system"
    assert "ExecStart=/opt/dcupgrade/bin/dcupgrade " in (units / "dcupgrade.service").read_text()
    assert not any("/usr/local" in unit.read_text() for unit in units.iterdir())
    source = host / "opt/dcupgrade/lib/dcupgrade/current/src"
    assert (source / "dcupgrade" / "commands" / "runbook" / "halted.md").is_file()
    assert (source / "dcupgrade" / "surfaces" / "schemas" / "status.schema.json").is_file()
    assert (source / "dcupgrade" / "commands" / "explain.py").is_file()
    share = host / "opt/dcupgrade/share"
    completions = [share / "bash-completion/completions/dcupgrade", share / "zsh/site-functions/_dcupgrade"]
    assert all(path.read_text() for path in completions)
    installer(host, "uninstall", "/opt/dcupgrade")
    assert not (host / "opt/dcupgrade/lib/dcupgrade").exists()
    assert not any(path.exists() for path in completions)


def test_what_is_installed_is_compiled_since_its_users_cannot_write_there(host: Path) -> None:
    real = f'"-m compileall") exec {sys.executable} "$@" ;;'
    (host / "python").write_text(FAKE_PYTHON.replace('"-m pip") ;;', f'"-m pip") ;;\n{real}'))
    installer(host, "install")
    source = host / "usr/local/lib/dcupgrade/current/src"
    compiled = {Path(importlib.util.source_from_cache(str(path))) for path in source.rglob("*.pyc")}
    assert compiled == set(source.rglob("*.py"))


def test_only_who_publishes_gets_the_packages_for_it(host: Path) -> None:
    (host / "python").write_text(FAKE_PYTHON.replace('"-m pip") ;;', '"-m pip") echo "$@" >>"$DESTDIR/asked" ;;'))
    for extra, lock in (("", "requirements.runtime.lock"), ("publish", "requirements.publish.lock")):
        (host / "asked").unlink(missing_ok=True)
        installer(host, "install", EXTRA=extra)
        assert lock in (host / "asked").read_text()
    refused = installer_process(host, "install", EXTRA="everything")
    assert (refused.returncode, "EXTRA is publish or nothing" in refused.stderr) == (2, True)


def versions(host: Path) -> set[str]:
    return {path.name for path in (host / "usr/local/lib/dcupgrade/versions").iterdir()}


def current(host: Path) -> str:
    return (host / "usr/local/lib/dcupgrade/current").readlink().name


def test_the_version_before_is_kept_and_older_ones_go(host: Path) -> None:
    kept: list[str] = []
    for _ in range(3):
        installer(host, "install")
        kept.append(current(host))
    assert len(set(kept)) == 3
    assert versions(host) == set(kept[1:])


def test_a_version_that_a_process_runs_from_is_kept(host: Path) -> None:
    installer(host, "install")
    first = current(host)
    path = f"/usr/local/lib/dcupgrade/versions/{first}/venv/bin/python"
    process = subprocess.Popen(["/bin/sh", "-c", "read _", path], stdin=subprocess.PIPE)
    try:
        installer(host, "install")
        installer(host, "install")
        assert first in versions(host)
    finally:
        process.kill()
        process.communicate()
    installer(host, "install")
    assert first not in versions(host)


@pytest.mark.parametrize("step", ["-m pip", "-m venv"])
def test_a_registry_that_is_away_changes_nothing_of_what_is_installed(host: Path, step: str) -> None:
    installer(host, "install")
    before = {path: path.stat().st_mtime_ns for path in (host / "usr").rglob("*") if path.is_file()}
    (host / "python").write_text(FAKE_PYTHON.replace(f'"{step}")', f'"{step}") exit 1;;\n"unused")', 1))
    failed = installer_process(host, "install")
    assert failed.returncode == 1
    assert "nothing was changed" in failed.stderr
    after = {path: path.stat().st_mtime_ns for path in (host / "usr").rglob("*") if path.is_file()}
    assert after == before


def test_a_version_that_does_not_start_is_not_put_in_place(host: Path) -> None:
    installer(host, "install")
    before = current(host)
    (host / "python").write_text(FAKE_PYTHON.replace("*purelib*)", '"-P -m") exit 1 ;;\n*purelib*)'))
    assert installer_process(host, "install").returncode == 1
    assert (current(host), versions(host)) == (before, {before})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can install for other users")
def test_an_interpreter_that_the_services_cannot_run_is_refused(host: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    shutil.copy2(host / "python", home / "python")
    environ = {"PATH": os.environ["PATH"], "PYTHON": str(home / "python"), "PREFIX": str(tmp_path / "prefix")}
    done = subprocess.run(
        [ROOT / ".ci" / "install", "install"], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{home} is closed to them" in done.stderr or f"{tmp_path.parent}" in done.stderr
    assert not (tmp_path / "prefix").exists()


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_done(host: Path) -> None:
    (host / "usr").write_text("no folder")
    failed = installer_process(host, "install")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "cannot be written" in failed.stderr


def test_the_vaults_sealed_store_is_not_in_a_folder_of_the_program() -> None:
    unit = (DEPLOY / "systemd" / "dcupgrade-vault.service").read_text().splitlines()
    # the manifest's file:store is relative to the working folder, and only the state folder may be written
    assert {"WorkingDirectory=/var/lib/dcupgrade-vault", "StateDirectory=dcupgrade-vault"} <= set(unit)


FIELD = DEPLOY / "field"
GROUPS = {"DC_ENGINE_GID": "998", "DC_SGX_GID": "997"}


def test_the_fields_compose_file_and_unit_fit_the_settings_of_its_profile() -> None:
    settings = load.structure(tomllib.loads(example_toml("dcnet-container")), environ={}, path="example")
    services = yaml.safe_load((FIELD / "compose.yaml").read_text())["services"]
    assert "command" not in services["vault"]  # the image's own, with its watchdog
    agent, vault = services["agent"], services["vault"]
    mounted = {item["source"]: item["target"] for item in agent["volumes"]}
    engine = settings.container.engine.removeprefix("unix://")
    for path in (str(settings.agent.state_dir), str(settings.node.data_dir), engine):
        assert mounted[path] == path, "the engine resolves paths on the host"
    assert f"ReadWritePaths={settings.node.data_dir}" in (FIELD / "dcupgrade.conf").read_text().splitlines()
    for named in (settings.chain.checkpoint_file, settings.vault.token_file):
        assert str(named).startswith("/etc/dcupgrade/")
    for service in (agent, vault):
        assert service["network_mode"] == "host"
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"]
    assert agent["user"] != vault["user"]
    dockerfile = (DEPLOY / "container" / "Dockerfile").read_text()
    assert f"USER {agent['user']}" in dockerfile
    assert 'ENTRYPOINT ["python3", "-m", "dcupgrade"]' in dockerfile
    assert agent["command"][-1] == "watch"
    # sealed keys stay on the host, and the agent is nowhere near them
    assert [item["source"] for item in vault["volumes"]] == ["/var/lib/dcupgrade-vault"]
    assert "/var/lib/dcupgrade-vault" not in mounted


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not on this machine")
def test_compose_accepts_the_fields_file_and_asks_for_the_groups() -> None:
    command = ["docker-compose", "-f", str(FIELD / "compose.yaml"), "config", "-q"]
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    good = subprocess.run(command, env={**environ, **GROUPS}, capture_output=True, text=True, check=False, timeout=60)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert bad.returncode != 0
    assert "group of" in bad.stderr
