"""From a runtime's metadata (V14) to the few facts that are needed, parsed in a short-lived child process.

scalecodec's parse leaves 20 to 55 MB behind (chain.md), so the long-lived process never imports it: it pipes the
metadata to ``python -m chain_watcher.watch.metadata`` and keeps the compact layout that comes back::

    {"layout": LAYOUT,
     "calls": {"set_enclave_id": CALL, "remove_enclave_id": CALL, "set_dc_program": CALL, "sudo": CALL or absent}}

where CALL is `{"pallet": index, "call": index, "args": [names]}` and LAYOUT is that of
`chain_watcher.proof.layout`.
The pallet is found by its name, whatever its index; fields by their names, whatever their order.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.layout import Layout, type_from_registry

PALLET: Final = "DcNode"
CALLS: Final = ("set_enclave_id", "remove_enclave_id", "set_dc_program")
METADATA_BYTES_MAX: Final = 8 * 1024 * 1024
PARSE_TIMEOUT_S: Final = 60.0
#: Address space of the child. Real metadata needs some 200 bytes for each of its own (270 KB: 55 MB); what an endpoint
#: makes up could ask for gigabytes.
CHILD_MEMORY_BYTES: Final = 512 * 1024 * 1024
_RESULT_BYTES_MAX: Final = 256 * 1024
_MAGIC: Final = b"meta"
_ROOT: Final = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True, slots=True)
class Call:
    """Where a call is found: pallet index, call index, the names of its arguments in order."""

    pallet: int
    call: int
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChainLayout:
    """What one runtime says of itself: the storage layout and the calls that change it."""

    layout: Layout
    calls: Mapping[str, Call]


async def read_metadata(metadata: str, *, timeout_s: float = PARSE_TIMEOUT_S) -> ChainLayout:
    """Parse metadata (``0x`` hex as ``state_getMetadata`` gives it) in a child process.

    Raises CHAIN_WITHOUT_PALLET, LAYOUT_INVALID, METADATA_UNREADABLE, METADATA_PROCESS_FAILED.
    """
    if not isinstance(metadata, str) or len(metadata) > 2 * METADATA_BYTES_MAX + 2:
        raise _unreadable("not hex text of a usable size")
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "chain_watcher.watch.metadata",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": _ROOT, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"},
        )
    except OSError as problem:  # no process or no memory left on this host
        raise _process_failed(f"it cannot be started: {problem}") from problem
    try:
        async with asyncio.timeout(timeout_s):
            output, complaint = await child.communicate(metadata.encode())
    except TimeoutError as problem:
        raise _process_failed(f"no answer within {timeout_s:g} s") from problem
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        if child.stdin is not None:  # before 3.12 asyncio logs what became of an unread pipe, unless one asks
            with contextlib.suppress(OSError):
                await child.stdin.wait_closed()
    if child.returncode != 0 or len(output) > _RESULT_BYTES_MAX:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise _process_failed(f"exit code {child.returncode}: {last[0][:200]}")
    return from_json(_json_object(output))


def _json_object(output: bytes) -> dict[str, Any]:
    try:
        value = json.loads(output)
    except ValueError as problem:
        raise _process_failed("its answer is not JSON") from problem
    if not isinstance(value, dict):
        raise _process_failed("its answer is not an object")
    return value


def from_json(value: Mapping[str, Any]) -> ChainLayout:
    """Build a ChainLayout from the child's answer, or raise the error that it holds."""
    try:
        if "error" in value:
            error = value["error"]
            raise ChainWatcherError(
                code=error["code"], what=error["what"], why=error["why"], action=error["action"], kind="rejected"
            )
        calls = {
            str(name): Call(int(call["pallet"]), int(call["call"]), tuple(map(str, call["args"])))
            for name, call in value["calls"].items()
        }
        return ChainLayout(Layout.from_json(value["layout"]), calls)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise _process_failed("its answer has another shape") from problem


class LayoutCache:
    """Layouts by (genesis hash, spec version), and those accepted by the digest of their metadata; the newest are kept.

    ``beside()`` gives a cache with entries of its own for another endpoint: metadata that was accepted from one is
    recognised by its digest when another sends it, and need be neither parsed nor compared again.
    """

    def __init__(self, size_max: int = 16) -> None:
        self._known: dict[tuple[str, int], ChainLayout] = {}
        self._accepted: dict[tuple[int, bytes], ChainLayout] = {}
        self._size_max = size_max

    def beside(self) -> LayoutCache:
        """Another cache that shares only what is known by digest."""
        other = LayoutCache(self._size_max)
        other._accepted = self._accepted
        return other

    def get(self, genesis_hash: str, spec_version: int) -> ChainLayout | None:
        """The layout of that runtime, if it was read before."""
        return self._known.get((genesis_hash, spec_version))

    def put(self, genesis_hash: str, spec_version: int, layout: ChainLayout) -> None:
        """Remember a layout; the oldest gives way."""
        _make_room(self._known, self._size_max)
        self._known[(genesis_hash, spec_version)] = layout

    def accepted(self, spec_version: int, metadata: str) -> ChainLayout | None:
        """The layout of metadata that was accepted for that runtime before, byte by byte the same."""
        return self._accepted.get((spec_version, _digest(metadata)))

    def accept(self, spec_version: int, metadata: str, layout: ChainLayout) -> None:
        """Remember that this metadata was accepted for that runtime."""
        _make_room(self._accepted, self._size_max)
        self._accepted[(spec_version, _digest(metadata))] = layout


