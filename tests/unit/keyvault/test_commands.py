"""Wrong input of an operator: the commands print a code and a reason, never a traceback."""

import argparse
import datetime
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from attestation.artefact.files import build_sigstruct
from keyvault import __main__ as command
from keyvault.build import build_vault, load_signing_key
from keyvault.errors import KeyvaultError
from keyvault.vault import serve
from tests.conftest import ROOT
from tests.doubles.vault_host import policy
from tests.doubles.vault_kit import CpuTee, enclave_id, secs, signature_text

POLICY = b"""{"network_keys": ["bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"], "genesis_hash": "%s",
"evidence_mode": "single", "unsafe_unproven_evidence": true}""" % (b"1" * 64)


def why(call: Callable[[], object], code: str) -> str:
    with pytest.raises(KeyvaultError) as caught:
        call()
    assert caught.value.code == code
    return caught.value.why


def test_a_signing_key_that_is_none_is_told_as_such(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    assert "No such file" in why(lambda: load_signing_key(key), "VAULT_START_REFUSED")
    key.write_bytes(b"rubbish")
    assert "no private key in PEM" in why(lambda: load_signing_key(key), "VAULT_START_REFUSED")
    made = generate_private_key(public_exponent=3, key_size=3072)
    key.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")))
    assert "without a password" in why(lambda: load_signing_key(key), "VAULT_START_REFUSED")
    out = tmp_path / "file"
    out.write_bytes(b"")
    assert "cannot be written" in why(lambda: build_vault(POLICY, made, out / "x"), "VAULT_START_REFUSED")


def test_an_image_that_is_no_vault_is_told_as_such(tmp_path: Path) -> None:
    image, sigstruct = tmp_path / "node.pyz", tmp_path / "node.sig"
    key = generate_private_key(public_exponent=3, key_size=3072)
    args = argparse.Namespace(image=image, sigstruct=sigstruct, auth_file=None)
    for rubbish in (True, False):
        if rubbish:
            image.write_bytes(b"rubbish")
        else:
            with ZipFile(image, "w") as archive:
                archive.writestr("__main__.py", "")
        sigstruct.write_bytes(build_sigstruct(image, key, isvsvn=0, date=datetime.date(2026, 1, 1)))
        assert "not a vault image" in why(lambda: command._command_verify(args), "VAULT_POLICY_INVALID")


def test_a_store_that_cannot_be_one_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert why(lambda: command._command_inspect(argparse.Namespace(store=file)), "STORE_READ_FAILED")
    auth = tmp_path / "auth"
    auth.write_text(signature_text(enclave_id("vault")))
    monkeypatch.setattr(serve, "measured_policy", lambda _: policy())
    args = argparse.Namespace(tighten=None, auth_file=auth, store=file / "store")
    told = why(lambda: serve.open_vault(args, CpuTee(secs("vault"))), "VAULT_START_REFUSED")
    assert "Not a directory" in told


def test_the_command_line_ends_with_the_error_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keyvault", "inspect", "--store", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: STORE_READ_FAILED: ")


def run_command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keyvault", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, check=False, timeout=60, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["build", "--policy", "ABSENT", "--key", "ABSENT", "--out", "OUT"], "nothing is built: the policy"),
        (["rebuild", "--policy", "ABSENT", "--expect", "0" * 64], "nothing is rebuilt: the policy"),
    ],
)
def test_a_file_that_is_missing_is_named_with_what_came_of_it(tmp_path: Path, words: list[str], told: str) -> None:
    names = {"ABSENT": str(tmp_path / "absent.json"), "OUT": str(tmp_path / "out")}
    done = run_command(*(names.get(word, word) for word in words))
    assert done.returncode == 1
    expected = f"error: VAULT_START_REFUSED: {told} {names['ABSENT']} cannot be read (no such file or directory)"
    assert done.stderr.strip() == expected
    assert not (tmp_path / "out").exists()


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "x.sealed").write_bytes(b"x")
    reader, writer = os.pipe()
    os.close(reader)  # before the first byte is written
    try:
        done = run_command("inspect", "--store", str(tmp_path), stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_errors_have_the_form_of_the_agents_commands(tmp_path: Path) -> None:
    done = run_command("inspect", "--store", str(tmp_path / "absent"), stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr.split(":")[:2]) == (1, ["error", " STORE_READ_FAILED"])
    assert run_command("--help", stdout=subprocess.PIPE).stdout.startswith("usage: keyvault ")
