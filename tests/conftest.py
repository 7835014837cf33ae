"""Fixtures for all folders of tests, and hooks for runs with several workers."""

import ast
import gc
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from devnet.go_image import GO_MINOR_MIN, find_go

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT.parent / "shared" / "vectors"

# Generated examples follow from the test alone, and no clock judges them: what passed once passes again, on a busy
# machine too. To look for new ones: pytest --hypothesis-profile search.
_QUIET = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("steady", derandomize=True, **_QUIET)  # type: ignore[arg-type]
settings.register_profile("search", print_blob=True, **_QUIET)  # type: ignore[arg-type]
settings.load_profile("steady")


def pytest_configure(config: pytest.Config) -> None:
    """End a run with several workers by SIGTERM as with Ctrl-C: its workers get the signal and clean up."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        return  # `ended_by_signals` of the end-to-end tests
    from xdist.workermanage import NodeManager

    # Seconds for the clean-up, after which workers are killed; the 10 of xdist are few on a busy machine.
    NodeManager.EXIT_TIMEOUT = 60

    def end(_number: int, _frame: FrameType | None) -> None:
        for children in Path("/proc/self/task").glob("*/children"):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGTERM)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


#: Modules whose tests share one expensive fixture: each module runs in one worker, in the order of the file.
TOGETHER = frozenset(
    f"tests/e2e/{name}.py"
    for name in ("test_devnet", "test_upgrade_refused", "test_vault_attacks", "test_vault_floods")
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Hand out the tests one by one, but each module of TOGETHER whole and first.

    Not `xdist_group` marks: xdist 3.8 writes them into an attribute that pytest 9.2 does not read any more.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.split("::", 1)[0]
            return module if module in TOGETHER else nodeid

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Append skipped tests and their reasons to the file $SKIPS_FILE: a run of many parts lists them at its end."""
    path = os.environ.get("SKIPS_FILE")
    if path and not hasattr(terminalreporter.config, "workerinput"):  # xdist's workers report to the one process
        with open(path, "a", encoding="utf-8") as file:
            for report in terminalreporter.getreports("skipped"):
                why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
                file.write(f"{report.nodeid}: {why}\n")


def parsed(path: Path) -> ast.Module:
    """A file's syntax tree. Without the garbage collector: what it runs in the middle of ast's constructors confuses
    CPython 3.11's count of their depth ("recursion depth mismatch").
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        if collects:
            gc.enable()


@pytest.fixture(scope="session")
def go() -> None:
    """Skip if Go is missing, with the reason; fail if the run requires it ($REQUIRE_GO)."""
    if find_go() is None:
        why = f"Go 1.{GO_MINOR_MIN} is not there"
        if os.environ.get("REQUIRE_GO"):
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of known answers made elsewhere. The test is skipped, with the reason, if it is absent."""
    if not VECTORS.is_dir():
        pytest.skip("the known-answer vectors are not beside this checkout (../shared/vectors)")
    return VECTORS
