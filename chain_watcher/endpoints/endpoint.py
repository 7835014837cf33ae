"""One endpoint of the chain: its connection, what it serves, and what it reports."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from chain_watcher.errors import ChainWatcherError

from .rpc import RpcClient, RpcError

EventKind = Literal["up", "down", "finalized", "best", "justification", "storage"]


State = Literal["connecting", "connected", "waiting", "refused"]


#: Methods that change what the watcher asks for; of what ``rpc_methods`` names, only these are remembered.
READ_PROOF: Final = "state_getReadProof"
JUSTIFICATIONS: Final = "grandpa_subscribeJustifications"
PROVE_FINALITY: Final = "grandpa_proveFinality"
QUERY_STORAGE: Final = "state_queryStorageAt"
BLOCK_HASH: Final = re.compile(r"0x[0-9a-f]{64}", re.ASCII)


ASKED_FOR: Final = frozenset({READ_PROOF, JUSTIFICATIONS, PROVE_FINALITY, QUERY_STORAGE})


@dataclass(slots=True, eq=False)
class Endpoint:
    """What is known of one endpoint. Heights are what it says, ``believed_number`` what the watcher took from it."""

    url: str
    state: State = "connecting"
    last_head: Any = None
    questions: RpcClient | None = None
    hints: RpcClient | None = None
    methods: frozenset[str] = frozenset()
    claimed_number: int = -1
    believed_number: int = -1
    progress_at: float = 0.0
    behind: int = 0
    behind_since: float | None = None
    unproven_since: float | None = None
    unproven_times: int = 0
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
        """Connected, on the right chain, not caught lying."""
        return self.state == "connected" and self.accusation is None and self.questions is not None

    def offers(self, method: str) -> bool:
        """Whether its ``rpc_methods`` named the method."""
        return method in self.methods

    async def ask(self, method: str, *params: Any, timeout_s: float | None = None) -> Any:
        """One question on its questions socket, within the limits' deadline or ``timeout_s``; RpcError."""
        questions = self.questions
        if questions is None:
            raise RpcError(code="RPC_CLOSED", what=self.url, why="not connected", action="The watcher reconnects")
        answer = await questions.call(method, list(params), timeout_s=timeout_s)
        self.latency_s = questions.latency_s
        return answer

    def note_failure(self, problem: ChainWatcherError) -> None:
        """Count a failed connection; a server's wish to be left alone is remembered."""
        self.failures += 1
        self.problem = problem
        self.retry_after_s = (problem.retry_after_s or 0.0) if isinstance(problem, RpcError) else 0.0

    def facts(self, now: float) -> dict[str, Any]:
        """JSON-able facts for health pages."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """Something an endpoint said or did; ``value`` is JSON as received (header, hex text, storage changes)."""

    endpoint: Endpoint
    kind: EventKind
    value: Any = None
