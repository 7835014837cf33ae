"""A small finalized chain for the tests of evidence: state, headers, set changes, justifications."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chain_watcher.proof.evidence import SetChange, TrustRoot, build_evidence
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.header import Header
from chain_watcher.proof.layout import GENESIS_HASH_KEY, Layout, standard_layout
from chain_watcher.proof.release import encode_signature

from . import chain_makers as makers
from .chain_makers import Trie, authorities, blob, compact, finalize

GENESIS = makers.header(0, bytes(32)).hash
FIRST, SECOND, THIRD = authorities(0, 1, 2, 3), authorities(2, 3, 4, 5), authorities(6)
OLD, NEW = "11" * 32, "22" * 32
SIGNATURE = bytes(range(64))
NOW_MS = 1_764_000_000_000


def entries_value(*rows: tuple[int, str]) -> bytes:
    """`EnclaveIds` with one signature for all."""
    text = encode_signature(SIGNATURE)
    encoded = (height.to_bytes(4, "little") + blob(enclave_id.encode()) + blob(text) for height, enclave_id in rows)
    return compact(len(rows)) + b"".join(encoded)


def program_value(enclave_id: str, fields: int = 5) -> bytes:
    texts = (b"https://a/new.tar.gz", b"https://b/new.tar.gz", enclave_id.encode(), b"2.0")
    return b"".join(map(blob, texts)) + (compact(1) + blob(b"bafy") if fields == 5 else b"")


@dataclass
class Case:
    """Evidence with its parts; change one and call `json()`."""

    layout: Layout = field(default_factory=lambda: standard_layout(fields=5))
    changes: tuple[tuple[str, bytes | None], ...] = ()
    extra: dict[bytes, bytes] = field(default_factory=dict)
    route_length: int = 0

    def __post_init__(self) -> None:
        values: dict[str, bytes | None] = {
            "enclave_ids": entries_value((10, OLD), (20, NEW)),
            "dc_program": program_value(NEW),
            "now": NOW_MS.to_bytes(8, "little"),
            "genesis": GENESIS,
            **dict(self.changes),
        }
        keys = {**self.layout.keys, "genesis": GENESIS_HASH_KEY}
        state = {keys[name]: value for name, value in values.items() if value is not None}
        filler = {b"filler" + bytes([index]) * 20: bytes([index]) * index for index in range(40)}
        self.trie = Trie({**filler, **state, **self.extra})
        self.trust = TrustRoot(GENESIS, Checkpoint(0, 0, FIRST))
        first = makers.header(30, b"\x30" * 32, makers.scheduled(SECOND))
        second = makers.header(60, b"\x60" * 32, makers.scheduled(THIRD, delay=2))
        rest = makers.chain(61, 2, second.hash)
        self.set_changes = [
            SetChange((first,), finalize(first, (0, 1, 2), 0)),
            SetChange((second, *rest), finalize(rest[-1], (3, 4, 5), 1)),
        ]
        header = makers.header(100, b"\x99" * 32, state_root=self.trie.root)
        self.headers: list[Header] = [header, *makers.chain(101, self.route_length, header.hash)]
        self.justification = finalize(self.headers[-1], (6,), 2)
        self.proof = self.trie.prove(self.layout.proof_keys)

    def json(self) -> dict[str, Any]:
        return build_evidence(
            genesis_hash=self.trust.genesis_hash,
            set_changes=self.set_changes,
            headers=self.headers,
            justification=self.justification,
            proof=self.proof,
            layout=self.layout,
        )
