"""Signing and verifying enclave ids, from the command line as a release manager does it."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.network import decode_multibase
from dcupgrade.commands.release import release
from dcupgrade.errors import CODES, DcupgradeError
from dcupgrade.publishing import pallet, publish, signing
from dcupgrade.publishing.signing_keys import load_signing_key

ID = "0123456789abcdef" * 4
SEED = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SEED)


def pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def run(*arguments: str) -> str:
    result = CliRunner().invoke(release, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def refused(*arguments: str) -> DcupgradeError:
    with pytest.raises(DcupgradeError) as caught:
        CliRunner().invoke(release, arguments, catch_exceptions=False)
    assert caught.value.code in CODES
    return caught.value


@pytest.mark.parametrize("content", [SEED, SEED.hex().encode() + b"\n", b"0x" + SEED.hex().encode(), pem(KEY)])
def test_every_form_of_a_key_file_makes_the_same_signature(tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "network.key"
    key.write_bytes(content)
    signature = run("sign", "--key", str(key), ID)
    # ed25519 is deterministic: the signature is over the 64 ASCII characters, not over the 32 bytes that they spell.
    assert signature == signing.sign_enclave_id(KEY, ID)
    KEY.public_key().verify(decode_multibase(signature), ID.encode())
    assert ID in run("verify", "--network-key", signing.network_key_text(KEY), "--signature", signature, ID)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"zz" * 32, pem(X25519PrivateKey.generate()), b"-----BEGIN junk"])
def test_what_is_no_network_key_is_refused(tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "network.key"
    key.write_bytes(content)
    assert refused("sign", "--key", str(key), ID).code == "RELEASE_KEY_UNREADABLE"
    assert refused("sign", "--key", str(tmp_path / "absent"), ID).code == "RELEASE_KEY_UNREADABLE"


@pytest.mark.parametrize("bad", [ID.upper(), ID[:-1], ID + "0", "0x" + ID[2:], "g" * 64, ID + "\n", "é" * 64])
def test_an_id_of_wrong_length_or_case_is_refused(tmp_path: Path, bad: str) -> None:
    key = tmp_path / "network.key"
    key.write_bytes(SEED)
    assert refused("sign", "--key", str(key), bad).code == "RELEASE_ID_MALFORMED"


def test_a_signature_by_another_key_or_over_another_id_is_refused() -> None:
    ours = signing.network_key_text(KEY)
    other_key = signing.sign_enclave_id(Ed25519PrivateKey.generate(), ID)
    other_id = signing.sign_enclave_id(KEY, ID[::-1])
    for signature in (other_key, other_id, "not multibase", "b"):
        assert refused("verify", "--network-key", ours, "--signature", signature, ID).code == "RELEASE_SIGNATURE_BAD"


def test_m_of_n_needs_m_different_keys() -> None:
    second = Ed25519PrivateKey.generate()
    keys = [signing.network_key_text(key) for key in (KEY, second)]
    one, two = (signing.sign_enclave_id(key, ID) for key in (KEY, second))
    signing.verify_signatures(ID, [one, two], keys, threshold=2)
    for signatures in ([one], [one, one]):
        with pytest.raises(DcupgradeError, match="RELEASE_SIGNATURE_BAD"):
            signing.verify_signatures(ID, signatures, keys, threshold=2)


def test_nothing_is_sent_for_a_bad_signature_or_a_cid_that_no_agent_could_verify(tmp_path: Path) -> None:
    # The URL leads nowhere: had the signature been taken, the error would be another one.
    arguments = ["--url", "ws://127.0.0.1:1", "--suri", "//Alice", "--version", "1.1.0", "--origin-url", "http://h/a"]
    arguments += ["--network-key", signing.network_key_text(KEY)]
    bad = signing.sign_enclave_id(Ed25519PrivateKey.generate(), ID)
    assert refused("publish", *arguments, "--signature", bad, ID).code == "RELEASE_SIGNATURE_BAD"
    assert refused("publish", *arguments, ID).code == "RELEASE_SIGNATURE_BAD"
    good = signing.sign_enclave_id(KEY, ID)
    arguments += ["--signature", good]
    assert refused("publish", *arguments, ID).code == "PUBLISH_CHAIN_UNREACHABLE"
    whole = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
    assert refused("publish", *arguments, "--cid", whole, ID).code == "PUBLISH_CHAIN_UNREACHABLE"
    assert refused("publish", *arguments, "--cid", whole[:-1], ID).code == "RELEASE_FIELD_BAD"


@pytest.mark.parametrize(
    ("version", "url"),
    [("1.1.0 ", "http://h/a"), ("1.1.0", "http://h/a\n"), ("1.1.0", "h" * 3000), ("é", "http://h/a")],
)
def test_fields_that_no_client_would_take_are_refused(version: str, url: str) -> None:
    with pytest.raises(DcupgradeError, match="RELEASE_FIELD_BAD"):
        pallet.Release(ID, version, url, "").verify_fields()


@pytest.mark.parametrize("version", ["latest", "1.", ".1", "1..2", "1.2.3_4", "1 2", "release-1"])
def test_versions_that_the_fields_manager_cannot_compare_are_refused(version: str) -> None:
    with pytest.raises(DcupgradeError, match="RELEASE_FIELD_BAD"):
        pallet.Release(ID, version, "http://h/a", "").verify_fields()


@pytest.mark.parametrize("version", ["1", "v0.0.55", "1.2.3.4", "1.2.3-rc.1", "1.2.3beta", "1.2.3+build.5", "none"])
def test_versions_that_it_can_compare_pass(version: str) -> None:
    pallet.Release(ID, version, "http://h/a", "").verify_fields()


def test_no_account_is_an_error_of_its_own(tmp_path: Path) -> None:
    arguments = ["--url", "ws://127.0.0.1:1", ID]
    assert refused("revoke", *arguments).code == "PUBLISH_NO_KEY"
    assert refused("revoke", "--key-file", str(tmp_path / "absent"), *arguments).code == "PUBLISH_NO_KEY"
    assert refused("revoke", "--suri", "not a mnemonic", *arguments).code == "PUBLISH_NO_KEY"


def state(*entries: pallet.Entry, program: dict[str, str] | None = None) -> pallet.PalletState:
    return pallet.PalletState("0x00", entries, program)


def test_the_lowest_height_of_an_id_counts() -> None:
    old, new = "a" * 64, "b" * 64
    running = {"enclave_id": old, "version": "1.0.0", "origin_url": "http://h/a"}
    candidate = pallet.Release(new, "1.1.0", "http://h/b", "")
    publish.require_publishable(state(), candidate)
    publish.require_publishable(state(pallet.Entry(5, old, "b"), program=running), candidate)
    for height in (3, 5):  # equal heights are not newer
        entries = (pallet.Entry(5, old, "b"), pallet.Entry(height, new, "b"), pallet.Entry(9, new, "bb"))
        with pytest.raises(DcupgradeError, match="PUBLISH_NOT_NEWER"):
            publish.require_publishable(state(*entries, program=running), candidate)
    publish.require_publishable(state(pallet.Entry(5, old, "b"), pallet.Entry(6, new, "b"), program=running), candidate)


def test_the_same_release_again_is_named_as_such() -> None:
    running = {"enclave_id": ID, "version": "1.0.0", "origin_url": "http://h/a"}
    now = state(pallet.Entry(5, ID, "b"), program=running)
    with pytest.raises(DcupgradeError, match="RELEASE_ALREADY_PUBLISHED"):
        publish.require_publishable(now, pallet.Release(ID, "1.0.0", "http://h/a", ""))
    publish.require_publishable(now, pallet.Release(ID, "1.0.0", "http://moved/a", ""))


@pytest.fixture
def encrypted(tmp_path: Path) -> Path:
    """The network's key, encrypted with `open sesame`."""
    key = tmp_path / "network.pem"
    sealed = serialization.BestAvailableEncryption(b"open sesame")
    key.write_bytes(KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed))
    key.chmod(0o600)
    return key


