"""The vault over HTTP in one process: whole cycles, restarts, conditions, and attacks on its decisions."""

import json
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from attestation.network import encode_multibase
from attestation.simulated.cpu import SoftwareCpu
from keyvault.client import VaultClient
from keyvault.errors import KeyvaultError
from keyvault.handover import http_server as web
from keyvault.handover.guarded_server import GuardedServer
from keyvault.handover.key_set import KeySet
from keyvault.store.sealed_file import KIND_FACTS, KIND_KEY_SET
from tests.doubles import state_maker
from tests.doubles.chain_makers import blob, compact
from tests.doubles.crash_disk import CrashDisk, PowerCutError
from tests.doubles.vault_host import (
    KEYS_ID,
    LISTED,
    NEW,
    NOW,
    OLD,
    TOKEN,
    VAULT,
    Host,
    NewNode,
    base_url,
    collect,
    evidence,
    hand_over,
    node_serving,
    permit,
    policy,
    refused,
    serving,
)
from tests.doubles.vault_kit import CPU, GENESIS, NETWORK, SECRET, Enclave, enclave_id, sign


async def test_a_whole_upgrade_with_restarts_of_the_vault_between_all_steps() -> None:
    host = Host()
    async with serving(host.vault()) as client, node_serving("node 1") as (url, handover):
        assert await client.collect(url, OLD) == {"key_set_id": KEYS_ID, "source_id": OLD, "epoch": 1}
        assert handover.collected_by == VAULT
        assert (await client.collect(url, OLD))["epoch"] == 2
    async with serving(host.vault()) as client:
        assert await client.delivery(NEW) == {"state": "waiting", "code": None, "instances": 0}
        assert await refused(NewNode("node 2").ask(base_url(client))) == "NO_PERMIT_YET"
        assert (await client.delivery(NEW))["state"] == "challenged"
        answer = await permit(client)
        assert (answer["target_id"], answer["expires_at_unix_s"]) == (NEW, NOW + 3600)
        assert answer == await permit(client)
    async with serving(host.vault()) as client:
        assert (await client.delivery(NEW))["state"] == "waiting"
        assert await NewNode("node 2").ask(base_url(client)) == SECRET
        assert await client.delivery(NEW) == {"state": "durable", "code": None, "instances": 1}
        await client.committed(NEW, KEYS_ID)
    async with serving(host.vault()) as client:
        assert (await client.delivery(NEW))["state"] == "durable"
        assert await NewNode("node 1").ask(base_url(client)) == SECRET  # reverting by hand within the retention time
        assert (await client.retain(KEYS_ID, NOW + 500))["retain_until_unix_s"] == NOW + 500


async def test_keys_are_wiped_after_commit_and_retention_and_never_before() -> None:
    host = Host()
    vault = host.vault()
    async with serving(vault) as client:
        await hand_over(client)
        assert vault.sweep() == []
        await client.committed(NEW, KEYS_ID)
        host.clock.unix_s += 10**8  # a jump of the host's clock hastens nothing
        assert vault.sweep() == []
        host.clock.monotonic_s += 99
        assert vault.sweep() == []
        host.clock.monotonic_s += 1
        assert vault.sweep() == [KEYS_ID]
        assert not [name for name in host.disk.files if "keys-" in name]
        assert await refused(NewNode("node 1").ask(base_url(client))) == "RELEASE_KEY_SET_WIPED"
        assert (await client.status())["key_sets"][0]["wiped"]
    async with serving(host.vault()) as client:  # what the vault knows of the chain survives the wiping
        assert (await client.status())["chain"]["height_floor"] == 10


async def test_the_time_a_set_was_kept_is_remembered_hour_by_hour() -> None:
    host = Host(policy=policy(retention_s=12_000))
    vault = host.vault()
    async with serving(vault) as client:
        await hand_over(client)
        host.clock.monotonic_s += 50_000  # before the commit: does not count
        await client.committed(NEW, KEYS_ID)
    host.clock.unix_s += 10**8
    for _ in range(3):
        vault = host.vault()  # a restart loses what was not sealed yet, so wiping can only come later
        for _ in range(4):
            host.clock.monotonic_s += 900
            assert vault.sweep() == []
    host.clock.monotonic_s += 1200
    assert vault.sweep() == [KEYS_ID]


