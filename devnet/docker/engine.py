"""A Docker engine for one trial: `with PrivateEngine() as engine: ... engine.url ...`. It stops at the end.

It has its own data root, exec root, socket and pid file, and does not change the machine's network: no bridge, no
iptables. Containers and builds use the host's network. Needs root, and Debian's packages in `PACKAGES`.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from devnet.tools import (
    DevnetError,
    apt_install_missing,
    cache_dir,
    digest_of,
    find_tool,
    install_once,
    run_tool,
    wait_ready,
)

SUITE = "bookworm"
PACKAGES = {
    "dockerd": "docker.io",
    "docker-compose": "docker-compose",
    "docker-registry": "docker-registry",
    "debootstrap": "debootstrap",
}
BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv")
BASE_IMAGE = f"dcupgrade-base:{SUITE}"
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


def missing_tools() -> list[str]:
    """Return what this machine lacks for a private engine, as texts."""
    lacks = [] if os.geteuid() == 0 else ["root (dockerd makes namespaces and mounts)"]
    return lacks + [
        f"{tool} (apt-get install {package})" for tool, package in PACKAGES.items() if find_tool(tool) is None
    ]


def _base_tag() -> str:
    """Return a name for the content of the base. Its archive and image have this name."""
    bundle = [CA_BUNDLE] if CA_BUNDLE.is_file() else []
    return f"{SUITE}-{digest_of(bundle, ','.join(BASE_PACKAGES))}"


def base_archive() -> Path:
    """Return a tar of a minimal Debian with Python, made by debootstrap once (about a minute).

    It trusts this machine's certificate authorities, so that builds reach the package registries.
    """

    def build(part: Path) -> None:
        rootfs = part / "rootfs"
        include = f"--include={','.join(BASE_PACKAGES)}"
        argv = [find_tool("debootstrap") or "debootstrap", "--variant=minbase", include, SUITE, str(rootfs)]
        run_tool(argv, what="making the base image with debootstrap")
        for path in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
            shutil.rmtree(rootfs / path, ignore_errors=True)
            (rootfs / path).mkdir(parents=True)
        if CA_BUNDLE.is_file():
            shutil.copy(CA_BUNDLE, rootfs / CA_BUNDLE.relative_to("/"))
        argv = ["tar", "--numeric-owner", "-C", str(rootfs), "-cf", str(part / "base.tar"), "."]
        run_tool(argv, what="packing the base image")
        shutil.rmtree(rootfs)

    return install_once(f"base-{_base_tag()}", build) / "base.tar"


class PrivateEngine:
    """A private dockerd. `keep_data`: images and build layers stay in the cache for the next run (one at a time).

    `group` (a number) may also use the socket, which gives its members root's rights.
    """

    def __init__(self, *, keep_data: bool = False, group: int = 0) -> None:
        self._keep_data = keep_data
        self._group = group
        self._folder: Path | None = None
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        """Socket, pid file and log; removed at the end. Raises DevnetError before the start."""
        if self._folder is None:
            raise DevnetError("the Docker engine is not running")
        return self._folder

    @property
    def socket(self) -> Path:
        """The API's socket, for root and the given group."""
        return self.folder / "docker.sock"

    @property
    def url(self) -> str:
        """The API's address, in the form of aiodocker and DOCKER_HOST."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """The daemon's process id. Raises DevnetError if it is not running."""
        if self._process is None:
            raise DevnetError("the Docker engine is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        lacks = missing_tools()
        if lacks:
            raise DevnetError(f"containers need {'; '.join(lacks)}")
        try:
            self._take_data_root()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_data_root(self) -> None:
        # A socket's path may have at most 107 characters: too few for the test's own folder.
        self._folder = Path(tempfile.mkdtemp(prefix="dcu-docker-"))
        if self._keep_data:
            self._lock = os.open(cache_dir() / "docker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    @property
    def _data_root(self) -> Path:
        return cache_dir() / "docker" if self._keep_data else self.folder / "data"

    def start(self) -> None:
        """Start the daemon and wait until it answers. After `stop` it starts again with the same data."""
        argv = [
            *(find_tool("dockerd") or "dockerd", "--data-root", str(self._data_root)),
            *("--exec-root", str(self.folder / "exec"), "--pidfile", str(self.folder / "docker.pid")),
            *("--host", self.url, "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"),
            *("--config-file", str(self._empty_config()), "--log-level", "warn", "--group", str(self._group)),
        ]
        for name in ("containerd.pid", "containerd.sock", "containerd.sock.ttrpc", "containerd-debug.sock"):
            (self.folder / "exec" / "containerd" / name).unlink(missing_ok=True)
        log_path = self.folder / "dockerd.log"
        with open(log_path, "ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        wait_ready(self._process, self._answers, "dockerd", log_path, START_TIMEOUT_S)

    def _empty_config(self) -> Path:
        # The machine's own /etc/docker/daemon.json is for its own daemon.
        path = self.folder / "daemon.json"
        path.write_text("{}")
        return path

    def _answers(self) -> bool:
        import socket

        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            try:
                client.connect(str(self.socket))
                client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in client.recv(100)
            except OSError:
                return False

    def docker(self, *arguments: str, what: str = "") -> str:
        """Run the docker client on this engine; returns its output. Raises DevnetError."""
        argv = [find_tool("docker") or "docker", *arguments]
        return run_tool(argv, what=what or f"docker {arguments[0]}", env=self.environment())

    def environment(self) -> dict[str, str]:
        """Return this process's environment with DOCKER_HOST set to this engine, without contexts and BuildKit."""
        env = {name: value for name, value in os.environ.items() if name not in ("DOCKER_CONTEXT", "DOCKER_TLS_VERIFY")}
        return env | {"DOCKER_HOST": self.url, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}

    def import_base(self) -> str:
        """Import the base image if it is missing; returns its name."""
        image = f"dcupgrade-base:{_base_tag()}"
        if not self.docker("images", "--quiet", image).strip():
            self.docker("import", str(base_archive()), image, what="importing the base image")
        self.docker("tag", image, BASE_IMAGE)
        return BASE_IMAGE

    def remove_containers(self) -> None:
        """Remove every container of this engine, running or not."""
        for _ in range(20):
            found = self.docker("ps", "--all", "--quiet").split()
            if not found:
                return
            # An interrupted build removes its own containers at the same time.
            with contextlib.suppress(DevnetError):
                self.docker("rm", "--force", "--volumes", *found)
            time.sleep(0.25)
        raise DevnetError(f"containers that cannot be removed: {found}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop the daemon; its containers stop too (it has no live restore). Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop everything and remove all data that is not kept."""
        try:
            if self._process is not None and self._process.poll() is None:
                with contextlib.suppress(DevnetError):
                    self.remove_containers()
            self.stop()
        finally:
            if self._folder is not None:
                self._end_leftovers()
                for mount in sorted(_mounts_below(self._folder), reverse=True):
                    subprocess.run([find_tool("umount") or "umount", "--lazy", mount], check=False, capture_output=True)
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _end_leftovers(self) -> None:
        """End the containerd and the shims that a killed daemon left: processes that name this folder."""
        for _ in range(100):
            left = list(_processes_naming(str(self.folder)))
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        raise DevnetError(f"processes of the Docker engine do not end: {left}")


def _processes_naming(text: str) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes() and not _is_ancestor(int(entry.name)):
                    yield int(entry.name)


def _is_ancestor(pid: int) -> bool:
    current = os.getpid()
    while current > 1:
        current = int(Path(f"/proc/{current}/stat").read_text().rpartition(")")[2].split()[1])
        if current == pid:
            return True
    return False


def _mounts_below(folder: Path) -> Iterator[str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        mount = line.split()[1]
        if mount.startswith(f"{folder}/"):
            yield mount


if __name__ == "__main__":
    if "--apt" in sys.argv[1:]:
        apt_install_missing(PACKAGES, "the container engine")
    sys.stdout.write("".join(f"missing for trials in containers: {item}\n" for item in missing_tools()))
