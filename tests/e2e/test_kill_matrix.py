"""A part of the kill matrix. `make kill-matrix` runs all of it."""

from pathlib import Path

import pytest

from devnet.chain import DevChain

from .kill_matrix import BOUNDARIES, VICTIMS, Cell, all_cells, run_cells, table

CELLS = (
    Cell("agent", "stopping", "before"),
    Cell("agent", "delivering", "after"),
    Cell("vault", "delivering", "after"),
    Cell("old", "collecting", "after"),
    Cell("new", "delivering", "after"),
    Cell("new", "probation", "after"),
)


def test_the_whole_matrix_has_every_victim_at_every_boundary() -> None:
    cells = list(all_cells())
    assert {(cell.victim, cell.boundary) for cell in cells} == {(v, b) for v in VICTIMS for b in BOUNDARIES}
    assert len(cells) == len(set(cells)) == 50


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_kills_at_boundaries_lose_nothing(shared_chain: DevChain, tmp_path: Path) -> None:
    results = await run_cells(CELLS, shared_chain.ws_url, tmp_path / "world")
    assert [(cell, result.problem) for cell, result in results.items() if result.problem] == []
    assert len(results) == len(CELLS)
    assert "0 failed" in table(results)
