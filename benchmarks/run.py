"""Run every benchmark and write one table and plots: `make bench`, or `make bench QUICK=1` in a few minutes.

    python -m benchmarks.run [--quick] [--only NAME ...] [--render] [--out docs/benchmarks]

Writes `README.md` (the table), `results.json` and SVG plots. The machine, its load and the versions stand above the
table. A benchmark that cannot run here is named with the reason. `--only` replaces the rows of these benchmarks and
leaves the others as they were. `--render` measures nothing, for when only the form of the page has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from devnet.tools import DevnetError

from . import peer_clients
from .plots import summary_plot, unit_plots
from .report import ROWS_VARIABLE, Row, read_rows, table

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
VERSIONS_OF = ("aiohttp", "cryptography", "substrate-interface", "py-ed25519-zebra-bindings")
PROGRAMS = {
    "node": ("node", "--version"),
    "go": ("go", "version"),
    "curl": ("curl", "--version"),
    "aria2": ("aria2c", "--version"),
    "etcd": ("etcd", "--version"),
}
PEERS_OF_NPM = BENCHMARKS / "peers" / "package.json"
PEERS_OF_RUST = BENCHMARKS / "peers" / "rust" / "subxt_client" / "Cargo.toml"
TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A script of this folder with its arguments, and those of a quick run, which leaves it out without any.

    `needs` are programs without which it cannot run.
    """

    title: str
    script: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()


ALL = {
    "detection": Benchmark("detection, stock node", "bench_detection.py", (), ("--releases", "2"), ("cc",)),
    "detection-nodelay": Benchmark(
        "detection, node with TCP_NODELAY", "bench_detection.py", ("--nodelay",), None, ("cc",)
    ),
    "start": Benchmark("start", "bench_start.py", (), ("--rounds", "1")),
    "metadata": Benchmark("start with metadata of Polkadot's size", "bench_metadata.py", (), ("--rounds", "1")),
    "idle": Benchmark("idle cost", "bench_idle.py", (), ("--seconds", "15", "--no-agent")),
    "memory": Benchmark("memory of the watcher", "bench_watch_memory.py", (), ("--blocks", "400")),
    "agent-memory": Benchmark("memory of the agent's modules", "bench_watch_memory.py", ("--agent",)),
    "downtime": Benchmark("downtime, processes", "bench_downtime.py", (), ("--rounds", "1")),
    "downtime-containers": Benchmark("downtime, containers", "bench_downtime_containers.py"),
    "handover": Benchmark("handover v2", "bench_handover.py", (), ("--rounds", "20")),
    "handover-replacing": Benchmark(
        "handover v2 over an earlier copy", "bench_handover.py", ("--replacing",), ("--replacing", "--rounds", "20")
    ),
    "handover-busy": Benchmark("handover v2, every core busy", "bench_handover.py", ("--busy",)),
    **{
        f"handover-{holder}-{requester}": Benchmark(
            f"handover v2, holder in {holder}, requester in {requester}",
            "bench_handover.py",
            ("--holder", holder, "--requester", requester),
            None,
            ("go",),
        )
        for holder, requester in (("go", "go"), ("go", "python"), ("python", "go"))
    },
    "download": Benchmark("download", "bench_download.py", (), ("--mib", "128", "--rounds", "2"), ("curl",)),
    "attestation": Benchmark("measurement and reports", "bench_attestation.py", (), ("--mib", "48")),
    "scale": Benchmark("scale of the chain", "bench_scale.py", (), ("--blocks", "20", "--seconds", "5")),
    "journal": Benchmark("scale of the journal", "bench_journal.py", (), ("--rows", "100000", "--rounds", "3")),
    "proofs": Benchmark("proofs", "bench_proofs.py", (), ("--seconds", "0.1")),
    "simulator": Benchmark("simulator", "bench_simulator.py", (), ("--seeds", "300")),
    "fleet": Benchmark("fleet on etcd", "bench_fleet.py", (), ("--agents", "200", "--seconds", "10"), ("etcd",)),
}


@dataclass(slots=True)
class Result:
    """What came of a benchmark: rows, or why there are none."""

    title: str
    rows: list[Row]
    seconds: float = 0.0
    problem: str = ""


def run(benchmark: Benchmark, quick: bool) -> Result:
    """Run one in a process of its own; what it prints is shown as it comes."""
    missing = [program for program in benchmark.needs if shutil.which(program) is None]
    if missing:
        return Result(benchmark.title, [], problem=f"{', '.join(missing)} is not installed")
    arguments = (benchmark.quick or ()) if quick else benchmark.arguments
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        rows = Path(folder) / "rows"
        command = [sys.executable, str(BENCHMARKS / benchmark.script), *arguments]
        sys.stdout.write(f"== {benchmark.title}: {' '.join(command[1:])}\n")
        sys.stdout.flush()
        problem = ""
        try:
            # A broken bound is a row that is not met; only a benchmark without rows failed.
            done = subprocess.run(
                command, check=False, cwd=ROOT, env={**os.environ, ROWS_VARIABLE: str(rows)}, timeout=TIMEOUT_S
            )
            ended = f"it ended with exit code {done.returncode} and no figures"
        except subprocess.TimeoutExpired:
            ended = f"it took longer than {TIMEOUT_S} s"
        found = read_rows(rows)
        if not found:
            problem = ended
    return Result(benchmark.title, found, round(time.monotonic() - began, 1), problem)


