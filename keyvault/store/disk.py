"""The folder of a sealed store: atomic writes, fsync."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Protocol

from keyvault.errors import KeyvaultError

from . import sealed_file as sealed


class Disk(Protocol):
    """One flat folder of small files. A crash can happen between any two calls."""

    def names(self) -> list[str]:
        """Return the names of all files."""

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if it is absent."""

    def write(self, name: str, data: bytes) -> None:
        """Create a file (mode 0600) or overwrite it in place with `data`. Does not survive a crash before `sync`."""

    def sync(self, name: str) -> None:
        """Make a file's bytes survive a crash. On common file systems, also the name of a new or renamed file."""

    def rename(self, old: str, new: str) -> None:
        """Rename atomically, replacing `new`. Does not survive a crash before `sync_folder`."""

    def remove(self, name: str) -> None:
        """Unlink a file. Does not survive a crash before `sync_folder`."""

    def sync_folder(self) -> None:
        """Make renames and removals survive a crash. Under Gramine it does nothing (docs/gramine.md)."""


class FolderDisk:
    """A folder of the file system, mode 0700, files 0600. Symbolic links in it are not followed."""

    def __init__(self, folder: Path) -> None:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self._folder = folder
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for path in made:  # a power cut could remove an unsynced new folder, with all synced files in it
            with contextlib.suppress(PermissionError):  # a parent in which we may create folders, but not read
                _sync_path(path.parent)

    def lock(self) -> None:
        """Lock the folder for this process until `close`. Raises `STORE_WRITE_FAILED` if another process has it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KeyvaultError(
                code="STORE_WRITE_FAILED",
                what=f"the store {self._folder} cannot be used",
                why="another process uses it",
                action="Stop the other vault or node that uses this folder.",
                kind="transient",
            ) from None

    def close(self) -> None:
        """Release the folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def names(self) -> list[str]:
        """Return the names of all regular files."""
        with os.scandir(self._fd) as entries:
            return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fd)

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes (at most one byte more than the largest sealed file), or None if it is absent."""
        try:
            fd = self._open(name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.read(sealed.FILE_BYTES_MAX + 1)

    def write(self, name: str, data: bytes) -> None:
        """Create or overwrite. Not truncated first: that would free the old blocks before wiping overwrites them."""
        with os.fdopen(self._open(name, os.O_WRONLY | os.O_CREAT), "wb") as file:
            file.write(data)
            file.truncate()

    def sync(self, name: str) -> None:
        """fsync a file and drop its cached pages, so that the next `read` reads from the disk."""
        fd = self._open(name, os.O_RDONLY)
        try:
            os.fsync(fd)
            with contextlib.suppress(OSError):  # only advice; reading also works without it
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Rename within the folder."""
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Unlink."""
        os.unlink(name, dir_fd=self._fd)

    def sync_folder(self) -> None:
        """fsync the folder."""
        os.fsync(self._fd)


def _sync_path(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
