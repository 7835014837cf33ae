import os
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from attestation.artefact import files as module
from attestation.artefact.files import build_image, build_sigstruct, measure_fd, measure_file, verify_artefact
from attestation.artefact.measure import BATCH, measure_image
from attestation.artefact.sigstruct import SigStruct
from attestation.errors import AttestationError
from tests.unit.attestation.conftest import DATE


def refused(image: Path, sigstruct: Path) -> AttestationError:
    with pytest.raises(AttestationError) as caught:
        verify_artefact(image, sigstruct)
    return caught.value


def test_an_image_and_its_sigstruct_belong_together(artefact: tuple[Path, Path]) -> None:
    image, sigstruct = artefact
    data = image.read_bytes()
    assert verify_artefact(image, sigstruct) == measure_image([data], len(data)).hex() == measure_file(image).hex()


def test_one_changed_byte_of_the_image_is_a_mismatch(artefact: tuple[Path, Path]) -> None:
    image, sigstruct = artefact
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    error = refused(image, sigstruct)
    assert error.code == "SIGSTRUCT_MRENCLAVE_MISMATCH"
    assert error.expected == SigStruct.decode(sigstruct.read_bytes()).enclave_id
    assert error.found == measure_file(image).hex()


def test_a_bad_rsa_signature_is_refused_before_the_image_is_read(artefact: tuple[Path, Path]) -> None:
    image, sigstruct = artefact
    data = bytearray(sigstruct.read_bytes())
    data[600] ^= 1
    sigstruct.write_bytes(data)
    image.unlink()
    assert refused(image, sigstruct).code == "SIGSTRUCT_SIGNATURE_BAD"


def test_a_debug_release_is_refused_where_production_is_wanted(
    artefact: tuple[Path, Path], signer: RSAPrivateKey
) -> None:
    image, sigstruct = artefact
    assert verify_artefact(image, sigstruct, production=True) == verify_artefact(image, sigstruct)
    sigstruct.write_bytes(build_sigstruct(image, signer, debug=True, date=DATE))
    assert verify_artefact(image, sigstruct) == measure_file(image).hex()
    with pytest.raises(AttestationError) as caught:
        verify_artefact(image, sigstruct, production=True)
    assert caught.value.code == "SIGSTRUCT_DEBUG"


@pytest.mark.parametrize("data", [b"", b"x" * 1807, b"x" * 1808, b"x" * 1809])
def test_a_file_that_is_no_sigstruct_is_refused(data: bytes, artefact: tuple[Path, Path]) -> None:
    artefact[1].write_bytes(data)
    assert refused(*artefact).code == "SIGSTRUCT_INVALID"


def test_files_that_cannot_be_read_say_so(artefact: tuple[Path, Path], tmp_path: Path) -> None:
    image, sigstruct = artefact
    assert refused(tmp_path / "none", sigstruct).code == "ARTEFACT_UNREADABLE"
    error = refused(image, tmp_path / "none")
    assert (error.code, error.kind) == ("ARTEFACT_UNREADABLE", "transient")
    for paths in ((tmp_path, sigstruct), (image, tmp_path)):  # folders
        assert refused(*paths).code == "ARTEFACT_UNREADABLE"


def test_nobody_waits_for_a_pipe_in_an_artefacts_place(artefact: tuple[Path, Path], tmp_path: Path) -> None:
    image, sigstruct = artefact
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert refused(pipe, sigstruct).code == "MEASURE_LAYOUT_INVALID"  # it has no bytes
    assert refused(image, pipe).code == "SIGSTRUCT_INVALID"


def test_an_image_over_the_limit_is_refused(artefact: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGE_BYTES_MAX", 10)
    assert refused(*artefact).code == "ARTEFACT_TOO_LARGE"


def test_an_empty_image_is_refused(artefact: tuple[Path, Path]) -> None:
    artefact[0].write_bytes(b"")
    assert refused(*artefact).code == "MEASURE_LAYOUT_INVALID"


def test_a_large_file_is_read_in_batches(tmp_path: Path) -> None:
    data = os.urandom(2 * BATCH + 1234)
    image = tmp_path / "image"
    image.write_bytes(data)
    fd = os.open(image, os.O_RDONLY)
    try:
        os.lseek(fd, 99, os.SEEK_SET)
        assert measure_fd(fd) == measure_image([data], len(data))
    finally:
        os.close(fd)


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    (folder / "inner" / "__pycache__").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "data.json").write_text("{}")
    (folder / "inner" / "__pycache__" / "x.cpython-311.pyc").write_text("no")
    (folder / "native.so").write_text("no")
    (tmp_path / "single.py").write_text("def main(): pass\n")
    sources: dict[str, Path | bytes] = {"package": folder, "single.py": tmp_path / "single.py", "policy.json": b"{}"}
    build_image(tmp_path / "one.pyz", sources, "single:main")
    os.utime(tmp_path / "single.py", (1, 1))
    build_image(tmp_path / "two.pyz", dict(reversed(sources.items())), "single:main")
    assert (tmp_path / "one.pyz").read_bytes() == (tmp_path / "two.pyz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.pyz") as archive:
        assert archive.namelist() == [
            "__main__.py",
            "package/__init__.py",
            "package/inner/data.json",
            "policy.json",
            "single.py",
        ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.pyz", "package", "single.py", "two.pyz"]


@pytest.mark.parametrize("main", ["", "app", "app:", ":main", "app:main()", "a b:main"])
def test_main_names_a_function(main: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="module:function"):
        build_image(tmp_path / "x.pyz", {"app.py": b""}, main)
    with pytest.raises(ValueError, match="__main__"):
        build_image(tmp_path / "x.pyz", {"__main__.py": b""}, "app:main")


def test_a_sigstruct_holds_what_it_was_asked_to(artefact: tuple[Path, Path], signer: RSAPrivateKey) -> None:
    image, _ = artefact
    signed = SigStruct.decode(build_sigstruct(image, signer, isvprodid=5, isvsvn=6, debug=True, date=DATE))
    signed.verify()
    assert (signed.isvprodid, signed.isvsvn, signed.date) == (5, 6, 0x20261123)
    assert signed.attributes.flags & 2
    with pytest.raises(AttestationError) as caught:
        build_sigstruct(image, generate_private_key(65537, 3072), date=DATE)
    assert caught.value.code == "SIGSTRUCT_KEY_INVALID"
