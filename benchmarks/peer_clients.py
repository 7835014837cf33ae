"""Other clients of a Substrate node, installed from their registries at the versions pinned in `peers/`.

Each is a command whose argument is the node's URL, and prints a line of JSON per finalized head: `number` is the
head's, `release_at` the machine's monotonic clock once both values at that block are decoded, `text` what they say.
The socket client in C says in `at` when the frame of each head was read: the beginning of every figure of detection.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devnet.tools import DevnetError, cache_dir, digest_of, find_node, install_once, locked, run_tool

PEERS = Path(__file__).resolve().parent / "peers"
RUST = PEERS / "rust"
TOOLS = ("cargo", "rustc")


def _of_c(source: str, *flags: str) -> Path:
    """What a C file is compiled to, built once. Raises DevnetError without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise DevnetError("no C compiler is installed")
    path = PEERS / source

    def build(part: Path) -> None:
        run_tool([compiler, "-O2", *flags, "-o", str(part / path.stem), str(path)], what=f"compiling {source}")

    return install_once(f"bench-{path.stem}-{digest_of([path])}", build) / path.stem


def socket_client() -> list[str]:
    """The bare socket client; its argument is the node's port. Raises DevnetError."""
    return [str(_of_c("socket_client.c"))]


def with_nodelay() -> dict[str, str]:
    """The environment that makes a node set TCP_NODELAY on the connections it accepts. Raises DevnetError."""
    return {"LD_PRELOAD": str(_of_c("nodelay.c", "-shared", "-fPIC"))}


def of_rust(program: str) -> list[str]:
    """A program of the crates in `peers/rust`, built once by the toolchain that the node is built with.

    Raises DevnetError where that or a crate cannot be had.
    """
    tools = {name: f"/usr/bin/{name}" if Path(f"/usr/bin/{name}").exists() else shutil.which(name) for name in TOOLS}
    workspace = [RUST / "Cargo.toml", RUST / "Cargo.lock"]
    sources = [*workspace, RUST / program / "Cargo.toml", RUST / program / "src" / "main.rs"]

    def build(part: Path) -> None:
        if missing := [name for name, path in tools.items() if path is None]:
            raise DevnetError(f"{' and '.join(missing)} missing: apt-get install rustc-web cargo-web")
        target = cache_dir() / "bench-rust-target"
        env = {**os.environ, "RUSTC": str(tools["rustc"]), "CARGO_TARGET_DIR": str(target)}
        argv = ["nice", "-n", "10", str(tools["cargo"]), "build", "--release", "--locked", "--quiet"]
        argv += ["--manifest-path", str(workspace[0]), "--package", program]
        print(f"building {program} in Rust (once, some minutes)", file=sys.stderr)
        with locked("bench-rust-target"):
            run_tool(argv, what=f"building {program} in Rust", env=env)
            shutil.copy2(target / "release" / program, part)

    return [str(install_once(f"bench-{program}-{digest_of(sources)}", build) / program)]


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
    "subxt": lambda: of_rust("subxt_client"),
}
"""How each peer is started; its argument is the node's URL."""


@functools.cache
def commands() -> tuple[dict[str, list[str]], dict[str, str]]:
    """What can be started, and why the others cannot. What is not there yet is installed and built, in minutes."""
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
