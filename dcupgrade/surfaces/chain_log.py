"""Log lines about the chain: endpoints lost, found and accused, and why the chain cannot be judged. Pure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dcupgrade.errors import failure_of

log = logging.getLogger("dcupgrade")


@dataclass(frozen=True, slots=True)
class News:
    """One line for the log: a level of `logging`, a text for people, and the error's code, if there is one."""

    level: Literal["INFO", "WARNING", "ERROR"]
    text: str
    code: str = ""


def news(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[News]:
    """Return what changed between two answers of the watcher's `health()`; `before` is None at the start.

    An endpoint that is retried repeatedly is reported once per cause, not once per try.
    """
    found = [News("WARNING", f"UNSAFE chain settings: {', '.join(now['unsafe'])}")] if _begins(before, now) else []
    known = {} if before is None else {one["url"]: one for one in before["endpoints"]}
    for endpoint in now["endpoints"]:
        found += _of_endpoint(known.get(endpoint["url"]), endpoint)
    was, used = None if before is None else before["endpoint"], now["endpoint"]
    if used != was:
        found.append(News("INFO" if used else "WARNING", f"chain endpoint in use: {used or 'none'}"))
    return found + _of_problem((before or {}).get("problem"), now["problem"])


def _begins(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    return before is None and bool(now["unsafe"])


def _of_endpoint(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[News]:
    code, why = now["code"] or "", now["why"]
    was_lying = before is not None and before["state"] == "lying"
    if now["state"] == "lying":
        logged = was_lying and before is not None and before["code"] == code
        return [] if logged else [News("ERROR", f"chain endpoint {now['url']} is lying: {why}", code)]
    up, was_up = now["state"] == "connected", before is not None and before["state"] == "connected"
    if up and not was_up:
        return [News("INFO", f"chain endpoint {now['url']} is connected")]
    if not up and code and (was_up or before is None or before["code"] != code):
        return [News("WARNING", f"chain endpoint {now['url']} cannot be used: {why}", code)]
    return []


def _of_problem(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[News]:
    if now is not None and (before is None or before["code"] != now["code"]):
        return [News("WARNING", f"the chain cannot be judged: {now['text']}", now["code"])]
    if now is None and before is not None:
        return [News("INFO", "the chain can be judged again")]
    return []


CHAIN_LOOK_S = 1.0


async def log_chain_news(health: Callable[[], Mapping[str, Any]]) -> None:
    """Log changes of the chain's endpoints, for people who read the log and not the status."""
    before = None
    while True:
        try:
            now = health()
            for item in news(before, now):
                extra = {"event": "chain", **({"code": item.code} if item.code else {})}
                log.log(logging.getLevelNamesMapping()[item.level], "%s", item.text, extra=extra)
            before = now
        except Exception as error:  # a missing log line must not end the agent
            log.warning("changes of the chain endpoints cannot be logged: %s", failure_of(error).detail)
        await asyncio.sleep(CHAIN_LOOK_S)
