"""The reference node alone, as a real process under the simulated TEE: refusals without keys or vault."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest

from attestation.artefact.files import build_image, build_sigstruct, verify_artefact
from dcupgrade.publishing.signing import sign_enclave_id
from devnet.release_builder import (
    SIGSTRUCT_DATE,
    BuiltRelease,
    NodeTraits,
    ReleaseBuilder,
    ReleaseKeys,
    node_sources,
)
from devnet.tools import free_port
from devnet.world import NodeClient

pytestmark = [pytest.mark.e2e]
GENESIS = "0x" + "11" * 32
ROGUE = Path(__file__).parent / "upgrade_parts" / "rogue.py"


@dataclass(slots=True)
class Running:
    """A node's process and a client of it."""

    process: asyncio.subprocess.Process
    client: NodeClient
    log: Path

    async def until(self, status: str) -> dict[str, object]:
        """Wait until the node's health has that status."""
        async with asyncio.timeout(60):
            while True:
                health = await self.client.health()
                if health is not None and health["status"] == status:
                    return health
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.02)


class Bench:
    """Releases unpacked into slots, and nodes started from them on one data folder and one simulated CPU."""

    def __init__(self, folder: Path, keys: ReleaseKeys) -> None:
        self.folder = folder
        (folder / "archives").mkdir()
        self.builder = ReleaseBuilder(folder / "archives", keys, GENESIS)
        self.data = folder / "data"

    def slot(self, release: BuiltRelease) -> Path:
        slot = self.folder / release.name
        if not slot.exists():
            release.install(slot)
        return slot

    @asynccontextmanager
    async def running(self, release: BuiltRelease, *flags: str, data: Path | None = None) -> AsyncIterator[Running]:
        slot, port, log = self.slot(release), free_port(), self.folder / f"{release.name}.log"
        command = [sys.executable, "-m", "attestation.simulated", "run", "--cpu", str(self.folder / "cpu")]
        command += ["--image", str(slot / "enclave.pyz"), "--sigstruct", str(slot / "enclave.sig"), "--"]
        command += ["--data", str(data or self.data), "--port", str(port), "--upgrader", "http://127.0.0.1:9"]
        command += ["--network-signature-file", str(slot / "network.sig"), *flags]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
        async with aiohttp.ClientSession() as session:
            try:
                yield Running(process, NodeClient(f"http://127.0.0.1:{port}", session), log)
            finally:
                if process.returncode is None:
                    process.terminate()
                await asyncio.wait_for(process.wait(), 60)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> ReleaseKeys:
    return ReleaseKeys.draw(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def bench(tmp_path: Path, keys: ReleaseKeys) -> Bench:
    return Bench(tmp_path, keys)


@asynccontextmanager
async def installing(bench: Bench) -> AsyncIterator[tuple[BuiltRelease, Running, str]]:
    """Run a fresh 1.0.0 that serves one object; gives the release, the node and the key set's id."""
    old = bench.builder.good("1.0.0")
    async with bench.running(old, "--first-install") as node:
        health = await node.until("serving")
        await node.client.put("a", b"of 1.0.0")
        yield old, node, str(health["key_set_id"])


async def installed(bench: Bench) -> tuple[BuiltRelease, str]:
    """Leave a data folder with one object of 1.0.0; returns the release and the key set's id."""
    async with installing(bench) as (old, node, key_set_id):
        pass
    assert node.process.returncode == 0
    return old, key_set_id


async def test_a_restarted_node_unseals_its_own_keys(bench: Bench) -> None:
    old, key_set_id = await installed(bench)
    for flags in ((), ("--first-install",)):
        async with bench.running(old, *flags) as node:
            assert (await node.until("serving"))["key_set_id"] == key_set_id
            assert await node.client.get("a") == b"of 1.0.0"


async def test_without_the_keys_the_new_version_cannot_read_the_old_ones_data(bench: Bench) -> None:
    old, key_set_id = await installed(bench)
    new = bench.builder.good("1.1.0")
    before = {path: path.read_bytes() for path in bench.data.rglob("*") if path.is_file()}
    async with bench.running(new) as node:
        health = await node.until("waiting_for_keys")
        assert health["key_set_id"] is None
        for method, path in (("GET", "a"), ("PUT", "b"), ("DELETE", "a")):
            async with node.client.session.request(method, f"{node.client.url}/objects/{path}", data=b"x") as answer:
                assert answer.status == 503
                assert (await answer.json())["code"] == "NODE_NOT_SERVING"
    async with bench.running(new, "--first-install") as node:
        health = await node.until("failed")
        assert health["error"]["code"] == "NODE_FIRST_INSTALL_REFUSED"  # type: ignore[index]
    assert {path: path.read_bytes() for path in bench.data.rglob("*") if path.is_file()} == before
    async with bench.running(old) as node:
        assert (await node.until("serving"))["key_set_id"] == key_set_id


@pytest.mark.slow
async def test_sealed_keys_open_only_on_the_cpu_that_sealed_them(bench: Bench) -> None:
    old, _ = await installed(bench)
    shutil.move(bench.folder / "cpu", bench.folder / "another machine's cpu")
    async with bench.running(old) as node:
        await node.until("waiting_for_keys")
    shutil.rmtree(bench.folder / "cpu")
    shutil.move(bench.folder / "another machine's cpu", bench.folder / "cpu")
    async with bench.running(old) as node:
        await node.until("serving")


async def test_a_marker_without_keys_is_never_overwritten(bench: Bench) -> None:
    bench.data.mkdir()
    marker = bench.data / "keyset.json"
    marker.write_text(json.dumps({"key_set_id": "ab" * 32}))
    async with bench.running(bench.builder.good("1.0.0"), "--first-install") as node:
        assert (await node.until("failed"))["error"]["code"] == "NODE_FIRST_INSTALL_REFUSED"  # type: ignore[index]
    assert json.loads(marker.read_text()) == {"key_set_id": "ab" * 32}


async def test_an_empty_folder_is_not_a_first_install_by_itself(bench: Bench) -> None:
    async with bench.running(bench.builder.good("1.0.0")) as node:
        await node.until("waiting_for_keys")
    assert not (bench.data / "keyset.json").exists()


async def test_two_nodes_never_work_on_the_same_data(bench: Bench) -> None:
    old, new = bench.builder.good("1.0.0"), bench.builder.good("1.1.0")
    async with bench.running(old, "--first-install") as node:
        await node.until("serving")
        async with bench.running(new) as second:
            assert await asyncio.wait_for(second.process.wait(), 60) == 2
        assert "NODE_DATA_LOCKED" in second.log.read_text()
        assert (await node.until("serving"))["canary"] is True


async def test_commit_is_for_this_very_version_and_is_kept(bench: Bench) -> None:
    async with installing(bench) as (old, node, _):
        assert (await node.until("serving"))["committed"] is False
        for body, status in ((b"{}", 400), (b"junk", 400), (json.dumps({"enclave_id": "ab" * 32}).encode(), 409)):
            async with node.client.session.post(f"{node.client.url}/commit", data=body) as answer:
                assert answer.status == status
        url = f"{node.client.url}/commit"
        async with node.client.session.post(url, json={"enclave_id": old.enclave_id}) as answer:
            assert answer.status == 200
    async with bench.running(old) as node:
        assert (await node.until("serving"))["committed"] is True


@pytest.mark.slow
async def test_a_damaged_object_breaks_the_connection_instead_of_lying(bench: Bench) -> None:
    async with installing(bench) as (_, node, _):
        await node.client.put("big", bytes(3 * 1024 * 1024))
        path = max((bench.data / "objects").iterdir(), key=lambda item: item.stat().st_size)
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)
        with pytest.raises(aiohttp.ClientError):
            await node.client.get("big")
        assert await node.client.get("a") == b"of 1.0.0"


