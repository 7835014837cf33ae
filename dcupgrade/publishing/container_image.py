"""A release as a container image: the archive of a base image, as `docker save` makes it, with one layer more."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dcupgrade.errors import DcupgradeError

FOLDER = "release"
"""Where an agent looks for the release's files in an image."""
JSON_BYTES_MAX = 4 * 1024 * 1024


def add_release(base: Path, members: Mapping[str, bytes], out: Path) -> str:
    """Write the archive of the base image with `members` in `/release`; returns the new image's id, `sha256:...`.

    `base` is the archive of one image, gzip or not. The image's own settings (entrypoint, user, environment) are those
    of the base. The same base and members give the same bytes. No tag is set: `docker load` prints the id.
    Raises RELEASE_BASE_UNREADABLE, OSError.
    """
    layer = packed({f"{FOLDER}/{name}": data for name, data in members.items()})
    with _opened(base) as tar:
        described = _json_of(tar, "manifest.json")
        if not (isinstance(described, list) and len(described) == 1):
            raise ValueError("it does not describe exactly one image")
        config, layers = _json_of(tar, described[0]["Config"]), list(described[0]["Layers"])
        if len(layers) != len(config["rootfs"]["diff_ids"]):
            raise ValueError("its configuration names another number of layers")
        body = _dumped(_extended(config, layer))
        names = [f"{index}.tar" for index in range(len(layers) + 1)]
        image = hashlib.sha256(body).hexdigest()
        manifest = _dumped([{"Config": f"{image}.json", "RepoTags": None, "Layers": names}])
        part = out.with_name(f".{out.name}.part")
        with tarfile.open(part, "w") as made:
            for name, data in (("manifest.json", manifest), (f"{image}.json", body)):
                _add(made, name, len(data), io.BytesIO(data))
            for name, source in zip(names, layers, strict=False):
                file, size = _member(tar, source)
                _add(made, name, size, file)
            _add(made, names[-1], len(layer), io.BytesIO(layer))
        part.replace(out)
    return f"sha256:{image}"


def packed(members: Mapping[str, bytes]) -> bytes:
    """Return a tar whose bytes depend on the members alone."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        for name, data in sorted(members.items()):
            _add(tar, name, len(data), io.BytesIO(data))
    return tarred.getvalue()


def _add(tar: tarfile.TarFile, name: str, size: int, file: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, file)


def _extended(config: dict[str, Any], layer: bytes) -> dict[str, Any]:
    added = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    history = {"created": "1970-01-01T00:00:00Z", "created_by": "dcupgrade release build"}
    return {
        **config,
        "rootfs": {"type": "layers", "diff_ids": [*config["rootfs"]["diff_ids"], added]},
        "history": [*config.get("history", []), history],
    }


@contextlib.contextmanager
def _opened(base: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(base) as tar:
            yield tar
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DcupgradeError(
            code="RELEASE_BASE_UNREADABLE",
            what=f"cannot use {base} as the base image",
            why=str(error) or type(error).__name__,
            action="Give the archive of one image: docker save --output base.tar IMAGE",
        ) from error


def _member(tar: tarfile.TarFile, name: str) -> tuple[Any, int]:
    """A member's file and size; a link, as older engines write for a layer that occurs twice, leads to its target."""
    file = tar.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file in it")
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return file, size


def _json_of(tar: tarfile.TarFile, name: str) -> Any:
    file, size = _member(tar, name)
    if size > JSON_BYTES_MAX:
        raise ValueError(f"{name} has {size} bytes")
    return json.loads(file.read())


def _dumped(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
