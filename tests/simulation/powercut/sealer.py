"""The child: seals one value after another in a real store, and writes each to `acknowledged` after its `put`."""

import os
import sys
from pathlib import Path

from keyvault.store.disk import FolderDisk
from keyvault.store.sealed_file import KIND_FACTS
from tests.doubles.vault_kit import store


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    sealed = store(FolderDisk(folder))
    notes = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT, 0o600)
    for number in range(1, count + 1):
        sealed.put(KIND_FACTS, "", bytes(32), number.to_bytes(4, "big") * (number * 37 % 900 + 1))
        os.pwrite(notes, number.to_bytes(4, "big"), 0)


main()
