"""Check what a node's container needs on this host, before the serving node is stopped for it."""

import os
import stat
from pathlib import Path

from .container_template import ContainerTemplate, Mount, devices_of, mounts_of

#: The host's own view first: a service manager may have given this process its own mounts.
MOUNT_TABLES = (Path("/proc/1/mountinfo"), Path("/proc/self/mountinfo"))
#: Other names of the same devices: those of kernels since 5.11, and those of Intel's driver before.
_SGX_NAMES = {
    "/dev/sgx/enclave": "/dev/sgx_enclave",
    "/dev/sgx/provision": "/dev/sgx_provision",
    "/dev/sgx_enclave": "/dev/sgx/enclave",
    "/dev/sgx_provision": "/dev/sgx/provision",
}
Missing = tuple[str, str]


def missing_of_host(template: ContainerTemplate) -> list[Missing]:
    """Return (code, why) for each device and folder that the host lacks. Blocking."""
    found = [missing for path in devices_of(template.host) for missing in _device(path)]
    for mount in mounts_of(template.host):
        if mount.kind == "bind":
            found += _bind(mount)
    return found


def _device(path: str) -> list[Missing]:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        other = _SGX_NAMES.get(path, "")
        hint = f"; this host has {other}" if other and os.path.exists(other) else ""
        return [("CONTAINER_DEVICE_MISSING", f"there is no device {path}{hint}")]
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISDIR(mode)):  # a folder stands for those in it
        return [("CONTAINER_DEVICE_MISSING", f"{path} is no device")]
    return []


def _bind(mount: Mount) -> list[Missing]:
    if not os.path.exists(mount.source):
        return [("CONTAINER_MOUNT_MISSING", f"there is no {mount.source} to mount at {mount.target}")]
    if mount.propagation in ("shared", "rshared", "slave", "rslave") and not _is_shared(mount.source):
        why = f"{mount.source} is to be mounted {mount.propagation}, but is not on a shared mount (mount --make-shared)"
        return [("CONTAINER_MOUNT_MISSING", why)]
    return []


def _is_shared(source: str) -> bool:
    """Return whether the mount of `source` propagates mounts (proc(5): optional fields `shared:` and `master:`)."""
    table = ""
    for path in MOUNT_TABLES:
        try:
            table = path.read_text(encoding="utf-8", errors="surrogateescape")
            break
        except OSError:
            continue
    real, best, shared = os.path.realpath(source), -1, True
    for line in table.splitlines():
        fields = line.split(" ")
        if len(fields) < 7:
            continue
        point = fields[4].encode("ascii", "surrogateescape").decode("unicode_escape", "replace")
        inside = real == point or real.startswith(f"{point.rstrip('/')}/")
        if inside and len(point) >= best:  # later lines lie over earlier ones
            best, shared = len(point), any(item.startswith(("shared:", "master:")) for item in fields[6:])
    return shared
