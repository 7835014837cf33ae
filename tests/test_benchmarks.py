"""The benchmark page: figures, targets, and whether they are met, computed from the results file."""

import json
import os
from pathlib import Path

from benchmarks import bench_idle, bench_journal, run
from benchmarks.plots import LABEL_CHARACTERS, shortened, summary_plot, unit_plots
from benchmarks.report import Row, emit, missing_peers, percentile, read_rows, table
from dcupgrade.adapters.journal import Journal
from devnet.tcp_proxy import TcpProxy
from tests.conftest import ROOT

ROWS = [
    Row("ours", 0.8, "ms", at_most=1.0),
    Row("ours, tail", 2.0, "ms", at_most=1.5, note="busy"),
    Row("bare client", 2.3, "ms", peer=True),
    Row("throughput", 0.97, "x", at_least=0.95),
]


def test_rows_say_whether_their_target_is_met() -> None:
    assert [row.met for row in ROWS] == [True, False, None, True]
    lines = table(ROWS).splitlines()
    assert lines[2:4] == [
        "| ours | 0.8 ms | at most 1 ms | yes |",
        "| ours, tail | 2 ms (busy) | at most 1.5 ms | **no** |",
    ]
    assert "for comparison" in lines[4]


def test_rows_reach_the_runner_only_where_it_asks_for_them(tmp_path: Path, monkeypatch: object) -> None:
    path = tmp_path / "rows"
    monkeypatch.delenv("BENCH_ROWS", raising=False)  # type: ignore[attr-defined]
    emit(*ROWS)
    assert read_rows(path) == []
    monkeypatch.setenv("BENCH_ROWS", str(path))  # type: ignore[attr-defined]
    emit(*ROWS[:1])
    emit(*ROWS[1:])
    assert read_rows(path) == ROWS


def test_plots_show_missed_targets_and_peers_apart() -> None:
    assert summary_plot({"Detection": ROWS}).count('class="missed"') == 1
    (plot,) = unit_plots("detection, stock node", ROWS).values()
    assert (plot.count('class="peer"'), plot.count('class="ours"'), plot.count('class="track"')) == (1, 1, 3)
    assert "&lt;b&gt;" in summary_plot({"<b>": ROWS})


def test_a_figure_far_over_its_target_is_cut_and_marked() -> None:
    far = Row("far", 100.0, "ms", at_most=1.0)
    assert "▸ 100 ms" in summary_plot({"Detection": [far]})


def test_a_long_label_keeps_both_ends() -> None:
    text = shortened("begins " + "x" * 100 + " ends")
    assert len(text) <= LABEL_CHARACTERS
    assert text.startswith("begins ")
    assert text.endswith(" ends")


def test_a_peer_that_could_not_be_had_is_a_row_with_the_reason() -> None:
    rows = missing_peers({"subxt": "cargo is missing"}, "ms")
    assert "| subxt, for comparison | not measured (cargo is missing) |" in table(rows)
    assert unit_plots("detection", rows) == {}
    assert rows[0].met is None


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.0
    assert percentile([float(number) for number in range(1, 21)], 95) == 19.0
    assert percentile([5.0], 95) == 5.0


def test_what_cannot_run_is_named_with_its_reason(tmp_path: Path) -> None:
    facts = {"machine": "m", "load": 0.0, "date": "d", "quick": True, "versions": {"Python": "3"}}
    result = run.run(run.Benchmark("download", "x.py", needs=("no-such-program",)), True)
    run.write(tmp_path, facts, {"download": result, "detection": run.Result("detection", ROWS)})
    text = (tmp_path / "README.md").read_text()
    assert "Not measured: no-such-program is not installed." in text
    assert "Targets met: 2 of 3. Missed:\n\n- Detection: ours, tail, 2 ms (at most 1.5 ms)\n" in text
    assert {path.name for path in tmp_path.glob("*.svg")} == {"summary.svg", "detection-ms.svg"}
    assert run.read_results(tmp_path / "results.json")["detection"].rows == ROWS


def test_the_journal_of_the_benchmark_is_one_that_an_agent_could_have_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    bench_journal.fill(path, 20)
    journal = Journal(path)
    assert journal.damaged_rows() == []
    assert journal.counts()["idle>staged"] == 3
    assert len(journal.history()) == 20
    journal.close()


def test_what_a_client_costs_is_read_from_its_process_and_its_relay() -> None:
    relay = TcpProxy(1, forwarded_bytes=7)
    found = bench_idle.usage(os.getpid(), relay)
    assert found.rss_mib > 1
    assert found.cpu_s > 0
    assert found.switches > 0
    assert found.wire_bytes == 7


def test_every_benchmark_is_in_the_run() -> None:
    scripts = {path.name for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert {benchmark.script for benchmark in run.ALL.values()} == scripts


def test_the_committed_page_is_what_its_figures_make() -> None:
    out = ROOT / "docs" / "benchmarks"
    document = json.loads((out / "results.json").read_text())
    facts = {name: value for name, value in document.items() if name != "results"}
    assert (out / "README.md").read_text() == run.page(facts, run.read_results(out / "results.json"))
