"""The page "Your node in Go in 100 lines", followed literally: its program is built, packed and upgraded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dcupgrade.publishing.signing import sign_enclave_id
from devnet.release_builder import ROOT, BuiltRelease
from devnet.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("go")]
PAGE = (ROOT / "docs" / "go-node.md").read_text()


def blocks(language: str) -> list[str]:
    """The page's blocks of code in a language, as a reader copies them."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_program_has_100_lines_and_is_formatted(tmp_path: Path) -> None:
    for name, code in zip(("main.go", "note.go"), blocks("go"), strict=True):
        (tmp_path / name).write_text(code)
        assert code.count("\n") <= 100
    assert subprocess.run(["gofmt", "-l", str(tmp_path)], capture_output=True, check=True).stdout == b""


def built(folder: Path, world: World, version: str) -> BuiltRelease:
    """Follow the page in a separate folder."""
    folder.mkdir(exist_ok=True)
    for name, code in zip(("main.go", "note.go"), blocks("go"), strict=True):
        (folder / name).write_text(code)
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    (commands / "dcupgrade").write_text(f'#!/bin/sh\nexec {sys.executable} -m dcupgrade "$@"\n')
    (commands / "dcupgrade").chmod(0o700)
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DCUPGRADE": str(ROOT),
        "NETWORK_KEY": world.keys.network_public,
        "GENESIS": world.genesis_hash.removeprefix("0x"),
        "VAULT_ID": world.vault_id,
        "VENDOR_KEY": str(world.folder.parent / "keys" / "vendor.pem"),
        "VERSION": version,
        "GOWORK": "off",
    }
    said = ""
    for block in blocks("sh"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said = done.stdout
    enclave_id = said.split()[-1]
    archive = folder / "releases" / version / f"mynode-{version}.tar.gz"
    served = world.folder / "archives" / archive.name
    served.write_bytes(archive.read_bytes())
    return BuiltRelease(archive.stem, version, enclave_id, sign_enclave_id(world.keys.network, enclave_id), served)


async def test_the_node_of_the_page_is_upgraded(world: World) -> None:
    folder = world.folder / "mynode"
    old, new = built(folder, world, "1.0.0"), built(folder, world, "1.1.0")
    assert old.enclave_id != new.enclave_id
    await world.install(old)
    url = f"{world.node.url}/note"
    async with world.session.put(url, data=b"kept from version to version") as answer:
        assert answer.status == 200
    seq = world.last_seq()
    await world.publish(new)
    await world.wait_committed(new.enclave_id, after=seq)
    health = await world.wait_serving(new.enclave_id)
    assert (health["version"], health["canary"], health["committed"]) == ("1.1.0", True, True)
    async with world.session.get(url) as answer:
        assert await answer.read() == b"kept from version to version"
    async with world.session.get(f"{world.node.url}/version") as answer:
        assert await answer.text() == f"{new.enclave_id}@1.1.0"
