"""Key material in memory: locked, not dumpable, hidden. Each test has a control without the protection."""

import ctypes
import json
import logging
import mmap
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from keyvault.handover.key_set import KEY_SET_BYTES_MAX, KeySet
from keyvault.vault.hygiene import lock_key_set
from tests.doubles.vault_kit import SECRET


def locked(buffer: bytearray | mmap.mmap) -> bool:
    """Whether the pages of a buffer carry the kernel's "locked" flag."""
    address = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(part, 16) for part in head.split("-"))
            inside = start <= address < end
        elif inside and line.startswith("VmFlags:"):
            return "lo" in line.split()
    raise AssertionError("the buffer is in no mapping")


def test_a_key_set_is_kept_out_of_swap() -> None:
    with KeySet(b"k" * KEY_SET_BYTES_MAX) as key_set:
        if not lock_key_set(key_set):
            pytest.skip("this machine does not let us lock 64 KiB of memory")
        assert locked(key_set.buffer)
    with mmap.mmap(-1, 64 * 1024) as control:  # a mapping of its own, whatever the allocator was given back before
        assert not locked(control)


HARDENED = """
import json, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)[1:] * 2)
from keyvault.vault.hygiene import harden_process
found = harden_process() if sys.argv[1] == "hardened" else {}
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({**found, "locked_kb": int(status["VmLck"].split()[0]), "privileges": status["NoNewPrivs"].strip()}))
"""


def process(mode: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", HARDENED, mode], capture_output=True, text=True, check=True, timeout=60
    )
    return dict(json.loads(done.stdout))


def test_a_hardened_process_dumps_nothing_and_locks_its_memory_where_it_may() -> None:
    found = process("hardened")
    assert (found["core_dumps"], found["dumpable"], found["privileges"]) == (False, False, "1")
    assert (found["memory_locked"] == "all") == (int(str(found["locked_kb"])) > 0)
    assert process("control")["locked_kb"] == 0


CRASH = """
import ctypes, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
secret = bytes.fromhex(sys.argv[2])
os.chdir(sys.argv[3])
if sys.argv[1] == "hardened":
    from keyvault.vault.hygiene import harden_process
    harden_process()
os.kill(os.getpid(), 6)
"""


def core_of(mode: str, folder: Path) -> bool:
    """Whether a crash leaves a core file that holds the secret."""
    folder.mkdir()
    command = [sys.executable, "-c", CRASH, mode, SECRET.hex(), str(folder)]
    subprocess.run(command, cwd=Path(__file__).parents[4], capture_output=True, timeout=60, check=False)
    return any(SECRET in file.read_bytes() for file in folder.glob("core*"))


def test_a_crash_leaves_no_core_dump_with_keys(tmp_path: Path) -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core":
        pytest.skip("this machine's core dumps go elsewhere, so the control could not see one")
    if not core_of("control", tmp_path / "control"):
        pytest.skip("this machine writes no core dumps at all (hard limit), so the test would prove nothing")
    assert not core_of("hardened", tmp_path / "hardened")


def test_tracebacks_logs_and_json_do_not_show_a_key_set(caplog: pytest.LogCaptureFixture) -> None:
    def fails(key_set: KeySet) -> None:
        raise RuntimeError(f"cannot use {key_set}")

    with KeySet(SECRET) as key_set:
        try:
            fails(key_set)
        except RuntimeError as error:
            trace = traceback.TracebackException.from_exception(error, capture_locals=True)
            text = "".join(trace.format())
            logging.getLogger("keyvault").exception("failed with %s", key_set)
    assert key_set.key_set_id[:8] in text  # the control: the key set was in it, by its id
    for seen in (text, caplog.text):
        assert SECRET.decode()[:16] not in seen
        assert SECRET.hex()[:32] not in seen
