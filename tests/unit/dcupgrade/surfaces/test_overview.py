"""The overview that an operator reads first, from the agent's facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dcupgrade.machine.gates import GateRules
from dcupgrade.machine.plan import plan
from dcupgrade.machine.state import ChainFacts, Hold, Name, Release, State
from dcupgrade.surfaces.overview import overview

OLD = Release("a" * 64, "1.0.0", added_height=5)
NEW = Release("b" * 64, "1.1.0", added_height=9)
LISTED = ((OLD.enclave_id, 5), (NEW.enclave_id, 9))
CURRENT = State(running=NEW, chain=ChainFacts(NEW, LISTED, 12))
WELL: dict[str, Any] = {
    "now_unix_s": 4000.0,
    "block_number": 12,
    "alarms": [],
    "node": {
        "status": "serving",
        "enclave_id": "b" * 64,
        "version": "1.1.0",
        "process": "pid 7",
        "since_unix_s": 400.0,
    },
    "vault": {"reachable": True, "key_sets": 1, "tee": "gramine", "enclave_id": "c" * 64},
    "chain": {"last_number": 791, "finalized_age_s": 2.0, "endpoint": "ws://a", "finality": "proven"},
}


def told(state: State = CURRENT, **facts: Any) -> dict[str, Any]:
    planned = plan(state, GateRules(), 4000.0, 4000.0).to_json()
    return overview({**WELL, "state": state.to_json(), **facts}, planned, lambda code: (f"{code} means", f"{code} do"))


def card(answers: dict[str, Any], name: str) -> tuple[str, str, dict[str, str]]:
    [found] = [one for one in answers["cards"] if one["name"] == name]
    return found["level"], found["headline"], dict(found["facts"])


def test_all_is_well_in_one_sentence() -> None:
    answers = told()
    assert (answers["level"], answers["headline"]) == ("good", "Up to date: 1.1.0 serves.")
    level, headline, facts = card(answers, "node")
    assert (level, headline, facts["runs as"]) == ("good", "serving", "pid 7")
    assert facts["since"] == "1970-01-01T00:06:40Z (1 h)"
    assert card(answers, "vault")[2]["sealed copies"] == "1 key set"
    assert card(answers, "chain")[2]["last finalized block"] == "791, 2.0 s ago"


@pytest.mark.parametrize(
    ("status", "headline"),
    [("silent", "does not answer"), ("stopped", "not running"), ("failed", "says that it failed")],
)
def test_a_node_that_is_down_is_the_first_thing_said(status: str, headline: str) -> None:
    answers = told(node={"status": status})
    assert (answers["level"], answers["headline"]) == ("bad", f"The node is down: {headline}.")


def test_a_look_at_the_version_before_is_not_shown_as_the_node_of_now() -> None:
    probation = replace(CURRENT, name=Name.PROBATION, running=OLD, target=NEW)
    before = {"status": "serving", "enclave_id": OLD.enclave_id, "version": "1.0.0"}
    assert card(told(probation, node=before), "node")[1].startswith("1.1.0 was not asked yet")
    assert card(told(probation, node={**before, "enclave_id": NEW.enclave_id}), "node")[1] == "serving"


@pytest.mark.parametrize("name", [Name.STOPPING, Name.LAUNCHING, Name.DELIVERING, Name.REVERTING])
def test_a_node_that_the_upgrade_stopped_is_no_trouble(name: Name) -> None:
    state = replace(CURRENT, name=name, running=OLD, target=NEW)
    answers = told(state, node={"status": "stopped"})
    assert answers["level"] == "busy"
    assert "1.0.0" in answers["headline"]
    assert "1.1.0" in answers["headline"]


@pytest.mark.parametrize(
    ("facts", "name", "headline"),
    [
        ({"vault": {"reachable": False}}, "vault", "does not answer"),
        ({"chain": {**WELL["chain"], "endpoint": None}}, "chain", "no endpoint is usable"),
        ({"chain": {**WELL["chain"], "finalized_age_s": 7200.0}}, "chain", "no finalized block for 2 h"),
    ],
)
def test_what_is_not_well_asks_for_attention(facts: dict[str, Any], name: str, headline: str) -> None:
    answers = told(**facts)
    assert answers["level"] == "attention"
    assert card(answers, name)[:2] == ("attention", headline)


def test_an_alarm_comes_with_its_meaning_and_its_remedy() -> None:
    answers = told(alarms=[{"code": "RUNNING_REVOKED", "detail": "x"}])
    assert answers["headline"] == "Up to date: 1.1.0 serves. 1 condition needs attention."
    assert answers["attention"] == [
        {"code": "RUNNING_REVOKED", "detail": "x", "what": "RUNNING_REVOKED means", "remedy": "RUNNING_REVOKED do"}
    ]


def test_a_halted_machine_names_its_condition_and_needs_a_person() -> None:
    answers = told(replace(CURRENT, name=Name.HALTED, halted="NO_KEYS_ANYWHERE"))
    assert (answers["level"], answers["headline"]) == ("bad", "Halted: NO_KEYS_ANYWHERE. A person is needed.")


def test_a_newer_release_says_why_it_waits() -> None:
    held = replace(CURRENT, running=OLD, hold=Hold("audit", "eve"))
    facts = card(told(held), "release")[2]
    assert facts["on the chain"] == "1.1.0"
    assert "audit" in facts["hold"]
    assert card(told(held), "release")[1] == "a newer version waits"


@pytest.mark.parametrize(
    ("until", "hold"),
    [
        (0.0, "by eve: audit"),
        (3999.0, None),
        (4001.0, "by eve until 1970-01-01T01:06:41Z: audit"),
    ],
)
def test_a_hold_is_told_with_its_end_and_not_after_it(until: float, hold: str | None) -> None:
    facts = card(told(replace(CURRENT, hold=Hold("audit", "eve", until))), "release")[2]
    assert facts.get("hold") == hold


def test_what_fails_for_now_is_told() -> None:
    answers = told(
        progress={"retry": {"what": "download", "code": "FETCH", "detail": "FETCH: mirror silent"}},
        chain={**WELL["chain"], "problem": {"code": "X", "text": "X: none"}},
    )
    assert card(answers, "release")[2]["tried again"] == "FETCH: mirror silent"
    assert card(answers, "chain")[2]["problem"] == "X: none"


def test_an_agent_that_is_down_is_said_before_what_its_journal_holds() -> None:
    state = replace(CURRENT, name=Name.HALTED, halted="DATA_LOCKED")
    answers = overview({"agent": "not running", "state": state.to_json(), "now_unix_s": 1.0}, None, lambda c: (c, c))
    assert (answers["level"], answers["headline"]) == ("bad", "The agent is not running.")
    assert [need["code"] for need in answers["attention"]] == ["DATA_LOCKED"]


@pytest.mark.parametrize(("grade", "words"), [("measured", "measured:"), ("attested", "ATTESTED ONLY"), ("", None)])
def test_how_the_running_version_was_proven_is_shown(grade: str, words: str | None) -> None:
    _, _, facts = card(told(identity={NEW.enclave_id: grade}), "release")
    assert (words is None and "identity" not in facts) or facts["identity"].startswith(str(words))


FLEET: dict[str, Any] = {
    "slots": [None, {"holder": "host-2", "version": "1.2.0"}],
    "halt": None,
    "waiting": [f"host-{number}" for number in range(3, 10)],
    "versions": {"1.1.0": 8, "1.2.0": 1},
    "outcomes": [{"node": "host-1", "version": "1.2.0", "outcome": end} for end in ("reverted", "committed")],
}


def test_a_fleet_shows_who_upgrades_who_waits_and_how_it_went() -> None:
    level, headline, facts = card(told(fleet=FLEET), "fleet")
    assert (level, headline) == ("good", "1 of 2 slots are held")
    assert facts == {
        "upgrade": "host-2 to 1.2.0",
        "wait": "host-3, host-4, host-5, host-6, host-7 and 2 more",
        "versions": "1.1.0: 8, 1.2.0: 1",
        "last ends": "1 reverted, 1 committed",
        "went back": "host-1 from 1.2.0",
    }


def test_a_halted_fleet_needs_attention_and_one_that_was_not_asked_yet_does_not() -> None:
    halted = told(fleet={**FLEET, "halt": {"who": "eve", "why": "1.2.0 loses objects", "at_unix_s": 1.0}})
    assert card(halted, "fleet")[:2] == ("attention", "halted by eve: 1.2.0 loses objects")
    assert card(told(fleet={}), "fleet")[0] == "busy"
    assert "fleet" not in {one["name"] for one in told()["cards"]}
