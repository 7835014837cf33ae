"""Checks of the host: ports, free space, other managers."""

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from .container_template import LABEL_PREFIX
from .errors import ProcessSupervisorError
from .procfs import PROC, command_of, listener_of

# Executables of the field's Go manager and upgrader, whose containers have one of these texts in their name or image.
OTHER_MANAGERS = ("dcmanager", "dcupgrade")
FIELD_MANAGER = "dc"
_OUR_COMMAND = re.compile(r"(-m (dcupgrade|keyvault)|\bdcupgrade .*\bwatch|\bkeyvault serve)\b")


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether nothing listens on a TCP port (connections in TIME_WAIT do not count)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def require_ports_free(ports: Iterable[int], host: str = "127.0.0.1") -> None:
    """Raise PORT_TAKEN, naming all taken ports and their listeners. Blocking: then it scans all processes."""
    taken = [port for port in ports if not port_is_free(port, host)]
    if taken:
        owners = {owner for port in taken if (owner := port_owner(port))}
        raise ProcessSupervisorError(
            code="PORT_TAKEN",
            what=f"port {', '.join(map(str, taken))} of {host}",
            why=f"{', '.join(sorted(owners)) or 'a process of another user'} listens there",
            action="Stop that program or change the port in the settings (`ss -ltnp` shows who it is)",
        )


def port_owner(port: int) -> str:
    """Return the listener on a port, as `pid 7 (its command)`; "" if it cannot be determined. Blocking."""
    pid = listener_of(port)
    return "" if pid is None else f"pid {pid} ({command_of(pid) or 'unknown'})"


def free_bytes(folder: Path) -> int:
    """Return the bytes an unprivileged user may still write on the file system of `folder` (or its nearest parent)."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def other_manager_processes(names: Iterable[str] = OTHER_MANAGERS) -> list[str]:
    """Return processes of other managers, as `name (pid n)`: those whose executable file has one of `names`.

    The executable decides, not the command line: our own `dcupgrade` command is a script that Python runs. Other
    programs share the name of the field's manager, so for that one the arguments are compared too.
    """
    wanted = frozenset(names)
    found = []
    for entry in os.listdir(PROC):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                name = os.path.basename(os.readlink(PROC / entry / "exe")).removesuffix(" (deleted)")
                if name == FIELD_MANAGER and _is_daemon((PROC / entry / "cmdline").read_bytes()):
                    found.append(f"{name} upgrade daemon (pid {entry})")
            except OSError:
                continue  # the process has ended, is a kernel thread, or belongs to another user
            if name in wanted:
                found.append(f"{name} (pid {entry})")
    return sorted(found)


def _is_daemon(cmdline: bytes) -> bool:
    arguments = cmdline.split(b"\0")[1:]
    return b"upgrade" in arguments and b"daemon" in arguments


def other_manager_containers(
    containers: Iterable[Mapping[str, object]], own_id: str = "", names: Iterable[str] = OTHER_MANAGERS
) -> list[str]:
    """Return the running containers of other managers in the engine's `/containers/json` answer.

    This program has the same name as the field's upgrader. Our own containers are recognised by their labels, by
    `own_id` (the container that this process runs in), or by their command.
    """
    found = []
    for item in containers:
        labels = item.get("Labels")
        labelled = isinstance(labels, Mapping) and any(str(name).startswith(LABEL_PREFIX) for name in labels)
        if labelled or item.get("Id") == own_id or _OUR_COMMAND.search(str(item.get("Command", ""))):
            continue
        titles = item.get("Names")
        title = str(titles[0]).lstrip("/") if isinstance(titles, list) and titles else str(item.get("Id", ""))[:12]
        image = str(item.get("Image", "")).rsplit("/", 1)[-1]
        if any(name == title or image.split(":")[0].split("@")[0] == name for name in names):
            found.append(f"container {title} of {item.get('Image', '?')}")
    return sorted(found)


def own_container_id() -> str:
    """Return the id of this process's container, found by the files that the engine mounts; "" outside a container."""
    try:
        table = (PROC / "self" / "mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"containers/([0-9a-f]{64})/", table)
    return match[1] if match else ""
