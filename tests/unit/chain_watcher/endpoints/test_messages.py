"""Messages are limited before they are parsed (case A5); Retry-After is honoured within limits (case C5)."""

from __future__ import annotations

import json
import tracemalloc
from datetime import UTC, datetime

import pytest

from chain_watcher.endpoints.messages import (
    ANSWER_CHARS_MAX,
    MIB,
    RETRY_AFTER_MAX_S,
    RpcError,
    answer_chars_max,
    handshake_refusal,
    parse,
    refusal,
    retry_after_s,
)

URL = "ws://x"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x" * 100, "RPC_GARBAGE"),
        ('{"a":"' + "x" * (ANSWER_CHARS_MAX) + '"}', "RPC_MESSAGE_TOO_BIG"),
        ("[" * 200_000, "RPC_GARBAGE"),
    ],
)
def test_what_is_refused(text: str, code: str) -> None:
    with pytest.raises(RpcError, match=code):
        parse(URL, text, ANSWER_CHARS_MAX)


@pytest.mark.parametrize(
    "filling",
    ["[],", "{},", '"\\u0041",', "1000,", '{"a":[[]]},'],
    ids=["lists", "objects", "escapes", "numbers", "deep"],
)
def test_a_message_of_sixteen_mebibytes_does_not_unfold(filling: str) -> None:
    """Case A5: it took 400 MB and the loop for seconds."""
    text = '{"id":1,"result":[' + filling * (16 * MIB // len(filling) - 10) + "0]}"
    tracemalloc.start()
    with pytest.raises(RpcError):
        parse(URL, text, 16 * MIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MIB


def test_a_large_answer_that_is_one_text_is_parsed() -> None:
    text = '{"id":1,"result":"0x' + "ab" * (4 * MIB) + '"}'
    assert len(parse(URL, text, answer_chars_max("state_getReadProof"))["result"]) == 8 * MIB + 2
    stored = json.dumps({"id": 1, "result": {"justifications": [[[70, 82, 78, 75], [200] * 500_000]]}})
    assert parse(URL, stored, answer_chars_max("chain_getBlock"))["id"] == 1


def test_only_questions_with_large_answers_may_have_them() -> None:
    assert answer_chars_max("chain_getBlockHash") == answer_chars_max("no_such") == ANSWER_CHARS_MAX
    assert answer_chars_max("state_getMetadata") > 8 * MIB


@pytest.mark.parametrize(
    ("wish", "wait_s"),
    [
        ("9", 9.0),
        ("3600", 3600.0),
        ("999999999", RETRY_AFTER_MAX_S),
        ("9" * 5000, RETRY_AFTER_MAX_S),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2020 03:05:05 GMT", 0.0),
        ("Fri, 02 Jan 9999 03:05:05 GMT", RETRY_AFTER_MAX_S),
        ("soon", 30.0),
        ("-5", 30.0),
        ("²", 30.0),
        (None, 30.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(wish: str | None, wait_s: float) -> None:
    assert retry_after_s(wish, NOW) == wait_s


@pytest.mark.parametrize(
    ("status", "headers", "code", "wait_s"),
    [
        (429, {}, "RPC_RATE_LIMITED", 30.0),
        (429, None, "RPC_RATE_LIMITED", 30.0),
        (503, {"Retry-After": "7"}, "RPC_RATE_LIMITED", 7.0),
        (503, {}, "RPC_CONNECT_FAILED", None),
        (404, {"Retry-After": "7"}, "RPC_CONNECT_FAILED", None),
    ],
)
def test_http_answers_to_the_handshake(
    status: int, headers: dict[str, str] | None, code: str, wait_s: float | None
) -> None:
    problem = handshake_refusal(URL, status, headers)
    assert (problem.code, problem.retry_after_s) == (code, wait_s)


@pytest.mark.parametrize("error", [None, 7, {}, {"code": "x"}, {"code": True}, {"code": 10**30}, {"code": 1.5}])
def test_an_error_without_a_code_is_garbage(error: object) -> None:
    assert refusal(URL, error).code == "RPC_GARBAGE"


def test_the_text_of_an_error_is_cut() -> None:
    assert len(refusal(URL, {"code": 1, "message": "x" * 100_000}).why) < 400
    assert refusal(URL, {"code": 1, "message": [[[]]]}).why == "no message (1)"
