"""Release manager's side of the chain: sign an enclave id, and put a signed release into the pallet's storage.

Everything about the pallet (its name, index, argument order, the fifth field of newer chains) is taken from the chain's
own metadata. substrate-interface blocks, which is right for a tool that does one thing and ends; the watch loop of the
agent does not use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chain_watcher.proof.release import newer
from dcupgrade.errors import DcupgradeError, why_of

from .pallet import PalletState, PreparedCall, PublisherChain, Release, require_publishing


def load_account(suri: str | None, key_file: Path | None) -> Any:
    """Keypair (sr25519) that signs extrinsics: a secret URI, or a file that holds one, or 64 hex digits of a seed."""
    require_publishing()
    from substrateinterface import Keypair

    try:
        if key_file is not None:
            suri = key_file.read_text("ascii").strip()
        if not suri:
            raise ValueError("give --suri or --key-file")
        if re.fullmatch(r"(0x)?[0-9a-fA-F]{64}", suri):
            return Keypair.create_from_seed(suri if suri.startswith("0x") else f"0x{suri}")
        return Keypair.create_from_uri(suri)
    except (OSError, ValueError, NotImplementedError) as error:
        raise DcupgradeError(
            code="PUBLISH_NO_KEY",
            what="no account to sign the extrinsic with",
            why=why_of(error) or "the secret URI cannot be used",
            action="Give --key-file with a secret URI or seed, or --print-call to submit it in another way.",
        ) from error


def require_publishable(state: PalletState, release: Release) -> None:
    """Raise RELEASE_ALREADY_PUBLISHED or PUBLISH_NOT_NEWER for what clients would take for the same or for older."""
    current = state.program
    height = state.height_of(release.enclave_id)
    if current is not None and current.get("enclave_id") == release.enclave_id:
        if current.get("version") == release.version and current.get("origin_url") == release.origin_url:
            raise DcupgradeError(
                code="RELEASE_ALREADY_PUBLISHED",
                what=f"{release.enclave_id} is what the chain tells nodes to run",
                why=f"it is there as version {current['version']}, added at block {height}",
            )
    elif current is not None and height is not None:
        running = state.height_of(str(current.get("enclave_id")))
        if not newer(running, height):
            raise DcupgradeError(
                code="PUBLISH_NOT_NEWER",
                what=f"{release.enclave_id} cannot replace {current['enclave_id']}",
                why=f"it was added at block {height} and the current one at block {running}",
                action="To recall a release, build its predecessor anew: a rebuilt version has a newer id.",
            )


def publish(
    chain: PublisherChain, release: Release, signatures: Iterable[str], account: Any, *, list_only: bool = False
) -> dict[str, str]:
    """List an id with its signatures and name it as the program; returns the hashes of the blocks that did it.

    The caller has verified the signatures. What is on the chain already is not sent again. At the end the finalized
    state is read back: PUBLISH_NOT_IN_STORAGE if it does not show the release.
    """
    blocks: dict[str, str] = {}
    calls = prepare_calls(chain, release, signatures, list_only=list_only)
    for index, call in enumerate(calls):
        blocks[f"{index + 1}. {call.name}"] = chain.submit(call, account, finalized=index == len(calls) - 1)
    state = chain.state()
    shown = state.program is not None and state.program.get("enclave_id") == release.enclave_id
    if state.height_of(release.enclave_id) is None or not (shown or list_only):
        raise DcupgradeError(
            code="PUBLISH_NOT_IN_STORAGE",
            what=f"{release.enclave_id} is not in the finalized state",
            why=f"block {state.block_hash} does not show it, although the calls succeeded",
            action="Somebody may have published at the same time: look at the chain's state.",
        )
    return blocks


def revoke(chain: PublisherChain, enclave_id: str, account: Any) -> dict[str, str]:
    """Take every entry of an id out of the list; returns the hashes of the blocks that did it.

    At the end the finalized state is read back: PUBLISH_NOT_IN_STORAGE if it still lists the id.
    """
    calls = prepare_revocation(chain, enclave_id)
    blocks = {
        f"{index + 1}. {call.name}": chain.submit(call, account, finalized=index == len(calls) - 1)
        for index, call in enumerate(calls)
    }
    state = chain.state()
    if state.height_of(enclave_id) is not None:
        raise DcupgradeError(
            code="PUBLISH_NOT_IN_STORAGE",
            what=f"{enclave_id} is still listed",
            why=f"block {state.block_hash} shows it, although the calls succeeded",
            action="Nodes still take it. Look at the chain's state, and revoke what is left.",
        )
    return blocks


def prepare_revocation(chain: PublisherChain, enclave_id: str) -> list[PreparedCall]:
    """The calls that revoke an id in the chain's present state; raises RELEASE_NOT_LISTED."""
    state = chain.state()
    if state.height_of(enclave_id) is None:
        raise DcupgradeError(
            code="RELEASE_NOT_LISTED",
            what=f"cannot revoke {enclave_id}",
            why="the finalized state does not list it",
            action="Check the id and the chain.",
        )
    return chain.revoke_calls(state, enclave_id)


def prepare_calls(
    chain: PublisherChain, release: Release, signatures: Iterable[str], *, list_only: bool = False
) -> list[PreparedCall]:
    """The calls that publish a release from the chain's present state, in their order."""
    state = chain.state()
    if not list_only:
        require_publishable(state, release)
    listed = {(entry.enclave_id, entry.signature) for entry in state.entries}
    # An id that is listed is not sent again: clients count its lowest height, so that would change nothing.
    calls = [
        chain.list_call(release.enclave_id, signature)
        for signature in signatures
        if (release.enclave_id, signature) not in listed
    ]
    if not list_only:
        calls.append(chain.program_call(release))
    return calls
