"""The symbolic models of docs/formal give the results in cases.toml, unchanged and with planted weaknesses."""

import re
from pathlib import Path

import pytest

from tests.formal.verifpal import MODELS, Case, attacks_found, cases, find_verifpal

CASES = cases()


def queries(text: str) -> set[str]:
    """The queries of a model, as Verifpal names them."""
    return set(re.findall(r"^\t(\w+\? .+)$", text, re.MULTILINE))


@pytest.fixture(scope="session")
def verifpal() -> Path:
    program = find_verifpal()
    if program is None:
        pytest.skip("Verifpal is built by cargo, which is not here: install Rust 1.95 or newer")
    return program


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}: {case.name}")
def test_a_case_changes_its_model_and_asks_what_the_model_asks(case: Case) -> None:
    text = case.text()
    original = (MODELS / f"{case.model}.vp").read_text(encoding="utf-8")
    assert (text != original) == bool(case.replace)
    assert case.attacks | case.reached <= queries(original) == queries(text)
    assert case.reached
    assert not case.attacks & case.reached


def test_every_model_has_cases_whole_and_with_a_weakness_that_must_be_found() -> None:
    models = {path.stem for path in MODELS.glob("*.vp")}
    assert models == {case.model for case in CASES}
    assert models == {case.model for case in CASES if not case.replace and not case.attacks}
    assert models == {case.model for case in CASES if case.replace and case.attacks}


@pytest.mark.formal
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}: {case.name}")
def test_verifpal_finds_the_attacks_that_there_are_and_no_other(case: Case, verifpal: Path, tmp_path: Path) -> None:
    assert attacks_found(verifpal, case, tmp_path) == case.attacks | case.reached
