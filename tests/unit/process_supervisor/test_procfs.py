"""What /proc says: who listens, which unit a process belongs to, what is hidden."""

import os
import socket
from pathlib import Path

import pytest

from process_supervisor import procfs
from process_supervisor.procfs import listener_of, process_facts, session_members


def test_who_listens_on_a_port() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert listener_of(port) is None
        listener.listen()
        assert listener_of(port) == os.getpid()


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/dcnode.service\n", "dcnode.service"),
        ("2:cpu:/\n1:name=systemd:/system.slice/dcnode.service/inner\n", "dcnode.service"),
        ("0::/user.slice/user-0.slice\n", ""),
    ],
)
def test_which_unit_a_process_belongs_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, unit: str) -> None:
    monkeypatch.setattr(procfs, "PROC", tmp_path)
    assert procfs.unit_of(7) == ""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(text)
    assert procfs.unit_of(7) == unit


def test_processes_that_proc_hides_are_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc mounted with hidepid=1: folders of other users' processes are visible, their files are not readable."""
    real, own = Path.read_bytes, os.getpid()

    def read_bytes(path: Path) -> bytes:
        if path.name == "stat" and path.parent.name != str(own):
            raise PermissionError(1, "Operation not permitted", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    facts = process_facts(own)
    assert facts is not None
    assert {item.pid for item in session_members(facts.session)} == {own}
