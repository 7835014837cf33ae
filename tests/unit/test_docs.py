"""The documentation agrees with the program."""

import re
import runpy
import subprocess
import sys

import pytest

from dcupgrade.commands import explain as codes
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES: dict[str, str] = runpy.run_path(str(DOCS / "build.py"))["pages"]()


def test_every_code_has_a_runbook_entry_and_every_entry_a_code() -> None:
    entries = [
        code
        for page in sorted((DOCS / "runbook").glob("*.md"))
        for code in re.findall(r"^## ([A-Z0-9_]+)$", page.read_text(), re.M)
    ]
    assert len(entries) == len(set(entries))
    assert set(entries) == set(codes.all_codes())


def test_every_entry_says_what_to_do() -> None:
    assert [code for code in codes.all_codes() if "\n\n**Do:** " not in str(codes.runbook_entry(code))] == []


def test_every_area_of_the_runbook_is_in_its_table_and_on_the_site() -> None:
    areas = {page.name for page in (DOCS / "runbook").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\(([a-z-]+\.md)\)", (DOCS / "runbook" / "README.md").read_text())) == areas
    assert set(re.findall(r"runbook/([a-z-]+\.md)", (ROOT / ".ci" / "mkdocs.yml").read_text())) == areas


def test_explain_prints_the_runbook_entry() -> None:
    entry = codes.runbook_entry("VAULT_REPLACED")
    assert entry is not None
    assert "**Do:**" in entry
    assert "##" not in entry


@pytest.mark.parametrize("name", sorted(PAGES))
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name], "run `make docs` and commit"


def test_the_site_builds_without_a_broken_link(tmp_path: object) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", ".ci/mkdocs.yml", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_links_between_files_of_the_checkout_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "sdk").rglob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []
