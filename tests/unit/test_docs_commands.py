"""Each command that the documentation shows is run by a test or marked as not run, and exists with its options."""

import re
import shlex

import click
import pytest

from dcupgrade.commands.main import cli
from tests.conftest import ROOT
from tests.doubles.doc_pages import Commands, commands_of

GENERATED = {"docs/cli.md"}
PAGES = sorted(
    {str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]} - GENERATED
)
SHOWN = [block for page in PAGES for block in commands_of(page)]


def where(block: Commands) -> str:
    return f"{block.page}, {block.heading}: {block.text.splitlines()[0][:60]}"


def test_commands_are_found() -> None:
    assert len(SHOWN) > 30
    assert any("dcupgrade node stop" in block.text for block in SHOWN)


@pytest.mark.parametrize("block", SHOWN, ids=where)
def test_each_block_says_which_test_runs_it_or_why_none_does(block: Commands) -> None:
    if block.mark.startswith("not run"):
        assert len(block.mark.partition(": ")[2]) > 10
        return
    assert block.run_by, f"{where(block)}: `<!-- run by tests/… -->` or `<!-- not run: why -->` is missing above it"
    assert block.page.rsplit("/", 1)[-1] in (ROOT / block.run_by).read_text(encoding="utf-8")


def lines_of(program: str) -> list[tuple[str, str]]:
    """Each call of a program in the blocks: where it stands, and its arguments."""
    found = []
    for block in SHOWN:
        whole = re.sub(r"\\\n\s*", " ", block.text)
        for line in whole.splitlines():
            for call in re.findall(rf"(?:^|[|;$(&] *|-- ){program} ([^|;&#>)]*)", line):
                found.append((where(block), call.strip()))
    return found


@pytest.mark.parametrize(("place", "call"), lines_of("dcupgrade"), ids=lambda text: text[:50])
def test_each_command_of_the_agent_exists_with_its_options(place: str, call: str) -> None:
    words = shlex.split(re.sub(r"(^| )(-c|--config) \S+", r"\1", call))
    command: click.Command | None = cli
    ctx = click.Context(cli, info_name="dcupgrade")
    for word in words:
        if not isinstance(command, click.Group):
            break
        if not word.startswith("-"):
            command = command.get_command(ctx, word)
            assert command is not None, f"{place}: there is no {word!r}"
    assert command is not None
    known = {name for parameter in [*command.params, *cli.params] for name in parameter.opts} | {"--help"}
    assert [word for word in words if word.startswith("--") and word.split("=")[0] not in known] == [], place


@pytest.mark.parametrize(("place", "call"), lines_of("keyvault"), ids=lambda text: text[:50])
def test_each_command_of_the_vault_exists_with_its_options(place: str, call: str) -> None:
    from keyvault.__main__ import _parser

    words = shlex.split(call)
    [commands] = [action for action in _parser()._actions if action.dest == "command" or action.choices]
    assert isinstance(commands.choices, dict)
    assert words[0] in commands.choices, place
    known = commands.choices[words[0]]._option_string_actions
    assert [word for word in words if word.startswith("--") and word not in known] == [], place
