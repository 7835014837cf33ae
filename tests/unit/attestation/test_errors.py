"""The documented codes of attestation are exactly the raised ones."""

import ast
import re
from pathlib import Path

from attestation.errors import CODES
from tests.conftest import parsed

from .conftest import ROOT


def named(path: Path) -> set[str]:
    """Codes whose name stands in a module's text, in an f-string too."""
    text = path.read_text()
    return {code for code in CODES if re.search(rf"\b{code}\b", text)}


def keywords(path: Path) -> set[str]:
    """What a module passes as `code=`, where it is a constant."""
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    values = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "code"]
    return {value.value for value in values if isinstance(value, ast.Constant)}


def test_codes_and_meanings_match() -> None:
    modules = [path for path in (ROOT / "attestation").rglob("*.py") if path.name != "errors.py"]
    assert len(modules) > 10
    for path in modules:
        assert keywords(path) <= set(CODES), path.name
    used = set().union(*map(named, modules))
    assert used == set(CODES)
