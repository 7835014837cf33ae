"""Credentials come from `docker login`; unreadable ones are reported, and none is ever shown."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.registry_credentials import auth_header, default_config, registry_of


def told(header: dict[str, str]) -> dict[str, str]:
    fields: dict[str, str] = json.loads(base64.urlsafe_b64decode(header["X-Registry-Auth"]))
    return fields


def written(folder: Path, settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return path


@pytest.mark.parametrize(
    ("name", "registry"),
    [
        ("dc/node", "https://index.docker.io/v1/"),
        ("node", "https://index.docker.io/v1/"),
        ("docker.io/dc/node", "https://index.docker.io/v1/"),
        ("ghcr.io/dc/node", "ghcr.io"),
        ("localhost/node", "localhost"),
        ("host:5000/node", "host:5000"),
        ("LAN/node", "LAN"),
    ],
)
def test_the_registry_of_a_repository(name: str, registry: str) -> None:
    assert registry_of(name) == registry


async def test_entries_in_all_their_forms(tmp_path: Path) -> None:
    auth = base64.b64encode(b"me:a:b\0\0").decode()
    path = written(
        tmp_path,
        {
            "auths": {
                "a.example": {"auth": auth},
                "https://b.example": {"username": "me", "password": "x"},
                "c.example": {"identitytoken": "t", "auth": auth},
                "d.example": {},
            }
        },
    )
    assert told(await auth_header(path, "a.example/x")) == {
        "username": "me",
        "password": "a:b",
        "serveraddress": "a.example",
    }
    assert told(await auth_header(path, "b.example/x"))["password"] == "x"
    assert told(await auth_header(path, "c.example/x"))["identitytoken"] == "t"
    assert await auth_header(path, "d.example/x") == {}
    assert await auth_header(path, "e.example/x") == {}
    assert await auth_header(tmp_path / "none", "a.example/x") == {}


async def test_a_credential_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-trial"
    helper.write_text(
        "#!/bin/sh\nread -r registry\n"
        'case "$registry" in\n'
        '  a.example) echo \'{"Username": "me", "Secret": "x"}\' ;;\n'
        '  b.example) echo \'{"Username": "<token>", "Secret": "t"}\' ;;\n'
        "  c.example) echo credentials not found in native keychain; exit 1 ;;\n"
        "  *) echo broken; exit 1 ;;\nesac\n"
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = written(tmp_path, {"credsStore": "trial", "credHelpers": {"e.example": "nowhere-to-be-found"}})
    assert told(await auth_header(path, "a.example/x"))["password"] == "x"
    assert told(await auth_header(path, "b.example/x"))["identitytoken"] == "t"
    assert await auth_header(path, "c.example/x") == {}
    for name in ("d.example/x", "e.example/x"):
        with pytest.raises(ProcessSupervisorError, match="CONTAINER_REGISTRY_CREDENTIALS_UNREADABLE"):
            await auth_header(path, name)


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "[]",
        "[" * 100_000,
        {"auths": {"a.example": {"auth": "!"}}},
        {"auths": {"a.example": {"auth": base64.b64encode(b"secret").decode()}}},
        {"auths": {"a.example": 5}},
        {"credsStore": "../sh"},
    ],
)
async def test_a_damaged_file_is_said_and_not_shown(tmp_path: Path, settings: Any) -> None:
    with pytest.raises(ProcessSupervisorError) as caught:
        await auth_header(written(tmp_path, settings), "a.example/x")
    assert caught.value.code == "CONTAINER_REGISTRY_CREDENTIALS_UNREADABLE"
    assert "secret" not in str(caught.value)


def test_the_file_is_that_of_docker_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", "/etc/docker-login")
    assert default_config() == Path("/etc/docker-login/config.json")
    monkeypatch.delenv("DOCKER_CONFIG")
    assert default_config() == Path("~/.docker/config.json").expanduser()
