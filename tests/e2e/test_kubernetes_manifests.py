"""The manifests and the chart on a real API server: the objects they make, which are equal."""

import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from devnet.kube_apiserver import KubeApiServer
from devnet.tools import DevnetError
from tests.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.kube, pytest.mark.timeout(600)]
DEPLOY = ROOT / "dcupgrade" / "deploy"
KUSTOMIZE, CHART = DEPLOY / "kubernetes", DEPLOY / "helm"
NUMBERS = count(1)
ALL_ON = ("fleet.enabled=true", "monitoring.podMonitor=true", "monitoring.rules=true")
MONITORING = {"podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"}


def definition(plural: str, kind: str) -> dict[str, Any]:
    """A kind of the Prometheus operator, without its schema."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    group = "monitoring.coreos.com"
    names = {"plural": plural, "kind": kind}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeApiServer]:
    with KubeApiServer(tmp_path_factory.mktemp("kube")) as server:
        for plural, kind in MONITORING.items():
            server.kubectl("apply", "-f", "-", stdin=json.dumps(definition(plural, kind)))
            server.kubectl("wait", "--for=condition=Established", f"crd/{plural}.monitoring.coreos.com")
        yield server


@pytest.fixture
def namespace() -> str:
    return f"storage-{next(NUMBERS)}"


def kustomization(folder: Path, namespace: str, *components: str) -> Path:
    """An operator's own kustomization over the published ones."""

    def to(name: str) -> str:
        return os.path.relpath(KUSTOMIZE / name, folder.resolve())

    text = {"namespace": namespace, "resources": [to("base")], "components": [to(name) for name in components]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return folder


def normal(value: Any) -> Any:
    """Return equal values for objects that differ only in the order of named items."""
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [normal(item) for item in value]
        return sorted(items, key=lambda item: str(item["name"])) if all_named(items) else items
    return value


def all_named(items: list[Any]) -> bool:
    return all(isinstance(item, dict) and "name" in item for item in items)


def by_name(text: str) -> dict[tuple[str, str], Any]:
    """Objects by kind and name, without their namespace, which helm does not write."""
    found = {}
    for document in yaml.safe_load_all(text):
        if document and document["kind"] != "Namespace":
            document["metadata"].pop("namespace", None)
            found[document["kind"], document["metadata"]["name"]] = normal(document)
    return found


def sets(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


@pytest.mark.parametrize("components", [(), ("fleet", "monitoring")])
def test_chart_and_kustomization_make_the_same_objects(
    api: KubeApiServer, tmp_path: Path, components: tuple[str, ...]
) -> None:
    values = ALL_ON if components else ()
    chart = by_name(api.helm("template", "dcupgrade", str(CHART), "-n", "storage", *sets(values)))
    assert chart == by_name(api.kubectl("kustomize", str(kustomization(tmp_path, "storage", *components))))
    assert len(chart) == (11 if components else 2)


@pytest.mark.parametrize("example", ["alone", "fleet"])
def test_the_examples_apply_server_side(api: KubeApiServer, example: str) -> None:
    for _ in range(2):
        api.kubectl("apply", "--server-side", "-k", str(KUSTOMIZE / "examples" / example))
    daemonset = json.loads(api.kubectl("-n", "storage", "get", "daemonset", "dcupgrade", "-o", "json"))
    pod = daemonset["spec"]["template"]["spec"]
    agent, vault = pod["containers"]
    assert agent["image"] == "registry.example/dcupgrade/agent:0.1.0"
    assert (agent["securityContext"]["runAsGroup"], vault["securityContext"]["runAsGroup"]) == (998, 10667)
    assert pod["nodeSelector"] == {"example/sgx": "true"}
    mounts = [{mount["name"] for mount in container["volumeMounts"]} for container in (agent, vault)]
    assert ["api" in names for names in mounts] == [example == "fleet", False]


def test_applying_the_manifests_again_frees_no_slot(api: KubeApiServer, namespace: str, tmp_path: Path) -> None:
    folder = kustomization(tmp_path, namespace, "fleet")
    held = '{"spec": {"holderIdentity": "host-1"}}'
    api.kubectl("apply", "--server-side", "-k", str(folder))
    api.kubectl("-n", namespace, "patch", "lease", "dcupgrade-slot-1", "--type", "merge", "-p", held)
    api.kubectl("apply", "--server-side", "-k", str(folder))
    assert holders(api, namespace)["dcupgrade-slot-1"] == "host-1"


def holders(api: KubeApiServer, namespace: str) -> dict[str, str]:
    leases = json.loads(api.kubectl("-n", namespace, "get", "leases", "-o", "json"))["items"]
    return {lease["metadata"]["name"]: lease["spec"].get("holderIdentity", "") for lease in leases}


def test_the_chart_has_nothing_to_complain_about(api: KubeApiServer) -> None:
    for values in ((), ALL_ON):
        assert "0 chart(s) failed" in api.helm("lint", "--strict", str(CHART), *sets(values))


def test_the_chart_installs_into_any_namespace_and_a_new_version_frees_no_slot(
    api: KubeApiServer, namespace: str
) -> None:
    operators = ("fleet.operators[0].kind=User", "fleet.operators[0].name=alice")
    values = sets((*ALL_ON, "fleet.name=north", "fleet.slots=2", "engineGroup=997", *operators))
    api.helm("install", "cell", str(CHART), "-n", namespace, "--create-namespace", *values)
    assert set(holders(api, namespace)) == {"north-slot-0", "north-slot-1", "north-halt"}
    held = '{"spec": {"holderIdentity": "host-1"}}'
    api.kubectl("-n", namespace, "patch", "lease", "north-slot-0", "--type", "merge", "-p", held)
    api.helm("upgrade", "cell", str(CHART), "-n", namespace, *values, "--set", "fleet.slots=3")
    assert holders(api, namespace) == {
        "north-slot-0": "host-1",
        "north-slot-1": "",
        "north-slot-2": "",
        "north-halt": "",
    }
    agent = f"system:serviceaccount:{namespace}:cell"
    assert may_update(api, namespace, "north-slot-2", agent)
    assert not may_update(api, namespace, "north-halt", agent)
    assert may_update(api, namespace, "north-halt", "alice")
    api.helm("uninstall", "cell", "-n", namespace)
    assert holders(api, namespace) == {}


def may_update(api: KubeApiServer, namespace: str, lease: str, who: str) -> bool:
    try:
        api.kubectl("-n", namespace, "auth", "can-i", "update", f"leases/{lease}", "--as", who)
    except DevnetError:
        return False
    return True


@pytest.mark.parametrize(
    "value", ["fleet.slots=-1", "fleet.name=Not_A_Name", "engineGroup=0", "folders.data=here", "flet=1"]
)
def test_a_value_that_cannot_work_is_refused(api: KubeApiServer, value: str) -> None:
    with pytest.raises(DevnetError, match=r"values don't meet the specifications"):
        api.helm("template", "dcupgrade", str(CHART), "--set", value)
