"""The status page as HTML, rendered on the server. It works without scripts and shows the same as `status`.

After each event, `page.js` fetches the page again and replaces the parts marked `data-live`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from dcupgrade.machine.picture import machine_svg

from .plots import downtime_svg
from .times import iso, span
from .upgrades import path

Facts = Mapping[str, Any]

PAGE = Path(__file__).resolve().parent / "page"
MARKS = {"good": "✓", "busy": "…", "attention": "!", "bad": "✗"}
LEVEL_WORDS = {"good": "well", "busy": "under way", "attention": "needs attention", "bad": "down"}
CARD_TITLES = {"node": "Node", "vault": "Vault", "chain": "Chain", "release": "Release", "fleet": "Fleet"}
GATE_TITLES = {
    "GATE_HELD": "Hold",
    "GATE_APPROVAL_MISSING": "Approval",
    "GATE_WINDOW_SHUT": "Maintenance window",
    "GATE_NOT_MY_TURN": "Turn",
    "GATE_SLOT": "Slot in the fleet",
    "GATE_PREFLIGHT": "Host",
}
"""Gates as people read them; one that is not here is shown by its code."""
ICON_COLOURS = {"good": "#1f6f4a", "busy": "#1d5fa8", "attention": "#8a5300", "bad": "#a3231c"}
_MARKED = re.compile(r"\b(?P<id>[0-9a-f]{64})\b|`(?P<code>[^`]+)`")


@functools.cache
def _template() -> Template:
    return Template((PAGE / "index.html").read_text(encoding="utf-8"))


def page(status: Facts, plan: Facts, upgrades: Sequence[Facts]) -> str:
    """Render the whole page. `status` is the status answer with its overview, `upgrades` the newest upgrades first."""
    told = status["overview"]
    return _template().substitute(
        title=escape(f"{MARKS[told['level']]} {status['node_id']}: {_short(status, told['level'])}"),
        level=told["level"],
        node=escape(str(status["node_id"])),
        headline=f"{_pill(told['level'])} <strong>{escape(told['headline'])}</strong>",
        simulated="" if status.get("tee") == "simulated" else "hidden",
        now=_time(status["now_unix_s"]),
        attention=_needs(told["attention"]),
        cards="".join(map(_card, told["cards"])),
        way=_way(status, upgrades),
        gates=_gates(plan),
        queued=_queue(told["queued"]),
        upgrades="".join(map(_upgrade, upgrades)) or "<p>There was no upgrade yet.</p>",
        plot=downtime_svg(upgrades),
        machine=_machine(status["state"]["name"]),
        endpoints=_endpoints(status.get("chain") or {}),
        buttons=_buttons(status, plan),
    )


def icon(level: str) -> str:
    """Return the page's icon: a disc in the level's colour, with its mark."""
    known = level if level in MARKS else "attention"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
        f'<circle cx="16" cy="16" r="15" fill="{ICON_COLOURS[known]}"/>'
        '<text x="16" y="23" font-size="20" font-family="sans-serif" font-weight="700" text-anchor="middle" '
        f'fill="#fff">{MARKS[known]}</text></svg>'
    )


def _short(status: Facts, level: str) -> str:
    """Return the state as a short text, for the title of the browser's tab."""
    name = str(status["state"]["name"])
    if name != "idle":
        return name
    return {"good": "up", "attention": "needs attention", "bad": "node down"}.get(level, "up")


# --- small parts -----------------------------------------------------------------------------------------------------


def _pill(level: str) -> str:
    return (
        f'<span class="pill" data-level="{level}"><b aria-hidden="true">{MARKS[level]}</b> {LEVEL_WORDS[level]}</span>'
    )


def _time(unix_s: float) -> str:
    return f'<time datetime="{iso(unix_s)}">{iso(unix_s)}</time>'


def _text(text: str) -> str:
    """Escape a text of the agent. Enclave ids are displayed short but copied whole; text in backticks becomes code."""
    parts, end = [], 0
    for found in _MARKED.finditer(text):
        marked = _id(found.group()) if found["id"] else f"<code>{escape(found['code'])}</code>"
        parts += [escape(text[end : found.start()]), marked]
        end = found.end()
    return "".join([*parts, escape(text[end:])])


