from pathlib import Path

import pytest

from dcupgrade import settings

GOOD = """
[agent]
state_dir = "/var/lib/dcupgrade"
[chain]
endpoints = ["wss://one.example", "wss://two.example"]
network_keys = ["bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"]
[node]
id = "n1"
data_dir = "/srv/dcnode"
[vault]
start = false
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "dcupgrade.toml"
    path.write_text(text)
    return path


def test_a_small_file_is_enough_and_the_rest_has_defaults(tmp_path: Path) -> None:
    loaded = settings.load(write(tmp_path, GOOD), {})
    assert loaded.node.port == 6667
    assert loaded.chain.finality == "proven"
    assert loaded.store_dir == Path("/var/lib/dcupgrade/vault")


def test_five_mistakes_are_all_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace('id = "n1"', "port = 70000").replace("wss://one.example", "http://one.example")
    text = text.replace("[vault]", 'probation_s = "soon"\nports = 3\n[vault]')
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(write(tmp_path, text), {})
    assert caught.value.code == "SETTINGS_INVALID"
    assert sorted(mistake.split(":")[0] for mistake in caught.value.mistakes) == [
        "chain.endpoints",
        "node",
        "node.id",
        "node.port",
        "node.probation_s",
    ]
    assert all(mistake in str(caught.value) for mistake in caught.value.mistakes)


def test_mistakes_across_fields_are_found(tmp_path: Path) -> None:
    text = GOOD.replace("[node]", 'threshold = 2\nfinality = "quorum"\nquorum = 3\n[node]').replace("start = false", "")
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(write(tmp_path, text), {})
    assert [mistake.split(":")[0] for mistake in caught.value.mistakes] == [
        "chain.threshold",
        "chain.quorum",
        "vault.image",
        "vault.sigstruct",
        "vault.auth_file",
    ]


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    environ = {"DCUPGRADE_NODE__PORT": "7001", "DCUPGRADE_CHAIN__ENDPOINTS": "ws://a, ws://b", "HOME": "/"}
    loaded = settings.load(write(tmp_path, GOOD), environ)
    assert loaded.node.port == 7001
    assert loaded.chain.endpoints == ("ws://a", "ws://b")


def test_an_unknown_environment_override_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(settings.SettingsError, match="DCUPGRADE_NODE__COLOUR"):
        settings.load(write(tmp_path, GOOD), {"DCUPGRADE_NODE__COLOUR": "red"})


@pytest.mark.parametrize("text", ["[agent", "\x00"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(write(tmp_path, text), {})
    assert caught.value.code == "SETTINGS_UNREADABLE"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(tmp_path / "absent.toml", {})
    assert caught.value.code == "SETTINGS_UNREADABLE"


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("[agent]", "log_level = 3"),
        ("[chain]", 'genesis_hash = "0xAB"'),
        ("[chain]", 'unsafe_unproven_reads = "maybe"'),
        ("[node]", "probation_s = nan"),
        ("[node]", "port = true"),
        ("[node]", 'command = "run"'),
        ("[vault]", 'url = "ftp://x"'),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_by_its_key(tmp_path: Path, section: str, line: str) -> None:
    with pytest.raises(settings.SettingsError) as caught:
        settings.load(write(tmp_path, GOOD.replace(section, f"{section}\n{line}")), {})
    assert [mistake.split(":")[0] for mistake in caught.value.mistakes] == [f"{section[1:-1]}.{line.split()[0]}"]
