"""Values that the host may give when a vault starts."""

from pathlib import Path

import pytest

from keyvault.errors import KeyvaultError
from keyvault.vault.start_files import listen_address

MEASURED = "127.0.0.1:6666"


def test_without_a_port_file_the_measured_port_counts(tmp_path: Path) -> None:
    assert listen_address(MEASURED, None) == ("127.0.0.1", 6666)
    assert listen_address(MEASURED, tmp_path / "absent") == ("127.0.0.1", 6666)
    assert listen_address("[::1]:0", None) == ("::1", 0)


def test_a_port_file_changes_the_port_and_never_the_address(tmp_path: Path) -> None:
    (tmp_path / "port").write_text(" 7001\n")
    assert listen_address(MEASURED, tmp_path / "port") == ("127.0.0.1", 7001)


@pytest.mark.parametrize("text", ["", "0.0.0.0:7001", "65536", "-1", "٣", "9" * 5000, "7001\n7002", "7 001"])
def test_what_is_no_port_stops_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "port").write_text(text)
    with pytest.raises(KeyvaultError) as caught:
        listen_address(MEASURED, tmp_path / "port")
    assert caught.value.code == "VAULT_START_REFUSED"


def test_a_port_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "port").mkdir()
    with pytest.raises(KeyvaultError) as caught:
        listen_address(MEASURED, tmp_path / "port")
    assert caught.value.code == "VAULT_START_REFUSED"