def test_an_encrypted_key_is_opened_with_the_passphrase_of_a_file(encrypted: Path, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("open sesame\n")
    (tmp_path / "passphrase").chmod(0o600)
    arguments = ["--key", str(encrypted), "--passphrase-file", str(tmp_path / "passphrase"), ID]
    assert run("sign", *arguments) == signing.sign_enclave_id(KEY, ID)
    (tmp_path / "passphrase").write_text("wrong")
    assert refused("sign", *arguments).code == "RELEASE_KEY_UNREADABLE"


def test_without_a_terminal_the_passphrase_is_not_asked_for(encrypted: Path) -> None:
    error = refused("sign", "--key", str(encrypted), ID)
    assert (error.code, "--passphrase-file" in error.action) == ("RELEASE_PASSPHRASE_NEEDED", True)


def test_a_mistyped_path_of_a_key_is_not_answered_with_how_to_make_one(tmp_path: Path) -> None:
    error = refused("sign", "--key", str(tmp_path / "absent"), ID)
    assert "openssl" not in str(error)
    assert str(error).count("absent") == 1
    assert "Errno" not in str(error)


@pytest.mark.parametrize(("key", "threshold"), [("00", "1"), ("bl3kr", "1"), (signing.network_key_text(KEY), "2")])
def test_a_public_key_that_is_none_is_said_of_the_key_and_not_of_the_signature(key: str, threshold: str) -> None:
    good = signing.sign_enclave_id(KEY, ID)
    error = refused("verify", "--network-key", key, "--threshold", threshold, "--signature", good, ID)
    assert error.code == "RELEASE_NETWORK_KEY_BAD"


def test_an_encrypted_key_is_opened_with_the_passphrase_that_is_asked_for(
    encrypted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    key = encrypted
    done = CliRunner().invoke(release, ["sign", "--key", str(key), ID], input="open sesame\n", catch_exceptions=False)
    assert done.stdout == signing.sign_enclave_id(KEY, ID) + "\n"
    for asked in (None, lambda: "wrong"):
        with pytest.raises(DcupgradeError, match="RELEASE_KEY_UNREADABLE"):
            load_signing_key(key, asked)


UNKNOWN_CURVE = """-----BEGIN EC PRIVATE KEY-----
MFECAQEEFQBXB6RDtcPv81KwZYssGvObOsOnnaAHBgUrgQQACKEsAyoABJbMcuyQ
4S2+wcZj+yt85SCrPVsk7VWO1/rUtLvgxOZpn8HvT9YAblw=
-----END EC PRIVATE KEY-----
"""


@pytest.mark.parametrize("content", [UNKNOWN_CURVE.encode(), b"\xff" * 64])
def test_a_key_of_a_kind_that_nobody_knows_is_refused(tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "network.key"
    key.write_bytes(content)
    assert refused("sign", "--key", str(key), ID).code == "RELEASE_KEY_UNREADABLE"


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_key_that_others_may_read_is_warned_of(tmp_path: Path, mode: int, warned: bool) -> None:
    key = tmp_path / "network.key"
    key.write_bytes(SEED)
    key.chmod(mode)
    done = CliRunner().invoke(release, ["sign", "--key", str(key), ID], catch_exceptions=False)
    assert done.stdout == signing.sign_enclave_id(KEY, ID) + "\n"
    assert ("chmod 600" in done.stderr) is warned


def test_a_secret_uri_with_a_password_is_refused_with_a_code() -> None:
    phrase = "bottom drive obey lake curtain smoke basket hold race lonely fit walk"
    with pytest.raises(DcupgradeError, match="PUBLISH_NO_KEY") as caught:
        publish.load_account(f"{phrase}//x///pw", None)
    assert "walk" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "ws://", "nonsense", "wss://127.0.0.1:x/"])
def test_a_url_that_is_none_is_an_error_with_a_code(url: str) -> None:
    arguments = ["--url", url, "--suri", "//Alice", ID]
    assert refused("revoke", *arguments).code == "PUBLISH_CHAIN_UNREACHABLE"
