"""A short soak: a few upgrades in a row with kills of everything, and nothing that grows with their number."""

from pathlib import Path

import pytest

from tests.load.soak import Sample, rows, soak

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


async def test_a_few_upgrades_in_a_row_leave_nothing_behind(tmp_path: Path) -> None:
    seen: list[Sample] = []
    samples = await soak(tmp_path, 6, seen.append)
    assert seen == samples
    assert [sample.killed for sample in samples] == ["", "", "vault", "", "", "node"]
    first, last = samples[1], samples[-1]
    assert last.sizes["agent"].descriptors <= first.sizes["agent"].descriptors + 4
    assert last.sizes["agent"].rss_kib < first.sizes["agent"].rss_kib + 8 * 1024
    assert last.logs <= last.slots + 1, "a log for each slot that is left, and the vault's"
    assert all(sample.downtime_s > 0 for sample in samples), "the probe saw each change of version"
    assert len(rows(samples)) == 6
