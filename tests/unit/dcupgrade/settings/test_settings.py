import re
from pathlib import Path

import pytest

from dcupgrade.settings import load
from dcupgrade.settings import reference as settings_reference

GOOD = """
[agent]
state_dir = "/var/lib/dcupgrade"
[chain]
endpoints = ["wss://one.example", "wss://two.example"]
network_keys = ["bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"]
genesis_hash = "0x9bb6a3ab6ae1e2f3c4d5e6f7a8b9c0d1e2f3a4b5c6d7e8f90a1b2c3d4e5f6a7b"
checkpoint_file = "/etc/dcupgrade/checkpoint.json"
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
    loaded = load.load(write(tmp_path, GOOD), {})
    assert loaded.node.port == 6667
    assert loaded.chain.finality == "proven"
    assert loaded.store_dir == Path("/var/lib/dcupgrade/vault")


def test_five_mistakes_are_all_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace('id = "n1"', "port = 70000").replace("wss://one.example", "http://one.example")
    text = text.replace("[vault]", 'probation_s = "soon"\nports = 3\n[vault]')
    with pytest.raises(load.SettingsError) as caught:
        load.load(write(tmp_path, text), {})
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
    with pytest.raises(load.SettingsError) as caught:
        load.load(write(tmp_path, text), {})
    assert [mistake.split(":")[0] for mistake in caught.value.mistakes] == [
        "chain.threshold",
        "chain.quorum",
        "vault.image",
        "vault.sigstruct",
        "vault.auth_file",
    ]


def mistakes_of(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(load.SettingsError) as caught:
        load.load(write(tmp_path, text), environ or {})
    return caught.value.mistakes


def test_mode_proven_needs_what_it_proves_against(tmp_path: Path) -> None:
    text = "\n".join(line for line in GOOD.splitlines() if not line.startswith(("genesis", "checkpoint")))
    found = mistakes_of(tmp_path, text.replace("[node]", "unsafe_unproven_reads = true\n[node]"))
    keys = ["genesis_hash", "checkpoint_file", "unsafe_unproven_reads"]
    assert [mistake.split(":")[0] for mistake in found] == [f"chain.{key}" for key in keys]
    assert load.load(write(tmp_path, text.replace("[node]", 'finality = "single"\n[node]')), {})


def test_what_would_collide_on_the_host_is_a_mistake(tmp_path: Path) -> None:
    text = GOOD.replace("/srv/dcnode", "/var/lib/dcupgrade").replace("[vault]", "port = 6666\n[vault]")
    text = text.replace("[chain]", 'http_listen = "127.0.0.1:6666"\n[chain]')
    text += '[[webhooks]]\nurl = "http://h/"\n[[webhooks]]\nurl = "http://h/"\nevents = ["upgrade.halted"]\n'
    assert [mistake.split(":")[0] for mistake in mistakes_of(tmp_path, text)] == [
        "node.data_dir",
        "node.port",
        "agent.http_listen",
        "webhooks",
    ]


def test_a_misspelt_key_is_answered_with_the_one_that_is_meant(tmp_path: Path) -> None:
    text = GOOD.replace("state_dir", "state_dri").replace("[chain]", "[chains]")
    found = mistakes_of(tmp_path, text, {"DCUPGRADE_NODE__PROT": "1"})
    for part in (
        "state_dri (is state_dir meant?)",
        "chains (is chain meant?)",
        "DCUPGRADE_NODE__PROT",
        "(is port meant?)",
    ):
        assert any(part in mistake for mistake in found), part


@pytest.mark.parametrize("environ", [{}, {"DCUPGRADE_AGENT__STATE_DIR": "/x"}])
def test_a_section_that_is_no_table_is_named(tmp_path: Path, environ: dict[str, str]) -> None:
    assert "agent: 5 is not a table" in mistakes_of(tmp_path, "agent = 5\n", environ)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('start = "25:99"', "start"),
        ('start = "3:00"', "start"),
        ('zone = "Mars/Base"', "zone"),
        ('zone = "../x"', "zone"),
        ('zone = "Europe"', "zone"),
        ("duration_s = 604801", "duration_s"),
        ('days = ["sunday"]', "days[0]"),
    ],
)
def test_a_window_that_could_never_be_read_is_a_mistake(tmp_path: Path, line: str, key: str) -> None:
    window = {"days": 'days = ["mon"]', "start": 'start = "03:00"', "duration_s": "duration_s = 3600", "zone": ""}
    window[line.split()[0]] = line
    text = GOOD + "[[upgrade.windows]]\n" + "\n".join(window.values())
    assert [mistake.split(":")[0] for mistake in mistakes_of(tmp_path, text)] == [f"upgrade.windows[0].{key}"]


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    environ = {"DCUPGRADE_NODE__PORT": "7001", "DCUPGRADE_CHAIN__ENDPOINTS": "ws://a, ws://b", "HOME": "/"}
    loaded = load.load(write(tmp_path, GOOD), environ)
    assert loaded.node.port == 7001
    assert loaded.chain.endpoints == ("ws://a", "ws://b")


def test_an_unknown_environment_override_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(load.SettingsError, match="DCUPGRADE_NODE__COLOUR"):
        load.load(write(tmp_path, GOOD), {"DCUPGRADE_NODE__COLOUR": "red"})


@pytest.mark.parametrize("text", ["[agent", "\x00"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(load.SettingsError) as caught:
        load.load(write(tmp_path, text), {})
    assert caught.value.code == "SETTINGS_UNREADABLE"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(load.SettingsError) as caught:
        load.load(tmp_path / "absent.toml", {})
    assert caught.value.code == "SETTINGS_UNREADABLE"


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("[agent]", "log_level = 3"),
        ("[chain]", 'unsafe_unproven_reads = "maybe"'),
        ("[node]", "probation_s = nan"),
        ("[node]", "port = true"),
        ("[node]", 'command = "run"'),
        ("[vault]", 'url = "ftp://x"'),
        ("[vault]", 'url = "http://127.0.0.1"'),
        ("[vault]", 'url = "http://10.0.0.7:6666"'),
        ("[vault]", 'url = "http://127.0.0.1.example:6666"'),
        ("[vault]", 'url = "http://[::1:6666"'),
        ("[agent]", 'http_listen = "6680"'),
        ("[agent]", 'http_listen = "127.0.0.1:99999"'),
        ("[node]", 'command = ["run", "{data-dir}"]'),
        ("[node]", 'command = ["run", "{"]'),
        ("[node]", 'canary_url = "canary"'),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_by_its_key(tmp_path: Path, section: str, line: str) -> None:
    with pytest.raises(load.SettingsError) as caught:
        load.load(write(tmp_path, GOOD.replace(section, f"{section}\n{line}")), {})
    assert [mistake.split(":")[0] for mistake in caught.value.mistakes] == [f"{section[1:-1]}.{line.split()[0]}"]


@pytest.mark.parametrize("value", ["0xAB", "0x" + "AB" * 32, "ab" * 32])
def test_a_genesis_hash_is_compared_as_text_so_its_form_is_fixed(tmp_path: Path, value: str) -> None:
    text = re.sub("genesis_hash = .*", f'genesis_hash = "{value}"', GOOD)
    assert [mistake.split(":")[0] for mistake in mistakes_of(tmp_path, text)] == ["chain.genesis_hash"]


def test_a_key_that_no_vault_would_take_is_a_mistake(tmp_path: Path) -> None:
    text = re.sub("network_keys = .*", 'network_keys = ["b…"]', GOOD)
    assert [mistake.split(":")[0] for mistake in mistakes_of(tmp_path, text)] == ["chain.network_keys"]


def test_the_example_shows_every_table_and_is_good_with_them(tmp_path: Path) -> None:
    text = settings_reference.example_toml().replace("b…", re.findall('network_keys = \\["(.*)"', GOOD)[0])
    text = text.replace("[chain]", '[chain]\nfinality = "single"').replace("[vault]", "[vault]\nstart = false")
    blocks = [
        re.sub("^# ", "", block, flags=re.M) if block.startswith("# [[") else block for block in text.split("\n\n")
    ]
    loaded = load.load(write(tmp_path, "\n\n".join(blocks)), {})
    assert loaded.upgrade.windows[0].start == "03:00"
    assert loaded.webhooks[0].url.startswith("https://")
    for key in ("days", "start", "duration_s", "zone"):
        assert f"| `{key}` |" in settings_reference.reference_markdown().split("`[[upgrade.windows]]`")[-1]
