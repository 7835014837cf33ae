import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from dcupgrade import __version__
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine import picture
from dcupgrade.machine.gates import GateRules, Shut
from dcupgrade.machine.plan import Plan, plan
from dcupgrade.machine.state import ChainFacts, Hold, Name, Release, State
from dcupgrade.surfaces import http_api as web
from dcupgrade.surfaces.upgrades import ROWS_PER_UPGRADE
from keyvault.handover.guarded_server import GuardedServer

OLD = Release("a" * 64, "1.0.0", added_height=5)
NEW = Release("b" * 64, "1.1.0", added_height=9)
CHAIN = ChainFacts(NEW, ((OLD.enclave_id, 5), (NEW.enclave_id, 9)), 12)


class FakeAgent:
    def __init__(self) -> None:
        self.state = State(Name.STAGED, running=OLD, target=NEW, chain=CHAIN)
        self.words: list[tuple[str, str, Mapping[str, Any]]] = []
        self.facts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.readers = 0
        self.left = asyncio.Event()

    async def status(self) -> dict[str, Any]:
        return {
            "node_id": "n1", "tee": "simulated", "state": self.state.to_json(), "since_unix_s": 90.0,
            "now_unix_s": 100.0,
            "block_number": 12, "alarms": [{"code": "RUNNING_REVOKED", "detail": OLD.enclave_id}],
            "progress": {"download": {"done_bytes": 7}}, "node": {"status": "serving"},
            "vault": {"sealed_unix_s": 40.0, "reachable": False},
            "chain": {"endpoint": "ws://a", "finalized_age_s": 2.5, "last_number": 791, "finality": "proven",
                      "endpoints": [{"url": "ws://a"}, {"url": "ws://b"}],
                      "refused": {"NETWORK_SIGNATURE_BAD": 2}},
        }  # fmt: skip

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        self.readers += 1
        try:
            while True:
                yield await self.facts.get()
        finally:
            self.readers -= 1
            self.left.set()

    async def history(self, limit: int, every: bool) -> list[dict[str, Any]]:
        self.asked = (limit, every)
        row = {
            "seq": 1,
            "at_unix_s": 95.0,
            "from": "idle",
            "to": "staged",
            "event": "begin",
            "reason": "",
            "detail": "",
        }
        return [{**row, "running": OLD.enclave_id, "target": NEW.enclave_id, "version": "1.1.0"}]

    async def enqueue(self, kind: str, who: str, arguments: Mapping[str, Any]) -> int:
        self.words.append((kind, who, arguments))
        return len(self.words)

    async def plan(self) -> Plan:
        return plan(self.state, GateRules(), 100.0, 90.0)

    async def counts(self) -> dict[str, float]:
        return {"probation>committed": 3, "collecting>sealed": 4, "downtime_s": 1.5, "idle>halted": 1}

    async def outcome(self, number: int) -> dict[str, Any] | None:
        return {"accepted": True, "code": "", "text": "done"} if number == 1 else None

    def site(self) -> web.Site:
        return web.Site(
            status=self.status,
            plan=self.plan,
            events=self.events,
            history=self.history,
            counts=self.counts,
            enqueue=self.enqueue,
            outcome=self.outcome,
            explain=lambda code: (f"{code} means", f"do about {code}"),
            token="the token",
            allowed_hosts=frozenset({"node.example"}),
        )


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent()


@pytest.fixture
async def client(agent: FakeAgent) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(web.make_app(agent.site()))) as made:
        yield made


async def test_the_page_and_its_files_are_served_without_anything_from_outside(client: TestClient[Any, Any]) -> None:
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript")):
        answer = await client.get(path)
        text = await answer.text()
        assert answer.status == 200
        assert answer.content_type.endswith(kind)
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "https://" not in text


async def test_what_a_node_says_with_a_surrogate_is_shown_escaped(
    client: TestClient[Any, Any], agent: FakeAgent
) -> None:
    agent.state = replace(agent.state, halted="SOURCE_WONT_START", detail="\ud800")
    for path in ("/", "/metrics", "/api/v1/status"):
        assert (await client.get(path)).status == 200
    assert "\\ud800" in await (await client.get("/")).text()


async def test_the_machine_is_given_as_its_table(client: TestClient[Any, Any]) -> None:
    machine = await (await client.get("/api/v1/machine")).json()
    assert set(machine["states"]) == {name.value for name in Name}
    assert {"from": "probation", "to": "committed"}.items() <= next(
        edge for edge in machine["edges"] if edge["from"] == "probation" and edge["to"] == "committed"
    ).items()


