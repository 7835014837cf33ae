"""Fleets of Leases on a real API server: rights, the limit of simultaneous upgrades, failures of the server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dcupgrade.adapters.fleet import FleetGate
from dcupgrade.adapters.fleet_kubernetes import KubernetesFleet
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.fleet import Halt, Outcome, Slot
from dcupgrade.machine.state import Release
from devnet.kube_apiserver import KubeApiServer
from devnet.tcp_proxy import TcpProxy
from devnet.tools import DevnetError
from tests.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.kube, pytest.mark.timeout(600)]
MANIFESTS = ROOT / "dcupgrade" / "deploy" / "kubernetes" / "fleet"
NEW = Release("b" * 64, "1.1.0", added_height=2)
YEAR_S = 365 * 86400.0
OPERATOR = "alice"


@dataclass
class Clock:
    unix_s: float = 1_800_000_000.0

    def now(self) -> float:
        return self.unix_s

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeApiServer]:
    with KubeApiServer(tmp_path_factory.mktemp("kube"), users=(OPERATOR,)) as server:
        yield server


@dataclass
class Cluster:
    """A namespace with the fleet's manifest, which one operator may halt."""

    api: KubeApiServer
    namespace: str
    folder: Path
    agent_token: str = ""

    def set_up(self) -> None:
        self.api.kubectl("create", "namespace", self.namespace)
        self.api.kubectl("-n", self.namespace, "create", "serviceaccount", "dcupgrade")
        self.add_fleet("dcupgrade")
        role = ("--role", "dcupgrade-operator", "--user", OPERATOR)
        self.api.kubectl("-n", self.namespace, "create", "rolebinding", "operators", *role)
        self.agent_token = self.api.account_token(self.namespace, "dcupgrade")

    def add_fleet(self, name: str) -> None:
        """Apply the published leases and roles, for a fleet of that name."""
        text = "---\n".join((MANIFESTS / file).read_text() for file in ("leases.yaml", "roles.yaml"))
        text = text.replace("dcupgrade-", f"{name}-").replace("dcupgrade/fleet: dcupgrade", f"dcupgrade/fleet: {name}")
        text = text.replace("ServiceAccount, name", f"ServiceAccount, namespace: {self.namespace}, name")
        self.kubectl("apply", "--server-side", "-f", "-", stdin=text)

    @asynccontextmanager
    async def fleet(self, token: str = "", port: int = 0, name: str = "dcupgrade") -> AsyncIterator[KubernetesFleet]:
        """The fleet as an agent sees it. Another token or port may be given."""
        token_file = self.folder / f"{self.namespace}-token-{hash(token)}"
        token_file.write_text(token or self.agent_token)
        url = f"https://127.0.0.1:{port or self.api.port}"
        engine = KubernetesFleet(name, url, self.namespace, token_file=token_file, ca_file=self.api.ca_file)
        try:
            yield engine
        finally:
            await engine.aclose()

    def kubectl(self, *arguments: str, token: str = "", stdin: str = "") -> str:
        return self.api.kubectl("-n", self.namespace, *arguments, token=token, stdin=stdin)

    def patch(self, lease: str, change: dict[str, Any]) -> None:
        self.kubectl("patch", "lease", lease, "--type", "merge", "-p", json.dumps(change))

    def hold(self, slots: Iterable[int], holder: str = "other") -> None:
        for number in slots:
            self.patch(f"dcupgrade-slot-{number}", {"spec": {"holderIdentity": holder}})


NUMBERS = count(1)


@pytest.fixture
def make_cluster(api: KubeApiServer, tmp_path: Path) -> Callable[[], Cluster]:
    def make() -> Cluster:
        cluster = Cluster(api, f"trial-{next(NUMBERS)}", tmp_path)
        cluster.set_up()
        return cluster

    return make


@pytest.fixture
def cluster(make_cluster: Callable[[], Cluster]) -> Cluster:
    return make_cluster()


def gate(engine: KubernetesFleet, node: str) -> FleetGate:
    return FleetGate(engine, node, 2, Clock())


def first_free(engine: KubernetesFleet, node: str, clock: Clock) -> FleetGate:
    """The gate of an agent that always tries the first free slot."""
    return FleetGate(engine, node, 2, clock, draw=lambda: 0.0)


async def codes(engine: KubernetesFleet, node: str) -> list[str]:
    return [item.code for item in await gate(engine, node).take(NEW)]


async def end(engine: KubernetesFleet, node: str, outcome: str, at_unix_s: float = 1.0) -> None:
    """End a node's upgrade; tried again where the server is busy, as agents do."""
    for _ in range(50):
        try:
            number = (await engine.read()).slot_of(node)
            if number is not None:
                ended = Outcome(node, NEW.enclave_id, NEW.version, outcome, at_unix_s)
                await engine.clear(number, node, ended)
            return
        except DcupgradeError:
            await asyncio.sleep(0.2)
    raise AssertionError(f"the slot of {node} could not be freed")


