"""The child: stores one state after another in the journal, and then writes each to the file `acknowledged`."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from dcupgrade.adapters.journal import Journal
from dcupgrade.machine.events import Settled
from dcupgrade.machine.state import State
from dcupgrade.machine.table import activity
from dcupgrade.upgrade.ports import Entry


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    journal = Journal(folder / "journal.sqlite3")
    notes = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT, 0o600)
    state = State()
    for number in range(1, count + 1):
        after = replace(state, detail=f"{number}", reason="x" * (number * 37 % 3000))
        journal.append(Entry(state, Settled(""), after, activity(after)))
        os.pwrite(notes, number.to_bytes(4, "big"), 0)
        state = after
    # the parent replays the writes; a close would checkpoint and tidy up, which a power cut does not
    os._exit(0)


main()
