"""The settings' reference, generated from the settings themselves."""

import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from .profiles import PROFILES, Pinned, Values, filled_settings
from .schema import Settings

REQUIRED = {
    "state_dir": "/var/lib/dcupgrade",
    "endpoints": ["wss://chain.example:443"],
    "network_keys": ["b…"],
    "id": "node-1",
    "data_dir": "/srv/dcnode",
    "days": ["sat", "sun"],
    "start": "03:00",
    "duration_s": 7200,
    "url": "https://hooks.example/dcupgrade",
}


def sections() -> Iterator[tuple[str, type, bool]]:
    """(name, class, may be repeated) of each table of the settings file, tables within tables behind their own."""
    yield from _tables(Settings, "")


def _tables(cls: type, prefix: str) -> Iterator[tuple[str, type, bool]]:
    for field in attrs.fields(cls):
        repeated = typing.get_origin(field.type) is tuple
        kind = typing.get_args(field.type)[0] if repeated else field.type
        if attrs.has(kind):
            yield f"{prefix}{field.name}", kind, repeated
            yield from _tables(kind, f"{prefix}{field.name}.")


def example_toml(profile: str = "", pinned: Pinned | None = None) -> str:
    """A settings file with every key, those without a value commented out at their default.

    Without a profile the required keys alone have values, to be filled in.
    """
    values: Mapping[str, Values] = filled_settings(profile, pinned or Pinned()) if profile else {}
    about = (
        PROFILES[profile].about + " Check what is set, then `dcupgrade config validate` and `dcupgrade check`."
        if profile
        else "Mode `proven`, the default, also needs chain.genesis_hash and chain.checkpoint_file; "
        "`dcupgrade config validate` lists what is missing."
    )
    lines = [*_comment(f"Settings of dcupgrade. {about} Keys that are commented out stand at their default."), ""]
    for name, cls, repeated in sections():
        if repeated:
            lines += [f"# [[{name}]]  # {cls.__doc__}", *(f"# {line}" for line in _keys(cls, {})), ""]
        else:
            lines += [f"[{name}]  # {cls.__doc__}", *_keys(cls, values.get(name, {})), ""]
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 116, break_long_words=False)]


def reference_markdown() -> str:
    """docs/configuration.md's tables: key, type, default, meaning."""
    lines = []
    for name, cls, repeated in sections():
        lines += [f"## `[[{name}]]`" if repeated else f"## `[{name}]`", "", str(cls.__doc__), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for field in attrs.fields(cls):
            if attrs.has(_inner(field.type)):
                lines.append(f"| `{field.name}` | tables `[[{name}.{field.name}]]` | none | {field.metadata['doc']} |")
                continue
            default = {attrs.NOTHING: "required", None: "not set"}.get(field.default) or f"`{_toml(field.default)}`"
            lines.append(f"| `{field.name}` | {_type(field.type)} | {default} | {field.metadata['doc']} |")
        lines.append("")
    return "\n".join(lines)


def _keys(cls: Any, values: Values) -> Iterator[str]:
    for field in attrs.fields(cls):
        if attrs.has(_inner(field.type)):
            continue  # a table of its own
        yield f"# {field.metadata['doc']}"
        if field.name in values:
            value, why = values[field.name]
            yield f"{field.name} = {_toml(value)}" + (f"  # {why}" if why else "")
        elif field.default is attrs.NOTHING:
            yield f"{field.name} = {_toml(REQUIRED.get(field.name, ''))}"
        elif field.default is not None:
            yield f"# {field.name} = {_toml(field.default)}"
        else:
            yield f"# {field.name} = {_toml(_sample(field.type))}  # not set"


def _sample(kind: Any) -> Any:
    """A value in the place of one that has no default: taking the `#` away gives valid TOML."""
    return "/etc/…" if Path in typing.get_args(kind) else "…"


def _inner(kind: Any) -> Any:
    """What a list holds, or the type itself."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _type(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if type(None) in inner:
        return _type(next(part for part in inner if part is not type(None)))
    return {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}.get(
        kind, f"`{kind.__name__}`"
    )
