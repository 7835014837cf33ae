"""Simulated upgrades a second, on all cores: `python benchmarks/bench_simulator.py [--seeds 4000]`.

Each is a whole upgrade of the production code over simulated ports, with faults, judged by independent checkers.
"""

import argparse
import os

from benchmarks.report import Row, emit
from tests.simulation.run import report, run


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4000)
    seeds = parser.parse_args().seeds
    cores = os.cpu_count() or 1
    outcomes, seconds = run(seeds, 1000, cores)
    print(report(outcomes, seconds))
    emit(
        Row(
            f"simulated upgrades on {cores} cores",
            sum(outcome.upgrades for outcome in outcomes) / seconds,
            "a second",
            at_least=500.0 * cores,
        )
    )


if __name__ == "__main__":
    main()