def environment(quick: bool) -> dict[str, object]:
    """The machine and the versions that the figures belong to."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = next((line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal")), "0")
    versions = {"Python": platform.python_version(), "Linux": platform.release()}
    for name in VERSIONS_OF:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    versions |= peer_versions()
    for name, command in PROGRAMS.items():
        if shutil.which(command[0]):
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            versions[name] = said.splitlines()[0].partition(" (")[0] if said else "unknown"
    return {
        "machine": f"{os.cpu_count()} cores, {cpu}, {int(memory) // 2**20} GiB",
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "quick": quick,
        "versions": versions,
    }


def peer_versions() -> dict[str, str]:
    """The pinned versions of peers that have no place in this environment."""
    subxt = tomllib.loads(PEERS_OF_RUST.read_text(encoding="utf-8"))["dependencies"]["subxt"]
    pinned = {"subxt": subxt, **json.loads(PEERS_OF_NPM.read_text(encoding="utf-8"))["dependencies"]}
    return {name: text.lstrip("=") for name, text in pinned.items()}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def page(facts: dict[str, object], results: dict[str, Result]) -> str:
    """The Markdown page."""
    versions = facts["versions"]
    assert isinstance(versions, dict)
    rows = [(_heading(result), row) for result in results.values() for row in result.rows]
    missed = [f"{name}: {row.what}, {row.figure} ({row.target})" for name, row in rows if row.met is False]
    met = sum(row.met is True for _, row in rows)
    minutes = sum(result.seconds for result in results.values()) / 60
    kind = "A quick run, with few rounds: a first look, no figures to rely on." if facts["quick"] else "A full run."
    left_out = [benchmark.title for name, benchmark in ALL.items() if name not in results]
    if left_out and not facts["quick"]:
        kind = f"A run of part of the benchmarks. Left out: {', '.join(left_out)}."
    lines = [
        "<!-- Generated by `make bench`; do not edit. -->",
        "# Benchmarks",
        "",
        f"{facts['machine']}, load {facts['load']} at the start, {facts['date']}.",
        f"{kind} It took {minutes:.0f} minutes.",
        ", ".join(text if text.startswith(name) else f"{name} {text}" for name, text in versions.items()) + ".",
        "",
        f"Targets met: {met} of {met + len(missed)}.{' Missed:' if missed else ''}",
        "",
        *([*(f"- {line}" for line in missed), ""] if missed else []),
        "![Figures as a part of their targets](summary.svg)",
    ]
    for name, result in results.items():
        lines += ["", f"## {_heading(result)}", ""]
        lines += [f"Measured in {result.seconds:.0f} s.", ""] if result.rows else []
        lines += [table(result.rows)] if result.rows else [f"Not measured: {result.problem}."]
        lines += [f"\n![{result.title}]({name}-{file})" for file in unit_plots(result.title, result.rows)]
    return "\n".join([*lines, ""])


def _heading(result: Result) -> str:
    return result.title[0].upper() + result.title[1:]


def write(out: Path, facts: dict[str, object], results: dict[str, Result]) -> None:
    """Table, JSON and plots."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.svg"):
        old.unlink()
    (out / "README.md").write_text(page(facts, results), encoding="utf-8")
    document = {
        **facts,
        "results": {
            name: {
                "title": result.title,
                "seconds": round(result.seconds, 1),
                "problem": result.problem,
                "rows": [{**asdict(row), "met": row.met} for row in result.rows],
            }
            for name, result in results.items()
        },
    }
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    groups = {_heading(result): result.rows for result in results.values()}
    (out / "summary.svg").write_text(summary_plot(groups), encoding="utf-8")
    for name, result in results.items():
        for file, svg in unit_plots(result.title, result.rows).items():
            (out / f"{name}-{file}").write_text(svg, encoding="utf-8")


def read_results(path: Path) -> dict[str, Result]:
    """The results of an earlier run."""
    if not path.exists():
        return {}
    found = {}
    for name, one in json.loads(path.read_text(encoding="utf-8"))["results"].items():
        rows = [Row(**{key: value for key, value in row.items() if key != "met"}) for row in one["rows"]]
        found[name] = Result(one["title"], rows, one["seconds"], one["problem"])
    return found


def prepare() -> None:
    """Install and build peers that are not there yet, so that no benchmark waits for it; the first time takes long."""
    sys.stdout.write("== peers: installing and building what is missing\n")
    sys.stdout.flush()
    _, missing = peer_clients.commands()
    try:
        peer_clients.of_rust("proofs")
    except DevnetError as error:
        missing = {**missing, "proofs in Rust": str(error).splitlines()[0]}
    for name, why in missing.items():
        sys.stdout.write(f"{name} is left out: {why}\n")


def main(words: Sequence[str] | None = None) -> int:
    """Command line; 1 where a benchmark gave no figures although it could have run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=tuple(ALL), default=[])
    parser.add_argument("--render", action="store_true", help="write page and plots again from the last figures")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    arguments = parser.parse_args(words)
    if arguments.render:
        document = json.loads((arguments.out / "results.json").read_text(encoding="utf-8"))
        facts = {name: value for name, value in document.items() if name != "results"}
        write(arguments.out, facts, read_results(arguments.out / "results.json"))
        return 0
    prepare()
    facts = environment(arguments.quick)
    results = read_results(arguments.out / "results.json") if arguments.only else {}
    failed = False
    chosen = [name for name in ALL if not arguments.quick or ALL[name].quick is not None]
    for name in arguments.only or chosen:
        results[name] = run(ALL[name], arguments.quick)
        failed |= bool(results[name].problem) and "not installed" not in results[name].problem
    results = {name: results[name] for name in ALL if name in results}
    write(arguments.out, facts, results)
    sys.stdout.write(f"\n{page(facts, results)}\nwritten to {arguments.out}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
