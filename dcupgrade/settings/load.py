"""Read the settings: one TOML file, environment overrides, every mistake at once."""

import contextlib
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import cattrs
from cattrs import transform_error
from cattrs.gen import make_dict_structure_fn, override

from dcupgrade.errors import why_of

from .errors import SettingsError
from .folders import overlapping_folders
from .schema import ChainSettings, Settings

ENV_PREFIX = "DCUPGRADE_"


def load(path: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Read, override and structure the settings in ``path``.

    An environment variable `DCUPGRADE_<SECTION>__<FIELD>` overrides that field; lists are separated by commas, and an
    empty variable counts as not set. Raises SettingsError with every mistake found.
    """
    try:
        raw = decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError([why_of(error)], path=str(path), code="SETTINGS_UNREADABLE") from error
    return structure(raw, environ=os.environ if environ is None else environ, path=str(path))


def decode(data: bytes) -> dict[str, Any]:
    """Decode TOML. Raises ValueError."""
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def structure(raw: dict[str, Any], *, environ: Mapping[str, str], path: str = "(none)") -> Settings:
    """Settings from decoded TOML and environment overrides; raises SettingsError with every mistake found."""
    mistakes = _apply_environment(raw, environ)
    try:
        settings = _converter().structure(raw, Settings)
    except (cattrs.BaseValidationError, ValueError, TypeError) as error:
        mistakes += [_readable(line) for line in transform_error(error, path="", format_exception=_explain)]
    else:
        mistakes += _across_fields(settings)
        if not mistakes:
            return settings
    raise SettingsError(mistakes, path=path)


def _across_fields(settings: Settings) -> list[str]:
    """Mistakes that no single field shows."""
    mistakes = _of_the_chain(settings.chain)
    if settings.vault.start and not settings.vault.command:
        mistakes += [
            f"vault.{name}: needed to start the vault (or set vault.start = false)"
            for name in ("image", "sigstruct", "auth_file")
            if getattr(settings.vault, name) is None
        ]
    if settings.upgrade.backoff_max_s < settings.upgrade.backoff_s:
        mistakes.append("upgrade.backoff_max_s: is less than upgrade.backoff_s")
    mistakes += overlapping_folders(settings)
    if settings.fleet.engine == "etcd" and not settings.fleet.endpoints:
        mistakes.append("fleet.endpoints: engine `etcd` needs them")
    if settings.node.driver == "process" and not settings.node.command:
        mistakes.append("node.command: must not be empty (only an image has a command of its own)")
    if settings.container.identity == "sigstruct" and not settings.container.signed_enclave:
        mistakes.append("container.signed_enclave: container.identity = `sigstruct` needs it")
    if settings.node.port == urlsplit(settings.vault.url).port:
        mistakes.append("node.port: is the port of vault.url")
    if settings.agent.http_listen.rpartition(":")[2] in (
        str(settings.node.port),
        str(urlsplit(settings.vault.url).port),
    ):
        mistakes.append("agent.http_listen: its port is that of the node or of the vault")
    urls = [one.url for one in settings.webhooks]
    mistakes += [f"webhooks: {url} is there twice" for url in sorted({url for url in urls if urls.count(url) > 1})]
    return mistakes


def _of_the_chain(chain: ChainSettings) -> list[str]:
    mistakes = []
    if chain.threshold > len(chain.network_keys):
        mistakes.append("chain.threshold: more signatures are asked for than there are chain.network_keys")
    if chain.finality == "quorum" and chain.quorum > len(set(chain.endpoints)):
        mistakes.append("chain.quorum: more endpoints must agree than chain.endpoints names")
    if chain.finality == "proven":
        mistakes += [
            f"chain.{name}: mode `proven` needs it ({how})"
            for name, how in (
                ("genesis_hash", "`dcupgrade chain checkpoint --url …` prints it"),
                ("checkpoint_file", "make it with `dcupgrade chain checkpoint --url …`"),
            )
            if getattr(chain, name) is None
        ]
        if chain.unsafe_unproven_reads:
            mistakes.append("chain.unsafe_unproven_reads: mode `proven` excludes it")
    return mistakes


def _apply_environment(raw: dict[str, Any], environ: Mapping[str, str]) -> list[str]:
    mistakes = []
    sections = {field.name: field.type for field in attrs.fields(Settings) if field.type and attrs.has(field.type)}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or "__" not in name:
            continue
        section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        known = attrs.fields_dict(sections[section]) if section in sections else {}
        if key not in known:
            mistakes.append(f"environment variable {name}: there is no such setting{_meant(key, known)}")
            continue
        table = raw.setdefault(section, {})
        if isinstance(table, dict) and environ[name].strip():  # what is no table is named as such later
            table[key] = _typed(environ[name], known[key].type)
    return mistakes


def _typed(text: str, kind: Any) -> Any:
    """The value of an environment variable as TOML would hold it; text that does not fit stays text."""
    if typing.get_origin(kind) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind in (int, float, bool):
        with contextlib.suppress(ValueError, KeyError):
            if kind is bool:
                return {"true": True, "false": False}[text.lower()]
            return kind(text)
    return text


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for field_type, function in (
        (str, _to_str),
        (int, _to_int),
        (float, _to_float),
        (bool, _to_bool),
        (Path, _to_path),
    ):
        converter.register_structure_hook(field_type, function)
    converter.register_structure_hook_func(_is_tuple, _tuple_hook(converter))
    converter.register_structure_hook_func(_is_literal, _to_literal)
    converter.register_structure_hook_factory(attrs.has, lambda cls: _class_hook(converter, cls))
    return converter


def _class_hook(converter: cattrs.Converter, cls: Any) -> Any:
    """Structure one class; each field is checked as it is structured, so that one mistake does not hide another."""

    def checked(field: Any) -> Callable[[Any, Any], Any]:
        def hook(value: Any, _: Any) -> Any:
            structured = converter.structure(value, field.type)
            if field.validator is not None:
                field.validator(None, field, structured)
            return structured

        return hook

    overrides = {field.name: override(struct_hook=checked(field)) for field in attrs.fields(cls)}
    make: Any = make_dict_structure_fn  # its keyword arguments are typed as flags only
    structure_table = make(cls, converter, _cattrs_forbid_extra_keys=True, **overrides)

    def table(value: Any, kind: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r} is not a table")
        return structure_table(value, kind)

    return table


def _is_literal(cls: Any) -> bool:
    return bool(typing.get_origin(cls) == typing.Literal)


def _is_tuple(cls: Any) -> bool:
    return cls is tuple or typing.get_origin(cls) is tuple


def _tuple_hook(converter: cattrs.Converter) -> Callable[[Any, Any], tuple[Any, ...]]:
    def hook(value: Any, cls: Any) -> tuple[Any, ...]:
        items: Any = types.GenericAlias(list, (typing.get_args(cls)[0],))
        if not isinstance(value, list | tuple):
            raise ValueError(f"{value!r} is not a list")
        return tuple(converter.structure(list(value), items))

    return hook


def _to_str(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _to_int(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _to_float(value: Any, _: Any) -> float:
    try:
        if isinstance(value, bool | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number") from None
    if number != number or abs(number) == float("inf"):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _to_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _to_path(value: Any, _: Any) -> Path:
    text = _to_str(value, None)
    if not text.isprintable():  # such as the line break at the end of what a command printed
        raise ValueError(f"{text!r} holds characters that no path here has")
    if not os.path.isabs(text):  # relative to what, differs between the service and the shell of its operator
        raise ValueError(f"{text!r} is not an absolute path")
    return Path(text)


def _to_literal(value: Any, kind: Any) -> Any:
    choices = typing.get_args(kind)
    if value in choices and isinstance(value, str):
        return value
    meant = _meant(value.lower(), dict.fromkeys(choices)) if isinstance(value, str) else ""
    raise ValueError(f"{value!r} is not one of {', '.join(choices)}{meant}")


def _explain(error: BaseException, _: type | None) -> str:
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = attrs.fields_dict(error.cl)
        return "unknown " + ", ".join(f"{name}{_meant(name, known)}" for name in sorted(error.extra_fields))
    if isinstance(error, KeyError):
        return f"missing {error.args[0]}"
    return str(error)


def _meant(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" (is {near[0]} meant?)" if near else ""


def _readable(line: str) -> str:
    """``why @ .section.key`` as ``section.key: why``."""
    why, _, where = line.rpartition(" @ ")
    return f"{where.lstrip('.') or 'top level'}: {why}"