@pytest.mark.slow
async def test_a_killed_upload_leaves_the_object_as_it_was(bench: Bench) -> None:
    async with installing(bench) as (old, node, _):

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(65536)
                await asyncio.sleep(0.001)

        async def upload() -> None:
            async with node.client.session.put(f"{node.client.url}/objects/a", data=endless()):
                raise AssertionError("an endless upload has no answer")

        uploading = asyncio.create_task(upload())
        await asyncio.sleep(0.2)
        node.process.send_signal(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await uploading
    async with bench.running(old) as node:
        await node.until("serving")
        assert await node.client.get("a") == b"of 1.0.0"
        assert await node.client.names() == ["a"]


async def test_a_version_that_does_not_start_says_so(bench: Bench) -> None:
    bad = bench.builder.build("1.1.0", NodeTraits(does_not_start=True), name="does-not-start")
    async with bench.running(bad) as node:
        assert await asyncio.wait_for(node.process.wait(), 60) == 3


ROGUES = {
    "honest": ("honest", False, True, None),  # the control: signed by the network, it is an upgrader like any other
    "debug": ("honest", True, True, "PEER_DEBUG"),
    "unsigned": ("honest", False, False, "NETWORK_SIGNATURE_BAD"),
    "replayed": ("replayed", False, True, "HANDOVER_SESSION_UNKNOWN"),
    "mistargeted": ("mistargeted", False, True, "REPORT_MAC_BAD"),
    # signed, but not the vault that the node's measured policy names: an older or revoked version of itself, say
    "not the named vault": ("honest", False, True, "PEER_NOT_UPGRADER"),
}
SOME_ROGUES = ("honest", "unsigned")  # in `make test`; the others in `make e2e-long`


@pytest.mark.parametrize(
    "rogue",
    [rogue if rogue in SOME_ROGUES else pytest.param(rogue, marks=pytest.mark.slow) for rogue in ROGUES],
)
async def test_keys_are_given_to_no_enclave_but_a_signed_one_that_plays_by_the_rules(bench: Bench, rogue: str) -> None:
    behaviour, debug, signed, code = ROGUES[rogue]
    if rogue == "not the named vault":
        bench.builder = replace(bench.builder, upgrader_ids=("ab" * 32,))
    folder = bench.folder / "rogue"
    folder.mkdir()
    image, sigstruct, signature = folder / "rogue.pyz", folder / "rogue.sig", folder / "network.sig"
    sources = {name: source for name, source in node_sources({}).items() if "reference_node" not in name}
    build_image(image, {**sources, "rogue.py": ROGUE.read_bytes()}, "rogue:main")
    keys = bench.builder.keys
    sigstruct.write_bytes(build_sigstruct(image, keys.vendor, debug=debug, date=SIGSTRUCT_DATE))
    rogue_id = verify_artefact(image, sigstruct)
    signature.write_text(sign_enclave_id(keys.network, rogue_id if signed else "ab" * 32))

    async with installing(bench) as (_, node, key_set_id):
        command = [sys.executable, "-m", "attestation.simulated", "run", "--cpu", str(bench.folder / "cpu")]
        command += ["--image", str(image), "--sigstruct", str(sigstruct), "--", behaviour, node.client.url]
        command += [keys.network_public, GENESIS, str(signature)]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, err.decode()
        assert json.loads(out) == ({"got": key_set_id} if code is None else {"refused": code})