async def test_a_power_cut_at_any_step_of_a_cycle_loses_neither_keys_nor_decisions() -> None:
    for steps in range(0, 40):
        host = Host()
        host.disk.steps = steps
        done: list[Any] = []
        try:
            vault = host.vault()
            with KeySet(SECRET) as key_set:
                done.append(vault.keep(key_set, OLD))
            done.append(await vault.permit(OLD, NEW, KEYS_ID, evidence(NEW, LISTED)))
            vault.hand_out(NEW).wipe()
            done.append("handed out")
        except PowerCutError:
            pass
        host.disk = host.disk.after_power_cut(keep_names=steps % 2 == 0)
        vault = host.vault()
        assert vault.condition is None
        status = vault.status()
        assert len(done) < 1 or [entry["source_id"] for entry in status["key_sets"]] == [OLD]
        assert len(done) < 1 or bytes(vault.hand_out(OLD).view()) == SECRET
        assert len(done) < 2 or [p["target_id"] for p in status["permits"]] == [NEW]
        assert len(done) < 3 or status["permits"][0]["instances"] >= 1, "the count of hand-outs must not fall back"
    assert len(done) == 3


async def test_a_key_set_sealed_just_before_a_crash_is_found_again_by_its_header() -> None:
    host = Host()
    vault = host.vault()
    with KeySet(SECRET) as key_set:
        vault.keep(key_set, OLD)
    old_facts = Host().vault()._store.get(KIND_FACTS, "")  # facts of a vault that knows nothing yet
    vault._store.put(KIND_FACTS, "", bytes(32), old_facts.payload)
    assert [entry["source_id"] for entry in host.vault().status()["key_sets"]] == [OLD]


async def test_a_source_that_changed_just_before_a_crash_ends_the_permit_of_the_earlier_one() -> None:
    host = Host()
    vault = host.vault()
    with KeySet(SECRET) as key_set:
        vault.keep(key_set, OLD)
        await vault.permit(OLD, NEW, KEYS_ID, evidence(NEW, LISTED))
        vault._store.put(KIND_KEY_SET, KEYS_ID, bytes.fromhex(NEW), key_set.view())  # and the power goes
    status = host.vault().status()
    assert [entry["source_id"] for entry in status["key_sets"]] == [NEW]
    assert status["permits"] == []


async def test_a_newer_cpu_security_version_reseals_without_touching_decisions() -> None:
    host = Host()
    vault = host.vault()
    with KeySet(SECRET) as key_set:
        vault.keep(key_set, OLD)
    await vault.permit(OLD, NEW, KEYS_ID, evidence(NEW, LISTED))
    host.cpu = SoftwareCpu(replace(CPU.root, cpusvn_level=2))
    for _ in range(2):
        vault = host.vault()
        vault.hand_out(OLD).wipe()
    assert [permit["target_id"] for permit in vault.status()["permits"]] == [NEW]
    assert vault.self_test()["failed"] == {}


async def test_a_full_disk_keeps_no_vault_down_that_has_nothing_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    with KeySet(SECRET) as key_set:
        host.vault().keep(key_set, OLD)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host.disk, "write", full)
    vault = host.vault()
    assert bytes(vault.hand_out(OLD).view()) == SECRET
    with pytest.raises(KeyvaultError, match="STORE_WRITE_FAILED"):
        await vault.permit(OLD, NEW, KEYS_ID, evidence(NEW, LISTED))
    assert vault.status()["permits"] == []


async def test_a_replaced_vault_build_says_so_and_neither_collects_nor_permits() -> None:
    host = Host()
    async with serving(host.vault()) as client:
        await collect(client)
    replaced = Host(disk=host.disk, name="another vault build")
    before = dict(host.disk.files)
    async with serving(replaced.vault()) as client:
        assert (await client.health())["status"] == "VAULT_REPLACED"
        assert VAULT in (await client.status())["condition"]["why"]
        assert await refused(collect(client)) == "VAULT_REPLACED"
        assert await refused(permit(client)) == "VAULT_REPLACED"
        assert await refused(client.retain(KEYS_ID, 1)) == "VAULT_REPLACED"
        assert await refused(client.committed(NEW, KEYS_ID)) == "VAULT_REPLACED"
        assert replaced.vault().sweep() == []
    assert host.disk.files == before
    async with serving(host.vault()) as client:  # the build that sealed it still opens it
        assert await NewNode("node 1").ask(base_url(client)) == SECRET


async def test_lost_facts_stop_permits_but_not_the_return_to_the_source() -> None:
    host = Host()
    async with serving(host.vault()) as client:
        await collect(client)
    for name in [name for name in host.disk.files if ".facts." in name]:
        del host.disk.files[name]
    async with serving(host.vault()) as client:
        assert (await client.health())["status"] == "VAULT_FACTS_MISSING"
        assert await refused(permit(client)) == "VAULT_FACTS_MISSING"
        assert await NewNode("node 1").ask(base_url(client)) == SECRET


