"""Every code this package can raise is listed, listed codes are raised, and errors survive JSON and pickle."""

import ast
import pickle
import re
from pathlib import Path

import pytest

from keyvault.errors import CODES, KeyvaultError, error_from_json
from tests.conftest import parsed

PACKAGE = Path(__file__).resolve().parents[3] / "keyvault"
CODE = re.compile(r"(?:HANDOVER|KEY_SET|PERMIT|RELEASE|VAULT|STORE|CONFORMANCE|V1|NO_PERMIT)_[A-Z0-9_]*[A-Z0-9]")


def said() -> set[str]:
    """All texts in the sources, but for the list itself, that look like a code of this package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "errors.py":
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                    found.add(node.value)
    return found


def test_every_code_is_listed_and_every_listed_code_is_used() -> None:
    assert said() - set(CODES) == set()
    assert set(CODES) - said() == set()
    assert all(meaning and not meaning.endswith(".") for meaning in CODES.values())


def test_errors_survive_json_and_pickle() -> None:
    error = KeyvaultError(code="A_B", what="what", why="why", action="act", kind="transient")
    for again in (pickle.loads(pickle.dumps(error)), error_from_json(error.to_json())):  # noqa: S301
        assert again is not None
        assert (str(again), again.kind) == ("A_B: what: why. act", "transient")


TEXTS = {"what": "", "why": "", "action": ""}


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"code": 1},
        {"code": "A", **TEXTS, "kind": "odd"},
        {"code": "a line\nof its own", **TEXTS, "kind": "rejected"},
        {"code": "A" * 81, **TEXTS, "kind": "rejected"},
    ],
)
def test_what_is_not_an_error_is_not_taken_for_one(value: dict[str, object]) -> None:
    assert error_from_json(value) is None
    long = {name: "x\n" * 1000 for name in ("what", "why", "action")} | {"code": "A_B", "kind": "invariant"}
    error = error_from_json(long)
    assert error is not None
    assert error.why == "x " * 250
