"""A vault's build is reproducible: the same bytes at any place and time, by any user."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keyvault import __main__ as command
from keyvault.build import PACKAGES, ROOT, build_vault, load_signing_key
from tests.doubles.vault_host import policy_text

POLICY = policy_text()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key.pem"
    made = generate_private_key(public_exponent=3, key_size=3072)
    path.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def keyvault(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "keyvault", *arguments]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


#: Builds once, and once more as another user where it may become one; what is imported is in memory by then.
BUILDER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import keyvault.__main__ as command
assert command.__file__.startswith(sys.argv[1])
for name in ("first", "as another user"):
    sys.argv[1:] = ["build", "--policy", "policy.json", "--key", "key.pem", "--out", name]
    assert command.main() == 0
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
"""


@pytest.fixture
def other_folder(key: Path) -> Iterator[Path]:
    """A copy of the source in a folder that every user may enter, with other times, modes and order of files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package in sorted(PACKAGES, reverse=True):
            source = folder / "a source of another name" / package
            shutil.copytree(ROOT / package, source, ignore=shutil.ignore_patterns("__pycache__"))
        for path in folder.rglob("*"):
            os.utime(path, (1_000_000_000, 1_000_000_000))
            path.chmod(0o755 if path.is_dir() else 0o604)
        (folder / "policy.json").write_bytes(POLICY)
        (folder / "key.pem").write_bytes(key.read_bytes())
        folder.chmod(0o777)
        yield folder


def test_builds_by_different_paths_are_the_same_bytes(tmp_path: Path, key: Path, other_folder: Path) -> None:
    build_vault(POLICY, load_signing_key(key), tmp_path)
    argv = [sys.executable, "-c", BUILDER, str(other_folder / "a source of another name")]
    environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": "/"}
    done = subprocess.run(
        argv, cwd=other_folder, env=environment, umask=0o027, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for out in ("first", "as another user"):
        for name in ("vault.pyz", "vault.sig"):
            assert (other_folder / out / name).read_bytes() == (tmp_path / name).read_bytes(), (out, name)


def test_a_rebuild_says_equal_or_which_files_differ(tmp_path: Path, key: Path) -> None:
    enclave_id = build_vault(POLICY, load_signing_key(key), tmp_path / "published")
    image = tmp_path / "published" / "vault.pyz"
    (tmp_path / "policy.json").write_bytes(POLICY)
    for given in (["--published", str(image)], ["--policy", str(tmp_path / "policy.json")]):
        done = keyvault("rebuild", "--expect", enclave_id, *given)
        assert (done.returncode, done.stdout) == (0, f"{enclave_id}  equal\n"), done.stderr
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (source / "keyvault" / "vault" / "decisions.py").open("a") as file:
        file.write("# one line more\n")
    code = f"import sys; sys.path.insert(0, {str(source)!r}); import keyvault.__main__ as m; sys.exit(m.main())"
    argv = [sys.executable, "-c", code, "rebuild", "--expect", enclave_id, "--published", str(image)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "VAULT_REBUILD_DIFFERS" in done.stderr
    assert "changed keyvault/vault/decisions.py." in done.stderr


def test_the_content_that_gramine_measures_is_compared_with_a_listing(tmp_path: Path, key: Path) -> None:
    build_vault(POLICY, load_signing_key(key), tmp_path / "built")
    image = str(tmp_path / "built" / "vault.pyz")
    first = keyvault("content", "--image", image, "--out", str(tmp_path / "one"))
    assert first.returncode == 0, first.stderr
    listing = tmp_path / "listing"
    listing.write_text(first.stdout)
    again = ["content", "--image", image, "--expect", str(listing)]
    assert keyvault(*again, "--out", str(tmp_path / "two")).stdout == "equal\n"
    listing.write_text(first.stdout.replace("  keyvault/errors.py", "  keyvault/mistakes.py"))
    differs = keyvault(*again, "--out", str(tmp_path / "three"))
    assert "added keyvault/errors.py, missing keyvault/mistakes.py" in differs.stderr
    assert "Name a new folder" in keyvault(*again, "--out", str(tmp_path / "two")).stderr


def test_a_sigstruct_of_gramines_is_verified_without_its_image(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enclave_id = build_vault(POLICY, load_signing_key(key), tmp_path)
    args = command._parser().parse_args(["verify", "--sigstruct", str(tmp_path / "vault.sig")])
    assert args.run(args) == 0
    assert capsys.readouterr().out == f"{enclave_id}  ISVSVN 0, seal key pinned, image not read\n"
