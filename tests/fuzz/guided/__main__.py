"""Run the targets one after the other, each in a process of its own, and write what was run and found.

    python -m tests.fuzz.guided [--minutes 1] [--only NAME ...] [--runs N] [--out build/fuzz]

The engine is libFuzzer by atheris. What it learns stays in `<out>/corpus` and is where the next run begins; an input
that makes a target fail stays in `<out>/finds`. `<out>/runs.json` counts the runs over all calls. The exit code is 1 if
anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.load.measure import markdown

from .target import COMMON_SEEDS, Target, kept, slug

CANARY = "canary"
RSS_MIB_MAX = 1024
#: A single input may take as long as a busy machine needs; what is slow on any is shown in the table.
INPUT_S_MAX = 600
EXIT_FOUND = 77
INSTRUMENTED = (
    "attestation",
    "chain_watcher",
    "dcupgrade",
    "keyvault",
    "process_supervisor",
    "tests.fuzz.guided.canary",
)
_STAT = re.compile(r"stat::(\w+): +(\d+)|^#(\d+)\t", re.MULTILINE)
_ERROR = re.compile(r"=== Uncaught Python exception: ===\n(.*?)\n(?:==|SUMMARY|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call did with a target; `found` is the error, empty where nothing was found."""

    runs: int
    seconds: int
    slowest_s: int
    found: str = ""


def load_targets() -> Mapping[str, Target]:
    """All targets by name, the code under test instrumented."""
    import atheris

    # atheris names every module that it instruments
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=list(INSTRUMENTED)):
        from . import canary, chain, enclaves, host, ports
    return {name: target for part in (chain, enclaves, host, ports, canary) for name, target in part.TARGETS.items()}


def fuzz(name: str, target: Target, out: Path, options: Sequence[str], seconds: int) -> Outcome:
    """Fuzz one target in a child."""
    corpus, finds, log = out / "corpus" / slug(name), out / "finds", out / f"{slug(name)}.log"
    corpus.mkdir(parents=True, exist_ok=True)
    finds.mkdir(parents=True, exist_ok=True)
    for seed in (*target.seeds, *COMMON_SEEDS, *kept(name)):
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    child = os.fork()
    if child == 0:
        _become_fuzzer(target, log, [*options, f"-artifact_prefix={finds}/{slug(name)}-", str(corpus)])
    _, status = os.waitpid(child, 0)
    text = log.read_text(encoding="utf-8", errors="replace")
    stats = {match[1]: int(match[2]) for match in _STAT.finditer(text) if match[1]}
    seen = [int(match[3]) for match in _STAT.finditer(text) if match[3]]
    error = _ERROR.search(text)
    found = "" if status == 0 else (error[1] if error else text[-2000:]).strip()
    runs = stats.get("number_of_executed_units", max(seen, default=0))
    return Outcome(runs, seconds, stats.get("slowest_unit_time_sec", 0), found)


def _become_fuzzer(target: Target, log: Path, options: Sequence[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    atheris.Setup(["fuzz", *options], target)
    atheris.Fuzz()
    os._exit(0)


def _finds_the_planted_bug(targets: Mapping[str, Target], out: Path) -> bool:
    """Check that coverage guides the engine, with the same mutations each time and a fixed number of runs."""
    options = ["-runs=500000", "-seed=1", "-print_final_stats=1", "-max_len=16"]
    return "IndexError" in fuzz(CANARY, targets[CANARY], out / "canary", options, 0).found


def _count(path: Path, outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, int]]:
    """Add the runs of this call to those of the calls before it."""
    totals: dict[str, dict[str, int]] = json.loads(path.read_text()) if path.exists() else {}
    for name, outcome in outcomes.items():
        total = totals.setdefault(name, {"runs": 0, "finds": 0})
        total["runs"] += outcome.runs
        total["finds"] += bool(outcome.found)
    path.write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n")
    return totals


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together; a second each at least")
    parser.add_argument("--only", action="append", default=[], help="a target's name; several may be given")
    parser.add_argument("--runs", type=int, default=0, help="end a target after so many runs too")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 draws one")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    arguments = parser.parse_args()
    targets = load_targets()
    names = arguments.only or [name for name in targets if name != CANARY]
    unknown = [name for name in names if name not in targets]
    if unknown:
        parser.error(f"there is no target {unknown}; there are {', '.join(targets)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    seconds = max(1, round(arguments.minutes * 60 / len(names)))
    options = [f"-max_total_time={seconds}", f"-timeout={INPUT_S_MAX}", f"-rss_limit_mb={RSS_MIB_MAX}"]
    options += ["-print_final_stats=1", "-reload=0", *([f"-runs={arguments.runs}"] if arguments.runs else [])]
    options += [f"-seed={arguments.seed}"] if arguments.seed else []
    if not arguments.only and not _finds_the_planted_bug(targets, arguments.out):
        sys.stdout.write("the planted bug was not found: nothing that this engine says counts\n")
        return 1
    outcomes = {}
    for name in names:
        size = f"-max_len={targets[name].bytes_max}"
        outcome = outcomes[name] = fuzz(name, targets[name], arguments.out, [*options, size], seconds)
        sys.stdout.write(f"{outcome.runs:>9}  {name}{'  FOUND: ' + outcome.found if outcome.found else ''}\n")
        sys.stdout.flush()
    totals = _count(arguments.out / "runs.json", outcomes)
    rows = [
        {
            "target": name,
            **asdict(one),
            "found": one.found[-80:].replace("\n", " "),
            "runs so far": totals[name]["runs"],
        }
        for name, one in outcomes.items()
    ]
    (arguments.out / "fuzz.md").write_text(markdown(rows) + "\n")
    so_far = sum(total["runs"] for total in totals.values())
    found = [name for name, outcome in outcomes.items() if outcome.found]
    sys.stdout.write(
        f"{sum(one.runs for one in outcomes.values())} runs, {so_far} so far; found: {', '.join(found) or 'nothing'}\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
