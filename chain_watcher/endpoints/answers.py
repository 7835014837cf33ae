"""Strict decoding of endpoints' answers: type and size are checked before anything is converted or allocated.

Every function here raises only ENDPOINT_GARBAGE. The text of an error quotes at most a few characters of the answer.
"""

from __future__ import annotations

import re
from typing import Any, Final

from chain_watcher.errors import ChainWatcherError

METHODS_MAX: Final = 16_384
_U32_MAX: Final = 2**32 - 1
_HASH: Final = re.compile(r"0x[0-9a-f]{64}", re.ASCII)
_NUMBER: Final = re.compile(r"0x[0-9a-fA-F]{1,16}", re.ASCII)
_GRANDPA: Final = list(b"FRNK")


def garbage(url: str, why: str) -> ChainWatcherError:
    """The error for an answer of the wrong shape."""
    return ChainWatcherError(
        code="ENDPOINT_GARBAGE", what=url, why=why, action="The watcher reconnects later", kind="transient"
    )


def hex_bytes(url: str, value: object, size_max: int, what: str) -> bytes:
    """Return the bytes of `0x` and hex digits, at most `size_max`."""
    if not isinstance(value, str) or not value.startswith("0x") or len(value) > 2 * size_max + 2:
        raise garbage(url, f"{what} is not 0x and hex of at most {size_max} bytes")
    try:
        data = bytes.fromhex(value[2:])
    except ValueError:
        data = b""
    if 2 * len(data) != len(value) - 2:  # fromhex ignores spaces
        raise garbage(url, f"{what} is not 0x and hex")
    return data


def block_hash(url: str, value: object) -> str | None:
    """Return a block hash (`0x` and 64 lower-case hex characters), or None for null."""
    if value is not None and (not isinstance(value, str) or not _HASH.fullmatch(value)):
        raise garbage(url, "a block hash is not 0x and 64 hex characters")
    return value


def head_number(url: str, header: Any) -> int:
    """Return the number in a JSON-RPC header: a u32, which some nodes pad with zeros."""
    number = header.get("number") if isinstance(header, dict) else None
    if not isinstance(number, str) or not _NUMBER.fullmatch(number):
        raise garbage(url, "a header has no readable number")
    found = int(number, 16)
    if found > _U32_MAX:
        raise garbage(url, "the number of a header is over u32")
    return found


def method_names(url: str, value: Any) -> frozenset[str]:
    """Return the names in an answer to `rpc_methods`."""
    listed = value.get("methods") if isinstance(value, dict) else None
    if not isinstance(listed, list) or len(listed) > METHODS_MAX:
        raise garbage(url, f"rpc_methods is not an object with at most {METHODS_MAX} methods")
    return frozenset(name for name in listed if isinstance(name, str))


def spec_version(url: str, value: Any) -> int:
    """Return the spec version (u32) in an answer to `state_getRuntimeVersion`."""
    version = value.get("specVersion") if isinstance(value, dict) else None
    if type(version) is not int or not 0 <= version <= _U32_MAX:
        raise garbage(url, "a runtime version has no specVersion")
    return version


def proof_nodes(url: str, value: Any, count_max: int, size_max: int) -> list[bytes]:
    """Return the trie nodes in an answer to `state_getReadProof`, each of at most `size_max` bytes."""
    listed = value.get("proof") if isinstance(value, dict) else None
    if not isinstance(listed, list) or len(listed) > count_max:
        raise garbage(url, f"a read proof is not an object with at most {count_max} nodes")
    return [hex_bytes(url, node, size_max, "a node of a read proof") for node in listed]


def storage_value(url: str, value: object, size_max: int) -> bytes | None:
    """Return a storage value of at most `size_max` bytes, or None for null."""
    return None if value is None else hex_bytes(url, value, size_max, "a storage value")


def storage_changes(url: str, value: Any, at: str, size_max: int) -> dict[bytes, bytes | None] | None:
    """Return the values in an answer to `state_queryStorageAt`; None if its shape or its block is not the expected one.

    Chopsticks answers in another shape for its genesis block.
    """
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        return None
    changes = value[0].get("changes")
    if value[0].get("block") != at or not isinstance(changes, list) or len(changes) > 64:
        return None
    found: dict[bytes, bytes | None] = {}
    for change in changes:
        if not isinstance(change, list) or len(change) != 2:
            return None
        found[hex_bytes(url, change[0], 1024, "a storage key")] = storage_value(url, change[1], size_max)
    return found


def stored_justification(url: str, value: Any, size_max: int) -> bytes | None:
    """Return the GRANDPA justification in an answer to `chain_getBlock`; None if the block has none.

    Nodes encode it as two lists of numbers: engine id and data.
    """
    if value is None:
        return None
    listed = value.get("justifications") if isinstance(value, dict) else None
    if listed is None and isinstance(value, dict):
        return None
    if not isinstance(listed, list) or len(listed) > 16:
        raise garbage(url, "the justifications of a block are not a short list")
    for item in listed:
        if not isinstance(item, list) or len(item) != 2:
            raise garbage(url, "a justification of a block is not a pair")
        if item[0] == _GRANDPA:
            return _octets(url, item[1], size_max)
    return None


def _octets(url: str, value: object, size_max: int) -> bytes:
    """Return the bytes of a list of numbers from 0 to 255. The type is checked: `bytes(n)` would allocate n zeros."""
    if isinstance(value, str):
        return hex_bytes(url, value, size_max, "a justification of a block")
    if not isinstance(value, list) or len(value) > size_max:
        raise garbage(url, f"a justification of a block is not a list of at most {size_max} numbers")
    try:
        return bytes(value)
    except (TypeError, ValueError, OverflowError):
        raise garbage(url, "a justification of a block is not a list of octets") from None
