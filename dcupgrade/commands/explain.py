"""All error codes of the program in one place, for `explain` and for the runbook."""

import difflib
import functools
import importlib
import re
from pathlib import Path

from dcupgrade.errors import DcupgradeError

PACKAGES = ("dcupgrade", "chain_watcher", "attestation", "keyvault", "process_supervisor")
RUNBOOK = Path(__file__).resolve().parent / "runbook"
"""The pages of docs/runbook, which every installation carries inside of the package."""


def all_codes() -> dict[str, str]:
    """Code to one-line meaning, over every package; the tidy test keeps codes unique."""
    merged: dict[str, str] = {}
    for package in PACKAGES:
        merged.update(importlib.import_module(f"{package}.errors").CODES)
    return merged


def runbook_entry(code: str) -> str | None:
    """The runbook's section on `code` (Markdown text under its heading), or None where there is none."""
    return _runbook().get(code)


@functools.cache
def _runbook() -> dict[str, str]:
    """Every entry by its code."""
    entries = {}
    for page in sorted(RUNBOOK.glob("*.md")):
        for section in page.read_text(encoding="utf-8").split("\n## ")[1:]:
            code, _, text = section.partition("\n")
            entries[code] = text.strip()
    return entries


def explanation(asked: str) -> str:
    """What `code` means and what to do, as plain text for a terminal.

    Raises `DcupgradeError` UNKNOWN_CODE, with the codes that are spelt alike.
    """
    code = asked.upper()
    meaning = all_codes().get(code)
    if meaning is None:
        alike = difflib.get_close_matches(code, all_codes(), n=3) or [c for c in all_codes() if code in c][:3]
        action = f"Is {' or '.join(alike)} meant?" if alike else "Copy the code from the message, the log or `status`."
        raise DcupgradeError(code="UNKNOWN_CODE", what=f"code {asked}", why="nothing here emits it", action=action)
    entry = runbook_entry(code) or meaning
    return f"{code}: {_plain(entry)}"


@functools.cache
def meaning_and_remedy(code: str) -> tuple[str, str]:
    """What a code means and what to do about it, commands in backquotes; empty for a code that nothing here emits."""
    meaning, _, remedy = (runbook_entry(code) or all_codes().get(code, "")).partition("**Do:**")
    return meaning.strip(), remedy.strip()


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", markdown).replace("**", "").replace("`", "").strip()
