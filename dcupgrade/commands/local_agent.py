"""The agent of this host, as commands reach it: its journal's file, and its API on loopback."""

import http.client
import json
import os
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

from dcupgrade.adapters.journal import Journal
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.state import Release
from dcupgrade.settings.schema import Settings

ANY_HOST = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where one listens, not what one binds


def journal_path(loaded: Settings) -> Path:
    """Where the agent keeps its journal."""
    return loaded.agent.state_dir / "journal.sqlite3"


def open_journal(loaded: Settings) -> Journal:
    """The journal of this agent; raises DcupgradeError NO_JOURNAL, JOURNAL_UNREADABLE, JOURNAL_CORRUPT or _TOO_NEW."""
    path = journal_path(loaded)
    try:
        there = path.exists()
    except OSError as error:
        raise DcupgradeError(
            code="JOURNAL_UNREADABLE",
            what=f"journal {path}",
            why=error.strerror or str(error),
            action="Run this as the agent's user or as root.",
        ) from error
    if not there:
        raise DcupgradeError(
            code="NO_JOURNAL",
            what=f"journal {path}",
            why="there is none",
            action="Start `dcupgrade watch` once, or name the right settings file with --config.",
        )
    return Journal(path)


def require_own_folder(folder: Path, command: str) -> None:
    """Keep root from making files here that the agent's user could not write. Raises AGENT_STATE_UNUSABLE."""
    if os.geteuid() == 0 and folder.exists() and folder.stat().st_uid != 0:
        raise DcupgradeError(
            code="AGENT_STATE_UNUSABLE",
            what=f"folder {folder}",
            why=f"it belongs to user {folder.stat().st_uid}, and this is root",
            action=f"Run this as the agent's user: runuser -u USER -- {command}.",
        )


def running_version(loaded: Settings) -> str:
    """Version, or id, of what the journal says runs on this host; empty without a journal or a node."""
    release = running_release(loaded)
    return (release.version or release.enclave_id) if release else ""


def running_release(loaded: Settings) -> Release | None:
    """The release that the journal says runs on this host; None without a node or a journal that can be read."""
    try:
        with closing(open_journal(loaded)) as journal:
            state = journal.load()
    except DcupgradeError:
        return None
    return state.running if state else None


def agent_address(listen: str) -> str:
    """Host and port at which the agent is asked: its own address, or loopback where it listens on all of them."""
    host, _, port = listen.rpartition(":")
    bare = host.strip("[]")
    bare = ANY_HOST.get(bare, bare)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def ask_agent(loaded: Settings, path: str, timeout_s: float = 1.0) -> dict[str, Any] | None:
    """The running agent's answer to a GET, or None where nobody answers, or something else does."""
    if loaded.agent.http_listen == "off":
        return None
    # the agent answers to this name whatever its address; a proxy of the environment has no business here
    address = agent_address(loaded.agent.http_listen)
    asked = urllib.request.Request(f"http://{address}{path}", headers={"Host": "localhost"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=timeout_s) as answer:
            decoded = json.load(answer)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return decoded if isinstance(decoded, dict) else None
