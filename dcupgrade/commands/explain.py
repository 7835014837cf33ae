"""All error codes of the program in one place, for ``explain`` and for the runbook."""

import importlib
from pathlib import Path

PACKAGES = ("dcupgrade", "chain_watcher", "attestation", "keyvault", "process_supervisor")


def all_codes() -> dict[str, str]:
    """Code to one-line meaning, over every package; the tidy test keeps codes unique."""
    merged: dict[str, str] = {}
    for package in PACKAGES:
        merged.update(importlib.import_module(f"{package}.errors").CODES)
    return merged


def runbook_entry(code: str) -> str | None:
    """The runbook's section on ``code`` (Markdown text under its heading), or None where there is none here."""
    book = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
    if not book.is_file():
        return None
    _, found, rest = book.read_text(encoding="utf-8").partition(f"\n### {code}\n")
    return rest.split("\n### ")[0].split("\n## ")[0].strip() if found else None
