"""An etcd of one member for trials: Debian's `etcd-server`, on loopback, with its data in the trial's folder."""

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Self

from devnet.tools import DevnetError, find_tool, free_port, wait_ready

START_TIMEOUT_S = 60.0


class EtcdServer:
    """`with EtcdServer(folder) as etcd: … etcd.url …`; `stop` and `start` in between keep the data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._peer_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers. Raises DevnetError."""
        binary = find_tool("etcd")
        if binary is None:
            raise DevnetError("etcd is missing (apt-get install etcd-server)")
        peers = f"http://127.0.0.1:{self._peer_port}"
        argv = [
            *(binary, "--data-dir", str(self._folder / "etcd"), "--name", "trial", "--enable-v2=false"),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url, "--listen-peer-urls", peers),
            *("--initial-advertise-peer-urls", peers, "--initial-cluster", f"trial={peers}"),
        ]
        log_path = self._folder / "etcd.log"
        with open(log_path, "ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_ready(self._process, self._healthy, "etcd", log_path, START_TIMEOUT_S)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:  # noqa: S310 - our own loopback address
                return bool(json.load(answer).get("health") == "true")
        except (OSError, ValueError):
            return False

    def kill(self) -> None:
        """Kill it, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ctl(self, *arguments: str) -> str:
        """Run etcdctl on it; returns its output."""
        tool = find_tool("etcdctl")
        if tool is None:
            raise DevnetError("etcdctl is missing (apt-get install etcd-client)")
        argv = [tool, "--endpoints", self.url, *arguments]
        done = subprocess.run(argv, env={"ETCDCTL_API": "3"}, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
