"""Installed tools of devnet are complete or absent, and are made once."""

import fcntl
import threading
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from devnet import node_process, tools
from devnet.__main__ import COMMANDS, main
from devnet.chain import DevChain
from devnet.chain_process import rpc_call
from devnet.tools import DevnetError, cache_dir, digest_of, find_node, install_once, run_tool


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dcupgrade" / "devnet"


def test_the_cache_is_where_the_user_keeps_caches(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "dcupgrade" / "devnet"


@pytest.mark.parametrize("relative", ["", "cache"])
def test_a_cache_folder_that_depends_on_where_one_stands_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, relative: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", relative)
    monkeypatch.setenv("HOME", relative)
    monkeypatch.setattr(tools.pwd, "getpwuid", lambda _: SimpleNamespace(pw_dir=str(tmp_path / "home")))  # type: ignore[attr-defined]
    assert cache_dir() == tmp_path / "home" / ".cache" / "dcupgrade" / "devnet"


def test_without_a_folder_to_write_into_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DevnetError, match="set XDG_CACHE_HOME"):
        cache_dir()


def test_an_installation_is_made_once_by_whoever_comes_first(cache: Path) -> None:
    made: list[Path] = []

    def build(part: Path) -> None:
        made.append(part)
        (part / "tool").write_text("tool")

    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(install_once("tool-1", build))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {cache / "tool-1"}
    assert len(made) == 1
    assert (cache / "tool-1" / "tool").read_text() == "tool"


def test_a_failed_installation_leaves_nothing_and_is_tried_again(cache: Path) -> None:
    def fail(part: Path) -> None:
        (part / "half").write_text("half")
        raise DevnetError("no network")

    with pytest.raises(DevnetError, match="no network"):
        install_once("tool-2", fail)
    assert [entry.name for entry in cache.iterdir()] == ["tool-2.lock"]
    assert install_once("tool-2", lambda part: None) == cache / "tool-2"


def test_what_a_killed_installation_left_is_no_installation_and_goes(cache: Path) -> None:
    half = cache / ".tool-3.x1y2"
    half.mkdir(parents=True)
    (half / "half").touch()
    other = cache / ".tool-4.x1y2"
    other.mkdir()
    install_once("tool-3", lambda part: (part / "whole").touch())
    assert [entry.name for entry in (cache / "tool-3").iterdir()] == ["whole"]
    assert not half.exists()
    assert other.exists()  # somebody may be at it


def test_the_node_is_built_from_its_sources_whatever_was_built_before(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = cache / "node-target" / "release"
    for name in ("devnet-node-0123", "sc-network-4567"):
        (release / ".fingerprint" / name).mkdir(parents=True)
    seen: list[bool] = []

    def cargo(*_: object, **__: object) -> str:
        assert [entry.name for entry in (release / ".fingerprint").iterdir()] == ["sc-network-4567"]
        with open(cache / "node-target.lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (release / node_process.BINARY).write_text("built")
        seen.append(True)
        return ""

    monkeypatch.setattr(node_process, "_tool", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(node_process, "run_tool", cargo)
    assert node_process.ensure_node_binary().read_text() == "built"
    assert seen == [True]


def test_the_digest_is_of_names_and_contents_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    digest = digest_of([first, second])
    assert len(digest) == 16
    assert digest_of([second, first]) != digest
    second.write_bytes(b"3")
    assert digest_of([first, second]) != digest


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(DevnetError, match=r"(?s)listing failed \(exit code 3\).*sorry"):
        run_tool(["sh", "-c", "echo sorry >&2; exit 3"], what="listing")


@pytest.mark.parametrize("version", ["v18.1.0", "garbage"])
def test_an_old_node_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    for name in ("node", "npm"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    asked: list[list[str]] = []
    monkeypatch.setattr(tools, "run_tool", lambda argv, **_: asked.append(argv))
    node, _ = find_node()
    assert node.is_relative_to(cache_dir())
    assert "--require-hashes" in asked[0]
    assert str(tools.NODEJS_LOCK) in asked[0]


def test_the_build_of_the_node_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_process, "_tool", lambda name: None if name == "protoc" else f"/usr/bin/{name}")
    assert not node_process.is_built()
    result = CliRunner().invoke(main, ["node-build"])
    assert result.exit_code == 1
    assert "needs protoc: apt-get install" in result.output


def test_the_toolchain_is_left_alone_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_process, "_tool", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(node_process, "run_tool", lambda *_, **__: pytest.fail("nothing is missing"))
    node_process.install_toolchain()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_explains_itself(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help


def test_help_names_every_command() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    assert all(name in output for name in COMMANDS)
    assert CliRunner().invoke(main, ["no-such-command"]).exit_code == 2


@pytest.mark.parametrize("milliseconds", [0, -2, 501])
def test_a_slot_is_even_and_positive(milliseconds: int) -> None:
    with pytest.raises(DevnetError, match="even and positive"):
        DevChain(block_time_ms=milliseconds)


def test_a_real_node_makes_blocks_by_the_clock() -> None:
    with pytest.raises(DevnetError, match="by the clock"):
        DevChain("node", authoring=False)


def test_nobody_there_is_an_error_of_devnet() -> None:
    with pytest.raises(DevnetError, match="system_chain"):
        rpc_call("http://127.0.0.1:1", "system_chain")
