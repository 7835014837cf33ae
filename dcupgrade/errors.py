"""Errors of the agent, each under a stable code; ``python -m dcupgrade explain CODE`` tells what a code means."""

from typing import Literal

Kind = Literal["transient", "rejected", "invariant"]

CODES: dict[str, str] = {
    "SETTINGS_UNREADABLE": "the settings file cannot be read or is not TOML",
    "SETTINGS_INVALID": "the settings file has mistakes; all of them are listed",
    "UNKNOWN_CODE": "no part of the program knows the code that was asked about",
}


class DcupgradeError(Exception):
    """What failed, why, and what to do, under a stable code.

    ``kind`` says who must act: ``transient`` (retry with backoff), ``rejected`` (this input is refused), ``invariant``
    (stop and keep everything).
    """

    def __init__(self, *, code: str, what: str, why: str, action: str = "", kind: Kind = "rejected") -> None:
        self.code = code
        self.what = what
        self.why = why
        self.action = action
        self.kind: Kind = kind
        end = "" if why.endswith("\n") else ". " if action else "."
        super().__init__(f"{code}: {what}: {why}{end}{action}")
