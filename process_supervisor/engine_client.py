"""A client of the Docker Engine API (https://docs.docker.com/reference/api/engine/), and its errors under our codes."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiodocker
import aiohttp

from .errors import ProcessSupervisorError

CONNECT_S_MAX = 10.0
REQUEST_S_MAX = 60.0


class _Client(aiodocker.Docker):
    """A client that negotiates the API version again if a replaced engine refuses the previous version."""

    async def _do_query(self, *args: Any, **options: Any) -> aiohttp.ClientResponse:
        try:
            return await super()._do_query(*args, **options)
        except aiodocker.DockerError as error:
            if error.status != 400 or "client version" not in error.message:
                raise
            self.api_version = "auto"
            if hasattr(options.get("data"), "__anext__"):  # the stream has been consumed; the caller tries again
                raise
            return await super()._do_query(*args, **options)


def open_engine(url: str) -> aiodocker.Docker:
    """Open a client of the engine at `unix:///path` or `tcp://host:port`; the caller closes it."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_S_MAX, sock_connect=CONNECT_S_MAX)
    return _Client(url=url, timeout=timeout)


@asynccontextmanager
async def engine(url: str) -> AsyncIterator[aiodocker.Docker]:
    """`open_engine` as a context manager."""
    docker = open_engine(url)
    try:
        yield docker
    finally:
        await docker.close()


@contextlib.contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Convert the client's errors to CONTAINER_ENGINE_*. A 404 becomes CONTAINER_ENGINE_ERROR with its text."""
    try:
        yield
    except aiodocker.DockerError as error:
        # aiodocker reports status 900 if there was no answer at all.
        if error.status == 900:
            raise unreachable(what, error.message) from error
        raise ProcessSupervisorError(
            code="CONTAINER_ENGINE_ERROR",
            what=what,
            why=f"the engine answered {error.status}: {error.message}",
            action="Look at the engine's log",
        ) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise unreachable(what, str(error) or type(error).__name__) from error
    except json.JSONDecodeError as error:  # an engine that died in the middle of a line
        raise unreachable(what, f"its answer cannot be read ({error})") from error


def unreachable(what: str, why: str) -> ProcessSupervisorError:
    """CONTAINER_ENGINE_UNREACHABLE."""
    return ProcessSupervisorError(
        code="CONTAINER_ENGINE_UNREACHABLE",
        what=what,
        why=why,
        action="Start the container engine, or correct its address in the settings",
    )


@contextlib.contextmanager
def gone_is_fine() -> Iterator[None]:
    """Ignore a 404 of a removal: the object does not exist."""
    try:
        yield
    except aiodocker.DockerError as error:
        if error.status != 404:
            raise
