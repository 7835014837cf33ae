"""Log lines on standard error: one line per event, for people or as JSON, with the same event names in both."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from dcupgrade.printable import one_line

PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class HumanFormatter(logging.Formatter):
    """`2026-01-31T12:00:00Z INFO text (key=value …)`; an exception adds its class and text, never a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        extra = " ".join(f"{key}={one_line(str(value))}" for key, value in _extra(record).items())
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return f"{at} {record.levelname} {_one_line(record)}" + (f" ({extra})" if extra else "")


class JsonFormatter(logging.Formatter):
    """One JSON object: at_unix_s, level, logger, message, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        head = {"at_unix_s": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        return json.dumps({**head, "message": _one_line(record), **_extra(record)}, default=str)


def _one_line(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        text += f": {type(error).__name__}: {error}"
    return one_line(" ".join(text.split("\n")))


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in PLAIN and not key.startswith("_")}


def configure(handler: logging.Handler, form: str, level: str) -> None:
    """Send the program's log to `handler`; `form` is "human" or "json", `level` one of the names of `logging`."""
    handler.setFormatter(JsonFormatter() if form == "json" else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
