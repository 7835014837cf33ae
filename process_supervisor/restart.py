"""When to start a crashed node again: a pure decision from what happened so far."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Backoff in seconds: doubles from `delay_s_min` to `delay_s_max`, forgets crashes after a run of `steady_s`.

    `crashes_max` crashes without such a run are a crash loop.
    """

    delay_s_min: float = 1.0
    delay_s_max: float = 60.0
    factor: float = 2.0
    steady_s: float = 60.0
    crashes_max: int = 5


@dataclass(frozen=True, slots=True)
class RestartDecision:
    """`delay_s` to wait before the next start, the crash count to remember, and whether this is a crash loop."""

    delay_s: float
    crashes: int
    crash_loop: bool


def decide_restart(policy: RestartPolicy, crashes_before: int, ran_s: float, jitter: float = 0.0) -> RestartDecision:
    """Decide after an exit: `crashes_before` as last remembered, `ran_s` how long the node ran, `jitter` from 0 to 1.

    Jitter adds at most a quarter of the delay, so that nodes of one machine do not start in step. A crash loop is
    reported, never a reason to give up: outside upgrades a stopped node is worse than a restarted one.
    """
    if crashes_before < 0 or not 0.0 <= jitter <= 1.0:
        raise ValueError("crashes_before must not be negative and jitter must lie between 0 and 1")
    crashes = 1 if ran_s >= policy.steady_s else crashes_before + 1
    # The exponent is bounded before the power is taken: a node that crashed for a year must not overflow a float.
    delay = min(policy.delay_s_max, policy.delay_s_min * policy.factor ** min(crashes - 1, 64))
    return RestartDecision(delay * (1.0 + jitter / 4.0), crashes, crashes >= policy.crashes_max)
