"""Handover v2 between enclaves on one software CPU: honest runs, and attacks that fail with the right code."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.sgx import DEBUG, INIT, MODE64BIT, Report, report_mac
from attestation.simulated.cpu import RootKeys, SoftwareCpu
from keyvault.errors import KeyvaultError
from keyvault.handover import messages
from keyvault.handover.holder import Holder
from keyvault.handover.key_set import KeySet, key_set_id
from keyvault.handover.transcript import CHALLENGE_TAG, REQUEST_TAG
from tests.doubles.vault_kit import CPU, SECRET, Enclave, altered, code_of, deliver, run, secs, sign

VAULT, NODE, OTHER = Enclave("vault"), Enclave("node 2"), Enclave("another signed enclave")


def begun(node: Enclave = NODE, vault: Enclave = VAULT) -> tuple[Any, Holder, bytes]:
    """A requester and a holder with the request under way."""
    requester, holder = node.requester(), vault.holder()
    return requester, holder, requester.on_challenge(holder.on_hello(requester.hello(), 0.0))


def unguarded(requester: Any) -> None:
    """An attacker's requester: it accepts a challenge repeatedly and does not verify its MAC."""
    requester._step = "challenge"
    requester._party.tee.verify = lambda report: None


def flip(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(data).decode()


def test_the_key_set_arrives_and_is_confirmed_twice() -> None:
    assert bytes(run(NODE.requester(), VAULT.holder()).view()) == SECRET


def test_no_message_holds_key_material_in_the_clear() -> None:
    requester, holder, request = begun()
    delivery = deliver(holder, request)
    requester.on_delivery(delivery)
    for message in (request, delivery, requester.received(), requester.durable(canary=True)):
        blobs = [base64.b64decode(v) for v in json.loads(message).values() if isinstance(v, str) and len(v) % 4 == 0]
        assert not any(SECRET[:16] in blob for blob in [*blobs, message])


def test_received_and_durable_may_be_repeated_after_a_lost_answer() -> None:
    requester, holder, request = begun()
    requester.on_delivery(deliver(holder, request))
    for _ in range(3):
        requester.acknowledged(holder.on_received(requester.received(), 0.0).answer, "received")
    for _ in range(3):
        confirmation = holder.on_durable(requester.durable(canary=True), 0.0)
        assert (confirmation.requester_id, confirmation.canary) == (NODE.id, True)
    assert holder.on_received(altered(b'{"session":"","mac":""}', **_again(requester)), 0.0).key_set_id


def _again(requester: Any) -> dict[str, str]:
    session = json.loads(requester.durable(canary=True))["session"]
    return {"session": session, "mac": base64.b64encode(bytes(32)).decode()}


def test_a_wanted_key_set_is_named_and_checked_on_both_sides() -> None:
    wanted = key_set_id(SECRET)
    assert run(NODE.requester(wanted), VAULT.holder()).key_set_id == wanted
    requester, holder = NODE.requester("ab" * 32), VAULT.holder()
    request = requester.on_challenge(holder.on_hello(requester.hello(), 0.0))
    assert code_of(lambda: deliver(holder, request)) == "HANDOVER_KEY_SET_MISMATCH"


def test_fake_keys_pushed_by_a_signed_holder_are_refused_where_the_node_knows_its_key_set() -> None:
    class Careless(Holder):
        def deliver(self, request: Any, key_set: KeySet, now: float) -> bytes:
            object.__setattr__(request, "wanted", "")
            return super().deliver(request, key_set, now)

    requester, holder = NODE.requester("ab" * 32), Careless(OTHER.party)
    request = requester.on_challenge(holder.on_hello(requester.hello(), 0.0))
    delivery = deliver(holder, request)
    assert code_of(lambda: requester.on_delivery(delivery)) == "HANDOVER_KEY_SET_MISMATCH"


def test_a_holder_that_is_not_the_expected_one_is_refused_before_anything_is_asked_of_it() -> None:
    node = Enclave("node 2", expected=frozenset({VAULT.id}))
    assert code_of(lambda: begun(node, OTHER)) == "PEER_NOT_UPGRADER"
    begun(node, VAULT)


# forged and replayed reports


def test_reports_forged_with_intels_public_simulation_keys_are_refused() -> None:
    public = RootKeys(
        bytes.fromhex("00112233445566778899aabbccddeeff"),
        bytes.fromhex("ff00" * 8),
        b"THISISOWNEREPOCH",
        bytes.fromhex("ff00" * 8) + bytes(16),
    )
    forger = Enclave("node 2", cpu=SoftwareCpu(public))
    holder, requester = VAULT.holder(), forger.requester()
    challenge = json.loads(holder.on_hello(requester.hello(), 0.0))
    assert code_of(lambda: requester.on_challenge(json.dumps(challenge).encode())) == "REPORT_MAC_BAD"
    # The forger does not need to verify the challenge: it answers all the same, with a report under the public keys.
    unguarded(requester)
    request = requester.on_challenge(json.dumps(challenge).encode())
    assert code_of(lambda: deliver(holder, request)) == "REPORT_MAC_BAD"


def test_control_the_same_forgery_passes_on_a_cpu_that_has_the_public_keys() -> None:
    public = SoftwareCpu(RootKeys(bytes(16), bytes.fromhex("ff00" * 8), b"THISISOWNEREPOCH", bytes(32)))
    run(Enclave("node 2", cpu=public).requester(), Enclave("vault", cpu=public).holder())


def test_replay_of_a_challenge_is_refused_because_it_lacks_this_requesters_nonce() -> None:
    holder = VAULT.holder()
    old = holder.on_hello(NODE.requester().hello(), 0.0)
    fresh = NODE.requester()
    fresh.hello()
    assert code_of(lambda: fresh.on_challenge(old)) == "HANDOVER_REPORTDATA_MISMATCH"


def test_replay_of_a_request_is_refused_because_its_session_was_consumed() -> None:
    _, holder, request = begun()
    deliver(holder, request)
    assert code_of(lambda: deliver(holder, request)) == "HANDOVER_SESSION_UNKNOWN"


def test_replay_of_a_whole_session_at_the_same_holder_is_refused() -> None:
    requester, holder = NODE.requester(), VAULT.holder()
    hello = requester.hello()
    request = requester.on_challenge(holder.on_hello(hello, 0.0))
    requester.on_delivery(deliver(holder, request))
    holder.on_hello(hello, 1.0)
    assert code_of(lambda: deliver(holder, request)) == "HANDOVER_SESSION_UNKNOWN"


def test_replay_of_a_request_in_another_session_is_refused_because_the_transcript_differs() -> None:
    requester, holder = NODE.requester(), VAULT.holder()
    hello = requester.hello()
    request = requester.on_challenge(holder.on_hello(hello, 0.0))
    second = json.loads(holder.on_hello(hello, 0.0))["session"]
    assert code_of(lambda: deliver(holder, altered(request, session=second))) == "HANDOVER_REPORTDATA_MISMATCH"


def test_replay_of_a_delivery_at_a_fresh_requester_is_refused() -> None:
    _, holder, request = begun()
    old = deliver(holder, request)
    fresh = NODE.requester()
    fresh.on_challenge(holder.on_hello(fresh.hello(), 0.0))
    assert code_of(lambda: fresh.on_delivery(old)) == "HANDOVER_SESSION_UNKNOWN"


def test_a_failed_request_has_consumed_its_session() -> None:
    _, holder, request = begun()
    assert code_of(lambda: deliver(holder, altered(request, report=flip))) == "REPORT_MAC_BAD"
    assert code_of(lambda: deliver(holder, request)) == "HANDOVER_SESSION_UNKNOWN"


def test_the_session_is_consumed_before_anything_else_of_the_request_is_looked_at() -> None:
    _, holder, request = begun()
    assert code_of(lambda: holder.on_request(altered(request, report="!"), 0.0)) == "HANDOVER_MESSAGE_MALFORMED"
    assert holder.sessions_open == 0
    assert code_of(lambda: deliver(holder, request)) == "HANDOVER_SESSION_UNKNOWN"


def test_a_session_ends_after_its_60_seconds() -> None:
    _, holder, request = begun()
    assert code_of(lambda: deliver(holder, request, now=60.0)) == "HANDOVER_SESSION_UNKNOWN"
    _, holder, request = begun()
    deliver(holder, request, now=59.9)


def test_reflection_of_the_requesters_own_report_is_refused() -> None:
    # Both ends are the same enclave, so the MAC of a reflected report verifies: only the role in the tag tells.
    twin = Enclave("vault")
    requester, holder = twin.requester(), VAULT.holder()
    challenge = holder.on_hello(requester.hello(), 0.0)
    request = requester.on_challenge(challenge)
    own = json.loads(challenge)["report"]
    assert code_of(lambda: deliver(holder, altered(request, report=own))) == "HANDOVER_REPORTDATA_MISMATCH"


def test_reflection_of_the_request_as_delivery_is_refused() -> None:
    requester, holder, request = begun()
    delivery = deliver(holder, request)
    own = json.loads(request)["report"]
    assert code_of(lambda: requester.on_delivery(altered(delivery, report=own))) == "REPORT_MAC_BAD"


def test_interleaving_two_sessions_is_refused() -> None:
    holder = VAULT.holder()
    first, second = NODE.requester(), NODE.requester()
    one = first.on_challenge(holder.on_hello(first.hello(), 0.0))
    two = second.on_challenge(holder.on_hello(second.hello(), 0.0))
    crossed = altered(one, session=json.loads(two)["session"])
    assert code_of(lambda: deliver(holder, crossed)) == "HANDOVER_REPORTDATA_MISMATCH"
    swapped = altered(one, kem_public_key=json.loads(two)["kem_public_key"])
    assert code_of(lambda: deliver(holder, swapped)) == "HANDOVER_REPORTDATA_MISMATCH"


def test_relay_by_a_third_signed_enclave_is_refused_because_the_ids_are_in_the_transcript() -> None:
    # The relay shows the node's hello to the vault, and tries to finish the session as itself.
    holder, relay = VAULT.holder(), OTHER.requester()
    hello = NODE.requester().hello()
    challenge = holder.on_hello(hello, 0.0)
    relay.hello()
    assert code_of(lambda: relay.on_challenge(challenge)) == "REPORT_MAC_BAD"
    unguarded(relay)
    assert code_of(lambda: relay.on_challenge(challenge)) == "HANDOVER_REPORTDATA_MISMATCH"


def test_a_request_by_another_enclave_than_the_one_of_the_hello_is_refused() -> None:
    requester, holder, request = begun()
    other = OTHER.tee.report(VAULT.tee.target_info(), bytes(64))
    crossed = altered(
        request,
        report=base64.b64encode(other.encode()).decode(),
        network_signatures=[base64.b64encode(sign(OTHER.id)).decode()],
    )
    assert code_of(lambda: deliver(holder, crossed)) == "HANDOVER_PEER_CHANGED"
    assert requester.holder.enclave_id == VAULT.id


def test_a_report_for_another_target_is_refused() -> None:
    _, holder, request = begun()
    report = Report.decode(base64.b64decode(json.loads(request)["report"]))
    elsewhere = NODE.tee.report(OTHER.tee.target_info(), report.report_data).encode()
    wrong = altered(request, report=base64.b64encode(elsewhere).decode())
    assert code_of(lambda: deliver(holder, wrong)) == "REPORT_MAC_BAD"


def test_a_report_of_another_cpu_is_refused() -> None:
    elsewhere = SoftwareCpu(RootKeys(bytes([9]) * 16, bytes([8]) * 16, bytes([7]) * 16, bytes(32)))
    requester = Enclave("node 2", cpu=elsewhere).requester()
    challenge = VAULT.holder().on_hello(requester.hello(), 0.0)
    assert code_of(lambda: requester.on_challenge(challenge)) == "REPORT_MAC_BAD"


# peers that the policy refuses, in both directions


@pytest.mark.parametrize(
    ("peer", "code"),
    [
        (Enclave("p", flags=INIT | MODE64BIT | DEBUG), "PEER_DEBUG"),
        (Enclave("p", flags=MODE64BIT), "PEER_NOT_INIT"),
        (Enclave("p", flags=INIT | MODE64BIT | 0x10), "PEER_ATTRIBUTES"),
        (Enclave("p", fields={"miscselect": 2}), "PEER_MISCSELECT"),
        (Enclave("p", fields={"configid": bytes([1]) * 64}), "PEER_CONFIG"),
        (Enclave("p", signatures=(sign("00" * 32),)), "NETWORK_SIGNATURE_BAD"),
        (Enclave("p", signatures=(sign(Enclave("p").id, Ed25519PrivateKey.generate()),)), "NETWORK_SIGNATURE_BAD"),
    ],
    ids=["debug", "not-init", "provision-key", "miscselect", "configid", "signed-other-id", "other-network"],
)
def test_a_peer_outside_the_policy_is_refused_on_either_side(peer: Enclave, code: str) -> None:
    _, holder, request = begun(node=peer)
    assert code_of(lambda: deliver(holder, request)) == code
    assert code_of(lambda: begun(vault=peer)) == code


def test_a_peer_below_the_isvsvn_floor_is_refused() -> None:
    strict = Enclave("vault", isvsvn_floor=3)
    _, holder, request = begun(Enclave("node 2", fields={"isvsvn": 2}), strict)
    assert code_of(lambda: deliver(holder, request)) == "PEER_ISVSVN_TOO_LOW"


def test_sides_of_different_chains_do_not_talk() -> None:
    stranger = Enclave("node 2", genesis=bytes(32))
    assert code_of(lambda: begun(node=stranger)) == "HANDOVER_GENESIS_MISMATCH"
    requester, holder = stranger.requester(), VAULT.holder()
    hello = altered(requester.hello(), genesis=base64.b64encode(VAULT.genesis).decode())
    challenge = holder.on_hello(hello, 0.0)  # a host that rewrites the field is found by the transcript
    assert code_of(lambda: requester.on_challenge(challenge)) == "HANDOVER_REPORTDATA_MISMATCH"


# versions


def test_a_holder_that_does_not_share_a_version_says_so() -> None:
    hello = altered(NODE.requester().hello(), versions=[1, 3])
    assert code_of(lambda: VAULT.holder().on_hello(hello, 0.0)) == "HANDOVER_VERSION_UNSUPPORTED"


def test_downgrade_by_rewriting_the_offered_versions_is_found_by_the_transcript() -> None:
    requester, holder = NODE.requester(), VAULT.holder()
    challenge = holder.on_hello(altered(requester.hello(), versions=[1, 2]), 0.0)
    assert code_of(lambda: requester.on_challenge(challenge)) == "HANDOVER_REPORTDATA_MISMATCH"


def test_downgrade_by_an_answer_of_another_version_is_refused() -> None:
    requester, holder = NODE.requester(), VAULT.holder()
    challenge = altered(holder.on_hello(requester.hello(), 0.0), version=1)
    assert code_of(lambda: requester.on_challenge(challenge)) == "HANDOVER_VERSION_UNSUPPORTED"


# altered deliveries and confirmations


def test_an_altered_ciphertext_is_refused() -> None:
    requester, holder, request = begun()
    delivery = altered(deliver(holder, request), ciphertext=flip)
    assert code_of(lambda: requester.on_delivery(delivery)) == "HANDOVER_REPORTDATA_MISMATCH"


def test_a_ciphertext_for_another_key_is_refused_even_under_a_good_report() -> None:
    requester, holder, request = begun()
    verified = holder.on_request(request, 0.0)
    _, foreign = VAULT.party.crypto.kem_generate()
    object.__setattr__(verified, "public_key", foreign)
    with KeySet(SECRET) as key_set:
        delivery = holder.deliver(verified, key_set, 0.0)
    assert code_of(lambda: requester.on_delivery(delivery)) == "HANDOVER_CIPHERTEXT_BAD"


def test_a_delivery_by_another_enclave_than_the_challenger_is_refused() -> None:
    requester, holder, request = begun()
    delivery = deliver(holder, request)
    data = Report.decode(base64.b64decode(json.loads(delivery)["report"])).report_data
    other = OTHER.tee.report(NODE.tee.target_info(), data).encode()
    crossed = altered(delivery, report=base64.b64encode(other).decode())
    assert code_of(lambda: requester.on_delivery(crossed)) == "HANDOVER_PEER_CHANGED"


def test_a_malformed_kem_key_is_refused() -> None:
    requester, holder = NODE.requester(), VAULT.holder()
    requester._party.crypto.kem_generate = lambda: (None, b"\xff" * 1216)  # type: ignore[method-assign]
    request = requester.on_challenge(holder.on_hello(requester.hello(), 0.0))
    assert code_of(lambda: deliver(holder, request)) == "HANDOVER_MESSAGE_MALFORMED"


def test_a_receipt_without_the_plaintext_is_refused() -> None:
    requester, holder, request = begun()
    requester.on_delivery(deliver(holder, request))
    forged = altered(requester.received(), mac=flip)
    assert code_of(lambda: holder.on_received(forged, 0.0)) == "HANDOVER_RECEIPT_BAD"
    assert code_of(lambda: holder.on_durable(requester.durable(canary=True), 0.0)) == "HANDOVER_OUT_OF_ORDER"


def test_durable_by_another_enclave_for_another_set_or_of_another_session_is_refused() -> None:
    requester, holder, request = begun()
    requester.on_delivery(deliver(holder, request))
    holder.on_received(requester.received(), 0.0)
    good = requester.durable(canary=False)
    data = Report.decode(base64.b64decode(json.loads(good)["report"])).report_data
    other = base64.b64encode(OTHER.tee.report(VAULT.tee.target_info(), data).encode()).decode()
    assert code_of(lambda: holder.on_durable(altered(good, report=other), 0.0)) == "HANDOVER_PEER_CHANGED"
    assert code_of(lambda: holder.on_durable(altered(good, key_set_id="0" * 64), 0.0)) == "HANDOVER_KEY_SET_MISMATCH"
    assert code_of(lambda: holder.on_durable(altered(good, canary=True), 0.0)) == "HANDOVER_REPORTDATA_MISMATCH"
    assert code_of(lambda: holder.on_durable(altered(good, report=flip), 0.0)) == "REPORT_MAC_BAD"
    unknown = base64.b64encode(bytes(16)).decode()
    assert code_of(lambda: holder.on_durable(altered(good, session=unknown), 0.0)) == "HANDOVER_SESSION_UNKNOWN"
    assert code_of(lambda: holder.on_durable(good, 900.0)) == "HANDOVER_SESSION_UNKNOWN"
    assert holder.on_durable(good, 1.0).key_set_id == key_set_id(SECRET)


def test_an_acknowledgement_of_another_session_or_step_is_refused() -> None:
    requester, holder, request = begun()
    requester.on_delivery(deliver(holder, request))
    answer = holder.on_received(requester.received(), 0.0).answer
    assert code_of(lambda: requester.acknowledged(answer, "durable")) == "HANDOVER_MESSAGE_MALFORMED"
    other = altered(answer, session=base64.b64encode(bytes(16)).decode())
    assert code_of(lambda: requester.acknowledged(other, "received")) == "HANDOVER_SESSION_UNKNOWN"


# bounds


def test_hellos_in_an_enclaves_name_do_not_end_a_session_of_that_enclave() -> None:
    holder = VAULT.holder()
    honest = NODE.requester()
    challenge = holder.on_hello(honest.hello(), 0.0)
    for _ in range(500):  # an enclave id is public: anybody can claim it
        holder.on_hello(NODE.requester().hello(), 0.0)
    assert holder.sessions_open == 501
    assert honest.on_delivery(deliver(holder, honest.on_challenge(challenge))) == KeySet(SECRET)


def test_in_a_full_table_the_oldest_session_gives_way_to_a_newcomer() -> None:
    holder = VAULT.holder(sessions_max=20)
    first, second = NODE.requester(), NODE.requester()
    requests = [requester.on_challenge(holder.on_hello(requester.hello(), 0.0)) for requester in (first, second)]
    for number in range(19):
        holder.on_hello(Enclave(f"flood {number}").requester().hello(), 0.0)
    assert holder.sessions_open == 20
    assert code_of(lambda: deliver(holder, requests[0])) == "HANDOVER_SESSION_UNKNOWN"
    assert second.on_delivery(deliver(holder, requests[1])) == KeySet(SECRET)
    holder.on_hello(OTHER.requester().hello(), 61.0)  # the flood's sessions expired
    assert holder.sessions_open == 1


def test_deliveries_under_way_are_bounded_and_their_receipt_keys_wiped() -> None:
    holder = VAULT.holder(deliveries_max=2)
    tries = []
    for _ in range(3):
        requester = NODE.requester()
        requester.on_delivery(deliver(holder, requester.on_challenge(holder.on_hello(requester.hello(), 0.0))))
        tries.append(requester)
    assert code_of(lambda: holder.on_received(tries[0].received(), 0.0)) == "HANDOVER_SESSION_UNKNOWN"
    holder.on_received(tries[2].received(), 0.0)
    keys = [entry.receipt_key for entry in holder._deliveries.values()]
    holder.on_hello(NODE.requester().hello(), 1000.0)
    assert keys
    assert not any(any(key) for key in keys)


# order of steps, form of reports


def test_steps_out_of_order_are_refused() -> None:
    requester = NODE.requester()
    calls = [
        lambda: requester.on_challenge(b"{}"),
        lambda: requester.on_delivery(b"{}"),
        requester.received,
        lambda: requester.durable(canary=True),
        lambda: requester.holder,
    ]
    assert [code_of(call) for call in calls] == ["HANDOVER_OUT_OF_ORDER"] * 5
    requester.hello()
    assert code_of(requester.hello) == "HANDOVER_OUT_OF_ORDER"


def test_a_failed_step_ends_the_try() -> None:
    requester, holder, request = begun()
    delivery = deliver(holder, request)
    assert code_of(lambda: requester.on_delivery(altered(delivery, report=flip))) != "nothing was refused"
    assert code_of(lambda: requester.on_delivery(delivery)) == "HANDOVER_OUT_OF_ORDER"


def test_reserved_bytes_in_reports_and_target_infos_are_refused() -> None:
    def spoil(text: str) -> str:
        data = bytearray(base64.b64decode(text))
        data[300 if len(data) == 432 else 511] = 1
        return base64.b64encode(data).decode()

    _, holder, request = begun()
    assert code_of(lambda: deliver(holder, altered(request, report=spoil))) == "HANDOVER_MESSAGE_MALFORMED"
    hello = NODE.requester().hello()
    assert code_of(lambda: holder.on_hello(altered(hello, target_info=spoil), 0.0)) == "HANDOVER_MESSAGE_MALFORMED"


def test_one_flipped_bit_anywhere_in_any_message_never_yields_keys_or_a_confirmation() -> None:
    names = {"hello": messages.HELLO, "challenge": messages.CHALLENGE, "request": messages.REQUEST}
    for name, shape in names.items():
        for key in shape.fields:
            requester, holder = NODE.requester(), VAULT.holder()

            def spoiled(message: bytes, at: str, name: str = name, key: str = key) -> bytes:
                if at != name:
                    return message
                value = json.loads(message)[key]
                if isinstance(value, str) and value:
                    return altered(message, **{key: flip(value)})
                if isinstance(value, list) and isinstance(value[0], str):
                    return altered(message, **{key: [flip(value[0])]})
                return altered(message, **{key: [3] if key == "versions" else (3 if key == "version" else "1" * 64)})

            def whole() -> None:
                challenge = holder.on_hello(spoiled(requester.hello(), "hello"), 0.0)  # noqa: B023
                request = requester.on_challenge(spoiled(challenge, "challenge"))  # noqa: B023
                deliver(holder, spoiled(request, "request"))  # noqa: B023

            assert code_of(whole) != "nothing was refused", (name, key)


def test_the_roles_have_tags_of_their_own() -> None:
    assert CHALLENGE_TAG != REQUEST_TAG
    assert report_mac(bytes(16), CPU.ereport(secs("a"), secs("b").target_info(), bytes(64)))


def test_errors_travel_as_json_and_pickle() -> None:
    import pickle

    error = KeyvaultError(code="A_B", what="what", why="why", action="act", kind="transient")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (str(again), again.kind) == ("A_B: what: why. act", "transient")
    assert str(KeyvaultError(code="A_B", what="what", why="why")) == "A_B: what: why"
