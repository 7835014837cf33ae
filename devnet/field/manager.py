"""The field's manager, as far as taking over its node needs it: how it starts a node, and its running daemon.

It follows the public Go program's release 0.0.55. The container is made by the engine's API, not by our driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiodocker

from devnet.tools import find_tool

CONTAINER = "dcstorage"
UPGRADER = "dcupgrade"
VOLUME = "dcstorage"


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the field in `folder`: its disks, settings and devices."""

    folder: Path

    @property
    def disks(self) -> Path:
        """The folder in which the manager mounts disks, shared with the node."""
        return self.folder / "opt" / "dcnetio" / "disks"

    @property
    def etc(self) -> Path:
        """Settings of the node, and its software CPU."""
        return self.folder / "opt" / "dcnetio" / "etc"

    @property
    def devices(self) -> tuple[Path, Path]:
        """Enclave and provision device."""
        return self.folder / "dev" / "sgx_enclave", self.folder / "dev" / "sgx_provision"

    @contextlib.contextmanager
    def prepared(self, *, port: int, upgrader: str, makes_keys: str) -> Iterator[None]:
        """Make folders and devices (as root). The version `makes_keys` is the first one, which generates the keys."""
        for path in (self.disks, self.etc, self.folder / "dev"):
            path.mkdir(parents=True, exist_ok=True)
        for device in self.devices:
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        settings = {"port": port, "upgrader": upgrader, "makes_keys": makes_keys}
        (self.etc / "dcstorage.json").write_text(json.dumps(settings))
        mount, umount = find_tool("mount") or "mount", find_tool("umount") or "umount"
        subprocess.run([mount, "--bind", str(self.disks), str(self.disks)], check=True)
        try:
            subprocess.run([mount, "--make-shared", str(self.disks)], check=True)
            yield
        finally:
            subprocess.run([umount, "--lazy", str(self.disks)], check=True)


async def start_node(docker: aiodocker.Docker, image: str, host: Host) -> str:
    """Create and start the node's container as the manager does; returns its id."""
    enclave, provision = host.devices
    config: dict[str, Any] = {
        "Image": image,
        "Entrypoint": ["dcstorage"],
        "HostConfig": {
            "NetworkMode": "host",
            "RestartPolicy": {"Name": "always"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "100m", "max-file": "3"}},
            "Binds": [f"{host.disks}:/opt/dcnetio/disks:shared", f"{host.etc}:/opt/dcnetio/etc"],
            "Mounts": [{"Type": "volume", "Source": VOLUME, "Target": "/opt/dcnetio/data"}],
            "Devices": [
                {"PathOnHost": str(enclave), "PathInContainer": "/dev/sgx/enclave", "CgroupPermissions": "rwm"},
                {"PathOnHost": str(provision), "PathInContainer": "/dev/sgx/provision", "CgroupPermissions": "rwm"},
            ],
        },
    }
    container = await docker.containers.create(config, name=CONTAINER)
    await container.start()
    return str(container.id)


async def replace_node(docker: aiodocker.Docker, image: str, host: Host) -> str:
    """Remove the node's container and start one of the image in its place, as the manager upgrades.

    If another program has just created a container of that name, that one is removed too.
    """
    while True:
        with contextlib.suppress(aiodocker.DockerError):
            await docker.containers.container(CONTAINER).delete(force=True)
        try:
            return await start_node(docker, image, host)
        except aiodocker.DockerError as error:
            if error.status != 409:
                raise


async def start_upgrader(docker: aiodocker.Docker, image: str) -> None:
    """Start a process under the Go upgrader's name; it does nothing and ends at TERM."""
    config: dict[str, Any] = {
        "Image": image,
        "Entrypoint": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"],
        "HostConfig": {"NetworkMode": "host", "RestartPolicy": {"Name": "always"}},
    }
    container = await docker.containers.create(config, name=UPGRADER)
    await container.start()


class Service:
    """A process that looks like the manager's daemon of `dc.service`, `dc upgrade daemon`, and does nothing."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "dc"
        self._process: asyncio.subprocess.Process | None = None
        shutil.copy(shutil.which("sh") or "/bin/sh", self._program)

    async def __aenter__(self) -> Service:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def runs(self) -> bool:
        """Whether it is started."""
        return self._process is not None

    async def start(self) -> None:
        """Do what `systemctl enable --now dc.service` does."""
        argv = (str(self._program), "-c", "read -r _", "upgrade", "daemon")
        self._process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE)

    async def stop(self) -> None:
        """Do what `systemctl disable --now dc.service` does. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()
