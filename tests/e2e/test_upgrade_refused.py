"""Bad releases are refused or reverted, and the old version continues to serve its data.

All trials share one world: each publishes a release, checks the code of its refusal, and reads the old object back. The
last one publishes a good release, which must succeed after all the refused ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dcupgrade.commands.explain import all_codes
from dcupgrade.publishing.signing import sign_enclave_id
from devnet.artefact_server import Fault
from devnet.chain import DevChain
from devnet.release_builder import BuiltRelease, NodeTraits, ReleaseKeys
from devnet.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

PROBATION_S = 2.0
CRASH_AFTER_S = 0.7
OLD_DATA = b"written by 1.0.0"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(shared_chain: DevChain, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world in which 1.0.0 serves one object."""
    folder: Path = tmp_path_factory.mktemp("refused")
    overrides = {
        "node": {"probation_s": PROBATION_S, "ready_deadline_s": 30.0},
        "upgrade": {"attempts": 2, "backoff_s": 0.1, "backoff_max_s": 0.2},
    }
    keys = ReleaseKeys.draw(folder / "keys")
    async with World.open(folder / "world", shared_chain.ws_url, keys=keys, overrides=overrides) as world:
        await world.install(world.builder.good("1.0.0"))
        await world.node.put("a", OLD_DATA)
        yield world


async def old_serves(world: World) -> str:
    """The old version serves its data with its canary; returns its enclave id."""
    status = await world.status()
    assert status is not None
    running = str(status["state"]["running"]["enclave_id"])
    health = await world.wait_serving(running)
    assert health["version"] == "1.0.0"
    assert health["canary"] is True
    assert await world.node.get("a") == OLD_DATA
    return running


async def refused_under(world: World, code: str, seq: int) -> list[dict[str, object]]:
    """Wait until the journal names the code and the machine is idle again; the code is one that `explain` knows."""
    assert code in all_codes()

    def done(rows: list[dict[str, object]]) -> bool:
        named = any(code in f"{row['reason']} {row['detail']}" for row in rows)
        return named and bool(rows) and rows[-1]["state_after"] == "idle"

    rows = await world.wait_for(f"{code} in the journal", done, within_s=120, after=seq)
    await old_serves(world)
    return rows


STAGING = {
    "changed_after_signing": "SIGSTRUCT_MRENCLAVE_MISMATCH",
    "another_program": "STAGING_ENCLAVE_ID_MISMATCH",
    "bad_rsa_signature": "SIGSTRUCT_SIGNATURE_BAD",
    "leaves_its_folder": "ARCHIVE_PATH_REFUSED",
    "links_out": "ARCHIVE_MEMBER_REFUSED",
}


@pytest.mark.parametrize("kind", STAGING)
async def test_a_bad_artefact_is_refused_before_anything_is_touched(served: World, kind: str) -> None:
    seq = served.last_seq()
    release: BuiltRelease = getattr(served.builder, kind)("1.1.0")
    node = served.enclaves()["node"]
    await served.publish(release)
    rows = await refused_under(served, STAGING[kind], seq)
    assert {row["state_after"] for row in rows} <= {"idle", "staging", "abandoned"}
    assert served.enclaves()["node"] == node  # the same process: it never noticed
    assert not (served.state_dir / "slots" / release.enclave_id).exists()
    assert not list(served.folder.rglob("escaped.txt"))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(times=None, status=404), "DOWNLOAD_HTTP_STATUS"),
        (Fault(times=None, truncate_after_bytes=0), "DOWNLOAD_TRUNCATED"),
    ],
    ids=["missing", "truncated"],
)
async def test_a_download_that_does_not_come_is_given_up(served: World, fault: Fault, code: str) -> None:
    seq = served.last_seq()
    release = served.builder.build("1.1.0", NodeTraits(features=(code,)), name=code.lower())
    served.server.faults[release.archive.name] = fault
    await served.publish(release)
    await refused_under(served, code, seq)


async def test_a_server_that_is_not_there(served: World) -> None:
    seq = served.last_seq()
    release = served.builder.build("1.1.0", NodeTraits(features=("nowhere",)), name="nowhere")
    await served.publish_unverified(release, release.signature, origin_url="http://127.0.0.1:9/nowhere.tar.gz")
    await refused_under(served, "DOWNLOAD_UNREACHABLE", seq)


