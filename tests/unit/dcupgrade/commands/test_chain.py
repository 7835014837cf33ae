"""`dcupgrade chain` with a node: settings and a vault's policy accept its output."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.watch.config import WatcherConfig
from chain_watcher.watch.operator_queries import first_view
from dcupgrade.adapters.journal import Journal
from dcupgrade.commands import chain as chain_module
from dcupgrade.commands.chain import chain as chain_command
from dcupgrade.machine.events import Adopted
from dcupgrade.machine.state import Release, State
from dcupgrade.upgrade.ports import Entry
from keyvault.vault.chain_state import trust_root
from tests.doubles.chain_endpoint import FakeChain, FakeNode
from tests.doubles.command_line import run


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


async def test_endpoints_that_refuse_are_named_with_their_errors_at_once() -> None:
    """Case D7: 62 s of silence, and then "is waiting"."""
    config = WatcherConfig(("ws://127.0.0.1:9", "ws://127.0.0.1:10"), "single", None)
    with pytest.raises(ChainWatcherError, match="WATCHER_NO_VIEW") as caught:
        async with first_view(config, lambda *_: None, timeout_s=1e6, connect_s=1e6):
            pass
    assert str(caught.value).count("RPC_CONNECT_FAILED") == 2
    assert "ws://127.0.0.1:10" in str(caught.value)


async def test_an_endpoint_that_says_nothing_is_waited_for_a_while_and_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        config = WatcherConfig((f"ws://127.0.0.1:{port}", "ws://127.0.0.1:9"), "single", None)
        with pytest.raises(ChainWatcherError, match=f"127.0.0.1:{port}: silent") as caught:
            async with first_view(config, lambda *_: None, timeout_s=1e6, connect_s=0.5):
                pass
    assert "RPC_CONNECT_FAILED" in str(caught.value)


def test_releases_are_marked_by_what_they_are(
    tmp_path: Path, journal: Journal, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"added_height": 7, "signatures": 1, "refused": None, "program": False, "newest": False}
    old = {**row, "enclave_id": "a" * 64}
    new = {**row, "enclave_id": "b" * 64, "program": True, "newest": True}
    bad = {**row, "enclave_id": "c" * 64, "refused": "X: no"}
    facts = {"block_number": 9, "block_hash": "0x1", "finality": "single", "unproven_reads": False}

    async def read(_: object) -> object:
        return {**facts, "refused_entries": [], "program_version": "1.1.0", "releases": [new, old, bad]}

    monkeypatch.setattr(chain_module, "_releases", read)
    running = State(running=Release("a" * 64, "1.0.0"))
    journal.append(Entry(State(), Adopted("", at_unix_s=9.0), running, ()))
    code, text = run(config, "chain", "releases")
    _, header, *lines = text.splitlines()
    assert (code, header.split()) == (0, ["height", "enclave", "id", "version", "signed", "marks"])
    assert lines[0].split() == ["7", "b" * 64, "1.1.0", "by", "1", "to", "be", "run,", "newest"]
    assert lines[1].endswith("runs here")
    assert "REFUSED: X: no" in lines[2]
    told = json.loads(run(config, "chain", "releases", "--json")[1])
    assert [one["runs_here"] for one in told["releases"]] == [False, True, False]
