"""Root keys of a simulated CPU: random for each installation, stored in one file."""

import os
import stat
from pathlib import Path

from attestation.errors import AttestationError

from .cpu import RootKeys

ROOT_FILE = "root-keys"
_ROOT_MAGIC = "dcupgrade simulated cpu v1"
_ROOT_FIELDS = {"seal": 16, "report": 16, "owner_epoch": 16, "report_key_id": 32}


def _folder_invalid(folder: Path, why: str) -> AttestationError:
    return AttestationError(
        code="CPU_FOLDER_INVALID",
        what=f"the simulated CPU in {folder} cannot be used",
        why=why,
        action="Restore the folder from a backup; a new CPU cannot unseal what this one sealed.",
        kind="invariant",
    )


def _encode_root(root: RootKeys) -> str:
    lines = [f"{name} {getattr(root, name).hex()}" for name in _ROOT_FIELDS]
    return "\n".join([_ROOT_MAGIC, *lines, f"cpusvn_level {root.cpusvn_level}", ""])


def _write_aside(folder: Path, root: RootKeys) -> Path:
    aside = folder / f".{ROOT_FILE}.{os.getpid()}.{os.urandom(4).hex()}"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(_encode_root(root))
        file.flush()
        os.fsync(fd)
    return aside


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def init_cpu(folder: Path) -> bool:
    """Generate the root keys of a new CPU, unless the folder has some. Tells whether it generated them.

    Atomic, also if several processes do it at once: the file appears complete or not at all, and is never replaced.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = folder / ROOT_FILE
    if final.exists():
        load_root_keys(folder)
        return False
    draw = os.urandom
    aside = _write_aside(folder, RootKeys(draw(16), draw(16), draw(16), draw(32)))
    try:
        os.link(aside, final)
        drawn = True
    except FileExistsError:
        drawn = False
    finally:
        aside.unlink()
    _fsync_folder(folder)
    return drawn


def load_root_keys(folder: Path) -> RootKeys:
    """Read the root keys of a CPU folder. Raises CPU_FOLDER_INVALID; never generates any."""
    path = folder / ROOT_FILE
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096)
    except (OSError, UnicodeDecodeError) as error:
        raise _folder_invalid(folder, f"{ROOT_FILE} cannot be read ({type(error).__name__})") from error
    if stat.S_IMODE(mode) & 0o077:
        raise _folder_invalid(folder, f"{ROOT_FILE} is open to others (mode {stat.S_IMODE(mode):04o})")
    magic, *lines = (text.splitlines()[:1] and text.splitlines()) or [""]
    fields = dict(line.split(" ", 1) for line in lines if line.count(" ") == 1)
    if magic != _ROOT_MAGIC or list(fields) != [*_ROOT_FIELDS, "cpusvn_level"] or len(fields) != len(lines):
        raise _folder_invalid(folder, f"{ROOT_FILE} is damaged")
    try:
        level = int(fields.pop("cpusvn_level"))
        keys = {name: bytes.fromhex(value) for name, value in fields.items()}
        root = RootKeys(**keys, cpusvn_level=level)
    except (ValueError, AttestationError) as error:
        raise _folder_invalid(folder, f"{ROOT_FILE} is damaged") from error
    if _encode_root(root) != text or not all(map(any, keys.values())):
        raise _folder_invalid(folder, f"{ROOT_FILE} is damaged")
    return root


def set_cpusvn(folder: Path, level: int) -> None:
    """Simulate a microcode update: processes started from now on run at CPUSVN `level` (0 oldest to 2 newest)."""
    old = load_root_keys(folder)
    root = RootKeys(old.seal, old.report, old.owner_epoch, old.report_key_id, level)
    _write_aside(folder, root).replace(folder / ROOT_FILE)
    _fsync_folder(folder)
