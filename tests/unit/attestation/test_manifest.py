"""The content of the vault's Gramine manifest. Gramine itself is not run here (docs/gramine.md)."""

import re
import tomllib
from typing import Any

import pytest

from keyvault.vault.serve import parser

from .conftest import ROOT

VALUES = {
    "gramine.libos": "/usr/lib/gramine/libsysdb.so",
    "gramine.runtimedir()": "/usr/lib/gramine/runtime/glibc",
    "arch_libdir": "/lib/x86_64-linux-gnu",
    "entrypoint": "/usr/bin/python3.11",
    "python.stdlib": "/usr/lib/python3.11",
    "isvsvn": "3",
}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    text = (ROOT / "keyvault" / "keyvault.manifest.template").read_text()
    return tomllib.loads(re.sub(r"{{ (.+?) }}", lambda match: VALUES[match[1]], text))


def keys(table: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in table.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += keys(value, f"{prefix}{name}.")
    return found


def test_it_is_a_production_enclave(manifest: dict[str, Any]) -> None:
    assert manifest["sgx"]["debug"] is False
    assert manifest["loader"]["log_level"] == "error"
    assert "file_check_policy" not in manifest["sgx"]
    assert manifest["sgx"]["isvsvn"] == 3


def test_what_is_part_of_the_seal_key_is_no_default_of_gramines(manifest: dict[str, Any]) -> None:
    assert manifest["sgx"]["use_exinfo"] is False
    assert manifest["sgx"]["cpu_features"] == {
        **dict.fromkeys(("avx", "avx512", "amx"), "unspecified"),
        **dict.fromkeys(("mpx", "pkru"), "disabled"),
    }
    assert "seal_key" not in manifest["sgx"]  # Gramine's own two keys, which the vault does not use


def test_no_option_is_an_insecure_one(manifest: dict[str, Any]) -> None:
    assert [name for name in keys(manifest) if "insecure" in name] == []


def test_the_host_gives_neither_arguments_nor_environment(manifest: dict[str, Any]) -> None:
    loader = manifest["loader"]
    assert not {"insecure__use_cmdline_argv", "argv_src_file", "env_src_file", "insecure__use_host_env"} & set(loader)
    assert all(isinstance(value, str) for value in loader["env"].values())
    assert loader["argv"][:4] == [VALUES["entrypoint"], "-I", "-S", "-B"]


def test_the_arguments_are_the_vaults(manifest: dict[str, Any]) -> None:
    argv = manifest["loader"]["argv"]
    parsed = parser().parse_args(argv[argv.index("/vault") + 1 :])
    assert (parsed.command, parsed.listen, str(parsed.store)) == ("serve", "127.0.0.1:6666", "/store")


def test_it_starts_no_other_process_and_speaks_tcp_on_loopback(manifest: dict[str, Any]) -> None:
    assert manifest["sys"]["disallow_subprocesses"] is True
    argv = manifest["loader"]["argv"]
    assert argv[argv.index("--listen") + 1].startswith("127.0.0.1:")
    assert argv[argv.index("--port-file") + 1] == "/settings/port"  # several vaults of this one measurement on a host


def test_all_code_is_measured_and_only_data_is_not(manifest: dict[str, Any]) -> None:
    trusted, allowed = manifest["sgx"]["trusted_files"], manifest["sgx"]["allowed_files"]
    mounts = {mount["path"]: mount["uri"] for mount in manifest["fs"]["mounts"]}
    assert allowed == ["file:settings/", "file:store/"]
    for path, uri in mounts.items():
        covered = uri in trusted or f"{uri}/" in trusted
        assert covered != (f"{uri}/" in allowed), path
    assert mounts["/vault"] == "file:vault"
    assert manifest["fs"]["root"]["type"] == "tmpfs"
