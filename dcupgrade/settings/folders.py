"""What the settings say about folders and files on this host: which of them collide, and which are missing."""

import os
from itertools import combinations
from pathlib import Path

from .errors import SettingsError
from .schema import Settings


def overlapping_folders(settings: Settings) -> list[str]:
    """Mistakes in where folders lie; links are followed, so one folder under two names is found.

    The node's data, the agent's state and the vault's sealed store are kept, removed and owned by different rules. The
    store may lie in the state folder, but in none of the folders there that the agent cleans up.
    """
    state, data, store = settings.agent.state_dir, settings.node.data_dir, settings.store_dir
    if _real(data) in (_real(state), *_real(state).parents):
        return [f"node.data_dir: {data} is or holds agent.state_dir; each needs a folder of its own"]
    named = {
        "node.data_dir": data,
        "vault.store_dir": store,
        "vault.cpu_dir": settings.cpu_dir,
        **{f"agent.state_dir/{name}": state / name for name in ("slots", "logs", "run")},
    }
    return [
        f"{one}: {named[one]} and {other} {named[other]} overlap; each needs a folder of its own"
        for one, other in combinations(named, 2)
        if _overlap(named[one], named[other])
    ]


def missing_files(settings: Settings) -> list[str]:
    """Mistakes about files that the settings name and that cannot be read, one line each."""
    wanted: dict[str, Path | None] = {
        "chain.checkpoint_file": settings.chain.checkpoint_file if settings.chain.finality == "proven" else None,
        "chain.ca_file": settings.chain.ca_file,
    }
    if settings.vault.start and not settings.vault.command:
        wanted |= {f"vault.{name}": getattr(settings.vault, name) for name in ("image", "sigstruct", "auth_file")}
    for index, receiver in enumerate(settings.webhooks):
        wanted[f"webhooks[{index}].secret_file"] = receiver.secret_file
    return [f"{key}: {why}" for key, path in wanted.items() if path is not None and (why := _unreadable(path))]


def require_files(settings: Settings, path: Path) -> None:
    """Raise SettingsError with every file that `path` names and that cannot be read."""
    if mistakes := missing_files(settings):
        raise SettingsError(mistakes, path=str(path))


def _unreadable(path: Path) -> str:
    if not path.exists():
        return f"there is no {path}"
    if not path.is_file():
        return f"{path} is not a file"
    return "" if os.access(path, os.R_OK) else f"{path} cannot be read by this user"


def _overlap(one: Path, other: Path) -> bool:
    first, second = _real(one), _real(other)
    return first == second or first in second.parents or second in first.parents


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
