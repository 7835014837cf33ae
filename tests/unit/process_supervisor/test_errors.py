"""The codes of the package, and the shape of its errors."""

import re
from pathlib import Path

import process_supervisor
from process_supervisor.errors import CODES, ProcessSupervisorError


def test_every_code_that_is_raised_is_listed() -> None:
    folder = Path(process_supervisor.__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py") if path.name != "errors.py")
    prefixes = "ARCHIVE|CONTAINER|DATA|DOWNLOAD|NODE|OTHER|PORT|STAGING"
    raised = set(re.findall(rf'"((?:{prefixes})_[A-Z_]+)"', text)) - {"STAGING_DISK"}
    assert raised == set(CODES)


def test_an_error_says_what_why_and_what_to_do() -> None:
    error = ProcessSupervisorError(code="PORT_TAKEN", what="port 1", why="it is in use", action="Stop it")
    assert str(error) == "PORT_TAKEN: port 1: it is in use. Stop it"
    assert error.kind == "transient"
