"""`dcupgrade release build`: what is measured, that it can be reproduced, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from attestation.errors import AttestationError
from dcupgrade.commands.release import release
from dcupgrade.errors import DcupgradeError
from dcupgrade.publishing.build import NAMES, load_vendor_key
from dcupgrade.publishing.container_image import packed
from process_supervisor.archive import unpack
from process_supervisor.container_images import image_in
from process_supervisor.limits import ArchiveLimits
from tests.doubles.elf import INTERPRETER, LOAD, elf


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("keys"), generate_private_key(public_exponent=3, key_size=3072))


def written(folder: Path, key: RSAPrivateKey) -> Path:
    path = folder / "vendor.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.chmod(0o600)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a node's package: an entry point, a module that it imports, one that it does not, and data."""
    package = tmp_path / "src" / "mynode"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text("from keyvault.handover.key_set import KeySet\n\nfrom . import notes\n")
    (package / "notes.py").write_text("")
    (package / "unused.py").write_text("")
    (package / "policy.json").write_text("{}")
    return package.parent


def build(source: Path, vendor: Path, out: Path, *more: str, main: str = "mynode.main:main") -> str:
    arguments = ["build", "--main", main, "--source", str(source), "--name", "mynode", "--version", "1.0.0"]
    done = CliRunner().invoke(release, [*arguments, "--key", str(vendor), "--out", str(out), *more])
    if done.exception is not None:
        raise done.exception
    return done.stdout.strip()


def test_the_image_holds_what_the_program_imports_and_its_data(source: Path, vendor: Path, tmp_path: Path) -> None:
    build(source, vendor, tmp_path / "out", "--data", "mynode/policy.json")
    names = set(ZipFile(tmp_path / "out" / "enclave.pyz").namelist())
    assert {"mynode/main.py", "mynode/notes.py", "mynode/policy.json", "keyvault/handover/key_set.py"} <= names
    assert not {"mynode/unused.py", "keyvault/client.py"} & names


def test_the_archive_is_a_release_that_an_agent_unpacks(source: Path, vendor: Path, tmp_path: Path) -> None:
    enclave_id = build(source, vendor, tmp_path / "out")
    slot = tmp_path / "slot"
    slot.mkdir()
    unpack(tmp_path / "out" / "mynode-1.0.0.tar.gz", slot, ArchiveLimits(), None)
    assert {path.name for path in slot.iterdir()} == {"enclave.pyz", "enclave.sig", "release.json"}
    about = json.loads((slot / "release.json").read_text())
    assert about == {"name": "mynode", "version": "1.0.0", "enclave_id": enclave_id}


