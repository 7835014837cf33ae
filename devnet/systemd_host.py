"""Boot a separate Debian with systemd, to test the units: `with SystemdHost({...}) as host: host.run(...)`.

It is a systemd-nspawn container over a cached root folder, which stays unchanged: files written inside are lost with
the container. It shares the machine's network, so that it reaches a development chain on loopback. Needs root, and
Debian's `systemd-container` and `debootstrap`. It is for tests only and isolates nothing.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from devnet.docker.engine import CA_BUNDLE, SUITE

from .tools import DevnetError, apt_install_missing, digest_of, find_tool, install_once, run_tool

PACKAGES = {"systemd-nspawn": "systemd-container", "debootstrap": "debootstrap"}
ROOT_PACKAGES = ("ca-certificates", "dbus", "make", "procps", "python3", "python3-venv", "systemd", "systemd-sysv")
BOOT_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
NSPAWN_RUN = Path("/run/systemd/nspawn")


def missing_tools() -> list[str]:
    """Return what this machine lacks to boot a systemd, as texts."""
    lacks = [] if os.geteuid() == 0 else ["root (systemd-nspawn makes namespaces and mounts)"]
    return lacks + [f"{tool} (apt-get install {name})" for tool, name in PACKAGES.items() if not find_tool(tool)]


def root_folder() -> Path:
    """Return the root of a minimal Debian with systemd and Python, made by debootstrap once (about a minute)."""

    def build(part: Path) -> None:
        include = f"--include={','.join(ROOT_PACKAGES)}"
        argv = ["debootstrap", "--variant=minbase", include, SUITE, str(part / "root")]
        run_tool(argv, what="making the root folder with debootstrap")
        if CA_BUNDLE.is_file():  # downloads inside trust the same CAs as this machine
            shutil.copy(CA_BUNDLE, part / "root" / CA_BUNDLE.relative_to("/"))

    bundle = [CA_BUNDLE] if CA_BUNDLE.is_file() else []
    return install_once(f"systemd-{SUITE}-{digest_of(bundle, ','.join(ROOT_PACKAGES))}", build) / "root"


class CannotBootError(DevnetError):
    """This machine cannot boot a systemd in a container: systemd-nspawn ended by itself."""


class SystemdHost:
    """Boots on entry and is removed on exit. `binds` and `read_only`: folders of this machine by their path inside.

    Raises CannotBootError if this machine cannot boot it, DevnetError if it takes too long.
    """

    def __init__(self, binds: Mapping[str, Path], read_only: Mapping[str, Path]) -> None:
        self._name = f"dcu-{secrets.token_hex(4)}"
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self._name}-"))
        self._binds = [f"--bind={source}:{place}" for place, source in binds.items()]
        self._binds += [f"--bind-ro={source}:{place}" for place, source in read_only.items()]
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        lacks = missing_tools()
        if lacks:
            raise DevnetError(f"booting a systemd needs {'; '.join(lacks)}")
        argv = [
            *("systemd-nspawn", "--quiet", "--boot", "--directory", str(root_folder()), "--volatile=overlay"),
            *("--machine", self._name, "--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=copy-host"),
            *self._binds,
        ]
        try:
            with open(self._folder / "console.log", "wb") as log:
                self._nspawn = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self._wait_until_booted()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_until_booted(self) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while not self._is_up():
            assert self._nspawn is not None  # noqa: S101 - for the type checker
            ended, late = self._nspawn.poll() is not None, time.monotonic() > deadline
            if ended or late:
                console = (self._folder / "console.log").read_text(errors="replace")
                why = f"systemd did not boot; its console ends with:\n{console[-2000:]}"
                raise CannotBootError(why) if ended else DevnetError(why)
            time.sleep(0.1)

    def _is_up(self) -> bool:
        assert self._nspawn is not None  # noqa: S101 - for the type checker
        # Read each time: nspawn's first child only prepares the process that becomes the systemd inside.
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        if not children:
            return False
        self._init = int(children[-1])
        with contextlib.suppress(DevnetError):
            # "degraded": a unit of Debian failed, which does not matter here.
            return self.run("sh", "-c", "systemctl is-system-running || :").strip() in ("running", "degraded")
        return False

    def run(self, *argv: str, stdin: str = "") -> str:
        """Run a program inside as root, to its end; returns its output. Raises DevnetError."""
        enter = ["nsenter", "--target", str(self._init), "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        whole = [*enter, "--wd=/", "env", "-i", path, "LC_ALL=C.UTF-8", *argv]
        done = subprocess.run(whole, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
            raise DevnetError(f"{' '.join(argv)} (exit code {done.returncode}):\n{tail}")
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file inside, and create its parent folders."""
        self.run("install", "-D", "-m", "644", "/dev/stdin", path, stdin=text)

    def shows(self, unit: str, name: str) -> str:
        """Return a property of a unit, from `systemctl show`."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def journal(self, unit: str, lines: int = 60) -> str:
        """Return the end of a unit's log."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--lines={lines}", "--unit", unit)

    def close(self) -> None:
        """Power off the system inside, then end the container."""
        nspawn, self._nspawn = self._nspawn, None
        if nspawn is not None:
            if self._init:  # this signal powers off the systemd inside
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._init, signal.SIGRTMIN + 4)
            try:
                nspawn.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                nspawn.kill()
                nspawn.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            (NSPAWN_RUN / "propagate" / self._name).rmdir()


if __name__ == "__main__":
    if "--apt" in sys.argv[1:]:
        apt_install_missing(PACKAGES, "systemd-nspawn")
    sys.stdout.write("".join(f"missing for trials of the units: {item}\n" for item in missing_tools()))