async def test_the_picture_shows_every_state_and_every_edge_of_the_table(client: TestClient[Any, Any]) -> None:
    svg = await (await client.get("/machine.svg")).text()
    assert set(re.findall(r'data-state="(\w+)"', svg)) == {name.value for name in Name}
    table = {(edge["from"], edge["to"]) for edge in picture.edges() if edge["from"] != edge["to"]}
    assert set(re.findall(r"<title>(\w+) to (\w+):", svg)) == table


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
async def test_a_foreign_host_header_is_refused(client: TestClient[Any, Any], host: str) -> None:
    answer = await client.get("/api/v1/status", headers={"Host": host})
    assert answer.status == 403
    assert (await answer.json())["code"] == "HTTP_HOST_REFUSED"


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:6680", "node.example"])
async def test_loopback_and_allowed_hosts_are_answered(client: TestClient[Any, Any], host: str) -> None:
    assert (await client.get("/api/v1/status", headers={"Host": host})).status == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nope"}, {"Cookie": "token=the token"}])
async def test_an_action_without_the_token_is_refused(
    client: TestClient[Any, Any], agent: FakeAgent, headers: dict[str, str]
) -> None:
    answer = await client.post("/api/v1/actions/hold", json={}, headers=headers)
    assert answer.status == 401
    assert agent.words == []


async def test_an_action_with_the_token_queues_the_word(client: TestClient[Any, Any], agent: FakeAgent) -> None:
    headers = {"Authorization": "Bearer the token"}
    answer = await client.post("/api/v1/actions/hold", json={"reason": "audit", "who": "eve"}, headers=headers)
    assert await answer.json() == {"queued": 1}
    assert agent.words == [("hold", "eve", {"reason": "audit"})]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("explode", b"{}", 404),
        ("hold", b"[", 400),
        ("hold", b"[]", 400),
        ("hold", b"[" * 15000, 400),
        ("hold", b"x" * 20000, 413),
        ("hold", b'{"reason": {}}', 400),
        ("hold", b'{"reason": 7}', 400),
        ("hold", b'{"who": ["eve"]}', 400),
        ("hold", b'{"who": "\\ud800"}', 400),
        ("hold", b'{"reason": "\\udcfc"}', 400),
        ("hold", b'{"until_unix_s": "tomorrow"}', 400),
        ("hold", b'{"until_unix_s": NaN}', 400),
        ("hold", b'{"until_unix_s": 1e400}', 400),
        ("hold", b'{"until": 7}', 400),
        ("approve", b'{"enclave_id": "1.1.0"}', 400),
        ("revert", b'{"enclave_id": "' + b"a" * 64 + b'"}', 400),
    ],
)
async def test_a_bad_action_is_refused_with_a_code(
    client: TestClient[Any, Any], agent: FakeAgent, path: str, body: bytes, status: int
) -> None:
    answer = await client.post(f"/api/v1/actions/{path}", data=body, headers={"Authorization": "Bearer the token"})
    assert answer.status == status
    assert (await answer.json())["code"] == "HTTP_REFUSED"
    assert agent.words == []


async def test_a_token_that_is_no_text_is_refused_like_any_other(client: TestClient[Any, Any]) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"POST /api/v1/actions/hold HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
    assert b" 401 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_fault_of_the_agent_is_told_with_its_code(agent: FakeAgent) -> None:
    async def full(*_: Any) -> int:
        raise DcupgradeError(code="JOURNAL_WRITE_FAILED", what="journal /secret/path", why="disk full")

    site = replace(agent.site(), enqueue=full)
    async with TestClient(TestServer(web.make_app(site))) as client:
        answer = await client.post("/api/v1/actions/hold", headers={"Authorization": "Bearer the token"})
        assert answer.status == 500
        assert await answer.json() == {"code": "JOURNAL_WRITE_FAILED", "why": "see the agent's log"}


async def test_an_action_for_which_the_journal_has_no_time_is_told_to_come_again(agent: FakeAgent) -> None:
    async def busy(*_: Any) -> int:
        raise DcupgradeError(code="JOURNAL_BUSY", what="journal", why="64 calls wait for it already", kind="transient")

    async with TestClient(TestServer(web.make_app(replace(agent.site(), enqueue=busy)))) as client:
        answer = await client.post("/api/v1/actions/hold", headers={"Authorization": "Bearer the token"})
        assert (answer.status, (await answer.json())["code"]) == (503, "JOURNAL_BUSY")


