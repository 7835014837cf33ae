"""Loading an archive changes no tag at the engine but ours, whatever ends the load."""

from pathlib import Path

import aiodocker
import pytest

from process_supervisor.container_images import ImageStore
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.load_tags import LoadTags
from tests.doubles.docker_engine import KEPT, LIMITS, NEW, OLD, THIRD, FakeEngine, archive
from tests.doubles.release_archives import ENCLAVE


@pytest.mark.parametrize(
    ("says", "code"),
    [
        ([{"stream": "Loaded image: dc/node:2\n"}, {"stream": "Loaded image: python:3\n"}], None),
        ([{"stream": "Loaded image: dc/node:2\n"}, {"errorDetail": {}, "error": "x"}], "CONTAINER_ENGINE_ERROR"),
        ([], "CONTAINER_IMAGE_MISSING"),
        (["half a line"], "CONTAINER_ENGINE_UNREACHABLE"),
    ],
)
async def test_an_archive_neither_moves_the_machines_tags_nor_leaves_its_own(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path, says: list[dict[str, object] | str], code: str | None
) -> None:
    """Also an archive whose manifest.json names other tags for us than for the engine."""
    here = {"python:3": OLD, "other:1": THIRD}
    fake.tags = dict(here)
    fake.loads = {"dc/node:2": NEW, "python:3": NEW, "alpine:latest": NEW, "dcupgrade/release:other": NEW}
    fake.says = says
    store = ImageStore(docker)
    if code is None:
        loaded = await store.load(archive(tmp_path), LIMITS, ENCLAVE)
        assert loaded is not None
        assert loaded.image_id == NEW
        assert fake.tags == {**here, KEPT: NEW}
        assert await store.has(NEW)
        return
    with pytest.raises(ProcessSupervisorError) as caught:
        await store.load(archive(tmp_path), LIMITS, ENCLAVE)
    assert caught.value.code == code
    assert fake.tags == here


@pytest.mark.parametrize(
    ("before", "brought"),
    [
        ({}, {KEPT: NEW}),
        ({KEPT: OLD}, {}),
        ({KEPT: OLD}, {KEPT: NEW}),
        ({"mine:1": NEW}, {}),
        ({"mine:1": NEW}, {KEPT: NEW}),
    ],
)
async def test_the_tag_that_keeps_a_loaded_image_is_ours_whatever_was_there(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path, before: dict[str, str], brought: dict[str, str]
) -> None:
    fake.tags, fake.loads = dict(before), {"dc/node:2": NEW, **brought}
    fake.says = [{"stream": "Loaded image: dc/node:2\n"}]
    store = ImageStore(docker)
    await store.load(archive(tmp_path), LIMITS, ENCLAVE)
    assert fake.tags == {**before, KEPT: NEW}
    assert await store.has(NEW)


async def test_what_others_tag_during_a_load_stays(fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path) -> None:
    fake.tags = {"built:1": OLD}
    fake.loads = {"dc/node:2": NEW, "built:1": THIRD}  # the second one by a build of somebody
    fake.says = [{"stream": "Loaded image: dc/node:2\n"}]
    await ImageStore(docker).load(archive(tmp_path), LIMITS, ENCLAVE)
    assert fake.tags["built:1"] == THIRD


class AgentKilled(BaseException):
    """Stands for the end of the agent in the middle of a load."""


def notes(folder: Path) -> list[Path]:
    return list(folder.glob("*.load"))


async def killed_in_mid_load(docker: aiodocker.Docker, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load an archive with an agent that is killed once the engine has it."""

    async def killed(*_: object) -> None:
        raise AgentKilled

    with monkeypatch.context() as patched:
        patched.setattr(LoadTags, "end", killed)
        with pytest.raises(AgentKilled):
            await ImageStore(docker, notes=folder).load(archive(folder), LIMITS, ENCLAVE)


async def test_what_a_killed_agents_load_did_to_tags_is_undone_at_its_next_start(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"python:3": OLD, "other:1": THIRD}
    fake.tags = dict(here)
    fake.loads = {"dc/node:2": NEW, "python:3": NEW, "dcupgrade/release:other": NEW}
    fake.says = [{"stream": "Loaded image: dc/node:2\n"}]
    await killed_in_mid_load(docker, tmp_path, monkeypatch)
    assert fake.tags["python:3"] == NEW, "the control"
    fake.tags["built:1"] = "sha256:" + "4" * 64  # by somebody, meanwhile
    await ImageStore(docker, notes=tmp_path).tend()
    assert fake.tags == {**here, KEPT: NEW, "built:1": "sha256:" + "4" * 64}
    assert notes(tmp_path) == []
    fake.tags["mine:1"] = NEW  # after that the agent has nothing more to do with that image's tags
    await ImageStore(docker, notes=tmp_path).tend()
    assert fake.tags["mine:1"] == NEW


async def test_a_load_that_is_done_again_undoes_the_first_one_too(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With containerd's store an image's id is not the one that its archive names: the load tells which it is."""
    fake.tags, fake.info = {"python:3": OLD}, {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    fake.loads = {"dc/node:2": THIRD, "python:3": THIRD}
    fake.says = [{"stream": "Loaded image: dc/node:2\n"}]
    await killed_in_mid_load(docker, tmp_path, monkeypatch)
    again = ImageStore(docker, notes=tmp_path)
    await again.tend()
    assert fake.tags["python:3"] == THIRD, "which image is the load's is not known yet"
    await again.load(archive(tmp_path), LIMITS, ENCLAVE)
    assert fake.tags == {"python:3": OLD, KEPT: THIRD}
    assert notes(tmp_path) == []


async def test_a_load_that_breaks_leaves_the_note_of_the_one_before_it_and_what_others_tagged(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.tags, fake.loads = {"python:3": OLD}, {"python:3": NEW}
    fake.says = [{"stream": "Loaded image: dc/node:2\n"}]
    await killed_in_mid_load(docker, tmp_path, monkeypatch)
    fake.tags["built:1"] = THIRD  # by somebody, meanwhile
    fake.loads, fake.says = {}, []
    again = ImageStore(docker, notes=tmp_path)
    with pytest.raises(ProcessSupervisorError, match="CONTAINER_IMAGE_MISSING"):
        await again.load(archive(tmp_path), LIMITS, ENCLAVE)
    assert fake.tags["built:1"] == THIRD
    await again.tend()
    assert {tag: fake.tags[tag] for tag in ("python:3", "built:1")} == {"python:3": OLD, "built:1": THIRD}


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"tags": 7, "image_id": ""}', b"[" * 100_000])
async def test_a_damaged_note_of_a_load_undoes_nothing(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path, damage: bytes
) -> None:
    fake.tags = {"python:3": OLD}
    (tmp_path / f"{ENCLAVE}.load").write_bytes(damage)
    await ImageStore(docker, notes=tmp_path).tend()
    assert (fake.tags, notes(tmp_path)) == ({"python:3": OLD}, [])
