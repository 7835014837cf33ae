import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.errors import AttestationError
from attestation.sgx import REPORT_KEY, SEAL_KEY, Attributes, KeyRequest, TargetInfo, seal_key_request
from attestation.simulated.cpu import Secs, SoftwareCpu
from attestation.tee import gramine
from attestation.tee.gramine import DevAttestation, GramineDriver
from attestation.tee.simulated_client import SimulatedDriver
from tests.doubles.dev_attestation import DevAttestationDouble, EgetkeyDouble


def driver(cpu: SoftwareCpu, secs: Secs) -> GramineDriver:
    return GramineDriver(DevAttestationDouble(cpu, secs), EgetkeyDouble(cpu, secs))


def refused(call: Callable[[], object]) -> AttestationError:
    with pytest.raises(AttestationError) as caught:
        call()
    return caught.value


def test_gramine_enclaves_attest_to_each_other(cpu: SoftwareCpu, alice: Secs, bob: Secs) -> None:
    a, b = driver(cpu, alice), driver(cpu, bob)
    report = a.report(b.target_info(), bytes(range(64)))
    assert (report.mrenclave, report.report_data) == (alice.mrenclave, bytes(range(64)))
    b.verify(report)
    assert refused(lambda: a.verify(report)).code == "REPORT_MAC_BAD"
    assert refused(lambda: b.verify(replace(report, isvsvn=9))).code == "REPORT_MAC_BAD"
    b.verify(b.self_report())
    assert a.kind == "gramine"


def test_target_and_data_go_in_before_the_report_is_opened(cpu: SoftwareCpu, alice: Secs, bob: Secs) -> None:
    files = DevAttestationDouble(cpu, alice)
    GramineDriver(files, EgetkeyDouble(cpu, alice)).report(bob.target_info(), bytes(64))
    assert [name for name, _ in files.calls] == ["target_info", "user_report_data", "report"]


def test_threads_do_not_mix_their_targets(cpu: SoftwareCpu, alice: Secs, bob: Secs) -> None:
    files = DevAttestationDouble(cpu, alice)
    failures: list[BaseException] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(n: int) -> None:
        try:
            own = GramineDriver(files, EgetkeyDouble(cpu, alice))
            target = replace(bob.target_info(), mrenclave=bytes([n]) * 32)
            verifier = EgetkeyDouble(cpu, replace(bob, mrenclave=target.mrenclave))
            for _ in range(20):
                report = own.report(target, bytes([n]) * 64)
                assert verifier.verify_report(report.encode()) == 0
                assert own.target_info() == alice.target_info()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert failures == []
    names = [name for name, _ in files.calls if name != "my_target_info"]
    assert [tuple(names[i : i + 3]) for i in range(0, len(names), 3)] == [
        ("target_info", "user_report_data", "report")
    ] * 80


def test_a_short_write_is_noticed(cpu: SoftwareCpu, alice: Secs, bob: Secs) -> None:
    files = DevAttestationDouble(cpu, alice)
    files.lost = 1
    error = refused(lambda: GramineDriver(files, EgetkeyDouble(cpu, alice)).report(bob.target_info(), bytes(64)))
    assert (error.code, error.kind) == ("GRAMINE_INTERFACE", "invariant")


def test_an_all_zero_target_does_not_come_to_mean_this_enclave(cpu: SoftwareCpu, alice: Secs) -> None:
    files = DevAttestationDouble(cpu, alice)
    zero = TargetInfo(bytes(32), Attributes(0, 0))
    # The control: the interface itself takes it, and the report after that is one that this enclave accepts.
    files.write("target_info", zero.encode())
    assert files.read("report") == cpu.ereport(alice, zero, bytes(64)).encode()
    assert files.read("report") == cpu.ereport(alice, alice.target_info(), bytes(64)).encode()
    own = GramineDriver(files, EgetkeyDouble(cpu, alice))
    assert refused(lambda: own.report(zero, bytes(64))).code == "GRAMINE_INTERFACE"


def test_stale_report_data_is_noticed(cpu: SoftwareCpu, alice: Secs, bob: Secs) -> None:
    class Forgetful(DevAttestationDouble):
        def write(self, name: str, data: bytes) -> int:
            return super().write(name, data) if name == "target_info" else len(data)

    own = GramineDriver(Forgetful(cpu, alice), EgetkeyDouble(cpu, alice))
    assert refused(lambda: own.report(bob.target_info(), b"\1" * 64)).code == "GRAMINE_INTERFACE"


@pytest.mark.parametrize("name", ["my_target_info", "report"])
def test_values_of_another_length_are_refused(name: str, cpu: SoftwareCpu, alice: Secs) -> None:
    class Short(DevAttestationDouble):
        def read(self, asked: str) -> bytes:
            return super().read(asked)[: -1 if asked == name else None]

    own = GramineDriver(Short(cpu, alice), EgetkeyDouble(cpu, alice))
    assert refused(own.self_report).code == "GRAMINE_INTERFACE"


def test_seal_keys_are_the_software_cpus(cpu: SoftwareCpu, alice: Secs) -> None:
    own = driver(cpu, alice)
    request = seal_key_request(own.self_report(), bytes(32))
    assert own.seal_key(request) == cpu.egetkey(alice, request)
    assert refused(lambda: own.seal_key(KeyRequest(SEAL_KEY, 1, 99))).found == "64"
    assert refused(lambda: own.seal_key(KeyRequest(REPORT_KEY))).code == "TEE_KEY_REFUSED"


def test_zero_keys_and_error_codes_are_refused(cpu: SoftwareCpu, alice: Secs) -> None:
    class Broken(EgetkeyDouble):
        def egetkey(self, request: bytes, /) -> tuple[int, bytes]:
            return 0, bytes(16)

        def verify_report(self, report: bytes, /) -> int:
            return 2

    own = GramineDriver(DevAttestationDouble(cpu, alice), Broken(cpu, alice))
    assert refused(lambda: own.seal_key(KeyRequest(SEAL_KEY, 1))).code == "SEAL_KEY_ZERO"
    report = cpu.ereport(alice, alice.target_info(), bytes(64))
    assert refused(lambda: own.verify(report)).code == "TEE_KEY_REFUSED"


def test_without_the_extension_there_is_no_driver() -> None:
    if (Path(gramine.__file__).parents[1] / "egetkey" / "_egetkey.abi3.so").exists():
        pytest.skip("the extension is built here")
    assert refused(GramineDriver).code == "EGETKEY_MISSING"


def test_the_real_files_are_read_and_written_by_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: SoftwareCpu, alice: Secs
) -> None:
    monkeypatch.setattr(gramine, "ROOT", tmp_path)
    (tmp_path / "my_target_info").write_bytes(alice.target_info().encode())
    (tmp_path / "target_info").write_bytes(b"")
    files = DevAttestation()
    assert GramineDriver(files, EgetkeyDouble(cpu, alice)).target_info() == alice.target_info()
    assert files.write("target_info", b"abc") == 3
    assert (tmp_path / "target_info").read_bytes() == b"abc"
    own = GramineDriver(files, EgetkeyDouble(cpu, alice))
    assert refused(lambda: own.report(alice.target_info(), bytes(64))).code == "GRAMINE_INTERFACE"
    (tmp_path / "my_target_info").unlink()
    assert refused(own.target_info).code == "GRAMINE_INTERFACE"


def test_both_drivers_offer_the_same() -> None:
    names = {name for name in dir(GramineDriver) if not name.startswith("_")}
    assert names == {name for name in dir(SimulatedDriver) if not name.startswith("_")}