BAD_NODES = {
    "does-not-start": NodeTraits(does_not_start=True),
    "crashes-a-little-later": NodeTraits(crash_after_s=CRASH_AFTER_S),
    "cannot-read-the-data": NodeTraits(format_tag="dc object v2"),
}


@pytest.mark.parametrize("kind", BAD_NODES)
async def test_a_version_that_fails_is_reverted(served: World, kind: str) -> None:
    seq = served.last_seq()
    release = served.builder.build("1.1.0", BAD_NODES[kind], name=kind)
    await served.publish(release)

    def reverted(rows: list[dict[str, object]]) -> bool:
        states = [row["state_after"] for row in rows]
        return "reverted" in states and states[-1] == "idle"

    rows = await served.wait_for(f"{kind} reverted", reverted, within_s=180, after=seq)
    assert await old_serves(served) == rows[-1]["running"] != release.enclave_id
    assert "halted" not in {row["state_after"] for row in rows}


async def chain_refuses(world: World, code: str, before: int) -> None:
    """Wait until the watcher counts another refusal under the code."""
    assert code in all_codes()
    deadline = time.monotonic() + 90
    while refusals(await world.status(), code) <= before:
        assert time.monotonic() < deadline, f"{code} was not counted\n{world.tail()}"
        await asyncio.sleep(0.05)


def refusals(status: dict[str, object] | None, code: str) -> int:
    chain = (status or {}).get("chain")
    refused = chain.get("refused", {}) if isinstance(chain, dict) else {}
    return int(refused.get(code, 0))


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("a signature by another key", "RELEASE_SIGNATURE_REFUSED"),
        ("a signature over another id", "RELEASE_SIGNATURE_REFUSED"),
        ("a signature that is no multibase", "RELEASE_SIGNATURE_ENCODING"),
        ("an id in upper case", "RELEASE_ID_INVALID"),
        ("an id that is too short", "RELEASE_ID_INVALID"),
        ("a program without entry", "RELEASE_PROGRAM_WITHOUT_ENTRY"),
    ],
)
async def test_what_the_network_did_not_sign_is_never_looked_at(served: World, case: str, code: str) -> None:
    seq, before = served.last_seq(), refusals(await served.status(), code)
    release = served.builder.build("1.1.0", NodeTraits(features=(case,)), name=case.replace(" ", "-"))
    network = served.keys.network
    signature: str | None = release.signature
    program: dict[str, str] = {}
    if case.endswith("another key"):
        signature = sign_enclave_id(Ed25519PrivateKey.generate(), release.enclave_id)
    elif case.endswith("another id"):
        signature = sign_enclave_id(network, release.enclave_id[::-1])
    elif case.endswith("multibase"):
        signature = release.signature.upper()
    elif case.endswith("upper case"):
        program["enclave_id"] = release.enclave_id.upper()
    elif case.endswith("short"):
        program["enclave_id"] = release.enclave_id[:-1]
    else:
        signature = None
    await served.publish_unverified(release, signature, **program)
    await chain_refuses(served, code, before)
    # Another test's release may be tried again meanwhile.
    named = {release.enclave_id, program.get("enclave_id", release.enclave_id)}
    assert [row for row in served.history(seq) if row["target"] in named] == []
    await old_serves(served)


async def test_an_entry_without_program_changes_nothing(served: World) -> None:
    seq = served.last_seq()
    release = served.builder.build("1.1.0", NodeTraits(features=("only listed",)), name="only-listed")
    await served.list_id(release.enclave_id, release.signature)
    await old_serves(served)
    assert [row for row in served.history(seq) if row["target"] == release.enclave_id] == []


async def test_a_good_release_is_in_time_resumed_and_still_works_after_all_of_them(served: World) -> None:
    seq = served.last_seq()
    release = served.builder.good("1.1.0")
    part = served.state_dir / "slots" / ".incoming" / f"{release.enclave_id}.part"

    def has_read() -> bool:
        return part.exists() and part.stat().st_size == 50_000

    fault = Fault(times=1, truncate_after_bytes=50_000, truncate_when=has_read)
    served.server.faults[release.archive.name] = fault
    await served.publish(release)
    await served.wait_committed(release.enclave_id, after=seq)
    assert (await served.wait_serving(release.enclave_id))["version"] == "1.1.0"
    assert await served.node.get("a") == OLD_DATA
    asked = [header for path, header in served.server.requests if path.endswith(release.archive.name)]
    assert asked == [None, "bytes=50000-"]
