import asyncio
import hashlib
import hmac
import itertools
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from dcupgrade.adapters.journal_thread import JournalThread, open_journal
from dcupgrade.adapters.webhook_posts import poster
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.events import ChainSeen
from dcupgrade.machine.state import ChainFacts, Name, State
from dcupgrade.machine.table import activity
from dcupgrade.settings.schema import WebhookSettings
from dcupgrade.surfaces.webhooks import Post, Webhook
from dcupgrade.upgrade.ports import Entry
from process_supervisor.outbound import Outbound
from tests.conftest import ROOT


class Receiver:
    def __init__(self) -> None:
        self.got: list[tuple[dict[str, Any], bytes, str]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        app = web.Application()
        app.router.add_post("/hook", self.take)
        self.server = TestServer(app)

    async def take(self, request: web.Request) -> web.Response:
        if self.status == 200:
            body = await request.read()
            self.got.append((await request.json(), body, request.headers.get("X-Dcupgrade-Signature", "")))
        return web.Response(status=self.status, headers=self.headers)

    @property
    def url(self) -> str:
        return str(self.server.make_url("/hook"))


class NoClock:
    async def sleep(self, seconds: float) -> None:
        raise AssertionError("the test steps by itself")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    await made.server.start_server()
    yield made
    await made.server.close()


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    async with Outbound() as made:
        yield poster(made)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[JournalThread]:
    async with open_journal(tmp_path / "j") as made:
        yield made


async def enter(journal: JournalThread, *names: Name) -> None:
    for before, after in itertools.pairwise(names):
        state = State(after)
        await journal.append(Entry(State(before), ChainSeen(ChainFacts(), at_unix_s=5.0), state, activity(state)))


def hook(receiver: Receiver, journal: JournalThread, post: Post, **settings: Any) -> Webhook:
    return Webhook(WebhookSettings(url=receiver.url, **settings), journal, post, NoClock(), "n1")


async def test_events_arrive_in_order_and_once_a_new_receiver_begins_now(
    receiver: Receiver, post: Post, journal: JournalThread, tmp_path: Path
) -> None:
    await enter(journal, Name.IDLE, Name.STAGING)
    first = hook(receiver, journal, post)
    assert await first.step(1.0) == 1.0
    await enter(journal, Name.STAGING, Name.STAGED, Name.COLLECTING)
    await first.step(1.0)
    await hook(receiver, journal, post).step(1.0)
    assert [fact["event"] for fact, _, _ in receiver.got] == ["upgrade.staged", "upgrade.collecting"]
    assert receiver.got[0][0]["node"] == "n1"


async def test_a_failing_receiver_is_asked_again_with_growing_pauses_and_loses_nothing(
    receiver: Receiver, post: Post, journal: JournalThread, tmp_path: Path
) -> None:
    sender = hook(receiver, journal, post)
    await sender.step(1.0)
    await enter(journal, Name.IDLE, Name.STAGING, Name.STAGED)
    receiver.status = 500
    assert [await sender.step(1.0) for _ in range(3)] == [1.0, 2.0, 4.0]
    receiver.status = 200
    async with open_journal(tmp_path / "j") as reopened:
        await hook(receiver, reopened, post).step(1.0)
    assert [fact["to"] for fact, _, _ in receiver.got] == ["staging", "staged"]


@pytest.mark.parametrize(
    ("status", "header", "pause_s"),
    [(429, "37", 37.0), (503, "3600", 3600.0), (429, "9" * 12, 86400.0), (500, "37", 1.0), (429, "soon", 1.0)],
)
async def test_a_receiver_that_asks_to_be_left_alone_is_asked_again_after_that_time(
    receiver: Receiver, post: Post, journal: JournalThread, status: int, header: str, pause_s: float
) -> None:
    """Case C5, from the receiver's header to the pause, and nothing is lost by it."""
    clock = Pauses(1)
    sender = hook(receiver, journal, post)
    await sender.step(1.0)
    await enter(journal, Name.IDLE, Name.STAGING)
    receiver.status, receiver.headers = status, {"Retry-After": header}
    sender = Webhook(WebhookSettings(url=receiver.url), journal, post, clock, "n1")
    with pytest.raises(asyncio.CancelledError):
        await sender.run()
    assert clock.seen == [pause_s]
    receiver.status = 200
    await sender.step(1.0)
    assert [fact["to"] for fact, _, _ in receiver.got] == ["staging"]


@pytest.mark.parametrize("sql", ["UPDATE events SET detail = 'x' WHERE seq = 1"])
async def test_a_damaged_event_is_left_out_and_reported_and_holds_up_no_other(
    receiver: Receiver, post: Post, journal: JournalThread, tmp_path: Path, sql: str, caplog: pytest.LogCaptureFixture
) -> None:
    sender = hook(receiver, journal, post)
    await sender.step(1.0)
    await enter(journal, Name.IDLE, Name.STAGING, Name.STAGED)
    db = sqlite3.connect(tmp_path / "j")
    with db:
        db.execute(sql)
    db.close()
    await sender.step(1.0)
    assert [fact["to"] for fact, _, _ in receiver.got] == ["staged"]
    assert "JOURNAL_ROW_DAMAGED: event 1" in caplog.text


async def test_the_body_is_signed_with_the_receivers_secret(
    receiver: Receiver, post: Post, journal: JournalThread, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("hush\n")
    sender = hook(receiver, journal, post, secret_file=tmp_path / "secret")
    await sender.step(1.0)
    await enter(journal, Name.IDLE, Name.STAGING)
    await sender.step(1.0)
    [(fact, body, signature)] = receiver.got
    jsonschema.validate(fact, json.loads((ROOT / "docs" / "schemas" / "event.schema.json").read_text()))
    assert signature == "sha256=" + hmac.new(b"hush", body, hashlib.sha256).hexdigest()


async def test_only_the_events_asked_for_are_sent(
    receiver: Receiver, post: Post, journal: JournalThread, tmp_path: Path
) -> None:
    sender = hook(receiver, journal, post, events=("upgrade.halted",))
    await sender.step(1.0)
    await enter(journal, Name.IDLE, Name.STAGING, Name.HALTED)
    await sender.step(1.0)
    assert [fact["to"] for fact, _, _ in receiver.got] == ["halted"]


async def test_a_receiver_whose_secret_cannot_be_read_is_refused_not_served_unsigned(
    receiver: Receiver, post: Post, journal: JournalThread, tmp_path: Path
) -> None:
    with pytest.raises(DcupgradeError) as caught:
        hook(receiver, journal, post, secret_file=tmp_path / "absent")
    assert caught.value.code == "WEBHOOK_SECRET_UNREADABLE"


async def test_an_empty_secret_is_no_secret(
    receiver: Receiver, post: Post, journal: JournalThread, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(DcupgradeError, match=r"WEBHOOK_SECRET_UNREADABLE.*empty"):
        hook(receiver, journal, post, secret_file=tmp_path / "secret")


class FullDisk:
    async def history_after(self, _seq: int, _limit: int) -> list[dict[str, Any]]:
        raise AssertionError("never reached")

    async def webhook_seq(self, _url: str) -> int:
        raise DcupgradeError(code="JOURNAL_WRITE_FAILED", what="journal", why="disk full", kind="transient")

    async def set_webhook_seq(self, _url: str, _seq: int) -> None:
        raise AssertionError("never reached")


class Pauses:
    def __init__(self, most: int = 3) -> None:
        self.seen: list[float] = []
        self.most = most

    async def sleep(self, seconds: float) -> None:
        self.seen.append(seconds)
        if len(self.seen) == self.most:
            raise asyncio.CancelledError


async def test_a_journal_that_cannot_be_written_puts_webhooks_off_and_ends_nothing(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Pauses()
    sender = Webhook(WebhookSettings(url="http://h.example/T0K3N"), FullDisk(), post, clock, "n1")
    with pytest.raises(asyncio.CancelledError):
        await sender.run()
    assert clock.seen == [1.0, 2.0, 4.0]
    assert "webhook h.example: JOURNAL_WRITE_FAILED" in caplog.text
    assert "T0K3N" not in caplog.text
