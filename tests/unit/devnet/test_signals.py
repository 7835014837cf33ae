"""Commands of devnet end at the first signal and finish their clean-up despite further signals."""

import signal
import subprocess
import sys

import pytest

from devnet.release_builder import ROOT

BLOCKING = """
import time
from devnet.signals import interruptible
try:
    with interruptible():
        try:
            print("working", flush=True)
            while True:  # not one long wait: the handler of a signal that comes just before it would not run
                time.sleep(0.01)
        finally:
            print("cleaning", flush=True)
            input()
            print("clean", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
LOOP = """
import asyncio, sys
from devnet.signals import cancel_by_signal
async def main():
    deaf = cancel_by_signal()
    try:
        print("working", flush=True)
        await asyncio.sleep(3600)
    finally:
        deaf()
        print("cleaning", flush=True)
        await asyncio.to_thread(input)
        print("clean", flush=True)
try:
    asyncio.run(main())
except asyncio.CancelledError:
    print("interrupted", flush=True)
"""
IGNORED = """
import os, signal
from devnet.signals import interruptible
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with interruptible():
    os.kill(os.getpid(), signal.SIGHUP)
    print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


@pytest.mark.parametrize("script", [BLOCKING, LOOP], ids=["blocking", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_the_work_and_no_other_one_ends_the_clean_up(number: signal.Signals, script: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(number)
        assert process.stdout.readline() == "cleaning\n"
        for again in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            process.send_signal(again)
        assert process.communicate("\n", timeout=60)[0] == "clean\ninterrupted\n"
    assert process.returncode == 0


def test_what_was_ignored_before_stays_ignored_and_what_was_taken_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", IGNORED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\nTrue\n"
