"""One endpoint of the chain: its connection, the methods it offers, and its claims."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from chain_watcher.errors import ChainWatcherError

from .messages import RpcError, closed
from .rpc import RpcClient

log = logging.getLogger("chain_watcher")

EventKind = Literal["up", "down", "finalized", "unproven", "best", "justification"]
State = Literal["connecting", "connected", "waiting", "refused"]

#: Methods that not every node offers. They are called only if `rpc_methods` names them.
READ_PROOF: Final = "state_getReadProof"
JUSTIFICATIONS: Final = "grandpa_subscribeJustifications"
PROVE_FINALITY: Final = "grandpa_proveFinality"
QUERY_STORAGE: Final = "state_queryStorageAt"
OPTIONAL_METHODS: Final = frozenset({READ_PROOF, JUSTIFICATIONS, PROVE_FINALITY, QUERY_STORAGE})
ACCUSATIONS_KEPT: Final = 8


@dataclass(slots=True, eq=False)
class Endpoint:
    """The known facts about one endpoint.

    `claimed_number` is the highest finalized block it announced, `believed_number` the highest that the watcher
    accepted from it. `accusation` is set while it is cut off because it made a claim that cannot be true.
    """

    url: str
    state: State = "connecting"
    last_head: Any = None
    questions: RpcClient | None = None
    methods: frozenset[str] = frozenset()
    claimed_number: int = -1
    believed_number: int = -1
    progress_at: float = 0.0
    behind: int = 0
    behind_since: float | None = None
    unproven_since: float | None = None
    unproven_asked_at: float = 0.0
    unproven_reconnected: bool = False
    failures: int = 0
    connections: int = 0
    heads: int = 0
    latency_s: float = 0.0
    problem: ChainWatcherError | None = None
    accusation: ChainWatcherError | None = None
    accusations: list[str] = field(default_factory=list)
    retry_after_s: float = 0.0
    cut: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def usable(self) -> bool:
        """Whether the endpoint is connected, on the right chain, and not accused."""
        return self.state == "connected" and self.accusation is None and self.questions is not None

    def offers(self, method: str) -> bool:
        """Return whether the endpoint offers an optional method, as far as is known."""
        return method in self.methods

    async def ask(self, method: str, *params: Any, timeout_s: float | None = None) -> Any:
        """Send one request and return its result, within the limits' deadline or `timeout_s`. Raises RPC_*.

        A method that is refused as unknown is no longer treated as offered, even if `rpc_methods` named it.
        """
        questions = self.questions
        if questions is None:
            raise closed(self.url, "not connected")
        try:
            answer = await questions.call(method, list(params), timeout_s=timeout_s)
        except RpcError as problem:
            if problem.code == "RPC_METHOD_MISSING":
                self.methods -= {method}
            raise
        self.latency_s = questions.latency_s
        return answer

    def note_failure(self, problem: ChainWatcherError) -> None:
        """Count a failed connection, and store the pause that the server asked for."""
        self.failures += 1
        self.problem = problem
        self.retry_after_s = (problem.retry_after_s or 0.0) if isinstance(problem, RpcError) else 0.0

    def facts(self, now: float) -> dict[str, Any]:
        """Return JSON-able facts for status and metrics."""
        problem = self.accusation or self.problem
        return {
            "url": self.url,
            "state": "lying" if self.accusation else self.state,
            "encrypted": self.url.startswith("wss://"),
            "claimed_number": self.claimed_number,
            "believed_number": self.believed_number,
            "behind": self.behind,
            "age_s": round(now - self.progress_at, 3) if self.heads else None,
            "latency_ms": round(self.latency_s * 1000, 3),
            "failures": self.failures,
            "connections": self.connections,
            "heads": self.heads,
            "read_proofs": self.offers(READ_PROOF),
            "justifications": self.offers(JUSTIFICATIONS),
            "accusations": list(self.accusations),
            "code": problem.code if problem else None,
            "why": f"{problem.what}: {problem.why}" if problem else None,
        }


def unexpected(endpoint: Endpoint, error: Exception) -> ChainWatcherError:
    """Log an unexpected error and return it as an error of the endpoint, so that no endpoint can end the watch."""
    log.error("what %s sent could not be processed", endpoint.url, exc_info=error)
    why = f"what it sent could not be processed: {type(error).__name__}"
    return ChainWatcherError(code="ENDPOINT_UNEXPECTED", what=endpoint.url, why=why)


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """An event of an endpoint. `value` is JSON as received: a header, or a justification's hex text.

    The kind `unproven` is a finalized head above the proven blocks whose justification was not sent unasked.
    """

    endpoint: Endpoint
    kind: EventKind
    value: Any = None
