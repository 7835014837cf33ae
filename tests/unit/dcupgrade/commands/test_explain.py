from pathlib import Path

from dcupgrade.commands import explain as codes
from tests.doubles.command_line import run


def test_explain_knows_every_code(config: Path) -> None:
    for code in codes.all_codes():
        exit_code, text = run(config, "explain", code)
        assert exit_code == 0
        assert text.startswith(f"{code}: ")
        assert "\nDo: " in text
        assert "**" not in text
        assert "`" not in text


def test_explain_names_the_codes_that_are_spelt_alike(config: Path) -> None:
    assert "SOURCE_WONT_START" in run(config, "explain", "SOURCE_WONT")[1]
    assert "VAULT_REPLACED" in run(config, "explain", "vault_replacd")[1]
