"""Real enclaves of the simulated TEE, as processes: identity, confinement, signals and ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from attestation.artefact.files import build_image, build_sigstruct, verify_artefact
from tests.unit.attestation.conftest import DATE, ROOT

pytestmark = pytest.mark.e2e

PROGRAM = b"""
import json, os, pathlib, signal, sys, time


def tee():
    from attestation.tee.open import open_driver
    from attestation.sgx import TargetInfo, Report, seal_key_request

    driver = open_driver()
    own = driver.self_report()
    key = driver.seal_key(seal_key_request(own, bytes(32)))
    print(json.dumps({"id": own.enclave_id, "key": key.hex(), "flags": own.attributes.flags}), flush=True)
    return driver, TargetInfo, Report


def main():
    verb, *rest = sys.argv[1:]
    if verb == "facts":
        tee()
        import attestation
        facts = {"env": dict(os.environ), "argv": sys.argv, "fds": sorted(map(int, os.listdir("/proc/self/fd"))),
                 "isolated": sys.flags.isolated, "code": attestation.__file__, "uid": os.getuid(),
                 "stdin": os.readlink("/proc/self/fd/0"), "core": __import__("resource").getrlimit(4)[0]}
        print(json.dumps(facts), flush=True)
    elif verb == "attest":
        driver, TargetInfo, Report = tee()
        pathlib.Path(rest[0] + ".target").write_bytes(driver.target_info().encode())
        peer = pathlib.Path(rest[1] + ".target")
        while not peer.exists() or len(peer.read_bytes()) != 512:
            time.sleep(0.01)
        report = driver.report(TargetInfo.decode(peer.read_bytes()), b"x" * 64)
        aside = pathlib.Path(rest[0] + ".aside")
        aside.write_bytes(report.encode())
        aside.rename(rest[0] + ".report")
        peer = pathlib.Path(rest[1] + ".report")
        while not peer.exists():
            time.sleep(0.01)
        theirs = Report.decode(peer.read_bytes())
        driver.verify(theirs)
        print(json.dumps({"peer": theirs.enclave_id}), flush=True)
    elif verb == "hidden":
        import ctypes
        assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0
        import attestation.network
        print(json.dumps({"code": attestation.network.__file__}), flush=True)
    elif verb == "deaf":
        import select, socket
        connection = socket.socket(fileno=3)
        try:
            while True:
                connection.send(b"\\1")
        except OSError as error:
            print(json.dumps({"end": type(error).__name__}), flush=True)
        if os.fork() == 0:
            watch = select.poll()
            watch.register(connection, 0)
            watch.poll()
            os._exit(0)
        return 9
    elif verb == "empty":
        import socket
        from attestation.tee.open import open_driver
        from attestation.errors import AttestationError
        driver = open_driver()
        socket.socket(fileno=os.dup(3)).send(b"")
        try:
            driver.target_info()
        except AttestationError as error:
            print(json.dumps({"code": error.code}), flush=True)
    elif verb == "exit":
        return int(rest[0])
    elif verb == "die":
        os.kill(os.getpid(), int(rest[0]))
    elif verb == "wait":
        # Blocked and fetched: a handler would not run for a signal that comes just before a call that blocks.
        numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        print(json.dumps({"pid": os.getpid(), "parent": os.getppid()}), flush=True)
        number = signal.sigwait(numbers)
        print(json.dumps({"signal": number}), flush=True)
        return 40 + number
