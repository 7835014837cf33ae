"""Credentials of image registries, as `docker login` keeps them in the client's configuration file.

The engine stores no credentials; the client sends them with each pull. They are read again for each pull, sent only to
the engine, and never logged.
"""

import asyncio
import base64
import binascii
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ProcessSupervisorError
from .limits import MIB

DOCKER_HUB = "https://index.docker.io/v1/"
HELPER_S_MAX = 10.0
CONFIG_BYTES_MAX = 1 * MIB


def default_config() -> Path:
    """Where `docker login` of this user writes: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`."""
    folder = os.environ.get("DOCKER_CONFIG")
    return Path(folder) / "config.json" if folder else Path("~/.docker/config.json").expanduser()


def registry_of(name: str) -> str:
    """The registry of a repository, as the configuration file calls it.

    Repositories are written in lower case, so engines take a first part with a capital letter for a host too.
    """
    first, slash, _ = name.partition("/")
    is_host = bool(slash) and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    return first if is_host and first not in ("docker.io", "index.docker.io") else DOCKER_HUB


async def auth_header(config: Path, repository: str) -> dict[str, str]:
    """The header that a pull of `repository` takes; {} where the file has nothing for its registry.

    Raises CONTAINER_REGISTRY_CREDENTIALS_UNREADABLE.
    """
    registry = registry_of(repository)
    try:
        settings = await asyncio.to_thread(_read, config)
        found = await _credentials(settings, registry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, TimeoutError) as error:
        raise ProcessSupervisorError(
            code="CONTAINER_REGISTRY_CREDENTIALS_UNREADABLE",
            what=f"credentials for {registry} in {config}",
            why=str(error) or type(error).__name__,
            action="Run `docker login` again as the agent's user, or correct container.registry_config",
        ) from error
    if not found:
        return {}
    text = json.dumps({**found, "serveraddress": registry})
    return {"X-Registry-Auth": base64.urlsafe_b64encode(text.encode()).decode()}


def _read(config: Path) -> Mapping[str, Any]:
    if not config.exists():
        return {}
    data = config.read_bytes()
    if len(data) > CONFIG_BYTES_MAX:
        raise ValueError("it is too large")
    settings = json.loads(data)
    if not isinstance(settings, dict):
        raise ValueError("it is not a JSON object")
    return settings


async def _credentials(settings: Mapping[str, Any], registry: str) -> dict[str, str]:
    helper = (settings.get("credHelpers") or {}).get(registry) or settings.get("credsStore")
    if helper:
        return await _ask_helper(str(helper), registry)
    entries = settings.get("auths") or {}
    entry = entries.get(registry) or entries.get(f"https://{registry}") or entries.get(f"http://{registry}") or {}
    if token := entry.get("identitytoken"):
        return {"identitytoken": str(token)}
    if text := entry.get("auth"):
        try:
            user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError("its `auth` is not base64") from error
        if not colon:
            raise ValueError("its `auth` holds no user and password")
        return {"username": user, "password": password.rstrip("\0")}
    return {name: str(entry[name]) for name in ("username", "password") if entry.get(name)}


async def _ask_helper(helper: str, registry: str) -> dict[str, str]:
    """Ask `docker-credential-<helper>`; {} where it has nothing for the registry."""
    if not helper.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError(f"{helper[:40]!r} cannot name a credential helper")
    process = await asyncio.create_subprocess_exec(
        f"docker-credential-{helper}",
        "get",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(HELPER_S_MAX):
            output, _ = await process.communicate(registry.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        if b"credentials not found" in output:
            return {}
        raise ValueError(f"docker-credential-{helper} ended with exit code {process.returncode}")
    answer = json.loads(output)
    user, secret = str(answer["Username"]), str(answer["Secret"])
    return {"identitytoken": secret} if user == "<token>" else {"username": user, "password": secret}