async def test_an_unreadable_sealed_copy_is_reported_and_kept() -> None:
    host = Host()
    async with serving(host.vault()) as client:
        await collect(client)
        for name in [name for name in host.disk.files if "keys-" in name]:
            sealed = host.disk.files[name]
            host.disk.files[name] = sealed[:-1] + bytes([sealed[-1] ^ 1])
        assert await refused(NewNode("node 1").ask(base_url(client))) == "RELEASE_KEY_SET_UNREADABLE"
        assert (await client.delivery(OLD))["code"] == "RELEASE_KEY_SET_UNREADABLE"
        assert [name for name in host.disk.files if "keys-" in name]


# the release decision, over HTTP


async def test_signed_peers_that_are_neither_target_nor_source_get_nothing() -> None:
    host = Host()
    async with serving(host.vault()) as client:
        await collect(client)
        await permit(client)
        assert await refused(NewNode("another signed node").ask(base_url(client))) == "PERMIT_OTHER_TARGET"
        unsigned = NewNode("node 2", signed=sign(OLD))
        assert await refused(unsigned.ask(base_url(client))) == "NETWORK_SIGNATURE_BAD"
        assert (await client.delivery(NEW))["instances"] == 0


async def test_instances_are_bounded_across_restarts_of_the_vault() -> None:
    host = Host(policy=policy(instances_max=2))
    async with serving(host.vault()) as client:
        await collect(client)
        await permit(client)
    for _ in range(2):
        host.vault().hand_out(NEW).wipe()
    async with serving(host.vault()) as client:
        assert await refused(NewNode("node 2").ask(base_url(client))) == "PERMIT_INSTANCES_SPENT"
        assert await client.delivery(NEW) == {"state": "refused", "code": "PERMIT_INSTANCES_SPENT", "instances": 2}


async def test_a_restarted_instance_may_ask_again_until_durable() -> None:
    async with serving(Host().vault()) as client:
        await collect(client)
        await permit(client)

        async def dies(_: bytes) -> bool:
            raise RuntimeError("the new node dies between receiving and sealing the keys")

        from attestation.network import NetworkKeys
        from keyvault.node import NodePolicy, request_keys

        node = Enclave("node 2")
        keys = NetworkKeys((NETWORK.public_key().public_bytes_raw(),))
        async with aiohttp.ClientSession() as session:
            with pytest.raises(RuntimeError):
                await request_keys(
                    session, base_url(client), node.tee, NodePolicy(keys, GENESIS), [sign(NEW)], dies, deadline_s=0
                )
        assert (await client.delivery(NEW))["state"] in ("delivered", "received")
        assert await NewNode("node 2").ask(base_url(client)) == SECRET
        assert (await client.delivery(NEW))["instances"] == 2
        assert await refused(NewNode("node 2").ask(base_url(client))) == "PERMIT_ALREADY_DURABLE"


async def test_a_lost_answer_to_durable_does_not_hurt_the_node() -> None:
    vault = Host().vault()
    real = vault.on_durable
    lost: list[Any] = []

    async def on_durable(body: bytes) -> bytes:
        answer = await real(body)
        if not lost:
            lost.append(1)
            vault._holder._deliveries.clear()  # as after a restart of the vault
            raise KeyvaultError(code="HANDOVER_SESSION_UNKNOWN", what="x", why="y", kind="transient")
        return answer

    vault.on_durable = on_durable  # type: ignore[method-assign]
    async with serving(vault) as client:
        await collect(client)
        await permit(client)
        assert await NewNode("node 2").ask(base_url(client), deadline_s=5.0) == SECRET


async def test_evidence_rules_hold_over_http_and_a_raised_floor_survives_a_restart() -> None:
    host = Host()
    async with serving(host.vault()) as client:
        await collect(client)
        assert await refused(permit(client, program=None)) == "PERMIT_TARGET_NOT_PROGRAM"
        assert await refused(permit(client, block_number=9, block_hash="0" * 64)) == "VAULT_EVIDENCE_BELOW_FLOOR"
    async with serving(host.vault()) as client:
        assert await refused(permit(client, block=9)) == "VAULT_EVIDENCE_BELOW_FLOOR"
        assert await refused(permit(client, genesis_hash="00" * 32)) == "VAULT_EVIDENCE_WRONG_CHAIN"
        assert await refused(permit(client, mode="proven")) == "VAULT_EVIDENCE_MALFORMED"
        bad = [{"height": 7, "enclave_id": NEW, "signature": "rubbish"}]
        assert await refused(permit(client, enclave_ids=bad)) == "PERMIT_TARGET_UNSIGNED"
        other = [{"height": 7, "enclave_id": NEW, "signature": encode_multibase(sign(OLD))}]
        assert await refused(permit(client, enclave_ids=other)) == "PERMIT_TARGET_UNSIGNED"
        both = [*bad, *other, {"height": 7, "enclave_id": NEW, "signature": encode_multibase(sign(NEW))}]
        assert (await permit(client, enclave_ids=both))["target_id"] == NEW


