"""`config example --profile`: complete settings and a policy for hosts of a kind."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from attestation.network import encode_multibase
from dcupgrade.commands.main import cli
from dcupgrade.settings import load
from dcupgrade.settings.folders import missing_files, overlapping_folders
from dcupgrade.settings.profiles import PROFILES
from dcupgrade.settings.reference import example_toml
from dcupgrade.settings.schema import Settings
from keyvault.errors import KeyvaultError
from keyvault.vault.measured_policy import VaultPolicy, parse_policy

GENESIS = "0x" + "ab" * 32
CHECKPOINT = {"genesis_hash": GENESIS, "block_number": 7, "set_id": 2, "authorities": [["cd" * 32, 1]]}
KEY = encode_multibase(bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"))
NAMES = sorted(PROFILES)


def printed(tmp_path: Path, *arguments: str) -> str:
    checkpoint = tmp_path / "checkpoint.json"
    checkpoint.write_text(json.dumps(CHECKPOINT))
    given = [item.replace("CHECKPOINT", str(checkpoint)) for item in arguments]
    done = CliRunner().invoke(cli, ["config", "example", *given], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def settings_of(text: str) -> Settings:
    return load.structure(tomllib.loads(text), environ={}, path="example")


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_valid_settings_as_it_is(tmp_path: Path, name: str) -> None:
    settings = settings_of(printed(tmp_path, "--profile", name))
    assert overlapping_folders(settings) == []
    # what a host has to have is named, and nothing else is wrong
    assert all(": there is no /etc/dcupgrade/" in line for line in missing_files(settings))


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_shows_every_key(name: str) -> None:
    def keys(text: str) -> list[str]:
        lines = [line.removeprefix("# ") for line in text.splitlines()]
        return [line.split(" =")[0] for line in lines if " = " in line and line.split(" =")[0].isidentifier()]

    assert keys(example_toml(name)) == keys(example_toml())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_commented_out_stands_at_its_default(name: str) -> None:
    """Taking the marks away changes nothing, where a value is shown at all."""
    text = example_toml(name)
    lines = []
    for block in text.split("\n\n"):
        if block.startswith("# [["):
            continue
        lines += [
            line.removeprefix("# ") if " = " in line and not line.endswith("# not set") else line
            for line in block.splitlines()
        ]
    assert settings_of("\n".join(lines)) == settings_of(text)


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_checkpoint_go_into_settings_and_policy(tmp_path: Path, name: str) -> None:
    given = ("--profile", name, "--network-key", KEY, "--checkpoint", "CHECKPOINT")
    settings, text = settings_of(printed(tmp_path, *given)), printed(tmp_path, *given, "--policy")
    policy = parse_policy(text.encode())
    assert settings.chain.network_keys == (KEY,)
    assert settings.chain.genesis_hash == GENESIS
    assert policy.genesis_hash == GENESIS.removeprefix("0x")
    assert (policy.checkpoint is None) == (name == "reference")
    assert policy.evidence_mode == settings.chain.finality
    assert bool(policy.unsafe()) == settings.vault.unsafe_simulated_tee == (name == "reference")
    assert policy.allow_v1 == (settings.node.protocol == "v1")


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_shows_every_field_at_its_default_and_no_vault_is_built_from_placeholders(
    tmp_path: Path, name: str
) -> None:
    policy = json.loads(printed(tmp_path, "--profile", name, "--policy"))
    assert set(policy) - {"network_keys", "threshold"} == set(VaultPolicy.__annotations__) - {"network"}
    with pytest.raises(KeyvaultError) as caught:
        parse_policy(json.dumps(policy).encode())
    assert caught.value.code == "VAULT_POLICY_INVALID"
    assert "genesis_hash" in caught.value.why
    filled = parse_policy(printed(tmp_path, "--profile", "gramine-process", "--policy", "--network-key", KEY,
                                  "--checkpoint", "CHECKPOINT").encode())  # fmt: skip
    plain = VaultPolicy(filled.network, filled.genesis_hash, checkpoint=filled.checkpoint)
    assert filled == plain


def test_the_fields_profile_is_the_container_that_its_manager_runs() -> None:
    """Facts of the manager's public source, as docs/migration.md has them."""
    settings = settings_of(example_toml("dcnet-container"))
    container, node = settings.container, settings.node
    assert (node.driver, node.command, node.protocol, node.port) == ("container", (), "v1", 6667)
    assert (container.name, container.entrypoint, container.network) == ("dcstorage", ("dcstorage",), "host")
    assert "dcstorage:/opt/dcnetio/data" in container.mounts
    assert "/opt/dcnetio/disks:/opt/dcnetio/disks:shared" in container.mounts
    assert [item.split(":")[1] for item in container.devices] == ["/dev/sgx/enclave", "/dev/sgx/provision"]
    assert container.log_options == ("max-size=100m", "max-file=3")
    assert settings.vault.url.endswith(":6666")


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 50_000, json.dumps({**CHECKPOINT, "authorities": []})])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    arguments = ["config", "example", "--profile", "reference", "--checkpoint", str(path)]
    done = CliRunner().invoke(cli, arguments)
    assert getattr(done.exception, "code", "") in ("CHECKPOINT_INVALID", "AUTHORITY_SET_INVALID")


def test_a_policy_belongs_to_a_profile() -> None:
    done = CliRunner().invoke(cli, ["config", "example", "--policy"])
    assert done.exit_code == 2
    assert "need --profile" in done.output