@pytest.mark.parametrize(
    ("verb", "what", "allowed"),
    [
        ("get", "lease/dcupgrade-slot-0", True),
        ("list", "leases", True),
        ("update", "lease/dcupgrade-slot-2", True),
        ("patch", "lease/dcupgrade-slot-0", False),
        ("delete", "lease/dcupgrade-slot-0", False),
        ("create", "leases", False),
        ("update", "lease/dcupgrade-halt", False),
        ("update", "lease/somebody-elses", False),
        ("delete", "leases", False),
        ("get", "secrets", False),
        ("list", "pods", False),
        ("update", "roles", False),
        ("create", "serviceaccounts/token", False),
    ],
)
def test_an_agent_has_the_rights_that_it_needs_and_no_other(
    cluster: Cluster, verb: str, what: str, allowed: bool
) -> None:
    kind, _, name = what.partition("/")
    resource = {"resource": kind.removesuffix("s") + "s", "verb": verb, "namespace": cluster.namespace}
    resource["group"] = "coordination.k8s.io" if kind.startswith("lease") else ""
    resource |= {"subresource": name} if name == "token" else {"name": name}
    account = f"system:serviceaccount:{cluster.namespace}:dcupgrade"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": account, "groups": ["system:serviceaccounts"], "resourceAttributes": resource},
    }
    answer = json.loads(cluster.kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(review)))
    assert answer["status"]["allowed"] is allowed


async def test_the_server_refuses_an_agent_that_stops_the_fleet_or_makes_a_slot(cluster: Cluster) -> None:
    async with cluster.fleet() as engine:
        with pytest.raises(DcupgradeError, match="403"):
            await engine.set_halt(Halt("agent", "mutiny", 1.0))
    lease = "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: dcupgrade-slot-3}\n"
    for arguments, stdin in ((("create", "-f", "-"), lease), (("delete", "lease", "dcupgrade-slot-0"), "")):
        with pytest.raises(DevnetError, match="Forbidden"):
            cluster.kubectl(*arguments, token=cluster.agent_token, stdin=stdin)
    elsewhere = replace(cluster, namespace="default")
    async with elsewhere.fleet(cluster.agent_token) as engine:
        with pytest.raises(DcupgradeError, match="403"):
            await engine.read()
    async with cluster.fleet("guess") as engine:
        with pytest.raises(DcupgradeError, match="401"):
            await engine.read()


async def test_fifty_agents_never_hold_more_than_three_slots_and_all_get_their_turn(cluster: Cluster) -> None:
    at_work: set[str] = set()
    most = 0

    async def agent(node: str) -> None:
        nonlocal most
        async with cluster.fleet() as engine:
            mine = gate(engine, node)
            while await mine.take(NEW):  # noqa: ASYNC110 - the engine is asked again, as an agent does
                await asyncio.sleep(0.5)
            at_work.add(node)
            most = max(most, len(at_work))
            await asyncio.sleep(0)
            at_work.remove(node)
            await end(engine, node, "committed")

    await asyncio.gather(*(agent(f"n{number}") for number in range(50)))
    assert most <= 3
    async with cluster.fleet() as engine:
        found = await engine.read()
    assert found.slots == (None, None, None)
    assert len({item.node for item in found.outcomes}) == 50


async def test_an_operator_stops_the_fleet_and_lets_it_continue(cluster: Cluster) -> None:
    async with cluster.fleet() as engine, cluster.fleet(cluster.api.token(OPERATOR)) as operator:
        await operator.set_halt(Halt(OPERATOR, "bad release", 1.0))
        assert await codes(engine, "n") == ["FLEET_HALTED"]
        await operator.set_halt(None)
        assert await codes(engine, "n") == []


async def test_a_halt_between_question_and_taking_is_seen(cluster: Cluster) -> None:
    async with cluster.fleet() as engine, cluster.fleet(cluster.api.token(OPERATOR)) as operator:
        update = engine._update

        async def halt_first(lease: Any) -> bool:
            engine._update = update  # type: ignore[method-assign]
            await operator.set_halt(Halt(OPERATOR, "just now", 1.0))
            return await update(lease)

        engine._update = halt_first  # type: ignore[method-assign]
        assert await codes(engine, "n") == ["FLEET_HALTED"]
        assert (await engine.read()).slots == (None, None, None)


async def test_kubectl_stops_the_fleet_as_the_operators_page_says(cluster: Cluster) -> None:
    patch = ("patch", "lease", "dcupgrade-halt", "--type", "merge", "-p", '{"spec": {"holderIdentity": "alice"}}')
    cluster.kubectl(*patch, token=cluster.api.token(OPERATOR))
    async with cluster.fleet() as engine:
        assert await codes(engine, "n") == ["FLEET_HALTED"]


