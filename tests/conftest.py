"""Fixtures every folder of tests may use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Examples are timed against the wall clock by default, and a loaded machine then fails tests that are right.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT.parent / "shared" / "vectors"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add what was skipped, and why, to the file $SKIPS_FILE: a run of many parts tells it all at its end."""
    path = os.environ.get("SKIPS_FILE")
    if path and not hasattr(terminalreporter.config, "workerinput"):  # xdist's workers report to the one process
        with open(path, "a", encoding="utf-8") as file:
            for report in terminalreporter.getreports("skipped"):
                why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
                file.write(f"{report.nodeid}: {why}\n")


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of known answers made elsewhere; the test is skipped, with a word, where they are absent."""
    if not VECTORS.is_dir():
        pytest.skip("the known-answer vectors are not beside this checkout (../shared/vectors)")
    return VECTORS
