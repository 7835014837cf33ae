"""The listed codes of the package are exactly the raised ones."""

import ast
import pickle
import re
from pathlib import Path

import pytest

import chain_watcher
from chain_watcher.errors import CODES, ChainWatcherError
from tests.conftest import parsed

PACKAGE = Path(chain_watcher.__file__).parent
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "errors.py")
CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


def literals(path: Path) -> set[str]:
    """Texts of the file that look like codes."""
    nodes = ast.walk(parsed(path))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if CODE.fullmatch(text)}


def raised(path: Path) -> set[str]:
    """Codes given to the error itself or to a function whose first argument is a code."""
    found = set()
    for call in ast.walk(parsed(path)):
        if isinstance(call, ast.Call):
            first = [call.args[0]] if call.args and getattr(call.func, "id", "") in ("refuse", "forged") else []
            named = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            found |= {str(node.value) for node in first + named if isinstance(node, ast.Constant)}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_raised_codes_are_listed(path: Path) -> None:
    assert raised(path) <= CODES.keys()


def test_listed_codes_are_raised() -> None:
    assert CODES.keys() <= set().union(*map(literals, SOURCES))


def test_codes_and_meanings_have_their_form() -> None:
    for code, meaning in CODES.items():
        assert CODE.fullmatch(code)
        assert meaning
        assert "\n" not in meaning
        assert not meaning.endswith(".")


def test_the_error_says_what_why_and_what_to_do() -> None:
    error = ChainWatcherError(code="A_B", what="header", why="too short")
    assert str(error) == "A_B: header: too short"
    assert error.kind == "rejected"
    error = ChainWatcherError(code="A_B", what="c", why="d", action="Do e", kind="transient")
    assert str(error) == "A_B: c: d. Do e"


def test_the_error_survives_pickling() -> None:
    error = ChainWatcherError(code="A_B", what="c", why="d", action="Do e.", kind="transient")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (copy.code, copy.what, copy.why, copy.action, copy.kind) == ("A_B", "c", "d", "Do e.", "transient")
