"""The rules of the source tree: allowed imports of each folder, and what pure modules must not use."""

import ast
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from .conftest import parsed

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dcupgrade", "chain_watcher", "attestation", "keyvault", "process_supervisor", "devnet")
PROOF = ("chain_watcher.proof", "chain_watcher.errors")
VAULT_ROOMS = ("keyvault.handover", "keyvault.store", "keyvault.vault", "keyvault.errors")
#: What a room may import of the project, beside itself. The longest name that fits a module decides.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "dcupgrade": PACKAGES[:-1],  # service.py, which wires everything, and the files at the top
    "dcupgrade.errors": ("dcupgrade.conditions",),
    "dcupgrade.conditions": (),
    "dcupgrade.printable": (),
    "dcupgrade.machine": ("dcupgrade.conditions", "dcupgrade.errors", "dcupgrade.printable", *PROOF),
    "dcupgrade.upgrade": ("dcupgrade.machine", "dcupgrade.conditions", "dcupgrade.errors"),
    "dcupgrade.adapters": (
        *("dcupgrade.upgrade.ports", "dcupgrade.machine", "dcupgrade.settings", "dcupgrade.errors"),
        *("dcupgrade.printable", *PACKAGES[1:-1]),
    ),
    "dcupgrade.settings": ("dcupgrade.machine", "dcupgrade.upgrade.tools", "dcupgrade.errors", *PACKAGES[1:-1]),
    "dcupgrade.surfaces": ("dcupgrade.machine", "dcupgrade.settings", "dcupgrade.errors", "dcupgrade.printable"),
    "dcupgrade.publishing": ("dcupgrade.errors", "attestation", *PROOF),
    "dcupgrade.commands": PACKAGES[:-1],
    "chain_watcher": (),
    "chain_watcher.proof": ("chain_watcher.errors",),
    "chain_watcher.endpoints": ("chain_watcher.errors",),
    "chain_watcher.watch": (*PROOF, "chain_watcher.endpoints"),
    "attestation": (),
    "attestation.tee": tuple(f"attestation.{name}" for name in ("errors", "sgx", "policy", "network", "egetkey")),
    "attestation.artefact": ("attestation.errors", "attestation.sgx"),
    "attestation.simulated": ("attestation",),
    "attestation.egetkey": ("attestation",),
    "keyvault": ("keyvault", "attestation", *PROOF),
    "keyvault.errors": (),
    "keyvault.handover": ("keyvault.errors", "attestation"),
    "keyvault.store": ("keyvault.errors", "keyvault.handover", "attestation"),
    "keyvault.vault": (*VAULT_ROOMS, "attestation", *PROOF),
    "process_supervisor": (),
    "devnet": PACKAGES,
}
#: Rooms of bytes, values and decisions: no I/O, clock or randomness.
PURE = (
    *("dcupgrade.machine", "dcupgrade.conditions", "dcupgrade.errors", "dcupgrade.printable"),
    *("chain_watcher.proof", "chain_watcher.errors"),
    *("attestation.sgx", "attestation.policy", "attestation.network", "attestation.errors"),
    *("keyvault.errors", "process_supervisor.errors"),
)
#: The files of the vault's rooms that touch the world; the others there are pure.
VAULT_SHELLS = {
    *("keyvault.handover.http_client", "keyvault.handover.http_server", "keyvault.handover.v1_http"),
    "keyvault.handover.guarded_server",
    *("keyvault.handover.hpke", "keyvault.store.disk", "keyvault.store.sealed_store"),
    *("keyvault.vault.serve", "keyvault.vault.start_files", "keyvault.vault.vault", "keyvault.vault.opening"),
    *("keyvault.vault.agent_api", "keyvault.vault.hygiene", "keyvault.vault.log_writer", "keyvault.vault.steps"),
}
IMPURE = {
    *("aiodocker", "aiohttp", "asyncio", "http", "logging", "multiprocessing", "os", "pathlib", "random", "requests"),
    *(
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "tempfile",
    ),
    *("threading", "time", "urllib", "uuid"),
}


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, at any depth, for type checking or not."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).rstrip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


