"""The content of the vault's enclave is listed, needed and complete."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attestation.artefact.files import build_image
from keyvault import enclave_content
from keyvault.build import ROOT, VAULT, image_sources
from keyvault.enclave_content import (
    DISTRIBUTIONS,
    differences,
    distribution_files,
    enclave_lock,
    image_listing,
    listing,
    write_content,
)
from keyvault.errors import KeyvaultError

POLICY = (
    b'{"network_keys": ["bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"], "genesis_hash": "%s",'
    b' "evidence_mode": "single", "unsafe_unproven_evidence": true}' % (b"1" * 64)
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("image") / "vault.pyz"
    build_image(image, image_sources(VAULT, POLICY), f"{VAULT.module}:main")
    return image


@pytest.fixture(scope="module")
def content(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("content") / "vault"
    write_content(image, folder)
    return folder


def modules(image: Path) -> list[str]:
    """Names of all of our modules in the image."""
    names = [line[66:] for line in image_listing(image).splitlines() if line.endswith(".py")]
    dotted = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names]
    return [name for name in dotted if name != "__main__"]


def loaded(content: Path, image: Path) -> set[str]:
    """Files of the content that Python has loaded when all of our modules are imported from there and nowhere else."""
    code = (
        f"import sys; sys.path.insert(0, {str(content)!r})\n"
        f"import importlib\nfor name in {modules(image)!r}: importlib.import_module(name)\n"
        "print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), sep='\\n')"
    )
    argv = [sys.executable, "-I", "-S", "-B", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    return {path.relative_to(content).as_posix() for path in paths if path.is_relative_to(content)}


def test_the_named_distributions_are_all_that_the_vault_needs_and_each_is_needed(content: Path, image: Path) -> None:
    """Without site packages: what is missing stops the import, and what is never loaded need not be there."""
    files = loaded(content, image)
    idle = [name for name in DISTRIBUTIONS if not files & distribution_files(name).keys()]
    assert idle == []


def test_a_distribution_that_is_not_named_is_noticed(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with one name fewer the vault does not start from the content."""
    fewer = {name: why for name, why in DISTRIBUTIONS.items() if name != "xxhash"}
    monkeypatch.setattr(enclave_content, "DISTRIBUTIONS", fewer)
    write_content(image, tmp_path / "vault")
    with pytest.raises(AssertionError, match="No module named 'xxhash'"):
        loaded(tmp_path / "vault", image)


def test_the_lock_of_the_enclave_is_cut_out_of_the_lock_of_all() -> None:
    text = (ROOT / "requirements.enclave.lock").read_text(encoding="utf-8")
    assert text == enclave_lock((ROOT / "requirements.runtime.lock").read_text(encoding="utf-8"))
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    assert pinned == {
        name.lower().replace("_", "-"): importlib.metadata.version(name)
        for name in sorted(DISTRIBUTIONS, key=str.lower)
    }


def test_the_page_names_every_folder_and_every_distribution(image: Path) -> None:
    page = (ROOT / "docs" / "enclave.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    names = [line[66:] for line in image_listing(image).splitlines()]
    present = {name if name.endswith(".json") or "/" not in name else name.rpartition("/")[0] + "/" for name in names}
    assert named == present | set(DISTRIBUTIONS)


def test_only_what_runs_goes_in(content: Path) -> None:
    assert {path.name.split(".", 1)[-1] for path in content.rglob("*.pyc")} == set()
    kinds = {path.suffix for path in content.rglob("*") if path.is_file()}
    assert kinds - {".py", ".so", ".json"} == {s for s in kinds if s[1:].isdigit()}  # libsodium.so.26 and such


def test_an_altered_distribution_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.metadata.distribution("xxhash")
    for file in found.files or []:
        if not file.as_posix().startswith(".."):
            place = tmp_path / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), place)
    copy = importlib.metadata.Distribution.at(next(tmp_path.glob("*.dist-info")))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: copy)
    assert distribution_files("xxhash")
    (tmp_path / "xxhash" / "__init__.py").write_text("import os\n")
    with pytest.raises(KeyvaultError, match="VAULT_START_REFUSED"):
        distribution_files("xxhash")


def test_a_listing_says_what_differs(tmp_path: Path) -> None:
    for name, text in (("same", "1"), ("gone", "2"), ("other", "3")):
        (tmp_path / name).write_text(text)
    expected = listing(tmp_path)
    (tmp_path / "gone").unlink()
    (tmp_path / "other").write_text("4")
    (tmp_path / "new").write_text("5")
    assert differences(expected, listing(tmp_path)) == ["missing gone", "added new", "changed other"]
    assert differences(expected, expected) == []
