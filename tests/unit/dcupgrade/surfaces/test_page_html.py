"""The page's HTML: its content, escaping of untrusted text, and the actions that each state offers."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from dcupgrade.machine.gates import GateRules
from dcupgrade.machine.plan import plan
from dcupgrade.machine.state import ChainFacts, Hold, Name, Record, Release, State
from dcupgrade.surfaces import page_html
from dcupgrade.surfaces.overview import overview
from dcupgrade.surfaces.plots import downtime_svg
from dcupgrade.surfaces.upgrades import FORWARD, path

OLD = Release("a" * 64, "1.0.0", added_height=5)
NEW = Release("b" * 64, "<img src=x>", added_height=9)
CHAIN = ChainFacts(NEW, ((OLD.enclave_id, 5), (NEW.enclave_id, 9)), 12)
CURRENT = State(running=NEW, chain=CHAIN)


class Balanced(HTMLParser):
    """Notes tags that are closed without having been opened, or never."""

    VOID = ("meta", "link", "input", "br", "polyline", "line", "rect", "path", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)


def step(state: str, seconds: float = 1.0) -> dict[str, Any]:
    return {"state": state, "at_unix_s": 5.0, "seconds": seconds, "reason": "", "detail": ""}


def upgrade(*states: str, outcome: str = "committed", ended: float | None = 9.0, **facts: Any) -> dict[str, Any]:
    made = {
        "target": NEW.enclave_id,
        "version": NEW.version,
        "began_unix_s": 1.0,
        "ended_unix_s": ended,
        "seconds": 8.0,
    }
    made |= {"downtime_s": 0.5, "outcome": outcome, "reason": "", "detail": "", "who": ""}
    return {**made, "steps": [step(state) for state in states], **facts}


def facts(state: State = CURRENT, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    status = {
        **{"node_id": "n<1>", "tee": "simulated", "state": state.to_json(), "since_unix_s": 1.0, "now_unix_s": 100.0},
        **{"block_number": 12, "alarms": [], "progress": {}, "node": {"status": "serving"}},
        "chain": {"last_number": 791, "finalized_age_s": 1.0, "endpoint": "ws://a", "endpoints": [{"url": "ws://<a>"}]},
        **more,
    }
    planned = plan(state, GateRules(approval=True), 100.0, 90.0).to_json()
    return {**status, "overview": overview(status, planned, lambda code: (f"{code} <b>", "do <i>"))}, planned


def shown(state: State = CURRENT, *upgrades: dict[str, Any], **more: Any) -> str:
    return page_html.page(*facts(state, **more), upgrades)


def test_the_page_is_whole_and_nothing_of_strangers_becomes_markup() -> None:
    html = shown(
        replace(CURRENT, running=OLD, hold=Hold("<u>", "<s>")),
        upgrade(*FORWARD, who="<eve>", reason="<X>", detail="<y>"),
        alarms=[{"code": "RUNNING_REVOKED", "detail": "<u>" + "c" * 64}],
        commands=[
            {
                "id": 7,
                "kind": "revert",
                "who": "<who>",
                "arguments": {"reason": "<why>"},
                "at_unix_s": 1.0,
                "expires_unix_s": 2,
            }
        ],
    )
    parser = Balanced()
    parser.feed(html)
    assert (parser.wrong, parser.open) == ([], [])
    assert len(parser.ids) == len(set(parser.ids))
    for planted in ("<img", "<u>", "<s>", "<i>", "<eve>", "<X>", "<y>", "<who>", "<why>", "n<1>", "ws://<a>", "$"):
        assert planted not in html
    assert "dcupgrade cancel 7" in html
    assert "style=" not in html.replace("rel=", "")  # the page's own policy refuses styles in attributes


def test_the_title_shows_state_and_node() -> None:
    assert "<title>✓ n&lt;1&gt;: up</title>" in shown()
    assert "<title>✗ n&lt;1&gt;: node down</title>" in shown(node={"status": "silent"})
    assert "<title>✗ n&lt;1&gt;: halted</title>" in shown(replace(CURRENT, name=Name.HALTED, halted="X"))
    waits = replace(CURRENT, name=Name.STAGED, running=OLD, target=NEW)
    assert "<title>… n&lt;1&gt;: staged</title>" in shown(waits)


@pytest.mark.parametrize("level", ["good", "busy", "attention", "bad", "<x>", ""])
def test_the_icon_is_a_picture_whatever_is_asked_for(level: str) -> None:
    ElementTree.fromstring(page_html.icon(level))  # noqa: S314 - our own


def test_gates_are_shown_with_what_opens_them_and_when() -> None:
    held = replace(CURRENT, running=OLD, hold=Hold("audit", "eve", 200.0))
    html = shown(held)
    assert re.search(r"<b>Hold</b> shut: eve: audit, opens <time[^>]*>1970-01-01T00:03:20Z", html)
    assert "<b>Approval</b> shut: waits for <code>dcupgrade approve</code>" in html
    assert "<b>Maintenance window</b> open" in html


def test_the_way_of_an_upgrade_fills_from_the_left() -> None:
    under_way = path(upgrade("staging", "staged", "collecting", outcome="under way", ended=None))
    assert [one["state"] for one in under_way] == list(FORWARD)
    assert [one["mark"] for one in under_way] == ["done", "done", "now"] + ["todo"] * 6
    done = path(upgrade(*FORWARD))
    assert {one["mark"] for one in done} == {"done"}
    turned = path(upgrade(*FORWARD[:7], "reverting", "reverted", outcome="reverted"))
    assert [one["state"] for one in turned] == [*FORWARD[:7], "reverting", "reverted"]
    assert [one["mark"] for one in turned][-2:] == ["failed", "failed"]
    installed = path(upgrade("staging", "staged", "launching", ended=None))
    assert [one["state"] for one in installed][2] == "launching"


def test_a_step_that_came_twice_shows_its_whole_time() -> None:
    found = path(upgrade("staging", "staged", "collecting", "staged", outcome="under way", ended=None))
    assert {one["state"]: one["seconds"] for one in found}["staged"] == 2.0


@pytest.mark.parametrize(
    ("state", "sensible"),
    [
        (CURRENT, {"hold"}),
        (replace(CURRENT, hold=Hold("x", "eve")), {"unhold"}),
        (replace(CURRENT, hold=Hold("x", "eve", 50.0)), {"hold", "unhold"}),
        (replace(CURRENT, running=OLD), {"hold", "approve", "override"}),
        (replace(CURRENT, previous=OLD), {"hold", "revert"}),
        (replace(CURRENT, name=Name.PROBATION, running=OLD, target=NEW), {"hold", "revert"}),
        (replace(CURRENT, name=Name.HALTED, halted="X"), {"hold", "resume", "revert"}),
        (
            replace(CURRENT, running=OLD, records=(Record(NEW.enclave_id, quarantine="X"),)),
            {"hold", "retry"},
        ),
    ],
)
def test_actions_are_offered_where_they_make_sense(state: State, sensible: set[str]) -> None:
    offered = page_html.sensible_actions(*facts(state))
    assert {name for name, makes_sense in offered.items() if makes_sense} == sensible


def test_the_plot_has_a_bar_for_each_upgrade_that_stopped_a_node() -> None:
    assert downtime_svg([upgrade("staging", downtime_s=None)]) == ""
    figure = downtime_svg([upgrade(*FORWARD, downtime_s=seconds, version="<1>") for seconds in (0.0, 1.5, 3.0)])
    root = ElementTree.fromstring(figure)  # noqa: S314 - our own
    bars = root.findall(".//rect")
    assert len(bars) == 3
    assert float(bars[0].attrib["height"]) > float(bars[1].attrib["height"]) > float(bars[2].attrib["height"])
    assert "at most 3.0 s" in str(root.findtext("figcaption"))
