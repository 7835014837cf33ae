"""Run the seeded simulator.

python -m tests.simulation.run --seeds 100000        that many simulated upgrades, ten to a seed
python -m tests.simulation.run --replay 4711         one seed, with its transitions
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier

from tests.simulation.simulator.driver import Life, Outcome, simulate

UPGRADES_PER_SEED = 10
SHOWN_MAX = 5


def _quiet() -> None:
    logging.disable(logging.CRITICAL)


def _prepare_worker(ready: Barrier) -> None:
    _quiet()
    ready.wait()


def run(upgrades: int, first_seed: int, workers: int) -> tuple[list[Outcome], float]:
    """Run enough seeds for that many upgrades; the outcomes, and the seconds it took without the workers' imports."""
    seeds = range(first_seed, first_seed + -(-upgrades // UPGRADES_PER_SEED))
    if workers <= 1:
        _quiet()
        began = time.monotonic()
        outcomes = [simulate(seed, UPGRADES_PER_SEED) for seed in seeds]
        return outcomes, time.monotonic() - began
    spawn = get_context("spawn")
    ready = spawn.Barrier(workers + 1)
    with spawn.Pool(workers, initializer=_prepare_worker, initargs=(ready,)) as pool:
        ready.wait()
        began = time.monotonic()
        outcomes = list(pool.imap_unordered(simulate, seeds, chunksize=20))
        return outcomes, time.monotonic() - began


def report(outcomes: list[Outcome], seconds: float) -> str:
    """The numbers in a few lines, and the first failing seeds."""
    endings: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for outcome in outcomes:
        endings += outcome.endings
        faults += outcome.faults
    upgrades = sum(outcome.upgrades for outcome in outcomes)
    failed = sorted((outcome for outcome in outcomes if outcome.violation), key=lambda outcome: outcome.seed)
    cpu_s = sum(outcome.cpu_s for outcome in outcomes)
    lines = [
        f"{upgrades} upgrades in {len(outcomes)} seeds, {seconds:.1f} s, {upgrades / seconds:.0f} upgrades/s,"
        f" {upgrades / cpu_s:.0f} for each second of one core",
        f"simulated time: {sum(outcome.simulated_s for outcome in outcomes) / 3600:.1f} h",
        f"endings: {', '.join(f'{name} {count}' for name, count in endings.most_common())}",
        f"faults:  {', '.join(f'{name} {count}' for name, count in faults.most_common())}",
        f"violations: {len(failed)}",
        *(f"  seed {outcome.seed}: {outcome.violation}" for outcome in failed[:SHOWN_MAX]),
    ]
    if failed:
        lines.append(f"replay: python -m tests.simulation.run --replay {failed[0].seed}")
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000, help="number of simulated upgrades")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=int, help="run this seed alone and print what happens")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        life = Life(arguments.replay, UPGRADES_PER_SEED)
        outcome = life.run()
        sys.stdout.write("\n".join([*life.journal.trace, ""]))
        sys.stdout.write(
            f"faults {dict(outcome.faults)}\ndigest {outcome.digest}\n{outcome.violation or 'no violation'}\n"
        )
        return 1 if outcome.violation else 0
    outcomes, seconds = run(arguments.seeds, arguments.first_seed, arguments.workers)
    sys.stdout.write(report(outcomes, seconds) + "\n")
    return 1 if any(outcome.violation for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
