import re
from pathlib import Path

import pytest

from dcupgrade.settings import load
from dcupgrade.settings import reference as settings_reference
from dcupgrade.settings.errors import SettingsError
from dcupgrade.settings.folders import missing_files

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
    with pytest.raises(SettingsError) as caught:
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
    with pytest.raises(SettingsError) as caught:
        load.load(write(tmp_path, text), {})
    assert [mistake.split(":")[0] for mistake in caught.value.mistakes] == [
        "chain.threshold",
        "chain.quorum",
        "vault.image",
        "vault.sigstruct",
        "vault.auth_file",
    ]


def mistakes_of(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
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
    with pytest.raises(SettingsError, match="DCUPGRADE_NODE__COLOUR"):
        load.load(write(tmp_path, GOOD), {"DCUPGRADE_NODE__COLOUR": "red"})


@pytest.mark.parametrize("text", ["[agent", "\x00", "a = " + "[" * 3000], ids=["open", "zero", "deep"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load.load(write(tmp_path, text), {})
    assert caught.value.code == "SETTINGS_UNREADABLE"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
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
    with pytest.raises(SettingsError) as caught:
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


@pytest.mark.parametrize("value", ["", "state", "./state", "~/state", "~root/x"])
def test_only_absolute_paths_are_taken(tmp_path: Path, value: str) -> None:
    text = GOOD.replace("/var/lib/dcupgrade", value)
    assert mistakes_of(tmp_path, text) == [f"agent.state_dir: {value!r} is not an absolute path"]


@pytest.mark.parametrize("value", ["/data\n", "/da\tta", "/data\x00"])
def test_a_path_with_characters_that_nobody_meant_is_a_mistake(tmp_path: Path, value: str) -> None:
    found = mistakes_of(tmp_path, GOOD, {"DCUPGRADE_NODE__DATA_DIR": value})
    assert found == [f"node.data_dir: {value!r} holds characters that no path here has"]


@pytest.mark.parametrize(
    ("host", "good"),
    [
        *(("mirror.lan", True), ("registry", True), ("10.1.2.3", True), ("::1", True), ("fd00::5", True)),
        *(("mirror.lan:5000", False), ("https://mirror.lan", False), ("mirror.lan/", False), ("[::1]", False)),
        *((" mirror.lan", False), ("*.lan", False), ("", False)),
    ],
)
def test_a_host_that_could_match_nothing_is_a_mistake(tmp_path: Path, host: str, good: bool) -> None:
    text = GOOD + f'[download]\nearly_hosts = ["{host}"]\n'
    if good:
        assert load.load(write(tmp_path, text), {}).download.early_hosts == (host,)
    else:
        assert [mistake.split(":")[0] for mistake in mistakes_of(tmp_path, text)] == ["download.early_hosts"]


@pytest.mark.parametrize(
    "folder", ["/srv/dcnode", "/srv/dcnode/cpu", "/var/lib/dcupgrade/slots/cpu", "/var/lib/dcupgrade/run"]
)
def test_the_simulated_cpu_has_a_folder_of_its_own(tmp_path: Path, folder: str) -> None:
    text = GOOD.replace("[vault]", f'[vault]\ncpu_dir = "{folder}"')
    found = mistakes_of(tmp_path, text)
    assert len(found) == 1
    assert "cpu_dir" in found[0]


def test_an_empty_environment_variable_counts_as_not_set(tmp_path: Path) -> None:
    names = ("AGENT__STATE_DIR", "CHAIN__ENDPOINTS", "NODE__PORT", "VAULT__START", "CHAIN__FINALITY", "VAULT__IMAGE")
    environ = {f"DCUPGRADE_{name}": empty for name in names for empty in ("", " ")}
    assert load.load(write(tmp_path, GOOD), environ) == load.load(write(tmp_path, GOOD), {})
    text = GOOD.replace('state_dir = "/var/lib/dcupgrade"', "")
    assert mistakes_of(tmp_path, text, environ) == ["agent.state_dir: missing state_dir"]


@pytest.mark.parametrize("line", ['port = "6671"', 'probation_s = "3"', "stop_grace_s = true", "port = 6671.0"])
def test_a_toml_value_has_the_type_of_its_setting(tmp_path: Path, line: str) -> None:
    found = mistakes_of(tmp_path, GOOD.replace("[node]", f"[node]\n{line}"))
    assert [mistake.split(":")[0] for mistake in found] == [f"node.{line.split()[0]}"]


def test_the_environment_has_only_text_and_is_read_by_the_type_of_the_setting(tmp_path: Path) -> None:
    environ = {"DCUPGRADE_VAULT__START": "False", "DCUPGRADE_NODE__PROBATION_S": "1.5", "DCUPGRADE_NODE__PORT": "7002"}
    loaded = load.load(write(tmp_path, GOOD), environ)
    assert (loaded.vault.start, loaded.node.probation_s, loaded.node.port) == (False, 1.5, 7002)
    assert mistakes_of(tmp_path, GOOD, {"DCUPGRADE_VAULT__START": "yes"}) == [
        "vault.start: 'yes' is neither true nor false"
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('finality = "Single"', "chain.finality: 'Single' is not one of proven, quorum, single (is single meant?)"),
        ("finality = 3", "chain.finality: 3 is not one of proven, quorum, single"),
        ("finality = []", "chain.finality: [] is not one of proven, quorum, single"),
    ],
)
def test_a_wrong_choice_is_answered_with_the_choices(tmp_path: Path, line: str, why: str) -> None:
    assert mistakes_of(tmp_path, GOOD.replace("[chain]", f"[chain]\n{line}")) == [why]


@pytest.mark.parametrize(
    ("event", "hint"), [("upgrade.comitted", "is upgrade.committed meant?"), ("*", "known are upgrade.idle")]
)
def test_a_misspelt_webhook_event_is_a_mistake(tmp_path: Path, event: str, hint: str) -> None:
    text = GOOD + f'[[webhooks]]\nurl = "http://h/"\nevents = ["upgrade.halted", "{event}"]\n'
    (mistake,) = mistakes_of(tmp_path, text)
    assert mistake.startswith("webhooks[0].events:")
    assert hint in mistake


@pytest.mark.parametrize("place", ["state", "state/slots/x", "state/logs", "store", "store/below", ".", "link"])
def test_folders_that_are_one_folder_are_a_mistake_also_by_a_link(tmp_path: Path, place: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "state", target_is_directory=True)
    text = GOOD.replace("/var/lib/dcupgrade", str(tmp_path / "state")).replace("/srv/dcnode", str(tmp_path / place))
    text = text.replace("[vault]", f'[vault]\nstore_dir = "{tmp_path / "store"}"')
    assert any("data_dir" in mistake and "of its own" in mistake for mistake in mistakes_of(tmp_path, text))


def test_the_sealed_store_may_lie_in_the_state_folder_but_not_where_the_agent_cleans_up(tmp_path: Path) -> None:
    text = GOOD.replace("[vault]", '[vault]\nstore_dir = "/var/lib/dcupgrade/slots/store"')
    assert [mistake.split(":")[0] for mistake in mistakes_of(tmp_path, text)] == ["vault.store_dir"]


def test_files_that_the_settings_name_and_that_are_not_there_are_listed(tmp_path: Path) -> None:
    (tmp_path / "vault.sig").write_bytes(b"")
    text = GOOD.replace("/etc/dcupgrade/checkpoint.json", str(tmp_path / "checkpoint.json")).replace(
        "start = false", "\n".join(f'{key} = "{tmp_path}/vault.{end}"' for key, end in VAULT_FILES)
    )
    (tmp_path / "vault.auth").mkdir()
    text += f'[[webhooks]]\nurl = "http://h/"\nsecret_file = "{tmp_path}/secret"\n'
    found = missing_files(load.load(write(tmp_path, text), {}))
    assert [mistake.split(":")[0] for mistake in found] == [
        "chain.checkpoint_file",
        "vault.image",
        "vault.auth_file",
        "webhooks[0].secret_file",
    ]


VAULT_FILES = (("image", "pyz"), ("sigstruct", "sig"), ("auth_file", "auth"))