async def test_a_vault_measured_without_the_unsafe_switch_refuses_claims() -> None:
    checkpoint = {"block_number": 0, "set_id": 0, "authorities": [["0x" + "33" * 32, 1]]}
    strict = policy(evidence_mode="proven", unsafe_unproven_evidence=False, checkpoint=checkpoint)
    async with serving(Host(policy=strict).vault()) as client:
        await collect(client)
        assert await refused(permit(client)) == "VAULT_EVIDENCE_UNPROVEN"
        assert await refused(permit(client, mode="quorum")) == "VAULT_EVIDENCE_UNPROVEN"


async def test_a_permit_from_proven_evidence_across_authority_sets() -> None:
    def signed(*rows: tuple[int, str]) -> bytes:
        encoded = (
            h.to_bytes(4, "little") + blob(i.encode()) + blob(encode_multibase(sign(i)).encode()) for h, i in rows
        )
        return compact(len(rows)) + b"".join(encoded)

    case = state_maker.Case(
        changes=(
            ("enclave_ids", signed((3, OLD), (7, NEW), (1, VAULT))),
            ("dc_program", state_maker.program_value(NEW)),
        )
    )
    strict = policy(
        evidence_mode="proven",
        unsafe_unproven_evidence=False,
        require_listed_vault=True,
        genesis_hash=state_maker.GENESIS.hex(),
        checkpoint=case.trust.checkpoint.to_json(),
    )
    host = Host(policy=strict)
    host.clock.unix_s = state_maker.NOW_MS / 1000 + 5
    vault = host.vault()
    with pytest.raises(KeyvaultError, match="VAULT_EVIDENCE_NEEDED"):
        await vault.collect("http://127.0.0.1:1", OLD, "v2", None)
    with pytest.raises(KeyvaultError, match="HANDOVER_PEER_UNREACHABLE"):
        await vault.collect("http://127.0.0.1:1", OLD, "v2", case.json())
    with KeySet(SECRET) as key_set:
        vault.keep(key_set, OLD)
    answer = await vault.permit(OLD, NEW, KEYS_ID, case.json())
    assert (answer["block_number"], answer["block_hash"]) == (100, case.headers[0].hash.hex())
    again = host.vault()  # the last proven authority set was sealed: set changes need not be shown again
    assert again.status()["chain"]["authorities"]["set_id"] == 2
    assert await again.permit(OLD, NEW, KEYS_ID, {**case.json(), "set_changes": []}) == answer
    forged = case.json()
    middle = len(forged["justification"]) // 2
    spoiled = "0" if forged["justification"][middle] != "0" else "1"
    forged["justification"] = forged["justification"][:middle] + spoiled + forged["justification"][middle + 1 :]
    with pytest.raises(KeyvaultError, match=r"JUSTIFICATION_|SCALE_"):
        await again.permit(OLD, NEW, KEYS_ID, forged)


async def test_a_vault_that_must_be_listed_collects_with_evidence_that_lists_it() -> None:
    async with serving(Host(policy=policy(require_listed_vault=True)).vault()) as client:
        assert await refused(collect(client)) == "VAULT_EVIDENCE_NEEDED"
        assert await refused(collect(client, evidence=evidence(NEW, {OLD: 3}))) == "VAULT_NOT_LISTED"
        assert (await collect(client, evidence=evidence(NEW, LISTED, 11)))["epoch"] == 1
        status = await client.status()
        assert status["key_sets"][0]["source_added_height"] == 3


# collecting


async def test_a_node_that_is_not_the_named_source_is_refused() -> None:
    async with serving(Host().vault()) as client, node_serving("another signed node") as (url, _):
        assert await refused(client.collect(url, OLD)) == "PEER_NOT_SOURCE"
        assert (await client.status())["key_sets"] == []


async def test_a_node_without_keys_is_transient() -> None:
    async with serving(Host().vault()) as client, node_serving("node 1", None) as (url, _):
        assert await refused(client.collect(url, OLD)) == "HANDOVER_NOTHING_HELD"


