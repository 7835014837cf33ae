"""Nodes as containers: the parts of a launch, and reasons to refuse it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dcupgrade.adapters.container_changes import ContainerChanges
from dcupgrade.adapters.node_containers import NodeContainers, owner
from dcupgrade.adapters.node_slots import NodeSlots
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.plan import Plan, with_launch
from dcupgrade.machine.state import Name, State
from dcupgrade.settings.errors import SettingsError
from dcupgrade.settings.load import structure
from dcupgrade.settings.schema import Settings
from process_supervisor.container_template import ContainerTemplate, mounts_of
from process_supervisor.driver import LaunchSpec, NodeRecord
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.slots import Identity, StageFacts
from tests.doubles.node_driver import NEW, OLD

IMAGE = "sha256:" + "1" * 64
MANAGER = {"Id": "9", "Names": ["/dcmanager"], "Image": "dcnetio/dcmanager", "Labels": {}}


@dataclass
class Engine:
    """The answers of driver and images that are needed here."""

    containers: list[dict[str, Any]] = field(default_factory=list)
    volumes_missing: list[str] = field(default_factory=list)
    program_missing: str = ""
    looked: int = 0
    here: bool | None = True
    forgotten: list[str] = field(default_factory=list)
    shown: dict[str, Any] = field(default_factory=dict)

    async def running_containers(self) -> list[dict[str, Any]]:
        return self.containers

    async def missing_volumes(self, template: ContainerTemplate) -> list[str]:
        return self.volumes_missing

    async def missing_program(self, image_id: str, template: dict[str, Any]) -> str:
        self.looked += 1
        return self.program_missing

    async def has(self, image_id: str) -> bool:
        if self.here is None:
            raise ProcessSupervisorError(code="CONTAINER_ENGINE_UNREACHABLE", what="x", why="y")
        return self.here

    async def forget(self, enclave_id: str) -> None:
        self.forgotten.append(enclave_id)

    async def find(self, name: str) -> NodeRecord | None:
        return NodeRecord(kind="container", name=name, started_unix_s=0.0, command_digest="", container_id="c")

    async def adopt(self, record: NodeRecord) -> None:
        return None

    async def remove(self, name: str) -> None:
        return None

    async def show(self, container: str) -> dict[str, Any]:
        return self.shown

    async def inspect(self, image: str) -> dict[str, Any]:
        return {"Id": image, "Config": {"Env": ["NEW=1"]}}


class Untouched(Engine):
    """An engine that must not get any request."""

    def __getattribute__(self, name: str) -> Any:
        assert name.startswith("_") or name == "images", f"{name} was asked of the engine"
        return super().__getattribute__(name)


def settings_of(tmp_path: Path, *, command: list[str] | None = None, **container: Any) -> Settings:
    node: dict[str, Any] = {"id": "Node 1", "driver": "container", "data_dir": str(tmp_path / "data")}
    return structure(
        {
            "agent": {"state_dir": str(tmp_path / "state")},
            "chain": {"endpoints": ["ws://127.0.0.1:1"], "network_keys": ["00" * 31 + "02"], "finality": "single"},
            "node": {**node, "command": command if command is not None else []},
            "container": container,
            "vault": {"start": False},
        },
        environ={},
    )


def containers_of(settings: Settings, engine: Engine) -> NodeContainers:
    settings.agent.state_dir.mkdir(exist_ok=True)
    return NodeContainers(settings, engine, engine)  # type: ignore[arg-type]


def staged(settings: Settings, identity: Identity = "attested") -> Path:
    slot = settings.agent.state_dir / "slots" / NEW.enclave_id
    slot.mkdir(parents=True, exist_ok=True)
    facts = StageFacts(digest="1", size=0, source="dc/node@sha256:1", image_id=IMAGE, identity=identity)
    (slot / "stage.json").write_bytes(facts.to_json())
    (slot / "release.json").write_text('{"version": "1.1.0"}')
    (slot / "network.sig").touch()
    return slot


def launch(name: str = "node") -> LaunchSpec:
    argv = ("python3", "-m", "x", "--data", "d")
    return LaunchSpec(name=name, argv=argv, env={}, cwd=Path("/data"), log_path=Path("/log"))


def test_an_image_that_runs_itself_gets_the_settings_or_what_was_stored(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path, name="dcstorage", mounts=["vol:/data", f"{tmp_path}:/disks:shared", "/etc:/etc:ro"]
    )
    nodes = containers_of(settings, Engine())
    made = nodes.launch(launch(), staged(settings)).container
    assert made is not None
    assert (made.image, made.template.name, made.template.config) == (IMAGE, "dcstorage", {})
    assert made.exclusive == {"vol", str(tmp_path)}, "what one node alone may write"
    stored = ContainerTemplate(name="taken-over", config={"User": "7"}, host={"Privileged": True})
    nodes.store(stored)
    made = nodes.launch(launch(), staged(settings)).container
    assert made is not None
    assert made.template == stored
    nodes.template_path.write_text("{")
    with pytest.raises(DcupgradeError, match="CONTAINER_TEMPLATE_UNREADABLE"):
        nodes.launch(launch(), staged(settings))


def test_a_command_gets_data_cpu_and_slot_mounted(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, command=["x"], cpu_volume="cpu", image="base", devices=["/dev/null"])
    slot = staged(settings)
    made = containers_of(settings, Engine()).launch(launch(), slot).container
    assert made is not None
    assert made.template.config["Entrypoint"] == ["python3"]
    assert made.template.host["CapDrop"] == ["ALL"]
    mounts = {item.target: (item.source, item.read_only) for item in mounts_of(made.template.host)}
    assert mounts[str(tmp_path / "data")] == (str(tmp_path / "data"), False)
    assert mounts[str(settings.cpu_dir)] == ("cpu", False)
    assert mounts[str(slot)] == (str(slot), True)


async def test_what_speaks_against_the_next_container_is_found_before_the_node_stops(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, devices=["/dev/nowhere"], mounts=[f"{tmp_path}/none:/x", "vol:/data"])
    staged(settings)
    engine = Engine([MANAGER], ["vol"], "the image has no program 'x'")
    nodes = containers_of(settings, engine)
    found = [(item.code, item.detail) for item in await nodes.findings(NEW.enclave_id, first_install=False)]
    assert found == [
        ("OTHER_MANAGER_RUNNING", "container dcmanager of dcnetio/dcmanager"),
        ("CONTAINER_DEVICE_MISSING", "there is no device /dev/nowhere"),
        ("CONTAINER_MOUNT_MISSING", f"there is no {tmp_path}/none to mount at /x"),
        ("CONTAINER_MOUNT_MISSING", "the engine has no volume vol"),
        ("CONTAINER_PROGRAM_MISSING", "the image has no program 'x'"),
    ]
    codes = [item.code for item in await nodes.findings(NEW.enclave_id, first_install=True)]
    assert codes.count("CONTAINER_MOUNT_MISSING") == 1, "a first install may make its volume"
    assert engine.looked == 1


async def test_a_slot_is_good_only_while_the_engine_has_its_image(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    staged(settings)
    engine = Engine()
    slots = NodeSlots(settings, engine, containers_of(settings, engine))  # type: ignore[arg-type]
    assert await slots.slot_is_good(NEW.enclave_id)
    ids = [NEW.enclave_id, OLD.enclave_id]
    assert await slots.identities(ids) == {NEW.enclave_id: "attested", OLD.enclave_id: ""}
    engine.here = None
    assert await slots.slot_is_good(NEW.enclave_id), "an engine that is away says nothing of its images"
    engine.here = False
    assert not await slots.slot_is_good(NEW.enclave_id)
    await slots.remove_slot(NEW.enclave_id)
    assert engine.forgotten == [NEW.enclave_id]


@pytest.mark.parametrize("command", [[], ["python3", "{slot}/enclave.pyz"]])
async def test_no_image_is_pulled_before_its_release_is_final(tmp_path: Path, command: list[str]) -> None:
    """Case B7: an endpoint can invent a best block, so an image that only a best block names is not pulled."""
    settings = settings_of(tmp_path, command=command, image="base" if command else "")
    engine = Untouched()
    slots = NodeSlots(settings, engine, containers_of(settings, engine))  # type: ignore[arg-type]
    announced = replace(NEW, origin_url="registry.example/dc/node:1", mirror_url="", cids=())
    with pytest.raises(ProcessSupervisorError, match="DOWNLOAD_SOURCE_UNSUPPORTED"):
        await slots.fetch_early(announced)


async def test_a_slot_proven_by_its_sigstruct_is_verified(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    slot = staged(settings, "sigstruct")
    slots = NodeSlots(settings, Engine(), containers_of(settings, Engine()))  # type: ignore[arg-type]
    (slot / "enclave.sig").write_bytes(b"no SIGSTRUCT")
    assert not await slots.slot_is_good(NEW.enclave_id)


async def test_plan_tells_what_the_next_container_has_otherwise(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    staged(settings)
    engine = Engine(shown={"Image": "sha256:0", "Config": {"Image": "dc/node:1", "Env": ["OLD=1"]}})
    state = State(Name.STAGED, running=OLD, target=NEW)
    changes = ContainerChanges(containers_of(settings, engine), lambda: state)
    lines = await changes.compare(OLD.enclave_id, NEW.enclave_id)
    assert lines == ["Image: dc/node:1 -> dc/node@sha256:1", "Env: without OLD=1", "Env: with NEW=1"]
    told = with_launch(Plan("upgrade", ("Would upgrade.",), NEW.enclave_id, ()), "attested", lines)
    assert "WARNING: nothing proves its identity" in told.lines[1]
    assert told.lines[-1] == "Container: Env: with NEW=1"
    assert (told.identity, told.changes) == ("attested", tuple(lines))


def test_two_nodes_of_one_host_have_owners_of_their_own(tmp_path: Path) -> None:
    one = settings_of(tmp_path / "a")
    other = settings_of(tmp_path / "b")
    assert owner(one) != owner(other)
    assert owner(one) == owner(settings_of(tmp_path / "a"))
    assert owner(one).startswith("node-1-")


@pytest.mark.parametrize(
    ("container", "mistake"),
    [
        ({"mounts": ["a:b"]}, "container.mounts"),
        ({"devices": ["sgx"]}, "container.devices"),
        ({"ulimits": ["x"]}, "container.ulimits"),
        ({"environment": ["x"]}, "container.environment"),
        ({"identity": "sigstruct"}, "container.signed_enclave"),
        ({"identity": "trusted"}, "container.identity"),
        ({"signed_enclave": "bin/x"}, "container.signed_enclave"),
    ],
)
def test_settings_that_no_engine_would_take_are_mistakes(
    tmp_path: Path, container: dict[str, Any], mistake: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_of(tmp_path, **container)
    assert [text.split("[")[0].split(":")[0] for text in caught.value.mistakes] == [mistake]
