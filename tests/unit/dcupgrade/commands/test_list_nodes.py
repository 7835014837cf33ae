"""The nodes of a host, and the settings that two nodes must not share."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.doubles.command_line import KEY, run


def write(folder: Path, name: str, first: int, **changed: str) -> None:
    values = {
        "state_dir": f"{folder}/state-{name}",
        "data_dir": f"{folder}/data-{name}",
        "http_listen": f"127.0.0.1:{first}",
        "id": f"host-{name}",
        "port": str(first + 1),
        "url": f"http://127.0.0.1:{first + 2}",
        **changed,
    }
    (folder / f"{name}.toml").write_text(
        '[agent]\nstate_dir = "%(state_dir)s"\nhttp_listen = "%(http_listen)s"\n'
        '[chain]\nendpoints = ["ws://127.0.0.1:9"]\nnetwork_keys = ["KEY"]\nfinality = "single"\n'
        '[node]\nid = "%(id)s"\ndata_dir = "%(data_dir)s"\nport = %(port)s\n'
        '[vault]\nstart = false\nurl = "%(url)s"\n'.replace("KEY", KEY)
        % values
    )


def listed(folder: Path, code: int = 0) -> dict[str, dict[str, object]]:
    exit_code, output = run(folder / "dcupgrade.toml", "list", "--json")
    assert exit_code == code, output
    return {item["name"]: item for item in json.loads(output)}


def test_each_settings_file_of_the_folder_is_a_node(tmp_path: Path) -> None:
    write(tmp_path, "alpha", 21)
    write(tmp_path, "beta", 31)
    found = listed(tmp_path)
    assert list(found) == ["alpha", "beta"]
    assert found["beta"] == {
        **{"name": "beta", "node_id": "host-beta", "port": 32, "vault": "http://127.0.0.1:33", "problems": []},
        **{"page": "127.0.0.1:31", "version": "", "agent": "does not answer"},
    }


def test_the_table_is_for_people(tmp_path: Path) -> None:
    write(tmp_path, "alpha", 21)
    _, output = run(tmp_path / "dcupgrade.toml", "list")
    assert output.splitlines()[0].split() == ["name", "node", "port", "vault", "page", "runs", "agent"]
    assert "host-alpha" in output


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"id": "host-alpha"}, "node.id host-alpha"),
        ({"port": "22"}, "port 22"),
        ({"url": "http://127.0.0.1:22"}, "port 22"),
        ({"http_listen": "127.0.0.1:23"}, "port 23"),
        ({"data_dir": "FOLDER/data-alpha"}, "folder FOLDER/data-alpha"),
        ({"state_dir": "FOLDER/other/../state-alpha"}, "folder FOLDER/state-alpha"),
    ],
)
def test_what_two_nodes_share_is_named_at_both(tmp_path: Path, changed: dict[str, str], problem: str) -> None:
    write(tmp_path, "alpha", 21)
    write(tmp_path, "beta", 31, **{key: value.replace("FOLDER", str(tmp_path)) for key, value in changed.items()})
    found = listed(tmp_path, code=3)
    wanted = problem.replace("FOLDER", str(tmp_path))
    assert f"{wanted} is also used by beta" in found["alpha"]["problems"]  # type: ignore[operator]
    assert f"{wanted} is also used by alpha" in found["beta"]["problems"]  # type: ignore[operator]


def test_a_file_with_mistakes_does_not_hide_the_others(tmp_path: Path) -> None:
    write(tmp_path, "alpha", 21)
    (tmp_path / "beta.toml").write_text("[agent]\n")
    found = listed(tmp_path, code=3)
    assert found["alpha"]["problems"] == []
    assert "node" in str(found["beta"]["problems"])


def test_the_settings_of_the_operators_page_let_two_nodes_live_beside_each_other(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operators" / "several-nodes.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    chain = f'[chain]\nendpoints = ["ws://127.0.0.1:9"]\nnetwork_keys = ["{KEY}"]\nfinality = "single"\n'
    other = block.replace("alpha", "beta").replace(":66", ":67").replace("6682", "6782").replace(":6701", ":6801")
    for name, text in (("alpha", block), ("beta", other)):
        (tmp_path / f"{name}.toml").write_text(chain + text)
    assert [item["problems"] for item in listed(tmp_path).values()] == [[], []]
    units = "".join(path.read_text() for path in (ROOT / "dcupgrade" / "deploy" / "systemd").glob("*@.service"))
    for folder in ("/srv/dcnodes/", "dcupgrade-nodes/", "dcupgrade-vaults/"):
        assert f"{folder}%i" in units
        assert f"{folder}alpha" in page


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    assert "no settings file" in run(tmp_path / "dcupgrade.toml", "list")[1]
