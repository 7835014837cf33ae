"""The log's lines about the chain's endpoints."""

from typing import Any

from dcupgrade.surfaces.chain_log import news


def endpoint(state: str, code: str | None = None, url: str = "ws://a") -> dict[str, Any]:
    return {"url": url, "state": state, "code": code, "why": code and f"{url}: {code.lower()}"}


def health(*endpoints: dict[str, Any], used: str | None = None, problem: str = "", unsafe: tuple[str, ...] = ()) -> Any:
    told = {"code": problem, "text": f"{problem}: why"} if problem else None
    return {"endpoints": endpoints, "endpoint": used, "problem": told, "unsafe": list(unsafe)}


def levels(before: Any, now: Any) -> list[tuple[str, str, str]]:
    return [(item.level, item.text, item.code) for item in news(before, now)]


def test_the_start_says_nothing_but_what_is_unsafe() -> None:
    assert levels(None, health(endpoint("waiting"))) == []
    [(level, text, _)] = levels(None, health(unsafe=("finality_single",)))
    assert (level, "finality_single" in text) == ("WARNING", True)
    assert levels(health(unsafe=("finality_single",)), health(unsafe=("finality_single",))) == []


def test_an_endpoint_that_cannot_be_used_is_told_once_for_each_cause() -> None:
    waiting, refused = health(endpoint("waiting")), health(endpoint("waiting", "RPC_CONNECT_FAILED"))
    [(level, text, code)] = levels(waiting, refused)
    assert (level, code) == ("WARNING", "RPC_CONNECT_FAILED")
    assert "ws://a" in text
    assert levels(refused, health(endpoint("connecting", "RPC_CONNECT_FAILED"))) == []
    assert [code for *_, code in levels(refused, health(endpoint("waiting", "RPC_TLS_FAILED")))] == ["RPC_TLS_FAILED"]
    up = health(endpoint("connected"), used="ws://a")
    assert [level for level, *_ in levels(refused, up)] == ["INFO", "INFO"]
    assert levels(up, up) == []
    lost = levels(up, health(endpoint("waiting", "RPC_CLOSED")))
    assert [(level, code) for level, _, code in lost] == [("WARNING", "RPC_CLOSED"), ("WARNING", "")]
    assert "in use: none" in lost[-1][1]


def test_a_failover_names_the_endpoint_that_is_used_now() -> None:
    both = (endpoint("connected"), endpoint("connected", url="ws://b"))
    assert levels(health(*both, used="ws://a"), health(*both, used="ws://b")) == [
        ("INFO", "chain endpoint in use: ws://b", "")
    ]


def test_a_lie_is_an_error_and_told_once() -> None:
    lying = health(endpoint("lying", "ENDPOINT_PROOF_FORGED"), used=None)
    [(level, text, code), *_] = levels(health(endpoint("connected"), used=None), lying)
    assert (level, code) == ("ERROR", "ENDPOINT_PROOF_FORGED")
    assert "lying" in text
    assert levels(lying, lying) == []


def test_what_keeps_the_chain_from_being_judged_is_told_with_its_end() -> None:
    good, bad = health(), health(problem="ENDPOINT_NONE_USABLE")
    assert [(level, code) for level, _, code in levels(good, bad)] == [("WARNING", "ENDPOINT_NONE_USABLE")]
    assert levels(bad, bad) == []
    assert levels(bad, good) == [("INFO", "the chain can be judged again", "")]
