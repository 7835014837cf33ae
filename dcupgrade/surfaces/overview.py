"""The overview for operators, from the agent's facts: whether all is well, and what an operator must do. Pure.

The command line, the status page and the HTTP API show the same overview in different layouts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dcupgrade.machine.state import Name

from .times import iso, span

Explain = Callable[[str], tuple[str, str]]
"""Returns the meaning and the remedy of a code."""
Facts = Mapping[str, Any]
Card = dict[str, Any]

LEVELS = ("good", "busy", "attention", "bad")
"""From best to worst. `bad`: the node should serve and does not, or the machine is halted."""
EXIT_CODES = {"good": 0, "busy": 0, "attention": 3, "bad": 4}
"""Exit codes of `dcupgrade status --exit-code`."""
FINALITY_OLD_S = 300.0
FLEET_SHOWN = 5
"""Largest number of nodes of the fleet that are named for each kind."""

DOING = {
    Name.STAGING: "downloading and verifying",
    Name.STAGED: "verified; waits for the gates",
    Name.COLLECTING: "taking the keys into the vault",
    Name.SEALED: "keys are sealed; waits for the vault's permit",
    Name.STOPPING: "stopping the old version",
    Name.LAUNCHING: "starting the new version",
    Name.DELIVERING: "handing the keys to the new version",
    Name.PROBATION: "the new version serves on probation",
    Name.COMMITTED: "committing the new version",
    Name.ABANDONED: "given up before the old version was stopped",
    Name.REVERTING: "going back to the old version",
    Name.REVERTED: "the old version serves again",
}
"""The meaning of each state of an upgrade, for operators who do not know the machine."""
IDENTITY = {
    "measured": "measured: its files are those that the network signed",
    "sigstruct": "sigstruct: the SIGSTRUCT in its image names it; the files were not measured",
    "attested": "ATTESTED ONLY: nothing proved it before it attested itself to the vault",
}
"""How a version's enclave id was proven before it was started."""
TROUBLE = {"retry": "tried again", "journal_failed": "journal", "chain_lost": "chain lost"}
"""The agent's notes about temporary failures, and their names in the overview."""
NODE_AWAY = (Name.STOPPING, Name.LAUNCHING, Name.DELIVERING, Name.REVERTING)
"""States in which the machine wants no serving node."""
OF_TARGET = (Name.LAUNCHING, Name.DELIVERING, Name.PROBATION)
"""States in which the new version must serve."""
NODE_STATUS = {
    "serving": ("good", "serving"),
    "starting": ("attention", "starting"),
    "waiting_for_keys": ("attention", "waiting for its keys"),
    "failed": ("bad", "says that it failed"),
    "silent": ("bad", "does not answer"),
    "stopped": ("bad", "not running"),
    "unknown": ("attention", "not asked yet"),
}


def overview(status: Facts, plan: Facts | None, explain: Explain) -> dict[str, Any]:
    """Return {"level", "headline", "cards": [{"name", "level", "headline", "facts"}], "attention": […]}; JSON-able.

    `status`: the status answer without this overview. `plan`: the plan answer, None if no agent answers. `facts` of a
    card are pairs of name and text. `attention` has for each alarm its `code`, `detail`, meaning (`what`) and `remedy`.
    `queued` has for each waiting operator command its `id` and a `text`.
    """
    cards = [_node(status), _vault(status), _chain(status), _release(status, plan)]
    if "fleet" in status:
        cards.append(_fleet(status["fleet"]))
    attention = [_attention(alarm, explain) for alarm in _alarms(status)]
    level = max([*(card["level"] for card in cards), _level_of_machine(status, attention)], key=LEVELS.index)
    headline = _headline(status, plan, cards, attention)
    queued = [_queued(command) for command in status.get("commands") or []]
    return {"level": level, "headline": headline, "cards": cards, "attention": attention, "queued": queued}


def named(release: Facts | None) -> str:
    """Return a release's version, or the beginning of its id if it has none."""
    if not release:
        return "nothing"
    return str(release["version"] or f"{release['enclave_id'][:12]}…")


def _alarms(status: Facts) -> Sequence[Facts]:
    """Return the agent's alarms; if only the journal can be read, the condition in which the machine halted."""
    state = status.get("state") or {}
    stored = [{"code": state["halted"], "detail": state.get("detail", "")}] if state.get("halted") else []
    alarms: Sequence[Facts] = status.get("alarms", stored)
    return alarms


def _name(status: Facts) -> Name:
    state = status.get("state") or {}
    return Name(state.get("name", Name.IDLE))


def _level_of_machine(status: Facts, attention: Sequence[Facts]) -> str:
    if status.get("agent") == "not running" or _name(status) is Name.HALTED:
        return "bad"
    if attention:
        return "attention"
    return "good" if _name(status) is Name.IDLE else "busy"


