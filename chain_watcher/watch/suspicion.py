"""The errors that show that an endpoint lied, and why no honest node can cause them.

An accused endpoint is disconnected for an hour. So an accusation needs a claim that cannot be true, whatever state the
node is in: pruned, warp-synced, lagging, restarted, on another database, limited in the size of its answers, or one of
several behind a load balancer. Such nodes answer null, an error, or with data of an older block. None of these is a
lie.
"""

from __future__ import annotations

from typing import Final

from chain_watcher.endpoints.endpoint import Endpoint
from chain_watcher.errors import ChainWatcherError

#: Code -> why no honest node causes it. This assumes that what the configured mode decides to be final is true.
LYING: Final[dict[str, str]] = {
    "ENDPOINT_FORKED_FINALITY": (
        "It announced a block as final, and the headers from that block down, linked by hash, pass another block at a "
        "height that is final. A node that lags or has no history cannot show such headers: it answers null. In mode "
        "proven both blocks would need the votes of more than two thirds."
    ),
    "ENDPOINT_HEADER_FORGED": (
        "It was asked for a header by its hash and answered one with another hash, or with a number that does not "
        "follow its parent's. The hash covers every byte, so there is one header for it on every database and behind "
        "every balancer; a node without it answers null."
    ),
    "ENDPOINT_PROOF_FORGED": (
        "Its storage proof lacks a trie node that the state root names. Nodes collect a proof by reading the keys, and "
        "answer an error where a node of the trie is missing: pruned, not synced yet, or too large. More nodes than "
        "needed, nodes in a newer format and proofs over the limits are not accused."
    ),
    "ENDPOINT_JUSTIFICATION_FORGED": (
        "It sent a justification that the authority set in force did not sign, although every header since the last "
        "proven block is known, none orders a change of the set by force, and the set has proven itself before. Nodes "
        "verify a justification before they store or send it. With a gap, a change by force or a checkpoint that was "
        "never confirmed the code is AUTHORITY_SET_UNKNOWN, and nobody is accused."
    ),
    "ENDPOINT_DISAGREES": (
        "It announced another block as final than the one that a quorum announced at this height, or gives other "
        "values for a block than a quorum where values come without proof. Only its own announcement counts: a hash by "
        "number may be of a fork where a backend lags. Values at a block hash do not depend on the node."
    ),
    "ENDPOINT_METADATA_FORGED": (
        "Its metadata, asked for anew at the very block, leads to a layout that the proven values do not follow, while "
        "another endpoint's metadata for that block does; or most endpoints give another layout. Layouts are compared, "
        "not bytes: builds may differ in their documentation. Metadata is computed by the chain's own runtime."
    ),
}

#: Codes for which no other endpoint can help: this program cannot read or follow the chain itself.
CHAIN_WIDE: Final = frozenset(
    {
        "AUTHORITY_SET_UNKNOWN",
        "CHAIN_WITHOUT_PALLET",
        "ENDPOINT_NO_PROOFS",
        "LAYOUT_INVALID",
        "LAYOUT_MISMATCH",
        "LAYOUT_NOT_PINNED",
        "METADATA_UNREADABLE",
        "PROOF_NODE_INVALID",
        "PROOF_TOO_LARGE",
    }
)

#: Metadata may be the cause of these: it is forged where another endpoint's metadata for the same block is good.
BY_METADATA: Final = frozenset(
    {"CHAIN_WITHOUT_PALLET", "LAYOUT_INVALID", "LAYOUT_MISMATCH", "LAYOUT_NOT_PINNED", "METADATA_UNREADABLE"}
)

#: Codes for which an endpoint is not reconnected: it answered, and may answer the next question.
HARMLESS: Final = CHAIN_WIDE | {
    "ENDPOINT_BEHIND",
    "ENDPOINT_NO_JUSTIFICATIONS",
    "QUORUM_VALUES_DIFFER",
    "RPC_METHOD_MISSING",
    "RPC_REFUSED",
}


def forged(code: str, endpoint: Endpoint, why: str) -> ChainWatcherError:
    """The error that accuses an endpoint of a claim that cannot be true (one of `LYING`)."""
    return ChainWatcherError(
        code=code, what=endpoint.url, why=why, action="The endpoint is cut off and named in the status", kind="rejected"
    )
