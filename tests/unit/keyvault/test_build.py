"""The vault's image contains exactly the vault's imports: each additional file would change the enclave id."""

import dis
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from attestation.artefact.files import build_image, measure_file
from devnet.release_builder import NODE_MAIN, node_sources
from keyvault.build import CONFORMANCE, PACKAGES, ROOT, VAULT, Program, image_sources
from tests.doubles.vault_host import policy_text

POLICY = policy_text()
POLICY_FILE = "keyvault/vault_policy.json"
NODE = Program(NODE_MAIN.removesuffix(":main"), "", "")


def imported(code: CodeType, package: str) -> Iterator[str]:
    """Names in the import instructions of compiled code, at any depth: what could be imported when it runs."""
    level, names = 0, ()
    loaded: list[Any] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_CONST":
            loaded.append(instruction.argval)
        if instruction.opname == "IMPORT_NAME":
            level, names = loaded[-2], loaded[-1] or ()
            above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            base = ".".join([*above, *([instruction.argval] if instruction.argval else [])])
            yield base
            yield from (f"{base}.{name}" for name in names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from imported(constant, package)


def walked(module: str, packages: tuple[str, ...]) -> set[str]:
    """Files that a walk over the bytecode of a program finds."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        parts = waiting.pop().split(".")
        for place in [ROOT.joinpath(*parts[: n + 1]) for n in range(len(parts))]:
            file = next((f for f in (place / "__init__.py", place.with_suffix(".py")) if f.is_file()), None)
            if parts[0] not in packages or file is None or file.relative_to(ROOT).as_posix() in found:
                continue
            found.add(file.relative_to(ROOT).as_posix())
            package = ".".join(file.relative_to(ROOT).parent.parts)
            waiting += imported(compile(file.read_bytes(), file, "exec"), package)
    return found


@pytest.mark.parametrize("program", [VAULT, CONFORMANCE], ids=["vault", "conformance"])
def test_an_image_holds_what_its_program_imports_and_its_policy(program: Program) -> None:
    assert set(image_sources(program, POLICY)) == walked(program.module, PACKAGES) | {POLICY_FILE}


def test_the_reference_nodes_image_holds_what_the_node_imports_and_its_policy() -> None:
    policy_file = "devnet/reference_node/node_policy.json"
    assert set(node_sources({})) == walked(NODE.module, ("attestation", "devnet", "keyvault")) | {policy_file}


@pytest.mark.parametrize("program", [VAULT, CONFORMANCE], ids=["vault", "conformance"])
def test_an_image_runs_without_the_files_beside_it(program: Program, tmp_path: Path) -> None:
    """Its modules come from the image alone: this checkout is taken off the path."""
    image = tmp_path / "image.pyz"
    build_image(image, image_sources(program, POLICY), f"{program.module}:main")
    here = {str(ROOT), ""}
    code = (
        f"import sys; sys.path = [{str(image)!r}] + [p for p in sys.path if p not in {here!r}]\n"
        f"import {program.module}, sys\n"
        "print(*sorted(n for n, m in sys.modules.items() if n.split('.')[0] in"
        f" {PACKAGES!r} and not str(m.__spec__.origin).startswith({str(image)!r})))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def enclave_id(checkout: Path) -> str:
    image = checkout / "image.pyz"
    build_image(image, image_sources(VAULT, POLICY, checkout), f"{VAULT.module}:main")
    return measure_file(image).hex()


def change(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"# changed\n")


def test_changes_beside_the_vault_leave_its_enclave_id_and_changes_in_it_give_others(checkout: Path) -> None:
    seen = [enclave_id(checkout)]
    beside = ["keyvault/client.py", "keyvault/node.py", "keyvault/conformance.py", "keyvault/conformance_command.py"]
    beside += ["keyvault/build.py", "keyvault/__main__.py", "attestation/simulated/cpu.py"]
    beside += ["attestation/simulated/__main__.py", "attestation/artefact/measure.py"]
    for name in beside:
        change(checkout / name)
    assert enclave_id(checkout) == seen[0]
    for name in ("keyvault/vault/decisions.py", "attestation/policy.py", "chain_watcher/proof/trie.py"):
        change(checkout / name)
        seen.append(enclave_id(checkout))
    assert len(set(seen)) == len(seen)