def _headline(status: Facts, plan: Facts | None, cards: Sequence[Card], attention: Sequence[Facts]) -> str:
    state, node = status.get("state") or {}, cards[0]
    if status.get("agent") == "not running":
        return "The agent is not running."
    if state.get("halted"):
        return f"Halted: {state['halted']}. A person is needed."
    if node["level"] == "bad":
        return f"The node is down: {node['headline']}."
    name = _name(status)
    if name is not Name.IDLE:
        return f"{_about(state, name)}: {DOING[name]}."
    count = len(attention)
    needs = f" {count} conditions need attention." if count > 1 else " 1 condition needs attention." if count else ""
    if not state.get("running"):
        return f"No node is installed.{needs}"
    serves = f"{named(state['running'])} serves."
    current = (plan or {}).get("action") == "none" and _is_newest(state)
    return f"{'Up to date: ' if current else ''}{serves}{needs}"


def _about(state: Facts, name: Name) -> str:
    running, target = state.get("running"), state.get("target")
    if name in (Name.REVERTING, Name.REVERTED):
        return f"Going back from {named(target)} to {named(running)}"
    return f"Upgrade {named(running)} to {named(target)}" if running else f"Installation of {named(target)}"


def _is_newest(state: Facts) -> bool:
    program = (state.get("chain") or {}).get("program")
    return bool(program and state.get("running") and program["enclave_id"] == state["running"]["enclave_id"])


# --- the cards -------------------------------------------------------------------------------------------------------


def _node(status: Facts) -> Card:
    state, node = status.get("state") or {}, status.get("node")
    name = _name(status)
    if node is None:
        headline = "not known" if state.get("running") else "none is installed"
        return _card("node", "attention" if status.get("agent") == "not running" else "good", headline)
    expected = state.get("target") if name in OF_TARGET else state.get("running")
    if expected and node.get("enclave_id") not in (None, expected["enclave_id"]):
        return _card("node", "busy", f"{named(expected)} was not asked yet: the version has just changed")
    level, headline = NODE_STATUS.get(str(node.get("status")), ("attention", str(node.get("status"))))
    if level != "good" and name in NODE_AWAY:
        level, headline = "busy", f"{headline}, as the upgrade wants it"
    facts = [("version", named(node) if node.get("enclave_id") else "")]
    facts.append(("runs as", str(node.get("process") or "")))
    if node.get("since_unix_s"):
        facts.append(("since", f"{iso(node['since_unix_s'])} ({span(status['now_unix_s'] - node['since_unix_s'])})"))
    canary = node.get("canary")
    facts.append(("canary", "" if canary is None else "old data is readable" if canary else "old data is NOT readable"))
    facts.append(("detail", str(node.get("detail") or "")))
    return _card("node", level, headline, facts)


def _vault(status: Facts) -> Card:
    vault = status.get("vault") or {}
    reachable = vault.get("reachable")
    if reachable is None:
        return _card("vault", "attention" if status.get("agent") == "not running" else "good", "not asked yet")
    count = vault.get("key_sets", 0)
    facts = [
        ("sealed copies", f"{count} key set{'s' * (count != 1)}"),
        ("permit", str(vault.get("permit") or "")),
        ("TEE", "simulated: protects nothing" if vault.get("tee") == "simulated" else str(vault.get("tee") or "")),
        ("build", str(vault.get("enclave_id") or "")),
        ("detail", str(vault.get("detail") or "")),
    ]
    if not reachable:
        return _card("vault", "attention", "does not answer", facts)
    code = vault.get("code")
    return _card("vault", "attention" if code else "good", f"answers, with {code}" if code else "ok", facts)


def _chain(status: Facts) -> Card:
    chain = status.get("chain")
    if chain is None:
        return _card("chain", "attention", "not followed")
    number, age_s, endpoint = chain.get("last_number"), chain.get("finalized_age_s"), chain.get("endpoint")
    problem = (chain.get("problem") or {}).get("text", "")
    seen = number is not None and age_s is not None
    facts = [
        ("last finalized block", f"{number}, {span(age_s)} ago" if seen else "none"),
        ("last change at block", str(status.get("block_number") or "none")),
        ("endpoint", str(endpoint or "none")),
        ("believed", _belief(chain)),
        ("accused of lying", ", ".join(chain.get("lying") or ())),
        ("problem", str(problem)),
    ]
    if not seen:
        return _card("chain", "attention" if problem else "busy", "no finalized block was seen yet", facts)
    if endpoint is None:
        return _card("chain", "attention", "no endpoint is usable", facts)
    if age_s > FINALITY_OLD_S:
        return _card("chain", "attention", f"no finalized block for {span(age_s)}", facts)
    return _card("chain", "attention" if chain.get("lying") else "good", "followed", facts)


def _belief(chain: Facts) -> str:
    unsafe = chain.get("unsafe") or ()
    return f"{chain.get('finality')}{' (UNSAFE: ' + ', '.join(unsafe) + ')' if unsafe else ''}"


