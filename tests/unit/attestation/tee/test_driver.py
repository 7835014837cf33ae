import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from attestation.errors import AttestationError
from attestation.sgx import REPORT_KEY, SEAL_KEY, KeyRequest, report_key_request, seal_key_request
from attestation.simulated.__main__ import answer
from attestation.simulated.cpu import Secs, SoftwareCpu
from attestation.tee import gramine
from attestation.tee.driver import ReportVerifier
from attestation.tee.open import open_driver
from attestation.tee.simulated_client import SimulatedDriver

Serve = Callable[[Callable[[bytes], bytes]], SimulatedDriver]


def refused(call: Callable[[], object]) -> AttestationError:
    with pytest.raises(AttestationError) as caught:
        call()
    return caught.value


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Give a driver whose CPU answers by the given function; an empty answer closes the connection."""
    ends: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(reply: Callable[[bytes], bytes]) -> SimulatedDriver:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends.extend((here, there))

        def loop() -> None:
            while message := there.recv(1024):
                if not (result := reply(message)):
                    there.close()
                    return
                there.send(result)

        threads.append(threading.Thread(target=loop))
        threads[-1].start()
        return SimulatedDriver(here)

    yield start
    for end in ends[::2]:
        end.shutdown(socket.SHUT_RDWR)
        end.close()
    for thread in threads:
        thread.join()
    for end in ends[1::2]:
        end.close()


def test_two_enclaves_of_one_cpu_attest_to_each_other(serve: Serve, cpu: SoftwareCpu, alice: Secs, bob: Secs) -> None:
    a = serve(lambda message: answer(cpu, alice, message))
    b = serve(lambda message: answer(cpu, bob, message))
    assert a.kind == "simulated"
    report = a.report(b.target_info(), bytes(range(64)))
    assert report.mrenclave == alice.mrenclave
    assert report.report_data == bytes(range(64))
    b.verify(report)
    b.verify(report)
    assert refused(lambda: a.verify(report)).code == "REPORT_MAC_BAD"
    assert b.self_report().mrenclave == bob.mrenclave
    b.verify(b.self_report())


def test_seal_keys_come_back_the_same_and_to_nobody_else(
    serve: Serve, cpu: SoftwareCpu, alice: Secs, bob: Secs
) -> None:
    a = serve(lambda message: answer(cpu, alice, message))
    b = serve(lambda message: answer(cpu, bob, message))
    request = seal_key_request(a.self_report(), bytes(32))
    assert a.seal_key(request) == a.seal_key(request) != b.seal_key(request)
    assert len(a.seal_key(request)) == 16


def test_a_report_key_does_not_pass_for_a_seal_key(serve: Serve, cpu: SoftwareCpu, alice: Secs) -> None:
    a = serve(lambda message: answer(cpu, alice, message))
    assert refused(lambda: a.seal_key(KeyRequest(REPORT_KEY))).code == "TEE_KEY_REFUSED"


@pytest.mark.parametrize(("isvsvn", "cpusvn", "code"), [(9, bytes(16), "64"), (0, b"\1" * 16, "32")])
def test_egetkeys_error_code_is_told(
    isvsvn: int, cpusvn: bytes, code: str, serve: Serve, cpu: SoftwareCpu, alice: Secs
) -> None:
    a = serve(lambda message: answer(cpu, alice, message))
    error = refused(lambda: a.seal_key(KeyRequest(SEAL_KEY, 1, isvsvn, cpusvn)))
    assert (error.code, error.found) == ("TEE_KEY_REFUSED", code)


def test_reportdata_has_64_bytes(serve: Serve, cpu: SoftwareCpu, alice: Secs) -> None:
    a = serve(lambda message: answer(cpu, alice, message))
    for data in (b"", bytes(63), bytes(65), bytearray(64)):
        assert refused(lambda data=data: a.report(a.target_info(), data)).code == "REPORT_DATA_INVALID"


@pytest.mark.parametrize("reply", [b"\2", b"\0", b"\0" + bytes(511), b"\1", b"\7" + bytes(512)])
def test_an_answer_of_another_shape_is_refused(reply: bytes, serve: Serve) -> None:
    assert refused(serve(lambda _: reply).target_info).code == "TEE_PROTOCOL"


def test_a_cpu_that_is_gone_is_named(serve: Serve) -> None:
    driver = serve(lambda _: b"")
    assert refused(driver.target_info).code == "TEE_GONE"
    assert refused(driver.target_info).code == "TEE_GONE"


def test_an_all_zero_key_is_refused_for_sealing_and_for_verifying(serve: Serve, cpu: SoftwareCpu, alice: Secs) -> None:
    zero = serve(lambda message: b"\0" + bytes(16))
    error = refused(lambda: zero.seal_key(KeyRequest(SEAL_KEY, 1)))
    assert (error.code, error.kind) == ("SEAL_KEY_ZERO", "invariant")
    report = cpu.ereport(alice, alice.target_info(), bytes(64))
    assert refused(lambda: zero.verify(report)).code == "SEAL_KEY_ZERO"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        b"\1x",
        b"\2" + bytes(575),
        b"\2" + bytes(512 + 65),
        b"\2" + b"\1" * 576,
        b"\3" + bytes(511),
        b"\3" + b"\xff" * 512,
        b"\4",
    ],
)
def test_the_cpu_survives_and_refuses_malformed_messages(message: bytes, cpu: SoftwareCpu, alice: Secs) -> None:
    assert answer(cpu, alice, message) == b"\2"


def test_the_cpu_tells_error_codes_as_egetkey_does(cpu: SoftwareCpu, alice: Secs) -> None:
    assert answer(cpu, alice, b"\3" + KeyRequest(SEAL_KEY, 1, 99).encode()) == struct.pack("<BH", 1, 64)


def test_a_forger_cannot_push_the_good_report_key_out(cpu: SoftwareCpu, alice: Secs, bob: Secs) -> None:
    asked: list[bytes] = []

    def key(request: KeyRequest) -> bytes:
        asked.append(request.key_id)
        return cpu.egetkey(bob, request)

    verifier = ReportVerifier(key)
    good = cpu.ereport(alice, bob.target_info(), bytes(64))
    verifier.verify(good)
    forged = type(good).decode(good.encode()[:384] + b"\5" * 32 + good.mac)
    assert refused(lambda: verifier.verify(forged)).code == "REPORT_MAC_BAD"
    verifier.verify(good)
    assert asked == [good.key_id, b"\5" * 32]
    assert report_key_request(good.key_id).key_name == REPORT_KEY


def test_the_tee_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = os.dup(here.fileno())
    os.set_inheritable(fd, True)
    monkeypatch.setenv("DC_TEE", "simulated")
    monkeypatch.setenv("DC_TEE_FD", str(fd))
    driver = open_driver()
    assert driver.kind == "simulated"
    assert not os.get_inheritable(fd)
    here.close()
    there.close()
    driver._connection.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("fd", ["", "x", "-1", "99999"])
def test_a_simulated_tee_without_its_socket_is_none(fd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DC_TEE", "simulated")
    monkeypatch.setenv("DC_TEE_FD", fd)
    assert refused(open_driver).code == "TEE_MISSING"


def test_outside_of_a_tee_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DC_TEE", raising=False)
    assert refused(open_driver).code == "TEE_MISSING"


def test_dev_attestation_means_gramine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DC_TEE", raising=False)
    monkeypatch.setattr(gramine, "_load_egetkey", lambda: object())
    monkeypatch.setattr("attestation.tee.open.os.path.exists", lambda path: path == "/dev/attestation/report")
    assert open_driver().kind == "gramine"
