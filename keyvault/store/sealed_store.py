"""The sealed store on disk: two generations for each name. A file that cannot be read is never deleted.

A write creates a temporary file, syncs it and renames it over the *older* generation. Then it syncs folder and file,
reads the file back through a new descriptor and unseals it. Only then `put` returns. So a crash at any instant leaves
the newer generation unchanged. The vault and nodes both use this module.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from attestation.errors import AttestationError
from attestation.sgx import seal_key_request
from keyvault.errors import KeyvaultError
from keyvault.handover.key_set import wipe
from keyvault.handover.messages import is_hex_id
from keyvault.handover.party import Tee

from . import sealed_file as sealed
from .disk import Disk
from .sealed_file import FACTS_NAME, KIND_FACTS, KIND_KEY_SET, Header

log = logging.getLogger("keyvault")
_FILE: Final = re.compile(r"([0-9a-f]{64})\.(?:keys-([0-9a-f]{64})|facts)\.([ab])\.sealed")
_GENERATIONS: Final = ("a", "b")


@dataclass(frozen=True)
class Entry:
    """One file of the store: its header if it can be decoded, and otherwise the problem that prevents its use."""

    file: str
    header: Header | None
    problem: KeyvaultError | None

    @property
    def sealer(self) -> str:
        """Enclave id of the sealer, from the file's name. A header that names another sealer is damaged."""
        return self.file[: 2 * len(FACTS_NAME)]


@dataclass
class Opened:
    """An unsealed payload. The caller wipes `payload` if it is key material."""

    header: Header
    payload: bytearray


