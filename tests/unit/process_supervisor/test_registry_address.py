"""The registries that an engine may contact (decision 23)."""

import asyncio
import socket
from dataclasses import replace
from urllib.parse import urlsplit

import aiodocker
import pytest

from process_supervisor.container_images import ImageStore
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.sources import ImageReference
from tests.doubles.docker_engine import LIMITS, OLD, FakeEngine


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Addresses by name, as this host resolves them; others are unknown here."""
    made: dict[str, list[str]] = {}

    async def getaddrinfo(_: object, host: str, *__: object, **___: object) -> list[tuple[object, ...]]:
        if host not in made:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in made[host]]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return made


@pytest.mark.parametrize(
    "registry",
    [
        *("127.0.0.1:5000", "localhost", "localhost:5000", "LOCALHOST", "127.1:5000", "0.0.0.0:5000", "10.1.2.3"),
        *("169.254.169.254:80", "192.168.0.1:5000", "[::1]:5000", "[fe80::1]", "[::ffff:10.1.2.3]", "[fd00::5]:443"),
        *("inside.example", "half.example:5000", "a.localhost"),
    ],
)
async def test_no_registry_at_a_private_address_is_asked_unless_the_settings_say_so(
    fake: FakeEngine, docker: aiodocker.Docker, names: dict[str, list[str]], registry: str
) -> None:
    names |= {"inside.example": ["10.1.2.3"], "half.example": ["93.184.215.14", "fe80::1%eth0"]}
    reference = ImageReference(f"{registry}/dc/node", "1", None)
    fake.tags = {f"{reference.name}:1": OLD}
    fake.go_on.set()
    store = ImageStore(docker)
    other = replace(LIMITS, own_hosts=frozenset({"other.example"}))
    with pytest.raises(ProcessSupervisorError) as caught:
        await store.pull(reference, None, other, lambda _: None)
    assert (caught.value.code, caught.value.kind) == ("DOWNLOAD_ADDRESS_REFUSED", "transient")
    assert "download.private_addresses" in caught.value.action
    assert fake.auth == [], "the engine was not asked to pull"
    host = urlsplit(f"//{registry}").hostname or ""
    named, allowed = replace(LIMITS, own_hosts=frozenset({host})), replace(LIMITS, private_addresses=True)
    for limits in (named, allowed):
        assert (await store.pull(reference, None, limits, lambda _: None)).image_id == OLD


@pytest.mark.parametrize(
    "name", ["dc/node", "docker.io/dc/node", "public.example/dc/node", "unknown.example/dc/node", "[1::2::3]:5/dc/node"]
)
async def test_other_registries_are_the_engines_to_reach(
    fake: FakeEngine, docker: aiodocker.Docker, names: dict[str, list[str]], name: str
) -> None:
    """One without a host is the engine's own, which its settings name; its proxy may know a name that we do not."""
    names |= {"public.example": ["93.184.215.14"], "index.docker.io": ["10.0.0.1"]}
    fake.tags = {f"{name}:1": OLD}
    fake.go_on.set()
    assert (
        await ImageStore(docker).pull(ImageReference(name, "1", None), None, LIMITS, lambda _: None)
    ).image_id == OLD


async def test_an_image_that_is_here_by_its_digest_needs_no_registry(
    fake: FakeEngine, docker: aiodocker.Docker
) -> None:
    digest = "sha256:" + "a" * 64
    name = "127.0.0.1:5000/dc/node"
    fake.tags, fake.digests = {f"{name}@{digest}": OLD}, [f"{name}@{digest}"]
    pulled = await ImageStore(docker).pull(ImageReference(name, None, digest), None, LIMITS, lambda _: None)
    assert pulled.image_id == OLD
