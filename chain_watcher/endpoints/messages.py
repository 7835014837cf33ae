"""Parse JSON-RPC messages in bounded time and memory, and define the error of the transport.

For `[[],[],`, Python's parser allocates a hundred bytes per three characters, and it blocks the event loop meanwhile.
So the size of a message is checked first, then the number of its elements; only then is it parsed. The answers that
this program asks for have few elements: large ones are single hex strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from chain_watcher.errors import ChainWatcherError, Kind

KIB: Final = 1024
MIB: Final = 1024 * 1024
#: Messages up to this size are parsed without a check of their structure: they expand to a few megabytes at most.
SMALL_BYTES: Final = 64 * KIB
#: Limits for larger messages: containers, escaped characters and items. A justification that is stored with a block is
#: a list of octets, 144 for each vote.
CONTAINERS_MAX: Final = 20_000
ESCAPES_MAX: Final = 1_000
ITEMS_MAX: Final = 600_000

#: Answers to most questions are at most this large, in characters of JSON.
ANSWER_CHARS_MAX: Final = 256 * KIB
#: Limits of methods with large answers. Values and proofs are hex, two characters per byte.
ANSWER_CHARS_MAX_OF: Final = {
    "chain_getBlock": 12 * MIB,  # 5 MiB of extrinsics, and a justification
    "chain_getHeader": 2 * MIB + KIB,  # a digest of 1 MiB
    "grandpa_proveFinality": 16 * MIB,  # nodes send at most 15
    "rpc_methods": MIB,
    "state_getMetadata": 8 * MIB + KIB,
    "state_getReadProof": 8 * MIB + 512 * KIB,
    "state_getStorage": 8 * MIB + KIB,
    "state_queryStorageAt": 16 * MIB,
    "state_call": MIB,
}

#: JSON-RPC error codes of rate limits (jsonrpsee, public gateways).
RATE_LIMIT_CODES: Final = frozenset({-32005, -32029, -32999, 429})
METHOD_NOT_FOUND: Final = -32601
#: HTTP statuses of a refused handshake that may carry `Retry-After`.
RETRY_LATER_STATUSES: Final = frozenset({429, 503})
#: Seconds to pause if a refusal names no pause, and the longest pause that is honoured.
RETRY_AFTER_S: Final = 30.0
RETRY_AFTER_MAX_S: Final = 3600.0


class RpcError(ChainWatcherError):
    """An error of the transport, with the server's error code and the pause that it asks for (seconds), if any."""

    def __init__(
        self,
        *,
        code: str,
        what: str,
        why: str,
        action: str = "",
        kind: Kind = "transient",
        rpc_code: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code=code, what=what, why=why, action=action, kind=kind)
        self.rpc_code = rpc_code
        self.retry_after_s = retry_after_s


def closed(url: str, why: str) -> RpcError:
    """The error for a connection that ended."""
    return RpcError(code="RPC_CLOSED", what=url, why=why, action="The watcher reconnects")


def garbage(url: str, why: str) -> RpcError:
    """The error for a message that is not JSON-RPC."""
    return RpcError(
        code="RPC_GARBAGE", what=url, why=why, action="Check that this address is a Substrate node's RPC port"
    )


def too_big(url: str, why: str) -> RpcError:
    """The error for a message that is too large to be parsed."""
    return RpcError(code="RPC_MESSAGE_TOO_BIG", what=url, why=why, action="Use an endpoint that answers what was asked")


def answer_chars_max(method: str) -> int:
    """Return the largest answer to `method` that is parsed, in characters."""
    return ANSWER_CHARS_MAX_OF.get(method, ANSWER_CHARS_MAX)


def parse(url: str, text: str, chars_max: int) -> dict[str, Any]:
    """Return the JSON object in `text`. Raises RPC_MESSAGE_TOO_BIG, RPC_GARBAGE (also for too much structure)."""
    if len(text) > chars_max:
        raise too_big(url, f"a message of {len(text)} bytes where at most {chars_max} are expected")
    if len(text) > SMALL_BYTES and (
        text.count("[") + text.count("{") > CONTAINERS_MAX
        or text.count("\\") > ESCAPES_MAX
        or text.count(",") > ITEMS_MAX
    ):
        raise garbage(url, f"a message of {len(text)} bytes with more structure than any answer has")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise garbage(url, "not JSON") from problem
    if not isinstance(message, dict):
        raise garbage(url, "not a JSON object")
    return message


def refusal(url: str, error: Any) -> RpcError:
    """The error for the `error` member of an answer. RPC_GARBAGE for one without a code."""
    number = error.get("code") if isinstance(error, dict) else None
    if type(number) is not int or not -(2**63) <= number < 2**63:
        return garbage(url, "an error without code")
    text = error.get("message")
    why = f"{text[:300] if isinstance(text, str) else 'no message'} ({number})"
    if number in RATE_LIMIT_CODES:
        return RpcError(code="RPC_RATE_LIMITED", what=url, why=why, rpc_code=number, retry_after_s=RETRY_AFTER_S)
    if number == METHOD_NOT_FOUND:
        return RpcError(code="RPC_METHOD_MISSING", what=url, why=why, rpc_code=number, kind="rejected")
    return RpcError(code="RPC_REFUSED", what=url, why=why, rpc_code=number)


def handshake_refusal(
    url: str, status: int, headers: Mapping[str, str] | None, now: datetime | None = None
) -> RpcError:
    """Return the error for an HTTP answer to the websocket handshake; `Retry-After` is honoured up to an hour."""
    wish = headers.get("Retry-After") if headers else None
    if status == 429 or (status in RETRY_LATER_STATUSES and wish is not None):
        wait_s = retry_after_s(wish, datetime.now(UTC))
        return RpcError(code="RPC_RATE_LIMITED", what=url, why=f"HTTP {status}", rpc_code=status, retry_after_s=wait_s)
    return RpcError(code="RPC_CONNECT_FAILED", what=url, why=f"HTTP {status} to the websocket handshake")


def retry_after_s(wish: str | None, now: datetime) -> float:
    """Return the seconds that a `Retry-After` header asks for, as a number or as a date (RFC 9110, 10.2.3)."""
    text = (wish or "").strip()[:64]
    wait_s = RETRY_AFTER_S
    if text.isascii() and text.isdecimal():
        wait_s = float(text)
    elif text:
        try:
            wait_s = (parsedate_to_datetime(text) - now).total_seconds()
        except (TypeError, ValueError, OverflowError):
            wait_s = RETRY_AFTER_S
    return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S)