"""


@pytest.fixture(scope="module")
def signer() -> RSAPrivateKey:
    return generate_private_key(3, 3072)


Build = Callable[..., tuple[Path, Path]]


@pytest.fixture
def build(tmp_path: Path, signer: RSAPrivateKey) -> Build:
    def make(name: str = "one", debug: bool = False) -> tuple[Path, Path]:
        image, sigstruct = tmp_path / f"{name}.pyz", tmp_path / f"{name}.sig"
        sources: dict[str, Path | bytes] = {
            "program.py": PROGRAM,
            "name.txt": name.encode(),
            "attestation": ROOT / "attestation",
        }
        build_image(image, sources, "program:main")
        sigstruct.write_bytes(build_sigstruct(image, signer, debug=debug, date=DATE))
        return image, sigstruct

    return make


def command(tmp_path: Path, artefact: tuple[Path, Path], *args: str, cpu: str = "cpu") -> list[str]:
    image, sigstruct = map(str, artefact)
    start = [sys.executable, "-m", "attestation.simulated", "run", "--cpu", str(tmp_path / cpu)]
    return [*start, "--image", image, "--sigstruct", sigstruct, "--", *args]


def run(tmp_path: Path, artefact: tuple[Path, Path], *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SECRET_OF_THE_HOST": "1", "PYTHONPATH": str(tmp_path), "DC_TEE_FD": "77"}
    line = command(tmp_path, artefact, *args, **more)
    return subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT, check=False)


def facts(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_an_enclave_is_who_it_measures_and_sees_nothing_of_its_host(tmp_path: Path, build: Build) -> None:
    artefact = build()
    (tmp_path / "attestation").mkdir()
    (tmp_path / "attestation" / "driver.py").write_text("raise SystemExit('the host got its code in')")
    identity, seen = facts(run(tmp_path, artefact, "facts", "--cpu", "x"))
    assert identity["id"] == verify_artefact(*artefact)
    assert seen["env"] == {"DC_TEE": "simulated", "DC_TEE_FD": "3", "LC_ALL": "C.UTF-8"}
    assert seen["argv"][1:] == ["facts", "--cpu", "x"]
    assert seen["code"].startswith("/proc/self/fd/4/")
    assert seen["fds"][:5] == [0, 1, 2, 3, 4]
    assert len(seen["fds"]) <= 6
    assert (seen["isolated"], seen["stdin"], seen["core"]) == (1, "/dev/null", 0)


def test_the_simulation_says_so_on_stderr(tmp_path: Path, build: Build) -> None:
    artefact = build()
    result = run(tmp_path, artefact, "exit", "0")
    assert result.stderr == (
        "SIMULATED TEE: not SGX, its host can read everything; "
        f"enclave {verify_artefact(*artefact)}\n"
    )  # fmt: skip
    debug = run(tmp_path, build("debug", debug=True), "facts")
    assert "DEBUG enclave" in debug.stderr
    assert facts(debug)[0]["flags"] & 2


def test_keys_belong_to_enclave_and_cpu(tmp_path: Path, build: Build) -> None:
    one, two = build("one"), build("two")
    keys = [
        facts(run(tmp_path, artefact, "facts", cpu=cpu))[0]["key"]
        for artefact, cpu in ((one, "cpu"), (one, "cpu"), (two, "cpu"), (one, "other"))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_two_processes_with_one_cpu_folder_attest_to_each_other(tmp_path: Path, build: Build) -> None:
    one, two = build("one"), build("two")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with subprocess.Popen(
        command(tmp_path, one, "attest", a, b), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as first:
        second = run(tmp_path, two, "attest", b, a)
        out = first.communicate(timeout=60)[0].decode()
    assert verify_artefact(*one) in second.stdout.splitlines()[1]
    assert verify_artefact(*two) in out.splitlines()[1]


def test_a_swapped_image_does_not_start(tmp_path: Path, build: Build) -> None:
    one, two = build("one"), build("two")
    result = run(tmp_path, (two[0], one[1]), "exit", "0")
    assert result.returncode == 125
    assert result.stderr.startswith("SIGSTRUCT_MRENCLAVE_MISMATCH: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_modules_load_after_the_process_hides_its_memory(tmp_path: Path, build: Build) -> None:
    assert facts(run(tmp_path, build(), "hidden"))[0]["code"].startswith("/proc/self/fd/4/")


@pytest.mark.parametrize("code", [0, 1, 77, 255])
def test_the_exit_code_is_the_enclaves(code: int, tmp_path: Path, build: Build) -> None:
    assert run(tmp_path, build(), "exit", str(code)).returncode == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_an_end_by_signal_is_128_and_its_number(number: int, tmp_path: Path, build: Build) -> None:
    assert run(tmp_path, build(), "die", str(int(number))).returncode == 128 + number


@contextlib.contextmanager
def waiting(tmp_path: Path, artefact: tuple[Path, Path]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with subprocess.Popen(
        command(tmp_path, artefact, "wait"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        try:
            started = json.loads(process.stdout.readline())
            assert started["parent"] == process.pid
            yield process, started["pid"]
        finally:
            process.kill()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_enclave(number: signal.Signals, tmp_path: Path, build: Build) -> None:
    with waiting(tmp_path, build()) as (process, _):
        process.send_signal(number)
        out = process.communicate(timeout=60)[0]
        assert out == f'{{"signal": {int(number)}}}\n'
        assert process.returncode == 40 + number


def test_the_enclave_dies_with_its_cpu(tmp_path: Path, build: Build) -> None:
    with waiting(tmp_path, build()) as (process, pid):
        process.kill()
        process.wait(timeout=60)
        assert gone(pid)


def test_a_killed_enclave_ends_its_cpu(tmp_path: Path, build: Build) -> None:
    with waiting(tmp_path, build()) as (process, pid):
        os.kill(pid, signal.SIGKILL)
        assert process.wait(timeout=60) == 128 + signal.SIGKILL


def test_an_enclave_that_fetches_no_answers_does_not_keep_its_cpu_from_ending(tmp_path: Path, build: Build) -> None:
    result = run(tmp_path, build(), "deaf")
    assert (result.returncode, result.stderr.count("Traceback")) == (9, 0)
    assert json.loads(result.stdout)["end"] in ("BrokenPipeError", "ConnectionResetError")


def test_a_cpu_that_stops_answering_says_so(tmp_path: Path, build: Build) -> None:
    assert facts(run(tmp_path, build(), "empty")) == [{"code": "TEE_GONE"}]


def test_killing_leaves_no_file_behind(tmp_path: Path, build: Build) -> None:
    artefact = build()
    before = {path.name for path in tmp_path.rglob("*")}
    with waiting(tmp_path, artefact) as (process, pid):
        process.kill()
        process.wait(timeout=60)
        assert gone(pid)
    assert {path.name for path in tmp_path.rglob("*")} - before == {"cpu", "root-keys"}


@pytest.mark.skipif(os.geteuid() != 0, reason="dropping to another uid takes root")
def test_an_enclave_under_another_uid_cannot_read_the_root_keys(tmp_path: Path, signer: RSAPrivateKey) -> None:
    program = """
import json, os, socket, sys


def main():
    tee = socket.socket(fileno=3)
    tee.send(b"\\1")
    import late
    facts = {"ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()], "tee": len(tee.recv(600))}
    try:
        open(sys.argv[1])
    except PermissionError:
        facts["root keys"] = "refused"
    print(json.dumps(facts))
"""
    image, sigstruct = tmp_path / "uid.pyz", tmp_path / "uid.sig"
    build_image(image, {"program.py": program.encode(), "late.py": b""}, "program:main")
    sigstruct.write_bytes(build_sigstruct(image, signer, date=DATE))
    line = command(tmp_path, (image, sigstruct), str(tmp_path / "cpu" / "root-keys"))
    line[line.index("--") : line.index("--")] = ["--uid", "65534"]
    # An interpreter below root's home cannot be executed by others; the system's own of the same version can.
    for python in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        paths = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
        environment = {**os.environ, "PYTHONPATH": paths}
        if not Path(python).exists():
            continue
        result = subprocess.run(
            [python, *line[1:]], capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, check=False
        )
        if result.returncode != 126:
            break
    else:
        pytest.skip("no Python here can be executed by other users")
    assert facts(result) == [{"ids": [65534] * 6, "tee": 513, "root keys": "refused"}]
