"""The rules of the house: who may import whom, and what pure modules may not touch."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

from .conftest import parsed

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dcupgrade", "chain_watcher", "attestation", "keyvault", "process_supervisor", "devnet")
MAY_IMPORT: dict[str, set[str]] = {
    "dcupgrade": {"chain_watcher", "attestation", "keyvault", "process_supervisor"},
    "keyvault": {"attestation", "chain_watcher"},
    "chain_watcher": set(),
    "attestation": set(),
    "process_supervisor": set(),
    "devnet": set(PACKAGES),
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


def pure_modules(package: str) -> set[str]:
    return {f"{package}.{name}" for name in importlib.import_module(package).PURE_MODULES}


def test_the_checks_see_a_planted_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "keyvault").mkdir()
    planted = tmp_path / "keyvault" / "planted.py"
    planted.write_text(
        "def f():\n    import dcupgrade.commands.main\n    from . import server\n    from .core import x\n"
    )
    assert imports(planted) >= {"dcupgrade.commands.main", "keyvault.vault.agent_api", "keyvault.vault.decisions"}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_the_house_allows(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imports(path)
        if (top := name.split(".")[0]) in PACKAGES and top != package and top not in MAY_IMPORT[package]
    ]
    assert wrong == []


def test_the_vault_takes_only_pure_modules_of_the_chain_watcher() -> None:
    pure = pure_modules("chain_watcher")
    wrong = [
        f"{path.name} imports {name}"
        for path in sources("keyvault")
        for name in imports(path)
        if name.startswith("chain_watcher.") and not any(name == m or name.startswith(f"{m}.") for m in pure)
    ]
    assert wrong == []


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "devnet"])
def test_pure_modules_touch_neither_the_world_nor_the_shells(package: str) -> None:
    wrong = []
    for module in pure_modules(package):
        path = ROOT / (module.replace(".", "/") + ".py")
        assert path.is_file(), f"{package}.PURE_MODULES names {module}, which does not exist"
        for name in imports(path):
            top = name.split(".")[0]
            shell = name.startswith(tuple(f"{p}." for p in PACKAGES)) and not any(
                name == pure or name.startswith(f"{pure}.")
                for p in PACKAGES
                if p != "devnet"
                for pure in pure_modules(p)
            )
            if (top in IMPURE and not name.startswith("urllib.parse")) or shell:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_nothing_names_a_machine() -> None:
    folders = [ROOT / name for name in (*PACKAGES, "tests", "docs", "benchmarks", ".ci") if (ROOT / name).is_dir()]
    suffixes = {".py", ".md", ".sh", ".toml", ".yaml", ".yml", ".json", ".rs", ".service", ".template", ""}
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


@pytest.mark.parametrize("name", [".ci/setup", ".ci/install", "devnet/docker/Dockerfile"])
def test_locks_are_installed_without_asking_what_is_newest(name: str) -> None:
    """A pip that resolves refuses a complete lock once a package that is named with an extra has a newer release."""
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