async def test_reverts_stop_a_release_and_resuming_lets_it_continue(cluster: Cluster) -> None:
    async with cluster.fleet() as engine, cluster.fleet(cluster.api.token(OPERATOR)) as operator:
        for node in ("x", "y"):
            assert await codes(engine, node) == []
            await end(engine, node, "reverted")
        assert await codes(engine, "z") == ["FLEET_HALTED"]
        await operator.set_halt(None)
        assert await codes(engine, "z") == []


async def test_a_server_that_is_killed_in_mid_upgrade_shuts_the_gate_and_keeps_the_slot(cluster: Cluster) -> None:
    cluster.hold(range(2))
    async with cluster.fleet() as engine:
        assert await codes(engine, "n") == []
        cluster.api.kill()
        try:
            assert await codes(engine, "m") == ["FLEET_UNREACHABLE"]
        finally:
            cluster.api.start()
        assert await codes(engine, "m") == ["FLEET_FULL"]
        assert await codes(engine, "n") == []


async def test_an_agent_that_is_cut_off_keeps_its_slot_and_finds_it_again(cluster: Cluster) -> None:
    cluster.hold(range(2))
    way = TcpProxy(cluster.api.port)
    await way.start()
    try:
        async with cluster.fleet(port=way.port) as far, cluster.fleet() as near:
            assert await codes(far, "far") == []
            await way.cut()
            assert await codes(far, "far") == ["FLEET_UNREACHABLE"]
            assert await codes(near, "near") == ["FLEET_FULL"]
            await way.start()
            assert await codes(far, "far") == []
            await end(far, "far", "committed")
            assert await codes(near, "near") == []
    finally:
        await way.cut()


async def test_two_fleets_in_one_namespace_and_in_two_do_not_see_each_other(
    cluster: Cluster, make_cluster: Callable[[], Cluster]
) -> None:
    other = make_cluster()
    cluster.add_fleet("second")
    async with cluster.fleet(cluster.api.token(OPERATOR)) as operator:
        await operator.set_halt(Halt(OPERATOR, "bad release", 1.0))
    cluster.hold(range(3))
    async with cluster.fleet() as halted, other.fleet() as elsewhere, cluster.fleet(name="second") as second:
        assert await codes(halted, "n") == ["FLEET_HALTED"]
        for engine in (elsewhere, second):
            assert (await engine.read()).slots == (None, None, None)
            assert await codes(engine, "n") == []


@pytest.mark.parametrize("annotation", ["", "[]", "{", '{"holder": 5}', "[" * 20_000, '{"holder": "other"}'])
async def test_a_lease_that_a_hand_edited_counts_by_its_holder(cluster: Cluster, annotation: str) -> None:
    written = {"dcupgrade/slot": annotation, "dcupgrade/outcomes": annotation}
    for number in range(3):
        change = {"metadata": {"annotations": written}, "spec": {"holderIdentity": "hand"}}
        cluster.patch(f"dcupgrade-slot-{number}", change)
    async with cluster.fleet() as engine:
        assert await codes(engine, "n") == ["FLEET_FULL"]
        cluster.patch("dcupgrade-slot-1", {"spec": {"holderIdentity": None}})
        assert await codes(engine, "n") == []
        await end(engine, "n", "committed")
        assert [item.node for item in (await engine.read()).outcomes] == ["n"]


async def test_a_slot_that_a_hand_took_away_is_one_place_less(cluster: Cluster) -> None:
    cluster.kubectl("delete", "lease", "dcupgrade-slot-2")
    async with cluster.fleet() as engine:
        for node in ("a", "b"):
            assert await codes(engine, node) == []
        assert await codes(engine, "c") == ["FLEET_FULL"]


async def test_a_clock_that_is_years_off_frees_no_slot_and_hides_no_revert(cluster: Cluster) -> None:
    now = Clock().unix_s
    async with cluster.fleet() as engine:
        for node, skew_s in (("past", -50 * YEAR_S), ("future", 50 * YEAR_S)):
            assert await first_free(engine, node, Clock(now + skew_s)).take(NEW) == ()
        cluster.hold([2])
        assert await codes(engine, "n") == ["FLEET_FULL"]
        await end(engine, "past", "reverted", now - 50 * YEAR_S)
        for number in range(40):  # ends that look newer than the revert
            assert await engine.put(0, Slot(f"n{number}", NEW.enclave_id, NEW.version, now))
            await engine.clear(0, f"n{number}", Outcome(f"n{number}", NEW.enclave_id, NEW.version, "committed", now))
        await end(engine, "future", "reverted", now + 50 * YEAR_S)
        assert await codes(engine, "n") == ["FLEET_HALTED"]
