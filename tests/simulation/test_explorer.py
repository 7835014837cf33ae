"""The exhaustive explorer finds no violation, covers the whole table, and finds planted bugs."""

import pytest

from dcupgrade.machine import table as machine

from .explorer import Explorer, Scenario, explore, scenarios, summary
from .model import Traits
from .mutants import MUTANTS, planted

COVERING = (
    Scenario(Traits("good"), faults=1, commands=1),
    Scenario(Traits("blind", "gone"), faults=1, commands=1),
    Scenario(Traits("dies", "gone"), crashes=2, faults=1),
    Scenario(Traits("dies", "broken"), faults=1, commands=1),
    Scenario(Traits("good", "broken", source_dead=True), crashes=2, faults=1),
    Scenario(Traits("good"), faults=2),
    Scenario(Traits("bad"), faults=2),
    Scenario(Traits("mute"), faults=2),
)
"""A choice that already covers every edge of the table."""


@pytest.mark.parametrize("scenario", list(scenarios(thorough=False)), ids=str)
def test_no_run_breaks_an_invariant_or_fails_to_come_to_rest(scenario: Scenario) -> None:
    report = Explorer(scenario).run()
    assert report.violations == []
    assert report.places > 100 or scenario.crashes == 0


def test_every_edge_of_the_table_is_taken() -> None:
    report = explore(COVERING)
    assert "violations: 0" in summary(report)
    assert [row.label for row in machine.TABLE if row not in report.rows] == []
    assert report.violations == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name: str) -> None:
    with planted(name) as scenario:
        report = Explorer(scenario, stop_early=True).run()
    assert report.violations != []
