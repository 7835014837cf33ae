"""`dcupgrade node` with a process that plays the node: starts, refusals and outcomes."""

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dcupgrade.adapters.journal import Journal
from dcupgrade.adapters.node_process import node_name
from dcupgrade.adapters.node_slots import NodeSlots
from dcupgrade.commands import operator
from dcupgrade.machine.events import Adopted, Event, RestartCommand
from dcupgrade.machine.operator_commands import outcome_of
from dcupgrade.machine.state import Name, Release, State
from dcupgrade.upgrade.ports import Entry
from tests.doubles.command_line import run

RUNNING, TARGET = (Release(letter * 64, version) for letter, version in (("a", "1.0.0"), ("b", "1.1.0")))
NODE = """
import http.server, json, signal, sys
class Node(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"status": sys.argv[2], "enclave_id": sys.argv[3]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Node).serve_forever()
"""


class Host:
    """A state folder whose node is a real process that says of its health what `says` holds."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.config = folder, port, folder / "dcupgrade.toml"
        self.write("serving")

    def write(self, says: str) -> None:
        """The settings, with a node that says this of its health."""
        (self.folder / "node.py").write_text(NODE)
        command = [sys.executable, str(self.folder / "node.py"), "{port}", says, "{enclave_id}"]
        self.config.write_text(
            f'[agent]\nstate_dir = "{self.folder}/state"\nhttp_listen = "off"\n'
            f'[chain]\nendpoints = ["ws://127.0.0.1:9"]\nnetwork_keys = ["{"00" * 31}02"]\nfinality = "single"\n'
            f'[node]\nid = "n1"\ndata_dir = "{self.folder}/data"\nport = {self.port}\nstop_grace_s = 5.0\n'
            f"ready_deadline_s = {0.5 if says != 'serving' else 60.0}\ncommand = {json.dumps(command)}\n"
            "[vault]\nstart = false\n"
        )

    def journal(self, state: State) -> None:
        """Put the machine into a state."""
        (self.folder / "state" / "slots" / RUNNING.enclave_id).mkdir(parents=True, exist_ok=True)
        made = Journal(self.folder / "state" / "journal.sqlite3")
        made.append(Entry(State(), Adopted(""), state, ()))
        made.close()

    def node(self, *arguments: str) -> tuple[int, str]:
        """Run `dcupgrade node …`."""
        return run(self.config, "node", *arguments)

    def pid(self) -> int:
        """The pid in the node's record."""
        record = self.folder / "state" / "run" / f"{node_name(RUNNING.enclave_id)}.json"
        return int(json.loads(record.read_text())["pid"])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    async def good(*_: object) -> bool:
        return True

    monkeypatch.setattr(NodeSlots, "slot_is_good", good)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        made = Host(tmp_path, free.getsockname()[1])
    made.journal(State(running=RUNNING))
    yield made
    made.node("stop")


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_node_is_started_found_running_restarted_and_stopped(host: Host) -> None:
    assert host.node("stop") == (0, "no node runs\n")
    assert host.node("start") == (0, f"node 1.0.0: serves, as pid {host.pid()}\n")
    first = host.pid()
    assert host.node("start") == (0, f"node 1.0.0: runs already as pid {first}\n")
    assert host.node("restart") == (0, f"node 1.0.0: serves, as pid {host.pid()}\n")
    assert host.pid() != first
    assert not lives(first)
    assert host.node("stop") == (0, "node 1.0.0: ended\n")
    assert host.node("restart")[0] == 0, "a restart of what does not run starts it"


@pytest.mark.parametrize("command", ["start", "restart"])
@pytest.mark.parametrize(
    ("state", "why"),
    [
        (State(Name.LAUNCHING, running=RUNNING, target=TARGET), "an upgrade is in state launching"),
        (State(Name.HALTED, running=RUNNING, target=TARGET, halted="TARGET_WONT_STOP"), "halted: TARGET_WONT_STOP"),
        (State(), "no node is installed"),
    ],
)
def test_where_the_machine_keeps_no_node_none_is_started(host: Host, command: str, state: State, why: str) -> None:
    host.journal(state)
    code, told = host.node(command)
    assert code == 1
    assert "NODE_NOT_KEPT" in told
    assert why in told
    assert host.node("stop") == (0, "no node runs\n")


@pytest.mark.parametrize("command", ["start", "restart"])
def test_damaged_files_are_not_started_and_what_serves_is_not_stopped_for_them(
    host: Host, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def damaged(*_: object) -> bool:
        return False

    if command == "restart":
        assert host.node("start")[0] == 0
    monkeypatch.setattr(NodeSlots, "slot_is_good", damaged)
    code, told = host.node(command)
    assert (code, "SOURCE_SLOT_DAMAGED" in told) == (1, True)
    if command == "restart":
        assert lives(host.pid())


def test_a_node_that_does_not_come_to_serve_is_told_and_left(host: Host) -> None:
    host.write("waiting_for_keys")
    host.config.write_text(host.config.read_text().replace("stop_grace_s = 5.0", "stop_grace_s = 0.5"))
    code, told = host.node("start")
    assert code == 1
    assert "NODE_NOT_READY" in told
    assert lives(host.pid())


@pytest.fixture
def agent(host: Host) -> Iterator[None]:
    """An agent that works on the folder, and takes up no command."""
    with (host.folder / "state" / ".agent.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("command", ["start", "stop"])
def test_what_the_agent_does_itself_is_refused_while_it_runs(host: Host, command: str) -> None:
    code, told = host.node(command)
    assert code == 1
    assert "AGENT_ALREADY_RUNNING" in told
    assert "systemctl stop dcupgrade" in told


@pytest.mark.usefixtures("agent")
def test_the_agent_that_runs_is_asked_for_the_restart(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "ANSWER_WAIT_S", 0.0)
    code, told = host.node("restart", "--reason", "it hangs")
    assert (code, "COMMAND_WAITS" in told) == (1, True)
    with closing(Journal(host.folder / "state" / "journal.sqlite3")) as journal:
        [command] = journal.commands()
    assert (command.kind, dict(command.arguments)) == ("restart", {"reason": "it hangs"})


@pytest.mark.parametrize(
    ("event", "code", "text"),
    [
        (RestartCommand(), "", "the node is stopped and started again now"),
        (RestartCommand(files_damaged="gone"), "SOURCE_SLOT_DAMAGED", "gone"),
    ],
)
def test_the_outcome_of_a_restart_that_the_agent_takes_up(event: Event, code: str, text: str) -> None:
    state = State(running=RUNNING)
    told = outcome_of(state, event, state)
    assert (told.accepted, told.code, told.text) == (not code, code, text)
