"""`dcupgrade init` against an endpoint: a settings file that works, folders, tokens; nothing is ever overwritten."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dcupgrade.commands import main as cli
from dcupgrade.errors import DcupgradeError
from dcupgrade.settings import load
from tests.doubles.chain_endpoint import FakeChain, FakeNode
from tests.doubles.command_line import KEY


async def init(tmp_path: Path, node: FakeNode, *more: str, config: str = "etc/dcupgrade.toml") -> Result:
    arguments = ["--config", str(tmp_path / config), "init", "--endpoint", node.url, "--network-key", KEY]
    arguments += ["--data-dir", str(tmp_path / "data"), "--state-dir", str(tmp_path / "state"), "--node-id", 'n"1']
    return await asyncio.to_thread(CliRunner().invoke, cli.cli, [*arguments, *more])


async def made(chain: FakeChain) -> FakeChain:
    await chain.advance()
    return chain


async def test_the_settings_that_are_written_are_good_and_pin_what_the_endpoint_says(tmp_path: Path) -> None:
    chain = await made(FakeChain())
    async with FakeNode(chain, grandpa=True) as node:
        token = tmp_path / "vault.token"
        done = await init(tmp_path, node, "--vault-token-file", str(token))
    assert "wrote" in done.output, done.output
    settings = load.load(tmp_path / "etc" / "dcupgrade.toml", {})
    assert (settings.chain.genesis_hash, settings.chain.finality) == (chain.genesis_hash, "proven")
    assert (settings.node.id, settings.vault.start, settings.token_file) == ('n"1', False, token)
    assert settings.chain.checkpoint_file == tmp_path / "etc" / "checkpoint.json"
    assert json.loads(settings.chain.checkpoint_file.read_text())["genesis_hash"] == chain.genesis_hash


async def test_folders_are_closed_to_others_and_tokens_are_drawn(tmp_path: Path) -> None:
    async with FakeNode(await made(FakeChain())) as node:
        await init(tmp_path, node, "--simulated", "--vault-dir", str(tmp_path / "vault"))
    settings = load.load(tmp_path / "etc" / "dcupgrade.toml", {})
    assert settings.vault.unsafe_simulated_tee
    assert settings.download.private_addresses  # a development network serves releases on its own host
    for path in (settings.agent.state_dir, settings.node.data_dir, settings.store_dir, settings.token_file):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert len((settings.agent.state_dir / "operator.token").read_text()) > 16
    assert settings.vault.image == tmp_path / "vault" / "vault.pyz"


async def test_settings_that_are_there_are_never_changed(tmp_path: Path) -> None:
    (tmp_path / "dcupgrade.toml").write_text("mine")
    async with FakeNode(await made(FakeChain())) as node:
        done = await init(tmp_path, node, "--vault-dir", str(tmp_path), config="dcupgrade.toml")
    assert isinstance(done.exception, DcupgradeError)
    assert done.exception.code == "SETTINGS_EXIST"
    assert (tmp_path / "dcupgrade.toml").read_text() == "mine"
    assert not (tmp_path / "state").exists()


async def test_a_mistake_leaves_nothing_behind(tmp_path: Path) -> None:
    async with FakeNode(await made(FakeChain())) as node:
        done = await init(tmp_path, node, "--simulated", "--vault-dir", str(tmp_path), "--node-port", "6666")
    assert isinstance(done.exception, DcupgradeError)
    assert "node.port: is the port of vault.url" in str(done.exception)
    assert not (tmp_path / "etc").exists()
    assert not (tmp_path / "state").exists()


def test_without_a_terminal_the_missing_option_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.cli, ["--config", str(tmp_path / "x.toml"), "init"])
    assert isinstance(done.exception, DcupgradeError)
    assert (done.exception.code, "--endpoint" in done.exception.why) == ("INIT_ANSWER_MISSING", True)


async def test_on_a_terminal_what_is_missing_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    async with FakeNode(await made(FakeChain())) as node:
        answers = f"{node.url}\n{KEY}\n{tmp_path}/data\n{tmp_path}/vault\n"
        arguments = ["-c", str(tmp_path / "x.toml"), "init", "--simulated", "--state-dir", str(tmp_path / "state")]
        done = await asyncio.to_thread(lambda: CliRunner().invoke(cli.cli, arguments, input=answers))
    assert "wrote" in done.output, done.output
    assert load.load(tmp_path / "x.toml", {}).chain.network_keys == (KEY,)