def _make_room(known: dict[Any, ChainLayout], size_max: int) -> None:
    while len(known) >= size_max:
        known.pop(next(iter(known)))


def _digest(metadata: str) -> bytes:
    return hashlib.sha256(metadata.encode()).digest()


def extract(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The child's answer for decoded V14 metadata (scalecodec's plain values): layout and calls.

    Raises CHAIN_WITHOUT_PALLET, LAYOUT_INVALID.
    """
    types = {int(one["id"]): one["type"] for one in metadata["types"]["types"]}
    pallets = {str(pallet["name"]): pallet for pallet in metadata["pallets"]}
    if PALLET not in pallets:
        known = ", ".join(sorted(pallets))[:200]
        raise _without_pallet(f"the chain has no pallet {PALLET}; it has {known}")
    layout = {
        "format": 1,
        "enclave_ids": _item(types, pallets[PALLET], "EnclaveIds"),
        "dc_program": _item(types, pallets[PALLET], "DcProgram"),
        "now": _item(types, pallets.get("Timestamp") or {"name": "Timestamp"}, "Now"),
    }
    calls = _calls(types, pallets[PALLET], CALLS)
    if "Sudo" in pallets:
        calls.update(_calls(types, pallets["Sudo"], ("sudo",)))
    return {"layout": Layout(layout).to_json(), "calls": calls}


def _item(types: Mapping[int, Any], pallet: Mapping[str, Any], name: str) -> dict[str, Any]:
    storage = pallet.get("storage") or {"entries": []}
    entry = next((one for one in storage["entries"] if one["name"] == name), None)
    if entry is None or "Plain" not in entry["type"]:
        raise _without_pallet(f"pallet {pallet['name']} has no plain storage value {name}")
    return {"prefix": storage["prefix"], "item": name, "type": type_from_registry(types, int(entry["type"]["Plain"]))}


def _calls(types: Mapping[int, Any], pallet: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    if not pallet.get("calls"):
        return {}
    variants = types[int(pallet["calls"]["ty"])]["def"]["variant"]["variants"]
    return {
        variant["name"]: {
            "pallet": pallet["index"],
            "call": variant["index"],
            "args": [field["name"] or "" for field in variant["fields"]],
        }
        for variant in variants
        if variant["name"] in names
    }


def decode(raw: bytes) -> dict[str, Any]:
    """Decode metadata bytes with scalecodec into plain values (child process only). METADATA_UNREADABLE."""
    if raw[:4] != _MAGIC or len(raw) < 5:
        raise _unreadable("it does not begin with the magic 'meta'")
    if raw[4] != 14:
        raise _unreadable(f"version {raw[4]}, this program reads version 14")
    from scalecodec.base import RuntimeConfigurationObject, ScaleBytes
    from scalecodec.type_registry import load_type_registry_preset

    try:
        config = RuntimeConfigurationObject(implements_scale_info=True)
        config.update_type_registry(load_type_registry_preset("core"))
        decoded = config.create_scale_object("MetadataVersioned", data=ScaleBytes(bytearray(raw)))
        decoded.decode()
        inner: dict[str, Any] = decoded.value[1]["V14"]
    except MemoryError:
        raise
    except Exception as problem:  # scalecodec raises whatever its tables run into
        raise _unreadable(f"{type(problem).__name__}: {str(problem)[:120]}") from problem
    return inner


def answer(hex_text: str) -> dict[str, Any]:
    """The whole job of the child: hex text in, answer object out; errors become ``{"error": {...}}``."""
    try:
        try:
            raw = bytes.fromhex(hex_text.strip().removeprefix("0x"))
        except ValueError as problem:
            raise _unreadable("not hex") from problem
        try:
            return extract(decode(raw))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as problem:
            raise _unreadable(f"an unexpected shape ({problem!r})"[:200]) from problem
        except MemoryError as problem:
            raise _unreadable(f"it asks for more memory than {CHILD_MEMORY_BYTES} bytes") from problem
    except ChainWatcherError as error:
        return {"error": {"code": error.code, "what": error.what, "why": error.why, "action": error.action}}


def _without_pallet(why: str) -> ChainWatcherError:
    return ChainWatcherError(
        code="CHAIN_WITHOUT_PALLET",
        what="chain metadata",
        why=why,
        action="Point the endpoints at a DC chain, or upgrade its runtime",
    )


def _unreadable(why: str) -> ChainWatcherError:
    return ChainWatcherError(code="METADATA_UNREADABLE", what="chain metadata", why=why)


def _process_failed(why: str) -> ChainWatcherError:
    return ChainWatcherError(code="METADATA_PROCESS_FAILED", what="metadata process", why=why, kind="transient")


def limit_memory() -> None:
    """Let this process (the child) have ``CHILD_MEMORY_BYTES`` of address space: MemoryError beyond."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = CHILD_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, CHILD_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    limit_memory()
    json.dump(answer(sys.stdin.read()), sys.stdout)
