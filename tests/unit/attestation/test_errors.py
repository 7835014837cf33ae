"""Every code that attestation raises is documented, and none is documented that nobody raises."""

import ast
from pathlib import Path

from attestation.errors import CODES
from attestation.policy import Role
from tests.unit.attestation.conftest import ROOT


def raised(path: Path) -> set[str]:
    """Text constants of a module that look like codes of this package."""
    tree = ast.parse(path.read_text())
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in CODES}


def keywords(path: Path) -> set[str]:
    """What a module passes as `code=`, where it is a constant."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    values = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "code"]
    return {value.value for value in values if isinstance(value, ast.Constant)}


def test_codes_and_meanings_match() -> None:
    modules = [path for path in (ROOT / "attestation").rglob("*.py") if path.name != "errors.py"]
    assert len(modules) > 10
    for path in modules:
        assert keywords(path) <= set(CODES), path.name
    used = set().union(*map(raised, modules)) | {role.value for role in Role}
    assert used == set(CODES)
