"""A simulated fleet: never more than the limit at once, and a bad release stops early."""

import pytest

from tests.simulation.fleet import CORRECTED_AFTER_S, simulate


@pytest.mark.parametrize("limit", [1, 7])
def test_a_bad_release_reaches_few_and_a_corrected_one_all(limit: int) -> None:
    result = simulate(limit, nodes=20, shown_s=CORRECTED_AFTER_S + 20 * 330)
    assert result.most_at_once == limit
    assert 2 <= result.spoiled <= limit + 1  # two that went back, and those that had begun by then
    assert result.upgraded[-1] == 20
    assert result.fewest >= 20 - limit
