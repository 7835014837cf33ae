"""The library of a DCNode for handover v2: request its keys when it starts, and hand them to the upgrader when asked.

The example in docs/protocol.md and `devnet/reference_node` use only this module. The node itself seals its keys; it can
use `keyvault.store.sealed_store.SealedStore` for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from attestation.network import NetworkKeys
from attestation.policy import Policy, Role
from keyvault.handover.holder import Holder, Limits
from keyvault.handover.hpke import RealCrypto
from keyvault.handover.http_client import confirm, fetch_key_set
from keyvault.handover.key_set import KeySet
from keyvault.handover.party import Party, Tee, peer_verifier
from keyvault.handover.requester import Requester

from .errors import KeyvaultError

_POLL_S_FIRST: Final = 0.1
_POLL_S_MAX: Final = 2.0


@dataclass(frozen=True)
class NodePolicy:
    """Which upgraders a node accepts. The policy must be part of the node's measured image.

    `genesis_hash` has 32 bytes. `upgrader_ids` are the enclave ids of the vaults that may take and give keys. None
    accepts every id that the network signed, so any other signed program could take the keys: name the vaults if
    possible.

    `is_listed` returns whether an enclave id is in the chain's list now. A node that follows the chain should set it:
    otherwise a vault build that the network has revoked still gets the keys. It is called before keys are handed over.
    It is not called before keys are received, since a revoked vault may hold the only copy. If it raises, nothing is
    handed over.
    """

    network: NetworkKeys
    genesis_hash: bytes
    upgrader_ids: frozenset[str] | None = None
    isvsvn_floor: int = 0
    is_listed: Callable[[str], bool] | None = None

    def require_listed(self, enclave_id: str) -> None:
        """Raise `HANDOVER_UPGRADER_UNLISTED` if this node follows the chain and the list does not hold the id."""
        if self.is_listed is not None and not self.is_listed(enclave_id):
            raise KeyvaultError(
                code="HANDOVER_UPGRADER_UNLISTED",
                what=f"keys for the vault {enclave_id} were refused",
                why="it is not in the chain's list of enclave ids",
                action="Run a vault build that is listed. If this one was just published, wait for finality.",
            )


def node_party(tee: Tee, policy: NodePolicy, network_signatures: Sequence[bytes]) -> Party:
    """Return a node's side of a handover with its upgrader."""
    acceptance = Policy(network=policy.network, isvsvn_floor=policy.isvsvn_floor)
    verify = peer_verifier(tee, acceptance, Role.UPGRADER, policy.upgrader_ids)
    return Party(policy.genesis_hash, tuple(network_signatures), tee, RealCrypto(), verify)


async def request_key_set(
    session: aiohttp.ClientSession,
    upgrader_url: str,
    party: Party,
    seal: Callable[[KeySet], Awaitable[bool]],
    *,
    wanted: str = "",
    deadline_s: float = 600.0,
) -> KeySet:
    """Request this node's keys from the upgrader until it gives them, seal them, and confirm.

    `seal` must write the sealed keys to disk, read them back, unseal them, open the canary of older data if there is
    any, and return whether there was one. If it raises, the call ends without a confirmation. `wanted` is the key set
    id of the node's marker, or "". Transient refusals (no permit yet, upgrader not running) are retried until
    `deadline_s` seconds have passed; all other errors are raised. The caller must wipe the returned key set.
    """
    give_up_at = time.monotonic() + deadline_s
    pause_s = _POLL_S_FIRST
    sealed: KeySet | None = None
    seal_failed = False

    async def sealing(key_set: KeySet) -> bool:
        nonlocal sealed, seal_failed
        try:
            canary = await seal(key_set)
        except BaseException:
            seal_failed = True
            key_set.wipe()
            raise
        if sealed is not None:
            sealed.wipe()
        sealed = key_set
        return canary

    while True:
        requester = Requester(party, wanted)
        try:
            key_set = await fetch_key_set(session, upgrader_url, requester)
            await confirm(session, upgrader_url, requester, sealing(key_set))
            return key_set
        except KeyvaultError as error:
            if sealed is not None and error.code == "PERMIT_ALREADY_DURABLE":
                return sealed  # the confirmation arrived; only its answer was lost
            if seal_failed or error.kind != "transient" or time.monotonic() + pause_s > give_up_at:
                if sealed is not None:
                    sealed.wipe()
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _POLL_S_MAX)


async def request_keys(
    session: aiohttp.ClientSession,
    upgrader_url: str,
    driver: Tee,
    policy: NodePolicy,
    network_signature: bytes | Sequence[bytes],
    seal: Callable[[bytes], Awaitable[object]],
    *,
    wanted: str = "",
    deadline_s: float = 600.0,
) -> bytes:
    """`request_key_set` for nodes that handle their keys as bytes. `seal` returns True if a canary was opened."""
    signatures = (network_signature,) if isinstance(network_signature, bytes) else tuple(network_signature)

    async def seal_bytes(key_set: KeySet) -> bool:
        return await seal(bytes(key_set.view())) is True

    party = node_party(driver, policy, signatures)
    with await request_key_set(
        session, upgrader_url, party, seal_bytes, wanted=wanted, deadline_s=deadline_s
    ) as key_set:
        return bytes(key_set.view())


class NodeHandover:
    """The node's side as holder: hands its keys to an accepted upgrader.

    Pass it to `keyvault.handover.http_server.add_handover_routes`.

    `keys` returns the node's current keys as a new key set (wiped here after use), or None while it has none.
    """

    def __init__(
        self,
        driver: Tee,
        policy: NodePolicy,
        network_signature: bytes | Sequence[bytes],
        keys: Callable[[], KeySet | None],
        limits: Limits | None = None,
    ) -> None:
        signatures = (network_signature,) if isinstance(network_signature, bytes) else tuple(network_signature)
        self._policy = policy
        self._holder = Holder(node_party(driver, policy, signatures), limits)
        self._keys = keys
        self.collected_by: str | None = None

    async def on_hello(self, body: bytes) -> bytes:
        """Answer a hello with the challenge."""
        return self._holder.on_hello(body, time.monotonic())

    async def on_request(self, body: bytes) -> bytes:
        """Answer an accepted upgrader's request with the keys."""
        request = self._holder.on_request(body, time.monotonic())
        self._policy.require_listed(request.requester_id)
        key_set = self._keys()
        if key_set is None:
            raise KeyvaultError(
                code="HANDOVER_NOTHING_HELD",
                what="the request was refused",
                why="this node has no application keys yet",
                action="Ask again once it serves.",
                kind="transient",
            )
        with key_set:
            return self._holder.deliver(request, key_set, time.monotonic())

    async def on_received(self, body: bytes) -> bytes:
        """Acknowledge the receipt."""
        return self._holder.on_received(body, time.monotonic()).answer

    async def on_durable(self, body: bytes) -> bytes:
        """Acknowledge that the upgrader sealed the keys, and store its id in `collected_by`."""
        confirmation = self._holder.on_durable(body, time.monotonic())
        self.collected_by = confirmation.requester_id
        return confirmation.answer
