"""Which errors say that an endpoint lied."""

from __future__ import annotations

from typing import Final

#: Codes that mean: this endpoint said what cannot be true.
LYING: Final = frozenset(
    {
        "ENDPOINT_FORKED_FINALITY",
        "ENDPOINT_HEADER_FORGED",
        "ENDPOINT_PROOF_FORGED",
        "ENDPOINT_JUSTIFICATION_FORGED",
        "ENDPOINT_UNPROVEN_HEIGHT",
        "ENDPOINT_DISAGREES",
        "ENDPOINT_METADATA_FORGED",
    }
)


#: Codes that no other endpoint can help with: the chain itself is not what this program can read.
CHAIN_WIDE: Final = frozenset(
    {
        "CHAIN_WITHOUT_PALLET",
        "ENDPOINT_NO_PROOFS",
        "LAYOUT_INVALID",
        "LAYOUT_MISMATCH",
        "LAYOUT_NOT_PINNED",
        "METADATA_UNREADABLE",
    }
)


#: What metadata can be at fault for: it is forged where another endpoint's metadata is good.
BY_METADATA: Final = CHAIN_WIDE - {"ENDPOINT_NO_PROOFS"}