def _release(status: Facts, plan: Facts | None) -> Card:
    state = status.get("state") or {}
    program = (state.get("chain") or {}).get("program")
    facts = [
        ("runs", named(state.get("running"))),
        ("id", (state.get("running") or {}).get("enclave_id", "")),
        ("on the chain", named(program) if program else "no signed version"),
        ("target", named(state["target"]) if state.get("target") else ""),
        ("target id", (state.get("target") or {}).get("enclave_id", "")),
        ("identity", _identity(status, state.get("running"))),
        ("target identity", _identity(status, state.get("target"))),
        ("previous", _previous(state)),
        ("hold", _hold(state.get("hold"), status.get("now_unix_s"))),
        ("reason", f"{state.get('reason', '')} {state.get('detail', '')}".strip()),
        *_trouble(status.get("progress") or {}),
    ]
    facts += [("plan", str(line)) for line in (plan or {}).get("lines") or ()]
    name = _name(status)
    if name is not Name.IDLE:
        headline = f"halted: {state.get('halted')}" if name is Name.HALTED else DOING[name]
        return _card("release", "bad" if name is Name.HALTED else "busy", headline, facts)
    if plan is None:
        return _card("release", "good", "idle", facts)
    waits = {"upgrade": "a newer version is taken now", "install": "is installed now", "wait": "a newer version waits"}
    headline = waits.get(str(plan.get("action")), "up to date" if _is_newest(state) else "nothing to do")
    return _card("release", "good", headline, facts)


def _fleet(fleet: Facts) -> Card:
    """Return the fleet's card, from the engine's last answer: who upgrades, who waits, versions, recent outcomes."""
    if not fleet:
        return _card("fleet", "busy", "its engine has not answered yet")
    halt, held = fleet["halt"], [slot for slot in fleet["slots"] if slot]
    ends = Counter(item["outcome"] for item in fleet["outcomes"])
    back = [f"{item['node']} from {item['version']}" for item in fleet["outcomes"] if item["outcome"] == "reverted"]
    facts = [
        ("upgrade", ", ".join(f"{slot['holder']} to {slot['version'] or '?'}" for slot in held[:FLEET_SHOWN])),
        ("wait", _some(fleet["waiting"])),
        ("versions", ", ".join(f"{version}: {count}" for version, count in fleet["versions"].items())),
        ("last ends", ", ".join(f"{count} {outcome}" for outcome, count in ends.most_common())),
        ("went back", _some(back)),
    ]
    if halt is not None:
        return _card("fleet", "attention", f"halted by {halt['who'] or 'an operator'}: {halt['why']}", facts)
    return _card("fleet", "good", f"{len(held)} of {len(fleet['slots'])} slots are held", facts)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - FLEET_SHOWN} more" if len(names) > FLEET_SHOWN else ""
    return ", ".join(names[:FLEET_SHOWN]) + more


def _identity(status: Facts, release: Facts | None) -> str:
    grade = (status.get("identity") or {}).get((release or {}).get("enclave_id", ""), "")
    return IDENTITY.get(grade, "")


def _trouble(progress: Facts) -> list[tuple[str, str]]:
    """Return what fails now and is being retried."""
    noted = ((label, progress[name]) for name, label in TROUBLE.items() if name in progress)
    return [(label, str(facts.get("detail") or facts.get("code") or "")) for label, facts in noted]


def _previous(state: Facts) -> str:
    previous, until = state.get("previous"), state.get("previous_until_unix_s")
    if not previous:
        return ""
    return f"{named(previous)}; `dcupgrade revert` goes back to it until {iso(until)}" if until else named(previous)


def _hold(hold: Facts | None, now_unix_s: float | None) -> str:
    if not hold:
        return ""
    until = hold.get("until_unix_s")
    if until and now_unix_s is not None and until <= now_unix_s:
        return ""
    end = f" until {iso(until)}" if until else ""
    return f"by {hold.get('who') or 'an operator'}{end}: {hold.get('reason') or 'no reason given'}"


def _card(name: str, level: str, headline: str, facts: Sequence[tuple[str, str]] = ()) -> Card:
    return {"name": name, "level": level, "headline": headline, "facts": [list(pair) for pair in facts if pair[1]]}


def _queued(command: Facts) -> dict[str, Any]:
    reason = (command.get("arguments") or {}).get("reason")
    expires = command.get("expires_unix_s")
    text = f"{command['kind']} by {command['who'] or '?'}, given {iso(command['at_unix_s'])}"
    text += (f", refused after {iso(expires)}" if expires else "") + (f": {reason}" if reason else "")
    return {"id": command["id"], "text": text}


def _attention(alarm: Facts, explain: Explain) -> dict[str, str]:
    code = str(alarm["code"])
    what, remedy = explain(code)
    return {"code": code, "detail": str(alarm.get("detail") or ""), "what": what, "remedy": remedy}