def test_the_same_sources_give_the_same_bytes_wherever_they_are(source: Path, vendor: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    first = build(source, vendor, tmp_path / "one")
    source.rename(moved)
    build(moved, vendor, tmp_path / "two")
    for name in ("enclave.pyz", "enclave.sig", "mynode-1.0.0.tar.gz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    (moved / "mynode" / "notes.py").write_text("# changed\n")
    assert build(moved, vendor, tmp_path / "three") != first


@pytest.mark.parametrize(
    ("main", "more"),
    [
        ("mynode.absent:main", ()),
        ("other.main:main", ()),
        ("mynode.main:main", ("--data", "mynode/absent.json")),
    ],
)
def test_what_is_not_there_is_said(
    source: Path, vendor: Path, tmp_path: Path, main: str, more: tuple[str, ...]
) -> None:
    with pytest.raises(DcupgradeError, match="RELEASE_BUILD_FAILED"):
        build(source, vendor, tmp_path / "out", *more, main=main)


def test_a_program_that_does_not_parse_is_no_traceback(source: Path, vendor: Path, tmp_path: Path) -> None:
    (source / "mynode" / "notes.py").write_text("def (:\n")
    with pytest.raises(DcupgradeError, match="RELEASE_BUILD_FAILED"):
        build(source, vendor, tmp_path / "out")


def test_a_vendor_key_that_sgx_does_not_take_is_refused(tmp_path: Path) -> None:
    for key in (generate_private_key(public_exponent=65537, key_size=2048),):
        with pytest.raises(DcupgradeError, match=r"RELEASE_KEY_UNREADABLE.*openssl genrsa -3"):
            load_vendor_key(written(tmp_path, key))
    with pytest.raises(DcupgradeError, match="RELEASE_KEY_UNREADABLE"):
        load_vendor_key(tmp_path / "absent")


def build_program(program: bytes, vendor: Path, folder: Path) -> str:
    (folder / "node").write_bytes(program)
    arguments = ["build", "--program", str(folder / "node"), "--name", "mynode", "--version", "1.0.0"]
    done = CliRunner().invoke(release, [*arguments, "--key", str(vendor), "--out", str(folder / "out")])
    if done.exception is not None:
        raise done.exception
    return done.stdout.strip()


def test_a_static_program_is_the_image_itself(vendor: Path, tmp_path: Path) -> None:
    enclave_id = build_program(elf(LOAD), vendor, tmp_path)
    unpack(tmp_path / "out" / "mynode-1.0.0.tar.gz", tmp_path / "slot", ArchiveLimits(), None)
    assert (tmp_path / "slot" / "enclave.pyz").read_bytes() == elf(LOAD)
    assert json.loads((tmp_path / "slot" / "release.json").read_text())["enclave_id"] == enclave_id


def test_a_program_that_the_tee_would_refuse_is_not_packed(vendor: Path, tmp_path: Path) -> None:
    with pytest.raises(AttestationError, match="not measured"):
        build_program(elf(LOAD, INTERPRETER), vendor, tmp_path)
    with pytest.raises(DcupgradeError, match="--main"):
        build_program(b"#!/bin/sh", vendor, tmp_path)


def test_a_release_is_of_one_kind(vendor: Path, tmp_path: Path) -> None:
    rest = ["--name", "n", "--version", "1", "--key", str(vendor), "--out", str(tmp_path)]
    for kind in ([], ["--main", "a.b:c", "--program", str(vendor)]):
        done = CliRunner().invoke(release, ["build", *kind, *rest])
        assert "either --main or --program" in done.output


@pytest.fixture
def base_image(tmp_path: Path) -> Path:
    """An archive as `docker save` makes it; its second layer is a link to the first, as older engines write it."""
    layer = packed({"etc/os-release": b"a base"})
    diff = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = {"architecture": "amd64", "config": {"Entrypoint": ["/run"]}, "rootfs": {"diff_ids": [diff, diff]}}
    manifest = [{"Config": "c.json", "RepoTags": ["base:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}]
    described = {"c.json": config, "manifest.json": manifest}
    path = tmp_path / "base.tar"
    path.write_bytes(
        packed({"a/layer.tar": layer, **{name: json.dumps(value).encode() for name, value in described.items()}})
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../a/layer.tar"
        tar.addfile(link)
    return path


def test_a_base_image_gets_the_release_as_one_layer_more(
    source: Path, vendor: Path, base_image: Path, tmp_path: Path
) -> None:
    for out in ("one", "two"):
        build(source, vendor, tmp_path / out, "--base-image", str(base_image))
    made = tmp_path / "one" / "mynode-1.0.0.image.tar"
    assert made.read_bytes() == (tmp_path / "two" / made.name).read_bytes()
    with tarfile.open(made) as tar:
        [described] = json.load(tar.extractfile("manifest.json") or io.BytesIO())
        body, *layers = [
            (tar.extractfile(name) or io.BytesIO()).read() for name in (described["Config"], *described["Layers"])
        ]
    assert image_in(made, ArchiveLimits()) == f"sha256:{hashlib.sha256(body).hexdigest()}"
    config = json.loads(body)
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    assert config["config"] == {"Entrypoint": ["/run"]}
    assert described["RepoTags"] is None, "loading it moves no tag"
    with tarfile.open(fileobj=io.BytesIO(layers[-1])) as tar:
        added = {name: (tar.extractfile(name) or io.BytesIO()).read() for name in tar.getnames()}
    assert added == {f"release/{name}": (made.parent / name).read_bytes() for name in NAMES}


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"manifest.json": b"[]"},
        {"manifest.json": b"[{}, {}]"},
        {"manifest.json": b"{"},
        {"manifest.json": b"[" * 100_000},
        {"manifest.json": b'[{"Config": "c.json", "Layers": []}]'},
        {"manifest.json": b'[{"Config": "c.json", "Layers": []}]', "c.json": b"[]"},
        {"manifest.json": b'[{"Config": "c.json", "Layers": ["x"]}]', "c.json": b'{"rootfs": {"diff_ids": []}}'},
        {"manifest.json": b'[{"Config": "c.json", "Layers": ["x"]}]', "c.json": b'{"rootfs": {"diff_ids": ["a"]}}'},
    ],
)
def test_a_base_that_is_no_image_is_refused(
    source: Path, vendor: Path, tmp_path: Path, members: dict[str, bytes]
) -> None:
    base = tmp_path / "base.tar"
    base.write_bytes(packed(members))
    with pytest.raises(DcupgradeError) as caught:
        build(source, vendor, tmp_path / "out", "--base-image", str(base))
    assert caught.value.code == "RELEASE_BASE_UNREADABLE"
    base.write_bytes(b"no archive")
    with pytest.raises(DcupgradeError) as caught:
        build(source, vendor, tmp_path / "out", "--base-image", str(base))
    assert caught.value.code == "RELEASE_BASE_UNREADABLE"
