"""Keep key material out of core dumps, other processes and swap (Linux). docs/secrets.md lists the remaining risks."""

from __future__ import annotations

import ctypes
import resource
from typing import Final

from keyvault.handover.key_set import KeySet

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
#: MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT: a page is locked at its first use, so unused stacks take no memory
_MCL_ALL: Final = 1 | 2 | 4
_CAP_IPC_LOCK: Final = 14
_libc: Final = ctypes.CDLL(None, use_errno=True)


def harden_process() -> dict[str, object]:
    """Forbid core dumps, debuggers of the same user and new privileges. Lock all memory if that is allowed.

    Returns the result: `core_dumps` and `dumpable` (both False on success) and `memory_locked` ("all", or "key sets" if
    only single buffers can be locked).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return {
        "core_dumps": resource.getrlimit(resource.RLIMIT_CORE)[0] != 0,
        "dumpable": _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0,
        "memory_locked": "all" if _lock_all() else "key sets",
    }


def _lock_all() -> bool:
    """Lock every page, present and future. Not under a limit, because later allocations would fail."""
    limited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY
    if limited and not _has_capability(_CAP_IPC_LOCK):
        return False
    return bool(_libc.mlockall(_MCL_ALL) == 0)


def _has_capability(number: int) -> bool:
    with open("/proc/self/status", encoding="ascii") as status:
        effective = next((line.split()[1] for line in status if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> number & 1)


def lock_key_set(key_set: KeySet) -> bool:
    """Keep the pages of a key set out of swap. Returns False if the limit does not allow it.

    Pages stay locked until their memory is freed or the process ends: another buffer may share a page, and unlocking it
    would expose that buffer.
    """
    buffer = key_set.buffer
    address = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
    return bool(_libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(buffer))) == 0)