def sources(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "node_modules" not in path.parts)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, rooms: Iterable[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def room_of(module: str) -> str:
    return max((room for room in MAY_IMPORT if within(module, [room])), key=len)


def house_imports(path: Path) -> set[str]:
    """The project's own modules that a file imports."""
    found = imports(path)
    modules = {name for name in found if is_module(name)}
    return {name for name in modules if not any(other.startswith(f"{name}.") for other in modules)}


def is_module(name: str) -> bool:
    place = ROOT / name.replace(".", "/")
    return name.split(".")[0] in PACKAGES and (place.with_suffix(".py").is_file() or (place / "__init__.py").is_file())


def test_the_checks_see_a_planted_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "keyvault").mkdir()
    planted = tmp_path / "keyvault" / "planted.py"
    planted.write_text("def f():\n    import dcupgrade.service\n    from . import client\n    from .vault import x\n")
    assert imports(planted) >= {"dcupgrade.service", "keyvault.client", "keyvault.vault"}


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_only_what_the_house_allows(package: str) -> None:
    wrong = []
    for path in sources(package):
        room = room_of(module_of(path))
        allowed = (room, *MAY_IMPORT[room])
        wrong += [
            f"{path.relative_to(ROOT)} imports {name}" for name in house_imports(path) if not within(name, allowed)
        ]
    assert wrong == []


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "devnet"])
def test_pure_rooms_touch_nothing_of_the_world(package: str) -> None:
    wrong = []
    for path in sources(package):
        module = module_of(path)
        vaults = within(module, VAULT_ROOMS) and module not in VAULT_SHELLS
        if within(module, PURE) or vaults:
            wrong += [
                f"{module} imports {name}"
                for name in imports(path)
                if (name.split(".")[0] in IMPURE and not name.startswith("urllib.parse")) or name in VAULT_SHELLS
            ]
    assert wrong == []


def test_every_shell_that_is_named_exists() -> None:
    assert [name for name in VAULT_SHELLS if not is_module(name)] == []


@pytest.mark.parametrize("package", ["dcupgrade", "chain_watcher", "attestation", "keyvault"])
def test_a_package_shows_few_entries_at_its_top(package: str) -> None:
    entries = {path.name for path in (ROOT / package).iterdir() if not path.name.startswith("__")} - {"py.typed"}
    assert len(entries) <= 14


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "devnet"])
def test_no_folder_holds_one_file_or_is_called_utils(package: str) -> None:
    folders = {path.parent for path in sources(package)} - {ROOT / package}
    few = [f for f in folders if sum(path.parent == f for path in sources(package)) < 3 and f.name != "egetkey"]
    assert few == []
    assert not {"utils", "helpers", "lib", "common"} & {folder.name for folder in folders}


def test_no_test_module_imports_another_one() -> None:
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        wrong += [
            f"{path.relative_to(ROOT)} imports {name}"
            for name in imports(path)
            if name.startswith("tests.")
            and any(part.startswith("test_") for part in name.split("."))
            and (ROOT / (name.replace(".", "/") + ".py")).is_file()
        ]
    assert wrong == []


def test_nothing_names_a_machine() -> None:
    folders = [
        ROOT / name for name in (*PACKAGES, "tests", "docs", "benchmarks", "sdk", ".ci") if (ROOT / name).is_dir()
    ]
    suffixes = {".py", ".md", ".sh", ".toml", ".yaml", ".yml", ".json", ".rs", ".go", ".service", ".template", ""}
    wrong = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.suffix not in suffixes or not path.is_file() or "target" in path.parts or "node_modules" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        wrong += [
            f"{path.relative_to(ROOT)}: {word}"
            for word in ("/wo" + "rk/", "/fa" + "rm/", "/ro" + "ot/")
            if word in text
        ]
    assert wrong == []


@pytest.mark.parametrize("name", [".ci/setup", ".ci/install", ".ci/fuzz", "devnet/docker/Dockerfile"])
def test_locks_are_installed_without_asking_what_is_newest(name: str) -> None:
    """A resolving pip refuses a complete lock if a package named with an extra has a newer release."""
    installs = [
        line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if ".lock" in line and "-m pip" in line
    ]
    assert installs
    assert [line for line in installs if not {"--no-deps", "--require-hashes"} <= set(line.split())] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_error_codes_belong_to_one_package(package: str) -> None:
    codes = {
        name: set(importlib.import_module(f"{name}.errors").CODES)
        for name in PACKAGES
        if (ROOT / name / "errors.py").is_file()
    }
    shared = {
        code for other, theirs in codes.items() if other != package for code in theirs & codes.get(package, set())
    }
    assert shared == set()
