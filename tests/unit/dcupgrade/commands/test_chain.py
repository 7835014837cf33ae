"""`dcupgrade chain` against a node: what it prints is what the settings and a vault's policy take."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.watch.config import WatcherConfig
from dcupgrade.commands.chain import chain as chain_command
from keyvault.vault.chain_state import trust_root
from tests.doubles.chain_endpoint import FakeChain, FakeNode


async def test_a_printed_checkpoint_can_be_pinned_as_it_is(tmp_path: Path) -> None:
    chain = FakeChain()
    await chain.advance()
    async with FakeNode(chain, grandpa=True) as node:
        arguments = ["checkpoint", "--url", node.url]
        done = await asyncio.to_thread(CliRunner().invoke, chain_command, arguments, obj=tmp_path / "none.toml")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    expected = Checkpoint(1, 0, tuple(chain.authorities()))
    assert printed == {"genesis_hash": chain.genesis_hash, **expected.to_json()}
    assert Checkpoint.from_json(printed) == expected
    WatcherConfig((node.url,), "proven", chain.genesis_hash, checkpoint=printed).require_consistent()
    assert trust_root(chain.genesis_hash[2:], printed, ()).checkpoint == expected
    with pytest.raises(ChainWatcherError, match=r"WATCHER_CONFIG_INVALID.*the checkpoint is of the chain"):
        WatcherConfig((node.url,), "proven", "0x" + "00" * 32, checkpoint=printed).require_consistent()