def _id(enclave_id: str) -> str:
    button = (
        f'<button type="button" class="copy" data-copy="{enclave_id}" aria-label="Copy {enclave_id[:8]}">copy</button>'
    )
    return f'<span class="id"><code>{enclave_id}</code>{button}</span>'


def _list_of_facts(facts: Iterable[Sequence[str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{_text(text)}</dd>" for name, text in facts) + "</dl>"


# --- sections --------------------------------------------------------------------------------------------------------


def _needs(needs: Sequence[Facts]) -> str:
    return f'<ul class="attention">{"".join(map(_need, needs))}</ul>' if needs else ""


def _need(need: Facts) -> str:
    detail = f"<p>{_text(need['detail'])}</p>" if need["detail"] else ""
    remedy = f"<p><b>Do:</b> {_text(need['remedy'])}</p>" if need["remedy"] else ""
    title = f"<h3>{escape(need['what'] or need['code'])}</h3><p><code>{escape(need['code'])}</code></p>"
    return f"<li>{title}{detail}{remedy}</li>"


def _card(card: Facts) -> str:
    title = CARD_TITLES.get(str(card["name"]), str(card["name"]))
    return (
        f'<article class="card" id="card-{escape(card["name"])}" data-level="{card["level"]}">'
        f"<h3>{escape(title)} {_pill(card['level'])}</h3><p><strong>{escape(card['headline'])}</strong></p>"
        f"{_list_of_facts(fact for fact in card['facts'] if fact[0] != 'plan')}</article>"
    )


def _way(status: Facts, upgrades: Sequence[Facts]) -> str:
    """Render the newest upgrade as a line of steps, with the progress if it is under way."""
    if not upgrades:
        return '<h2 id="way-title">Upgrade</h2><p>There was no upgrade yet.</p>'
    newest = upgrades[0]
    running = newest["ended_unix_s"] is None
    title = f"{'Upgrade to' if running else 'Last upgrade:'} {_name(newest)}"
    steps = "".join(map(_step, path(newest)))
    return (
        f'<h2 id="way-title">{escape(title)}</h2><ol class="steps">{steps}</ol>{_progress(status) if running else ""}'
    )


def _step(step: Facts) -> str:
    spent = "" if step["seconds"] is None else span(step["seconds"])
    now = ' aria-current="step"' if step["mark"] == "now" else ""
    words = {"done": "done", "now": "now", "todo": "to come", "failed": "failed"}[step["mark"]]
    return (
        f'<li data-mark="{step["mark"]}" data-state="{escape(step["state"])}"{now}><b>{escape(step["label"])}</b> '
        f'<span class="quiet">{spent}</span> <span class="hidden">{words}</span></li>'
    )


def _progress(status: Facts) -> str:
    name, progress = status["state"]["name"], status.get("progress") or {}
    download, probation = progress.get("download"), progress.get("probation")
    if name == "staging" and download:
        done, total = download.get("done_bytes") or 0, download.get("total_bytes") or 0
        return _bar("Download", done, total, f"{done:,} of {total:,} bytes" if total else f"{done:,} bytes")
    if name == "probation" and probation:
        left = max(0.0, probation["whole_s"] - probation["passed_s"])
        return _bar("Probation", probation["passed_s"], probation["whole_s"], f"{span(left)} left")
    return ""


def _bar(label: str, done: float, whole: float, words: str) -> str:
    value = f'value="{min(done, whole)}" max="{whole or 1}"' if whole else ""
    return (
        f'<p id="work"><label for="work-bar">{label}</label> <progress id="work-bar" {value}></progress> '
        f'<span id="work-text" class="quiet">{words}</span></p>'
    )


def _gates(plan: Facts) -> str:
    lines = "".join(f"<p>{_text(line)}</p>" for line in plan.get("lines") or ())
    gates = "".join(map(_gate, plan.get("gates") or ()))
    return f'{lines}<ul class="gates">{gates}</ul>' if gates else lines


def _gate(gate: Facts) -> str:
    title = GATE_TITLES.get(str(gate["name"]), str(gate["name"]))
    if gate["open"]:
        return f'<li data-level="good"><b>{escape(title)}</b> open</li>'
    when = f", opens {_time(gate['opens_unix_s'])}" if gate.get("opens_unix_s") else ""
    code = f"<code>{escape(gate['name'])}</code>"
    return f'<li data-level="attention"><b>{escape(title)}</b> shut: {_text(gate["why"])}{when} {code}</li>'


def _queue(commands: Sequence[Facts]) -> str:
    return f"<p>Queued, not yet taken up:</p><ul>{''.join(map(_queued, commands))}</ul>" if commands else ""


def _queued(command: Facts) -> str:
    withdraw = f'<span class="quiet">(<code>dcupgrade cancel {int(command["id"])}</code> withdraws it)</span>'
    return f"<li>{_text(command['text'])} {withdraw}</li>"


def _upgrade(item: Facts) -> str:
    why = " ".join(
        part for part in (item["reason"], item["detail"], f"by {item['who']}" if item["who"] else "") if part
    )
    down = "no downtime" if item["downtime_s"] is None else f"downtime {span(item['downtime_s'])}"
    steps = "".join(
        f"<li><b>{escape(step['state'])}</b> {_time(step['at_unix_s'])} {span(step['seconds'])} "
        f"{escape(step['reason'])} {_text(step['detail'])}</li>"
        for step in item["steps"]
    )
    return (
        f'<details class="upgrade" id="upgrade-{item["began_unix_s"]}" data-outcome="{escape(item["outcome"])}">'
        f"<summary><b>{escape(_name(item))}</b> <span class=outcome>{escape(item['outcome'])}</span> "
        f"<span>{_time(item['began_unix_s'])}</span> <span>took {span(item['seconds'])}</span> <span>{down}</span> "
        f"<span class=why>{escape(why)}</span></summary><p>{_id(item['target']) if item['target'] else ''}</p>"
        f"<ol>{steps}</ol></details>"
    )


def _name(item: Facts) -> str:
    return str(item["version"] or item["target"][:12] or "no release")


def _machine(name: str) -> str:
    """Return the machine's picture with the current state highlighted."""
    return machine_svg(styled=False).replace(f'<g data-state="{name}">', f'<g class="lit" data-state="{name}">')


def _endpoints(chain: Facts) -> str:
    rows = "".join(
        f"<li><code>{escape(str(one['url']))}</code> {escape(str(one.get('state', '')))}"
        f"{': ' + escape(str(one['why'])) if one.get('why') else ''}</li>"
        for one in chain.get("endpoints") or ()
    )
    return f"<ul>{rows}</ul>" if rows else "<p>No endpoint is known.</p>"


# --- what can be done now --------------------------------------------------------------------------------------------


def sensible_actions(status: Facts, plan: Facts) -> dict[str, bool]:
    """Return which actions would have an effect now. The agent decides again when an action is requested."""
    state = status["state"]
    waits = plan.get("action") == "wait"
    shut = {gate["name"] for gate in plan.get("gates") or () if waits and not gate["open"]}
    hold = state.get("hold")
    held = bool(hold and not (hold.get("until_unix_s") and hold["until_unix_s"] <= status["now_unix_s"]))
    quarantined = any(record.get("quarantine") for record in state.get("records") or ())
    under_way = state["name"] in ("stopping", "launching", "delivering", "probation")
    return {
        "approve": "GATE_APPROVAL_MISSING" in shut,
        "override": bool(shut - {"GATE_PREFLIGHT"}),
        "hold": not held,
        "unhold": bool(hold),
        "retry": quarantined,
        "resume": state["name"] == "halted",
        "revert": bool(state.get("previous")) or under_way or state["name"] == "halted",
    }


ACTION_WORDS = {
    "approve": "Approve",
    "override": "Override gates",
    "hold": "Hold",
    "unhold": "Lift the hold",
    "retry": "Try again",
    "resume": "Resume",
    "revert": "Revert…",
}
DANGEROUS = ("override", "revert")


def _buttons(status: Facts, plan: Facts) -> str:
    return "".join(
        f'<button name="action" value="{action}"{" class=danger" if action in DANGEROUS else ""}'
        f"{'' if sensible else ' disabled'}>{ACTION_WORDS[action]}</button> "
        for action, sensible in sensible_actions(status, plan).items()
    )