async def test_a_node_that_answers_garbage_or_nothing_is_told_as_such() -> None:
    app = web.new_app()
    answers = {"status": 200, "body": b"garbage"}

    async def hello(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(**answers)  # type: ignore[arg-type]

    app.router.add_post("/v2/hello", hello)
    server = GuardedServer(app)
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    try:
        async with serving(Host().vault()) as client:
            assert await refused(client.collect(url, OLD)) == "HANDOVER_MESSAGE_MALFORMED"
            for body in (b"x" * 200_000, b"{}", b'{"code":1}'):
                answers.update(status=500 if body != b"x" * 200_000 else 200, body=body)
                assert await refused(client.collect(url, OLD)) == "HANDOVER_ANSWER_MALFORMED"
            assert await refused(client.collect("http://127.0.0.1:1", OLD)) == "HANDOVER_PEER_UNREACHABLE"
    finally:
        await server.stop()


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1:1", "http://127.0.0.1", "http://a@127.0.0.1:1", "http://127.0.0.1:1/x", "http://[::1", "x"],
)
async def test_addresses_that_are_not_plain_http_are_refused(url: str) -> None:
    async with serving(Host().vault()) as client:
        assert await refused(client.collect(url, OLD)) == "VAULT_NODE_URL_REFUSED"


async def test_downgrade_to_v1_is_refused_unless_the_measured_policy_names_the_node() -> None:
    async with serving(Host().vault()) as client, node_serving("node 1") as (url, _):
        assert await refused(client.collect(url, OLD, protocol="v1")) == "HANDOVER_DOWNGRADE_REFUSED"


async def test_another_key_set_offered_over_a_stored_one_is_added_beside_it() -> None:
    host = Host()
    async with serving(host.vault()) as client:
        await collect(client)
        async with node_serving("node 1", b"quite other keys") as (url, _):
            await client.collect(url, OLD)
        assert len((await client.status())["key_sets"]) == 2
        assert await NewNode("node 1").ask(base_url(client), wanted=KEYS_ID) == SECRET


# requests and their limits


async def test_key_material_is_in_no_log_line_of_a_whole_cycle(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    async with serving(Host().vault()) as client:
        await hand_over(client)
        await refused(NewNode("stranger").ask(base_url(client)))
        status = await client.status()
    seen = caplog.text + json.dumps(status)
    assert KEYS_ID in seen  # the control: the log tells which key set it was
    for form in (SECRET.decode()[:12], SECRET.hex()[:24]):
        assert form not in seen


async def test_strange_answers_of_a_vault_are_told_as_such() -> None:
    app = web.new_app()

    async def healthz(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(body=b"[]")

    app.router.add_get("/healthz", healthz)
    server = GuardedServer(app)
    port = await server.start("127.0.0.1", 0)
    async with VaultClient(f"http://127.0.0.1:{port}/", TOKEN + "\n") as client:
        assert await refused(client.health()) == "VAULT_ANSWER_MALFORMED"
    await server.stop()
    async with aiohttp.ClientSession() as session:
        client = VaultClient(f"http://127.0.0.1:{port}", TOKEN, session)
        assert await refused(client.health()) == "VAULT_UNREACHABLE"
        await client.close()
        assert not session.closed


def test_a_store_that_cannot_be_used_at_all_stops_the_start() -> None:
    disk = CrashDisk()
    host = Host(disk=disk, policy=policy())
    host.vault()
    import os

    from keyvault.handover.hpke import RealCrypto
    from keyvault.store.sealed_store import SealedStore
    from keyvault.vault.vault import Vault
    from tests.doubles.vault_kit import CpuTee, secs

    tee = CpuTee(secs("vault"))
    store = SealedStore(disk, tee, os.urandom, allow_simulated=False)
    vault = Vault(tee, policy(), store, RealCrypto(), (sign(VAULT),))
    with pytest.raises(KeyvaultError, match="STORE_SEAL_KEY_UNSAFE"):
        vault.start()


async def test_a_refusal_is_logged_once_with_what_was_expected_and_found(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="keyvault")
    web._logged.clear()
    async with serving(Host().vault()) as client, node_serving("another signed node") as (url, _):
        for _ in range(3):
            assert await refused(client.collect(url, OLD)) == "PEER_NOT_SOURCE"
            await refused(NewNode("node 2").ask(base_url(client)))
    lines = [record.getMessage() for record in caplog.records]
    (refusal,) = [line for line in lines if line.startswith("PEER_NOT_SOURCE")]
    assert f"expected {OLD}, found {enclave_id('another signed node')}" in refusal
    assert len([line for line in lines if line.startswith("NO_PERMIT_YET")]) == 1
    for number in range(300):
        web.log_refusal(KeyvaultError(code="NO_PERMIT_YET", what=str(number), why="", kind="transient"))
    assert len(web._logged) == 256
