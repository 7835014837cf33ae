"""A real image registry on loopback (Debian's `docker-registry`), for one trial."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from devnet.tools import DevnetError, find_tool, free_port, wait_ready

START_TIMEOUT_S = 30.0
CONFIG = """version: 0.1
storage:
  filesystem:
    rootdirectory: {folder}/blobs
http:
  addr: 127.0.0.1:{port}
"""


@contextlib.contextmanager
def image_registry(folder: Path) -> Iterator[str]:
    """Run one with its blobs in `folder`; gives its `host:port`. Engines use loopback registries without TLS."""
    program = find_tool("docker-registry")
    if program is None:
        raise DevnetError("docker-registry is missing: apt-get install docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = folder / "config.yml"
    config.write_text(CONFIG.format(folder=folder, port=port))
    log_path = folder / "registry.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_ready(process, lambda: _answers(port), "the registry", log_path, START_TIMEOUT_S)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
