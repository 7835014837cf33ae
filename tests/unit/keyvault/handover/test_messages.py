"""Strict messages: any deviation from the protocol is refused, with documented codes only."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvault.errors import KeyvaultError
from keyvault.handover import messages
from keyvault.handover.key_set import KEY_SET_BYTES_MAX
from tests.doubles.vault_kit import altered, code_of

MALFORMED = "HANDOVER_MESSAGE_MALFORMED"
SHAPES = [v for v in vars(messages).values() if isinstance(v, messages.Shape)]
GOOD: dict[str, Any] = {
    "versions": (1, 2),
    "version": 2,
    "genesis": bytes(32),
    "nonce": bytes(32),
    "target_info": bytes(512),
    "session": bytes(16),
    "report": bytes(432),
    "network_signatures": (bytes(64), bytes(64)),
    "kem_public_key": bytes(1216),
    "key_set_id": "ab" * 32,
    "ciphertext": bytes(1169),
    "mac": bytes(32),
    "canary": True,
    "state": "durable",
}


def good(shape: messages.Shape) -> bytes:
    return shape.encode(**{name: GOOD[name] for name in shape.fields})


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_each_message_decodes_to_what_was_encoded(shape: messages.Shape) -> None:
    assert shape.decode(good(shape)) == {name: GOOD[name] for name in shape.fields}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_missing_unknown_and_duplicated_fields_are_refused(shape: messages.Shape) -> None:
    value = json.loads(good(shape))
    for name in value:
        assert code_of(lambda name=name: shape.decode(json.dumps({**value, name: None}).encode())) == MALFORMED
        less = {k: v for k, v in value.items() if k != name}
        assert code_of(lambda less=less: shape.decode(json.dumps(less).encode())) == MALFORMED
    assert code_of(lambda: shape.decode(json.dumps({**value, "more": 1}).encode())) == MALFORMED
    name = next(iter(value))
    twice = good(shape)[:-1] + f',"{name}":{json.dumps(value[name])}}}'.encode()
    assert json.loads(twice) == value  # an ordinary decoder takes it
    assert code_of(lambda: shape.decode(twice)) == MALFORMED


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_truncated_and_oversized_values_are_refused(shape: messages.Shape) -> None:
    message = good(shape)
    for name, value in json.loads(message).items():
        data = base64.b64decode(value) if isinstance(value, str) and name not in ("key_set_id", "state") else b""
        for wrong in (data[:-1], data + b"x" * 70_000 if name == "ciphertext" else data + b"x"):
            if data and not (name == "ciphertext" and len(wrong) in range(1169, messages.CIPHERTEXT_BYTES_MAX + 1)):
                spoiled = altered(message, **{name: base64.b64encode(wrong).decode()})
                assert code_of(lambda spoiled=spoiled: shape.decode(spoiled)).startswith("HANDOVER_MESSAGE_")
    assert code_of(lambda: shape.decode(message[:-1])) == MALFORMED
    assert code_of(lambda: shape.decode(message + b" " * shape.limit)) == "HANDOVER_MESSAGE_TOO_LARGE"


@pytest.mark.parametrize(
    "text",
    [
        "AAAAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAAAAAAAAAB==",
        "AAAAAAAAAAAAAAAAAAAA\nAA==",
        "AAAAAAAAAAAAAAAAAAAA-_==",
        "é",
        7,
    ],
    ids=["no-padding", "spare-bits", "newline", "url-alphabet", "not-ascii", "number"],
)
def test_base64_that_is_not_canonical_is_refused(text: object) -> None:
    message = messages.RECEIVED.encode(session=bytes(16), mac=bytes(32))
    assert code_of(lambda: messages.RECEIVED.decode(altered(message, session=text))) == MALFORMED
    assert messages.decode_base64("AAAAAAAAAAAAAAAAAAAAAA==", "x") == bytes(16)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"a":NaN}',
        b'{"a":1}{"b":2}',
        b"\xff",
        b"[" * 8000,
        b'{"a":' * 1500 + b"1",
        b'{"a":1,"a":1}',
    ],
)
def test_what_is_not_one_strict_json_object_is_refused(body: bytes) -> None:
    assert code_of(lambda: messages.strict_json(body, 9000, "message")) == MALFORMED


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("versions", [[], [2, 1], [1, 1], [0], [256], [True], ["2"], {}, list(range(1, 10))]),
        ("version", [0, 256, True, "2", 2.0]),
        ("network_signatures", [[], "x", [None], ["AA=="], [base64.b64encode(bytes(64)).decode()] * 17]),
        ("key_set_id", ["AB" * 32, "ab" * 31, 5, "zz" * 32]),
        ("canary", [0, "true", None]),
        ("state", ["done", 1]),
    ],
)
def test_values_outside_their_type_are_refused(name: str, values: list[object]) -> None:
    shape = next(s for s in SHAPES if name in s.fields and s.name != "request")
    for value in values:
        assert code_of(lambda value=value: shape.decode(altered(good(shape), **{name: value}))) == MALFORMED


def test_a_request_may_leave_the_key_set_open() -> None:
    assert messages.REQUEST.decode(altered(good(messages.REQUEST), key_set_id=""))["key_set_id"] == ""


def test_the_largest_key_set_fits_into_a_delivery() -> None:
    ciphertext = bytes(KEY_SET_BYTES_MAX + messages.CIPHERTEXT_OVERHEAD_BYTES)
    body = messages.DELIVERY.encode(session=bytes(16), ciphertext=ciphertext, report=bytes(432))
    assert messages.DELIVERY.decode(body)["ciphertext"] == ciphertext


def test_errors_about_json_never_quote_it() -> None:
    with pytest.raises(KeyvaultError) as caught:
        messages.strict_json(b'{"secret":"hunter2 hunter2"', 100, "message")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SHAPES), st.data())
def test_fuzz_only_documented_errors_escape(shape: messages.Shape, data: st.DataObject) -> None:
    message = bytearray(good(shape))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message) - 1))
        message[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    found = code_of(lambda: shape.decode(bytes(message)))
    assert found in ("HANDOVER_MESSAGE_MALFORMED", "HANDOVER_MESSAGE_TOO_LARGE", "nothing was refused")


@pytest.mark.parametrize("opened", [b"[", b'{"a":', b'[{"a":'])
@pytest.mark.parametrize("depth", [40, 400, 1000, 40_000])
def test_deep_nesting_is_refused_whether_it_is_closed_or_not(opened: bytes, depth: int) -> None:
    closing = {b"[": b"]", b'{"a":': b"}", b'[{"a":': b"}]"}[opened]
    for body in (opened * depth, b'{"x":' + opened * depth + b"1" + closing * depth + b"}"):
        assert code_of(lambda body=body: messages.strict_json(body, 10**6, "answer")) == MALFORMED


def test_the_depth_that_is_allowed_is_counted_from_the_outermost_object() -> None:
    def nested(depth: int) -> bytes:
        return b'{"x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    allowed = messages.JSON_DEPTH_MAX
    assert messages.strict_json(nested(allowed), 1000, "answer")
    assert code_of(lambda: messages.strict_json(nested(allowed + 1), 1000, "answer")) == MALFORMED


def test_many_brackets_in_a_text_are_no_nesting() -> None:
    assert messages.strict_json(json.dumps({"x": "[" * 1000}).encode(), 10**6, "answer") == {"x": "[" * 1000}
