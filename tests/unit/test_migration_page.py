"""docs/migration.md: its commands exist, and those that no trial runs give the reason."""

import re
import shlex

import pytest
from click.testing import CliRunner

from dcupgrade.commands.main import cli
from tests.conftest import ROOT
from tests.e2e.upgrade_parts.followed_page import sections

PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
COMMANDS = [command for commands in sections(PAGE).values() for command, _ in commands]
TRIAL = (ROOT / "tests" / "e2e" / "test_field.py").read_text(encoding="utf-8")


def test_every_block_of_commands_is_in_a_section_that_the_trial_follows_or_says_why_it_is_not_run() -> None:
    followed = set(re.findall(r"page\.follow\((\d)\)", TRIAL))
    for heading, commands in sections(PAGE).items():
        assert heading[0] in followed or not any(is_run for _, is_run in commands)
    assert len(re.findall(r"^```sh$", PAGE, re.M)) == len(re.findall(r"^```$", PAGE, re.M)), "no other kind of block"


@pytest.mark.parametrize("command", [line for line in COMMANDS if "systemctl" in line and "--now" in line])
def test_the_trial_does_what_the_services_do(command: str) -> None:
    assert f'"{command.removeprefix("systemctl ")}"' in TRIAL


@pytest.mark.parametrize("command", [line for line in COMMANDS if "dcupgrade " in line and "docker" not in line])
def test_every_command_of_ours_exists_with_its_options(command: str) -> None:
    words = shlex.split(command.partition(" > ")[0])
    if "dcupgrade" not in words or words[0] not in ("dcupgrade", "runuser"):
        return  # a user or a path of that name
    words = words[len(words) - words[::-1].index("dcupgrade") :]
    done = CliRunner().invoke(cli, [*words, "--help"])  # an option that is not there is refused all the same
    assert done.exit_code == 0, done.output
    assert "Usage: " in done.output