async def test_readers_of_events_are_limited_and_one_who_is_gone_is_noticed(agent: FakeAgent) -> None:
    async with TestClient(TestServer(web.make_app(agent.site(), keep_alive_s=0.01))) as client:
        answers = [await client.get("/api/v1/events") for _ in range(web.STREAMS_MAX)]
        refused = await client.get("/api/v1/events")
        assert (refused.status, (await refused.json())["code"]) == (503, "HTTP_BUSY")
        assert agent.readers == web.STREAMS_MAX
        answers[0].close()  # nothing happens on this node: only the next sign of life meets a closed connection
        async with asyncio.timeout(10):
            await agent.left.wait()
        assert agent.readers == web.STREAMS_MAX - 1
        async with client.get("/api/v1/events") as again:
            assert again.status == 200
        for answer in answers:
            answer.close()


class SlowJournal:
    """Reads of the journal that wait until they are let through."""

    def __init__(self) -> None:
        self.begun = self.most_at_once = self.at_once = 0
        self.first_begun, self.let_through = asyncio.Event(), asyncio.Event()

    async def history(self, *_: Any) -> list[dict[str, Any]]:
        self.begun += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.first_begun.set()
        await self.let_through.wait()
        self.at_once -= 1
        return []

    async def counts(self) -> dict[str, float]:
        await self.history()
        return {}

    async def outcome(self, _: int) -> None:
        await self.history()


READS = ("/", "/metrics", "/api/v1/history", "/api/v1/upgrades", "/api/v1/commands/1")


async def test_readers_of_the_journal_take_turns_and_their_number_is_bounded(agent: FakeAgent) -> None:
    slow = SlowJournal()
    site = replace(agent.site(), history=slow.history, counts=slow.counts, outcome=slow.outcome)
    async with TestClient(TestServer(web.make_app(site))) as client, asyncio.timeout(10):
        paths = [READS[number % len(READS)] for number in range(web.READERS_MAX + 1)]
        reads = [asyncio.create_task(client.get(path)) for path in paths]
        (refused,), waiting = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
        assert (refused.result().status, (await refused.result().json())["code"]) == (503, "HTTP_BUSY")
        assert slow.begun == 1
        assert (await client.get("/api/v1/status")).status == 200
        slow.let_through.set()
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
        assert (slow.begun, slow.most_at_once) == (web.READERS_MAX, 1)
        assert (await client.get("/api/v1/history")).status == 200


