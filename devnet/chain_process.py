"""A dev chain's process and its RPC."""

import asyncio
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

from .tools import DEVNET, DevnetError

RuntimeName = Literal["base", "moved"]


WASM = DEVNET / "runtime" / "wasm"


WASM_FILES: dict[str, Path] = {
    "base": WASM / "dcnode_runtime.compact.compressed.wasm",
    "moved": WASM / "dcnode_runtime_moved.compact.compressed.wasm",
}


START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
RPC_TIMEOUT_S = 30.0


class RpcError(DevnetError):
    """The chain answered a request with an error."""


def rpc_call(url: str, method: str, *params: Any) -> Any:
    """Send one JSON-RPC request over HTTP. Raises RpcError for an error reply, DevnetError if there is no answer."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=RPC_TIMEOUT_S) as response:  # noqa: S310
            reply = json.load(response)
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise DevnetError(f"{method} at {url}: {error}") from error
    if "error" in reply:
        raise RpcError(f"{method}: {reply['error'].get('message')} {reply['error'].get('data', '')}".strip())
    return reply["result"]


class ChainProcess:
    """Base of both kinds of chain: a child process, its log, JSON-RPC over HTTP."""

    def __init__(self, log_path: Path | None = None) -> None:
        self._folder: Path | None = None
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.genesis_hash = ""

    @property
    def ws_url(self) -> str:
        """URL of JSON-RPC over websocket."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        """URL of JSON-RPC over HTTP."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The chain's process. Raises DevnetError if it is not running."""
        return self._running().pid

    @property
    def folder(self) -> Path:
        """The chain's own folder, removed by `stop`."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="dcupgrade-devnet-"))
        return self._folder

    @property
    def log_path(self) -> Path:
        """The output of the chain's process."""
        return self._log_path or self.folder / "chain.log"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or not self.is_running():
            raise DevnetError("the dev chain is not running")
        return self._process

    def spawn(self, argv: list[str], env: dict[str, str] | None = None, pass_fds: tuple[int, ...] = ()) -> None:
        """Start the chain's process with its output in the log. For callers that start a chain in another way."""
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=env,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self) -> str:
        """Return the last lines of the log, for an error message."""
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        return "its log ends with:\n" + "\n".join(lines[-15:])

    def _failed(self, what: str) -> DevnetError:
        return DevnetError(f"{what}; {self.log_tail()}")

    def rpc(self, method: str, *params: Any) -> Any:
        """Send one JSON-RPC request, blocking. Raises RpcError for an error reply."""
        return rpc_call(self.http_url, method, *params)

    def stop_now(self) -> None:
        """End the process and remove its folder, blocking. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def stop(self) -> None:
        """End the process and remove its folder. Safe to call twice."""
        await asyncio.to_thread(self.stop_now)

    async def call(self, method: str, *params: Any) -> Any:
        """Send one JSON-RPC request. Raises RpcError for an error reply."""
        return await asyncio.to_thread(self.rpc, method, *params)

    async def finalized(self) -> tuple[int, str]:
        """Return number and hash of the finalized block."""
        block_hash = await self.call("chain_getFinalizedHead")
        header = await self.call("chain_getHeader", block_hash)
        return int(header["number"], 16), block_hash

    async def wait_finalized(self, number: int, timeout_s: float = 60.0) -> str:
        """Wait until a block with that number is finalized; returns its hash. Raises DevnetError at the deadline."""
        deadline = time.monotonic() + timeout_s
        while (await self.finalized())[0] < number:
            if time.monotonic() > deadline:
                raise DevnetError(f"block {number} was not finalized within {timeout_s} s")
            await asyncio.sleep(0.05)
        block_hash: str = await self.call("chain_getBlockHash", number)
        return block_hash
