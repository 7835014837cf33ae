"""The agent's state folder: its locks and the operator's token."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from dcupgrade.errors import DcupgradeError
from dcupgrade.settings.schema import Settings
from process_supervisor.plain_file import read_plain

TOKEN_BYTES_MAX = 4096


def lock_folders(settings: Settings, stack: AsyncExitStack) -> None:
    """Lock the state and data folders for this agent, until `stack` ends. Blocking.

    Raises AGENT_ALREADY_RUNNING, AGENT_STATE_UNUSABLE.
    """
    try:
        for folder in (settings.agent.state_dir, settings.node.data_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(folder / ".agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in ("logs", "run", "slots"):
            (settings.agent.state_dir / name).mkdir(mode=0o700, exist_ok=True)
        settings.store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except BlockingIOError as error:
        raise DcupgradeError(
            code="AGENT_ALREADY_RUNNING",
            what=f"folder {folder}",
            why="another agent holds its lock",
            action="Let one agent work on a node; `dcupgrade status` shows what it does.",
        ) from error
    except OSError as error:
        raise DcupgradeError(
            code="AGENT_STATE_UNUSABLE",
            what=f"folder {settings.agent.state_dir}",
            why=str(error),
            action="Create it for the agent's user, or name another one in agent.state_dir.",
        ) from error


def read_or_draw_token(path: Path) -> str:
    """Return the token in a file; if there is none, generate and write it, mode 0600. Blocking.

    Raises AGENT_STATE_UNUSABLE.
    """
    try:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            token = read_plain(path, TOKEN_BYTES_MAX).decode("ascii").strip()
            if len(token) < 16:
                raise ValueError("it is too short to be a token") from None
            return token
    except (OSError, ValueError) as error:
        raise DcupgradeError(
            code="AGENT_STATE_UNUSABLE",
            what=f"token file {path}",
            why=str(error),
            action="It must be one line of text that the agent's user can read; where there is no file, one is drawn.",
        ) from error
    with os.fdopen(fd, "w") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token
