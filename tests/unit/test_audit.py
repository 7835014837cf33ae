"""docs/audit.md names twenty claims; every file, function, test and attack that it names exists."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import parsed

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
CLAIMS = re.split(r"^\d+\. \*\*", PAGE, flags=re.MULTILINE)[1:]
NAMES = sorted(set(re.findall(r"`([\w./-]+::[^`]+)`", PAGE)))


def defined(path: Path) -> set[str]:
    """Names of a file's functions and classes, and of methods as `Class.method`."""
    found = set()
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


def exists(name: str) -> bool:
    file, _, part = name.partition("::")
    path = ROOT / file
    if not path.is_file():
        return False
    if path.suffix == ".toml":
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return part in {case["name"] for model in table.values() for case in model["case"]}
    return part in defined(path)


def test_there_are_twenty_claims_each_with_code_test_and_attack() -> None:
    assert len(CLAIMS) == 20
    for number, claim in enumerate(CLAIMS, 1):
        parts = re.findall(r"^ +(Code|Test|Attack): `[\w./-]+::[^`]+`", claim, re.MULTILINE)
        assert parts == ["Code", "Test", "Attack"], f"claim {number}"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_exists(name: str) -> None:
    assert exists(name)


@pytest.mark.parametrize(
    "name",
    ["keyvault/nowhere.py::decide_release", "keyvault/vault/decisions.py::decide", "docs/formal/cases.toml::no attack"],
)
def test_a_name_that_is_gone_is_noticed(name: str) -> None:
    """The control."""
    assert not exists(name)


def test_every_file_to_begin_with_exists() -> None:
    files = re.findall(r"`([\w/]+\.py)`", PAGE.split("## Where to begin")[1])
    assert len(files) > 5
    assert [name for name in files if not (ROOT / name).is_file()] == []
