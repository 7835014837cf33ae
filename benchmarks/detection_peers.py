"""Other clients of a Substrate node for `bench_detection`: each prints a line of JSON per finalized head.

`number` is the head's, `release_at` the machine's monotonic clock once both values at that block are decoded, `text`
what they say. The socket client in C says in `at` when the frame of each head was read: the beginning of every figure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devnet.tools import DevnetError, digest_of, find_node, install_once, run_tool

PEERS = Path(__file__).resolve().parent / "peers"


def socket_client() -> list[str]:
    """The bare socket client, built once. Raises DevnetError without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    source = PEERS / "socket_client.c"
    if compiler is None:
        raise DevnetError("no C compiler is installed")

    def build(part: Path) -> None:
        run_tool([compiler, "-O2", "-o", str(part / "client"), str(source)], what="building the socket client")

    return [str(install_once(f"bench-socket-{digest_of([source])}", build) / "client")]


def _of_npm(script: str) -> list[str]:
    """A script of Node.js with its pinned packages. Raises DevnetError where they cannot be had."""
    node, npm = find_node()
    pins = [PEERS / name for name in ("package.json", "package-lock.json")]

    def build(part: Path) -> None:
        for source in pins:
            shutil.copy(source, part)
        env = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        argv = [*npm, "ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
        run_tool(argv, what="installing the benchmark's peers from npm", cwd=part, env=env)

    home = install_once(f"bench-peers-{digest_of(pins)}", build)
    shutil.copy(PEERS / script, home / script)  # packages are looked for beside the script
    return [str(node), "--experimental-websocket", str(home / script)]  # a class of its own from Node.js 22 on


COMMANDS: dict[str, Callable[[], list[str]]] = {
    "substrate-interface": lambda: [sys.executable, __file__],
    "@polkadot/api": lambda: _of_npm("polkadot_js.mjs"),
    "polkadot-api": lambda: _of_npm("papi.mjs"),
}
"""How each peer is started; its argument is the node's URL."""


def commands() -> tuple[dict[str, list[str]], dict[str, str]]:
    """What can be started, and why the others cannot."""
    found, missing = {}, {}
    for name, command in COMMANDS.items():
        try:
            found[name] = command()
        except (DevnetError, OSError, subprocess.SubprocessError) as error:
            missing[name] = str(error).splitlines()[0][:200]
    return found, missing


def substrate_interface(url: str) -> None:
    """The client in Python, as its documentation shows it; questions on a connection of their own."""
    from substrateinterface import SubstrateInterface

    heads, questions = SubstrateInterface(url=url), SubstrateInterface(url=url)

    def head(found: dict[str, Any], _number: int, _subscription: str) -> None:
        number = found["header"]["number"]
        at = questions.get_block_hash(number)
        values = [questions.query("DcNode", item, block_hash=at).value for item in ("EnclaveIds", "DcProgram")]
        print(json.dumps({"number": number, "release_at": time.monotonic(), "text": str(values)}), flush=True)

    print(json.dumps({"ready": True}), flush=True)
    heads.subscribe_block_headers(head, finalized_only=True)


if __name__ == "__main__":
    substrate_interface(sys.argv[1])