class SealedStore:
    """Sealed files of one enclave. `random(n)` returns n unpredictable bytes; `allow_simulated` is a measured setting.

    Use it from one thread at a time, and from one process: `FolderDisk.lock` ensures the latter.
    """

    def __init__(self, disk: Disk, tee: Tee, random: Callable[[int], bytes], *, allow_simulated: bool) -> None:
        self._disk = disk
        self._tee = tee
        self._random = random
        self._allow_simulated = allow_simulated
        self._own = tee.self_report()
        #: store id of new files: the vault sets it, nodes need none
        self.store_id = sealed.NO_STORE_ID
        #: name -> (epoch, generation) of the newest good copy; it stays valid because only this process writes
        self._newest: dict[str, tuple[int, str]] = {}
        #: files that this process wrote and read back: they can be replaced without reading them again
        self._written: set[str] = set()

    def entries(self) -> list[Entry]:
        """Return the files of the store. Files of this enclave are unsealed to check them.

        Files that name another sealer are not read: in a node's folder their number grows with each version.
        """
        found = []
        for file in self._disk.names():
            match = _FILE.fullmatch(file)
            if match is not None and match[1] != self._own.enclave_id:
                found.append(Entry(file, None, self._other_enclave(file, match[1])))
            elif match is not None:
                try:
                    opened = self._open(file)
                except KeyvaultError as problem:
                    found.append(Entry(file, self._header(file), problem))
                    continue
                wipe(opened.payload)
                found.append(Entry(file, opened.header, None))
        return found

    def _header(self, file: str) -> Header | None:
        try:
            return sealed.decode_header(self._read(file) or b"")
        except KeyvaultError:
            return None

    def _seal_key(self, header: Header) -> bytes:
        try:
            key = self._tee.seal_key(header.key_request)
        except AttestationError as error:
            raise KeyvaultError(
                code="STORE_UNSEAL_FAILED",
                what="the TEE refused the seal key",
                why=f"{error.code}: {error.why}",
                action="The file is kept. A file of a newer CPU security version needs that platform back.",
                kind="invariant",
            ) from error
        sealed.check_seal_key(key, self._tee.kind, self._allow_simulated)
        return key

    def _read(self, file: str) -> bytes | None:
        try:
            return self._disk.read(file)
        except OSError as error:
            raise KeyvaultError(
                code="STORE_READ_FAILED",
                what=f"{file} could not be read",
                why=os.strerror(error.errno) if error.errno else type(error).__name__,
                action="Look at the disk and at what else writes into the store's folder; nothing was changed.",
                kind="invariant",
            ) from error

    def _open(self, file: str) -> Opened:
        data = self._read(file)
        if data is None:
            raise KeyvaultError(code="STORE_MISSING", what=f"{file} cannot be read", why="it is not there")
        return self._unseal(file, data)

    def _unseal(self, file: str, data: bytes) -> Opened:
        """Unseal `data` as the content of `file`."""
        header = sealed.decode_header(data)
        if header.sealer != self._own.mrenclave:
            raise self._other_enclave(file, header.sealer.hex())
        match = _FILE.fullmatch(file)
        named = bytes.fromhex(match[2]) if match is not None and match[2] else FACTS_NAME
        if header.name != named or (header.kind == KIND_FACTS) != (named == FACTS_NAME):
            raise KeyvaultError(
                code="STORE_FORMAT_INVALID",
                what=f"{file} was refused",
                why="its name is not the one in its header: it was copied or renamed",
                kind="invariant",
            )
        return Opened(*sealed.open_sealed(data, self._seal_key(header)))

    def _other_enclave(self, file: str, sealer: str) -> KeyvaultError:
        return KeyvaultError(
            code="STORE_OTHER_ENCLAVE",
            what=f"{file} cannot be opened",
            why=f"it was sealed by {sealer}, this is {self._own.enclave_id}",
            action="Run the build that sealed it; several builds can run side by side, each with its own store.",
            kind="invariant",
        )

    def _newest_good(self, name: str) -> tuple[Opened | None, str, list[KeyvaultError]]:
        """Return the newest copy that opens, its generation, and the problems of the others."""
        best: Opened | None = None
        generation = ""
        problems = []
        for letter in _GENERATIONS:
            try:
                opened = self._open(f"{name}.{letter}.sealed")
            except KeyvaultError as problem:
                if problem.code != "STORE_MISSING":
                    problems.append(problem)
                continue
            if best is None or opened.header.epoch > best.header.epoch:
                if best is not None:
                    wipe(best.payload)
                best, generation = opened, letter
            else:
                wipe(opened.payload)
        return best, generation, problems

    def get(self, kind: int, name: str) -> Opened:
        """Return the newest copy that opens. A copy sealed under an older CPUSVN is sealed again.

        If the disk is full, the copy is returned and sealed again the next time. `name`: a key set id, or "" for facts.
        Raises `STORE_MISSING`, or the problem of the copies if none opens.
        """
        base = self._base_name(kind, name)
        best, generation, problems = self._newest_good(base)
        if best is None:
            if problems:
                raise problems[0]
            raise KeyvaultError(
                code="STORE_MISSING", what=f"{base} cannot be opened", why="no sealed copy of it is in the store"
            )
        self._newest[base] = (best.header.epoch, generation)
        if best.header.key_request.cpusvn != self._own.cpusvn:
            try:
                self.put(kind, name, best.header.source, best.payload, best.header.store_id)
            except KeyvaultError as error:
                log.warning("%s was not sealed again for the newer CPU security version: %s", base, error)
        return best

    def put(
        self,
        kind: int,
        name: str,
        source: bytes,
        payload: bytes | bytearray | memoryview,
        store_id: bytes | None = None,
    ) -> int:
        """Seal `payload` as the next generation, read it back from disk, unseal it, and return its epoch.

        `source`: the 32-byte release id (zero for facts). `store_id`: 8 bytes, by default the store's.

        Raises STORE_WRITE_FAILED, STORE_READ_BACK_FAILED, STORE_SEAL_KEY_UNSAFE.
        """
        base = self._base_name(kind, name)
        if base not in self._newest:
            best, generation, _ = self._newest_good(base)
            if best is not None:
                self._newest[base] = (best.header.epoch, generation)
                wipe(best.payload)
        last_epoch, last_generation = self._newest.get(base, (0, "b"))
        generation = "a" if last_generation == "b" else "b"
        header = Header(
            kind=kind,
            epoch=last_epoch + 1,
            key_request=seal_key_request(self._own, self._random(32)),
            sealer=self._own.mrenclave,
            source=source,
            name=bytes.fromhex(name) if name else FACTS_NAME,
            nonce=self._random(sealed.NONCE_BYTES),
            plaintext_bytes=len(payload),
            store_id=self.store_id if store_id is None else store_id,
        )
        file = f"{base}.{generation}.sealed"
        self._write(file, sealed.seal(header, self._seal_key(header), payload))
        self._read_back(file, header.epoch, payload)
        self._newest[base] = (header.epoch, generation)
        self._written.add(file)
        return header.epoch

    def _write(self, file: str, data: bytes) -> None:
        aside = _aside(file)
        try:
            self._disk.write(aside, data)
            self._disk.sync(aside)
            self._set_unreadable_aside(file)
            self._disk.rename(aside, file)
            self._disk.sync_folder()
            # Under Gramine, syncing a folder does nothing. On ext4, XFS and btrfs, syncing a renamed file makes its new
            # name durable too: the rename changed the file's inode, and one journal entry contains both changes.
            self._disk.sync(file)
        except OSError as error:
            raise _write_failed(f"{file} could not be written", error, "the earlier copy is untouched") from error

    def _set_unreadable_aside(self, file: str) -> None:
        """Rename a copy that does not open instead of replacing it: it may be the last copy of something."""
        if file in self._written:
            return
        try:
            wipe(self._open(file).payload)
        except KeyvaultError as problem:
            if problem.code == "STORE_MISSING":
                return
            taken = set(self._disk.names())
            number = next(n for n in range(1, 1_000_000) if f"{file}.kept-{n}" not in taken)
            self._disk.rename(file, f"{file}.kept-{number}")

    def _read_back(self, file: str, epoch: int, payload: bytes | bytearray | memoryview) -> None:
        try:
            opened = self._open(file)
            same = opened.header.epoch == epoch and hmac.compare_digest(opened.payload, payload)
            wipe(opened.payload)
        except KeyvaultError:
            same = False
        if not same:
            raise KeyvaultError(
                code="STORE_READ_BACK_FAILED",
                what=f"{file} was written but cannot be trusted",
                why="what was read back from disk does not open to what was sealed",
                action="Look at the disk. The earlier copy is untouched.",
                kind="invariant",
            )

    def wipe(self, kind: int, name: str) -> None:
        """Overwrite and unlink the copies of `name` that this enclave can open. Other copies are kept.

        Temporary files left by a crash are wiped too. Raises `STORE_READ_FAILED`, `STORE_WRITE_FAILED`.
        """
        base = self._base_name(kind, name)
        self._newest.pop(base, None)
        for letter in _GENERATIONS:
            file = f"{base}.{letter}.sealed"
            for copy in (file, _aside(file)):
                data = self._read(copy)
                if data is not None and (not any(data) or self._opens(file, data)):  # zeros: a crash interrupted a wipe
                    self._overwrite(copy, len(data))

    def _opens(self, file: str, data: bytes) -> bool:
        try:
            wipe(self._unseal(file, data).payload)
        except KeyvaultError:
            return False
        return True

    def _overwrite(self, file: str, size: int) -> None:
        try:
            self._disk.write(file, bytes(size))
            self._disk.sync(file)
            self._disk.remove(file)
            self._disk.sync_folder()
        except OSError as error:
            raise _write_failed(f"{file} could not be wiped", error, "it is tried again") from error

    def _base_name(self, kind: int, name: str) -> str:
        """Return the file name without generation. It names the sealer, so that versions can share a folder."""
        if kind == KIND_FACTS and name == "":
            return f"{self._own.enclave_id}.facts"
        if kind == KIND_KEY_SET and is_hex_id(name):
            return f"{self._own.enclave_id}.keys-{name}"
        raise KeyvaultError(
            code="STORE_NAME_INVALID",
            what="a sealed file was refused",
            why="a key set needs a name of 64 lower-case hex characters, facts have none",
            kind="invariant",
        )


def _aside(file: str) -> str:
    return f".{file}.aside"


def _write_failed(what: str, error: OSError, left: str) -> KeyvaultError:
    return KeyvaultError(
        code="STORE_WRITE_FAILED",
        what=what,
        why=os.strerror(error.errno) if error.errno else type(error).__name__,
        action=f"Free space or repair the disk; {left}.",
        kind="transient",
    )
