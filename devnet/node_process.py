"""The Substrate node of `devnet/node`: its build, cached outside the checkout, and its processes."""

import os
import re
import shutil
import time
from pathlib import Path

import click

from .chain_process import START_TIMEOUT_S, WASM, ChainProcess
from .tools import DEVNET, DevnetError, apt_install, cache_dir, digest_of, install_once, locked, run_tool

BINARY = "devnet-node"
DEBIAN_PACKAGES = ("rustc-web", "cargo-web", "gcc", "libc6-dev", "protobuf-compiler", "libprotobuf-dev")
TOOLS = ("cargo", "rustc", "protoc", "cc")
_SERVING = re.compile(rb"Running JSON-RPC server: addr=127\.0\.0\.1:(\d+)")


def node_sources() -> list[Path]:
    """Return every file from which the node's binary is built, in a fixed order."""
    folder = DEVNET / "node"
    return [
        folder / "Cargo.toml",
        folder / "Cargo.lock",
        *sorted((folder / "src").glob("*.rs")),
        *sorted(WASM.glob("*.wasm")),
    ]


def ensure_node_binary() -> Path:
    """Return the node's binary. The first call builds it (about 17 minutes on two cores); later calls find it.

    Raises DevnetError if the toolchain is missing (with the packages to install) or the build fails.
    """
    return install_once(f"node-{digest_of(node_sources())}", _build) / BINARY


def is_built() -> bool:
    """Tell whether the binary of these sources is in the cache."""
    return (cache_dir() / f"node-{digest_of(node_sources())}" / BINARY).exists()


def _tool(name: str) -> str | None:
    # Debian's own toolchain first: the build is tested with it, and it needs only apt.
    return f"/usr/bin/{name}" if os.access(f"/usr/bin/{name}", os.X_OK) else shutil.which(name)


def install_toolchain() -> None:
    """Install missing packages for the build by apt-get. Raises DevnetError if that fails."""
    if not all(_tool(name) for name in TOOLS):
        apt_install(DEBIAN_PACKAGES, "the toolchain")


def _build(part: Path) -> None:
    tools = {name: path for name in TOOLS if (path := _tool(name))}
    if missing := [name for name in TOOLS if name not in tools]:
        packages = " ".join(DEBIAN_PACKAGES)
        raise DevnetError(f"building the node needs {', '.join(missing)}: apt-get install {packages}")
    # Kept, so that a change of these few files does not rebuild 700 crates.
    target = cache_dir() / "node-target"
    env = {
        **os.environ,
        "RUSTC": tools["rustc"],
        "CARGO_TARGET_DIR": str(target),
        "SKIP_WASM_BUILD": "1",
    }
    click.echo("devnet: building the node (once, about 17 minutes on two cores)", err=True)
    argv = ["nice", "-n", "10", tools["cargo"], "build", "--release", "--locked", "--quiet"]
    with locked("node-target"):  # one at a time: builds of other sources write their binary to the same place
        # Cargo detects changed sources by their dates, and a checkout may have older dates than the last build.
        for known in (target / "release" / ".fingerprint").glob(f"{BINARY}-*"):
            shutil.rmtree(known)
        run_tool([*argv, "--manifest-path", str(DEVNET / "node" / "Cargo.toml")], what="building the node", env=env)
        shutil.copy2(target / "release" / BINARY, part)


def spawn_node(chain: ChainProcess, arguments: list[str], *, port: int = 0) -> None:
    """Start the node for a chain object, with its data in the chain's folder, and wait until it serves RPC."""
    argv = [
        str(ensure_node_binary()),
        "--exit-with-stdin",
        "--base-path",
        str(chain.folder / "node"),
        "--rpc-port",
        str(port),
        "--rpc-methods",
        "unsafe",
        "--rpc-max-connections",
        "1000",
        "--state-pruning",
        "archive",
        "--blocks-pruning",
        "archive",
        "--no-telemetry",
        "--no-prometheus",
        "--no-mdns",
        *arguments,
    ]
    start = chain.log_path.stat().st_size if chain.log_path.exists() else 0
    chain.spawn(argv)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with open(chain.log_path, "rb") as log:
            log.seek(start)
            found = _SERVING.search(log.read())
        if found:
            break
        if not chain.is_running() or time.monotonic() > deadline:
            raise DevnetError(f"the node did not serve; {chain.log_tail()}")
        time.sleep(0.02)
    chain.port = int(found.group(1))
    if port not in (0, chain.port):
        raise DevnetError(f"port {port} is in use")
    chain.genesis_hash = chain.rpc("chain_getBlockHash", 0)
