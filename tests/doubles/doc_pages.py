"""The commands that a page of the documentation shows, and what the page says of who runs them."""

import re
from dataclasses import dataclass

from tests.conftest import ROOT

_BLOCK = re.compile(r"^(?P<mark><!-- [^\n]* -->\n)?```(?:sh)?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Commands:
    """A block of commands. `mark` is the comment above it, or the page's `all: …`: `run by FILE` or `not run: WHY`."""

    page: str
    heading: str
    mark: str
    text: str

    @property
    def run_by(self) -> str:
        """The test that runs them; empty where none does."""
        found = re.match(r"run by (\S+?)[,:]?( |$)", self.mark)
        return found[1] if found else ""


def block(page: str, fragment: str) -> str:
    """The one block of a page that holds the fragment."""
    [found] = [commands.text for commands in commands_of(page) if fragment in commands.text]
    return found


def commands_of(page: str) -> list[Commands]:
    """Blocks of commands of a page, by its path in the checkout, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^ *```(?!sh\n)[a-z]+\n.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    of_page = re.search(r"^<!-- all: (.*) -->$", text, re.MULTILINE)
    found = []
    for match in _BLOCK.finditer(text):
        before = re.sub(r"^```.*?^```$", "", text[: match.start()], flags=re.DOTALL | re.MULTILINE)
        headings = re.findall(r"^#+ (.*)$", before, re.MULTILINE)
        mark = (match["mark"] or "").strip().removeprefix("<!--").removesuffix("-->").strip()
        mark = mark or (of_page[1] if of_page else "")
        found.append(Commands(page, headings[-1] if headings else "", mark, match["text"]))
    return found