async def test_a_reader_who_is_gone_when_its_turn_comes_is_not_read_for(agent: FakeAgent) -> None:
    """Otherwise a client that sends requests and closes at once could keep the journal busy."""
    slow, taken = SlowJournal(), asyncio.Semaphore(0)

    async def status() -> dict[str, Any]:
        taken.release()
        return await agent.status()

    site = replace(agent.site(), status=status, history=slow.history, counts=slow.counts)
    server = GuardedServer(web.make_app(site), shutdown_timeout_s=1.0)  # a TestServer would cancel what nobody awaits
    port = await server.start("127.0.0.1", 0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session, asyncio.timeout(10):
        first = asyncio.create_task(session.get("/api/v1/history"))
        await slow.first_begun.wait()
        for _ in range(10):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await taken.acquire()
            writer.close()
            await writer.wait_closed()
        assert (await session.get("/healthz")).status == 200  # by now their ends have been noticed
        slow.let_through.set()
        assert (await first).status == 200
        assert (await session.get("/api/v1/history")).status == 200
    await server.stop()
    assert slow.begun == 2


async def test_events_begin_with_the_status_and_go_on_with_facts(
    client: TestClient[Any, Any], agent: FakeAgent
) -> None:
    agent.facts.put_nowait({"type": "state", "to": "collecting"})
    async with client.get("/api/v1/events") as answer:
        lines = [await answer.content.readline() for _ in range(5)]
    assert lines[0] == b"event: status\n"
    assert json.loads(lines[1].removeprefix(b"data: "))["node_id"] == "n1"
    assert json.loads(lines[4].removeprefix(b"data: ")) == {"type": "state", "to": "collecting"}


async def test_metrics_tell_state_outcomes_and_alarms(client: TestClient[Any, Any]) -> None:
    lines = (await (await client.get("/metrics")).text()).splitlines()
    for expected in (
        'dcupgrade_state{state="staged"} 1.0',
        'dcupgrade_state{state="idle"} 0.0',
        "dcupgrade_state_seconds 10.0",
        "dcupgrade_finalized_block 791.0",
        "dcupgrade_last_change_block 12.0",
        "dcupgrade_node_up 1.0",
        "dcupgrade_vault_up 0.0",
        f'dcupgrade_build_info{{version="{__version__}"}} 1.0',
        "dcupgrade_finalized_block_age_seconds 2.5",
        'dcupgrade_releases_refused_total{code="NETWORK_SIGNATURE_BAD"} 2.0',
        "dcupgrade_download_bytes 7.0",
        'dcupgrade_upgrades_total{outcome="committed"} 3.0',
        'dcupgrade_upgrades_total{outcome="halted"} 1.0',
        'dcupgrade_handovers_total{direction="collect",outcome="ok"} 4.0',
        "dcupgrade_last_downtime_seconds 1.5",
        "dcupgrade_sealed_copy_age_seconds 60.0",
        'dcupgrade_endpoint_in_use{url="ws://a"} 1.0',
        'dcupgrade_alarm{code="RUNNING_REVOKED"} 1.0',
    ):
        assert expected in lines


@pytest.mark.parametrize(("limit", "status"), [("5", 200), ("0", 400), ("x", 400), ("99999", 400), ("9" * 5000, 400)])
async def test_history_takes_a_bounded_limit(client: TestClient[Any, Any], limit: str, status: int) -> None:
    assert (await client.get(f"/api/v1/history?limit={limit}")).status == status


async def test_what_came_of_a_command_can_be_asked(client: TestClient[Any, Any]) -> None:
    assert (await (await client.get("/api/v1/commands/1")).json())["outcome"]["text"] == "done"
    assert await (await client.get("/api/v1/commands/2")).json() == {"outcome": None}
    assert (await client.get("/api/v1/commands/x")).status == 404


async def test_upgrades_are_grouped_from_enough_rows(client: TestClient[Any, Any], agent: FakeAgent) -> None:
    [found] = (await (await client.get("/api/v1/upgrades?limit=3")).json())["upgrades"]
    assert (found["version"], found["outcome"], found["seconds"]) == ("1.1.0", "under way", 5.0)
    assert agent.asked == (3 * ROWS_PER_UPGRADE, False)
    assert (await client.get("/api/v1/upgrades?limit=201")).status == 400


async def test_the_status_holds_the_answers_that_people_read(client: TestClient[Any, Any]) -> None:
    told = (await (await client.get("/api/v1/status")).json())["overview"]
    assert [card["name"] for card in told["cards"]] == ["node", "vault", "chain", "release"]
    assert told["attention"][0]["remedy"] == "do about RUNNING_REVOKED"


@pytest.mark.parametrize(
    ("state", "action", "word"),
    [
        (State(), "none", "No finalized block"),
        (State(running=NEW, chain=CHAIN), "none", "it runs"),
        (State(running=OLD, chain=CHAIN), "upgrade", "Would upgrade 1.0.0"),
        (State(chain=CHAIN), "install", "Would install 1.1.0"),
        (State(running=OLD, chain=CHAIN, hold=Hold("audit", "eve")), "wait", "GATE_HELD: eve: audit"),
        (State(Name.STOPPING, running=OLD, target=NEW, chain=CHAIN), "under_way", "stopping"),
        (State(Name.HALTED, halted="NO_KEYS_ANYWHERE"), "halted", "NO_KEYS_ANYWHERE"),
        (State(running=OLD, chain=ChainFacts()), "none", "names no version"),
    ],
)
def test_the_plan_tells_what_would_happen_and_why_not_yet(state: State, action: str, word: str) -> None:
    told = plan(state, GateRules(), 100.0, 90.0)
    assert told.action == action
    assert any(word in line for line in told.lines)


def test_the_plan_tells_when_a_gate_opens() -> None:
    state = State(running=OLD, chain=CHAIN, hold=Hold("audit", "eve", 86400.0 * 2))
    assert (
        "Not yet: GATE_HELD: eve: audit (opens at 1970-01-03 00:00:00 UTC)."
        in plan(state, GateRules(), 100.0, 90.0).lines
    )
    state = replace(state, hold=Hold("audit", "eve"))
    assert "Not yet: GATE_HELD: eve: audit." in plan(state, GateRules(), 100.0, 90.0).lines


def test_the_plan_tells_what_the_host_has_against_it() -> None:
    state = State(Name.STAGED, target=NEW, chain=CHAIN)
    found = [
        Shut("GATE_HELD", "judged earlier"),
        Shut("FIRST_INSTALL_REFUSED", "something listens"),
        Shut("GATE_PREFLIGHT", "only 7 bytes are free"),
    ]
    told = plan(state, GateRules(), 100.0, 90.0, found)
    assert told.action == "wait"
    assert "Not yet: GATE_PREFLIGHT: FIRST_INSTALL_REFUSED: something listens; only 7 bytes are free." in told.lines
    assert [gate.code for gate in told.gates if gate.shut] == ["GATE_PREFLIGHT"]
    held = plan(replace(state, hold=Hold("audit", "eve")), GateRules(), 100.0, 90.0, found)
    assert [gate.code for gate in held.gates if gate.shut] == ["GATE_HELD"]
    assert plan(state, GateRules(), 100.0, 90.0, found[:1]).action == "install"
