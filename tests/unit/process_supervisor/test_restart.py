"""Backoff after crashes, and the codes of the package."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import process_supervisor
from process_supervisor.errors import CODES, ProcessSupervisorError
from process_supervisor.restart import RestartPolicy, decide_restart

POLICY = RestartPolicy(delay_s_min=1, delay_s_max=60, factor=2, steady_s=60, crashes_max=5)


def test_the_delay_doubles_up_to_its_limit_and_a_loop_is_named() -> None:
    crashes, delays, loops = 0, [], []
    for _ in range(8):
        decision = decide_restart(POLICY, crashes, ran_s=0.1)
        crashes = decision.crashes
        delays.append(decision.delay_s)
        loops.append(decision.crash_loop)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    assert loops == [False] * 4 + [True] * 4


def test_a_steady_run_forgets_former_crashes() -> None:
    decision = decide_restart(POLICY, 7, ran_s=60)
    assert (decision.delay_s, decision.crashes, decision.crash_loop) == (1, 1, False)


@given(crashes=st.integers(0, 10**9), ran=st.floats(0, 1e9), jitter=st.floats(0, 1))
def test_the_delay_stays_within_bounds(crashes: int, ran: float, jitter: float) -> None:
    decision = decide_restart(POLICY, crashes, ran, jitter)
    assert POLICY.delay_s_min <= decision.delay_s <= POLICY.delay_s_max * 1.25


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="jitter"):
        decide_restart(POLICY, 0, 0, jitter=1.5)


def test_every_code_that_is_raised_is_listed() -> None:
    folder = Path(process_supervisor.__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py") if path.name != "errors.py")
    prefixes = "ARCHIVE|CONTAINER|DATA|DOWNLOAD|NODE|OTHER|PORT|STAGING"
    raised = set(re.findall(rf'"((?:{prefixes})_[A-Z_]+)"', text)) - {"STAGING_DISK"}
    assert raised == set(CODES)


def test_an_error_says_what_why_and_what_to_do() -> None:
    error = ProcessSupervisorError(code="PORT_TAKEN", what="port 1", why="it is in use", action="Stop it")
    assert str(error) == "PORT_TAKEN: port 1: it is in use. Stop it"
    assert error.kind == "transient"
