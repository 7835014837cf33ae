"""Temporary failures never condemn a release: error pages, addresses, busy servers, slow sources, proxies."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.fetch import fetch
from process_supervisor.limits import DownloadLimits
from process_supervisor.outbound import Outbound
from process_supervisor.proxies import Proxies
from process_supervisor.sources import UrlSource, decode_source
from process_supervisor.stage import stage
from tests.doubles.faulty_server import FaultyServer
from tests.doubles.release_archives import member, release_tar, sha256, tar_bytes
from tests.doubles.staging import BIG, CUT, failure, measure, request

PAGE = b"<html>" + b"sorry " * 1000 + b"</html>"


@pytest.mark.parametrize(
    "content",
    [PAGE, b"", tar_bytes(member("../../evil", b"x")), tar_bytes(member("x", b"")), release_tar()[:700]],
    ids=["page", "nothing", "path", "other files", "cut"],
)
async def test_what_a_mirror_gives_instead_of_the_archive_condemns_nothing(
    server: FaultyServer, slots: Path, limits: DownloadLimits, content: bytes
) -> None:
    server.content = content
    assert (await failure(request(server.url), slots, limits)).kind == "transient"
    server.content = release_tar()
    assert (await stage(request(server.url), slots, measure, limits)).digest == sha256(server.content)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 410, 451, 500])
async def test_no_status_condemns(server: FaultyServer, slots: Path, limits: DownloadLimits, status: int) -> None:
    server.behave = lambda _: web.Response(status=status)
    assert (await failure(request(server.url), slots, limits)).kind == "transient"


@pytest.mark.parametrize(
    "address", ["ftp://host/a", "http://user:pw@host/a", "file:///etc/passwd", "dc/node:1", "http://host:0x/"]
)
async def test_no_address_condemns(slots: Path, limits: DownloadLimits, address: str) -> None:
    assert (await failure(request(address), slots, limits)).kind == "transient"
    assert (await failure(request(), slots, limits)).kind == "transient"


async def test_only_content_that_contradicts_the_chain_condemns_and_only_if_every_source_gives_it(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar(b"other")
    assert (await failure(request(server.url), slots, limits)).kind == "rejected"
    assert (await failure(request(f"{server.url}#sha256={'0' * 64}"), slots, limits)).kind == "rejected"
    assert (await failure(request(server.url, "dc/node:1"), slots, limits)).kind == "rejected"
    mixed = await failure(request(server.url, "http://127.0.0.1:1/a"), slots, limits)
    assert (mixed.code, mixed.kind) == ("DOWNLOAD_SOURCES_FAILED", "transient")


SIGNED = "release.tar?X-Credential=AK%2F2026%2feu&X-Sig=a%2Bb+c%3D%7e&p=%41/../x//y&q=%zz"


async def test_the_bytes_of_a_signed_url_are_requested_directly_and_behind_a_redirect(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    base = server.url.removesuffix("/release.tar")

    def behave(req: web.Request) -> web.StreamResponse | None:
        seen.append(req.raw_path)
        location = {"/hop": f"{base}/{SIGNED}", "/relative": f"/{SIGNED}#frag", "/space": "/a b?c=%2F\u00fc"}
        return web.Response(status=302, headers={"Location": location[req.path]}) if req.path in location else None

    seen: list[str] = []
    server.behave = behave
    await stage(request(f"{base}/{SIGNED}"), slots, measure, limits)
    assert seen == [f"/{SIGNED}"]
    for path, wanted in (("/hop", f"/{SIGNED}"), ("/relative", f"/{SIGNED}"), ("/space", "/a%20b?c=%2F%C3%BC")):
        seen.clear()
        await stage(request(base + path), slots.with_name(path[1:]), measure, limits)
        assert seen == [path, wanted]


def test_a_source_is_kept_as_the_chain_names_it() -> None:
    assert decode_source(f"HTTPS://Host/a/../b?{SIGNED}#") == UrlSource("https", f"https://Host/a/../b?{SIGNED}")


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(
    server: FaultyServer, outbound: Outbound, tmp_path: Path, limits: DownloadLimits, status: int
) -> None:
    server.content = release_tar()
    answers = [{"Retry-After": "37"}, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}]
    server.behave = lambda _: web.Response(status=status, headers=answers.pop(0)) if answers else None
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    source = UrlSource("http", server.url)
    await fetch(outbound, source, (), tmp_path / "p", replace(limits, retry_delay_s=0.5), lambda _: None, sleep)
    assert pauses == [37.0, 1.0]


async def test_a_server_that_asks_for_an_hour_is_asked_once_and_the_other_source_serves(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()

    def behave(req: web.Request) -> web.StreamResponse | None:
        return web.Response(status=429, headers={"Retry-After": "3600"}) if "busy" in req.path else None

    server.behave = behave
    busy = server.url.replace("release.tar", "busy")
    error = await failure(request(busy), slots, replace(limits, total_s_max=0.3))
    assert (error.code, error.kind) == ("DOWNLOAD_DEADLINE", "transient")
    assert "429 and asks to wait 3600 s" in str(error)
    assert len(server.requests) == 1
    staged = await stage(request(busy, server.url), slots, measure, replace(limits, slow_s=0.05))
    assert staged.source == server.url


async def test_a_trickling_source_does_not_keep_the_mirror_waiting(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    ended = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 10
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    server.behave = lambda req: web.Response(body=trickle()) if "slow" in req.path else None
    slow = server.url.replace("release.tar", "slow")
    staged = await stage(request(slow, server.url), slots, measure, replace(limits, slow_s=0.1))
    assert staged.source == server.url
    await asyncio.wait_for(ended.wait(), 20)
    assert not list((slots / ".incoming").glob("*.part"))


def stripping(req: web.Request, content: bytes, received: list[int]) -> web.StreamResponse:
    """A proxy that strips Content-Range, before a line that cuts."""
    start = int(req.headers.get("Range", "bytes=0-")[6:-1])
    received.append(min(CUT, len(content) - start))
    return web.Response(status=206 if start else 200, body=content[start:], headers={"ETag": '"v1"'})


async def test_an_answer_whose_content_range_was_stripped_continues(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content, server.cut_after = release_tar(BIG), [CUT]
    sent: list[int] = []
    server.behave = lambda req: stripping(req, server.content, sent) if "Range" in req.headers else None
    staged = await stage(request(server.url), slots, measure, limits)
    assert staged.digest == sha256(server.content)
    assert len(sent) == 1


async def test_answers_that_are_shorter_than_asked_for_are_put_together(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content, server.cut_after = release_tar(BIG), [CUT]
    whole, slices = len(server.content), []

    def behave(req: web.Request) -> web.StreamResponse | None:
        if "Range" not in req.headers:
            return None
        start = int(req.headers["Range"][6:-1])
        end = min(start + 100_000, whole)
        slices.append(start)
        headers = {"ETag": '"v1"', "Content-Range": f"bytes {start}-{end - 1}/{whole}"}
        return web.Response(status=206, body=server.content[start:end], headers=headers)

    server.behave = behave
    staged = await stage(request(server.url), slots, measure, replace(limits, attempts_max=2))
    assert staged.digest == sha256(server.content)
    assert len(slices) > 2
    assert slices == sorted(set(slices)), "nothing was asked for twice"


async def test_bytes_that_are_thrown_away_are_paid_for_with_growing_pauses(
    server: FaultyServer, outbound: Outbound, tmp_path: Path, limits: DownloadLimits
) -> None:
    server.content, server.cut_after, server.etag = release_tar(BIG), [CUT] * 50, None
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    paying = replace(limits, thrown_away_pause_s=15.0)
    with pytest.raises(ProcessSupervisorError) as caught:
        await fetch(outbound, UrlSource("http", server.url), (), tmp_path / "p", paying, lambda _: None, sleep)
    assert (caught.value.code, caught.value.kind) == ("DOWNLOAD_TRUNCATED", "transient")
    assert len(server.requests) <= limits.attempts_max + 1
    assert pauses[-1] >= 25.0, "almost two artefacts were thrown away by then"
    assert pauses == sorted(pauses)


@pytest.fixture
async def proxy(server: FaultyServer) -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy that answers for every host with the server's content; what it was asked for."""
    asked: list[str] = []

    async def handle(req: web.BaseRequest) -> web.StreamResponse:
        asked.append(f"{req.raw_path} {req.headers.get('Proxy-Authorization', '')}".strip())
        return web.Response(body=server.content)

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://u:p%40@127.0.0.1:{runner.addresses[0][1]}", asked
    await runner.cleanup()


async def test_a_host_that_only_the_proxy_reaches(
    server: FaultyServer, slots: Path, limits: DownloadLimits, proxy: tuple[str, list[str]]
) -> None:
    url, asked = proxy
    server.content = release_tar()
    limits = replace(limits, proxies=Proxies(http=url, https=url))
    await stage(request("http://mirror.invalid/a?b=%2F"), slots, measure, limits)
    assert asked == ["http://mirror.invalid/a?b=%2F Basic dTpwQA=="]
    await stage(request(server.url), slots.with_name("direct"), measure, limits)
    assert len(asked) == 1, "loopback is never reached through a proxy"
    error = await failure(request("https://mirror.invalid/a"), slots.with_name("tls"), limits)
    assert error.kind == "transient"
    assert asked[1].startswith("mirror.invalid:443"), "https goes through a tunnel"
    socks = replace(limits, proxies=Proxies(http="socks5://127.0.0.1:1"))
    error = await failure(request("http://mirror.invalid/a"), slots.with_name("socks"), socks)
    assert error.code == "DOWNLOAD_UNREACHABLE"


async def test_private_addresses_are_refused_after_dns_and_behind_a_proxy(
    server: FaultyServer, slots: Path, limits: DownloadLimits, proxy: tuple[str, list[str]]
) -> None:
    server.content = release_tar()
    refused = replace(limits, own_hosts=frozenset())
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        assert (await failure(request(url), slots, refused)).code == "DOWNLOAD_ADDRESS_REFUSED"
    assert server.requests == []
    through = replace(refused, proxies=Proxies(http=proxy[0]))
    for host in ("169.254.169.254", "10.1.2.3", "10.1.2.3.", "10.1.515", "%31%30.1.2.3", "[fec0::1]"):
        assert (await failure(request(f"http://{host}/"), slots, through)).code == "DOWNLOAD_ADDRESS_REFUSED", host
    assert proxy[1] == []
    assert (await stage(request(server.url), slots, measure, limits)).source == server.url


@pytest.mark.parametrize(
    "host", ["10.1.2.3", "169.254.169.254", "[fe80::1]", "[::1]", "192.168.0.1", "[::ffff:127.0.0.1]", "localhost"]
)
async def test_no_private_address_is_asked_unless_the_settings_say_so(host: str, slots: Path) -> None:
    """Case B7, whether the release is final or not: see decision 23."""
    limits = DownloadLimits(retry_delay_s=0, free_bytes_min=0, attempts_max=1)
    error = await failure(request(f"http://{host}:9/a"), slots, limits)
    assert (error.code, error.kind) == ("DOWNLOAD_ADDRESS_REFUSED", "transient")
    assert "download.private_addresses" in error.action


async def test_hosts_that_the_settings_name_may_be_private(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    named = replace(limits, own_hosts=frozenset({"127.0.0.1"}))
    assert (await stage(request(server.url), slots, measure, named)).source == server.url
    other = request(server.url.replace("127.0.0.1", "localhost"))
    assert (await failure(other, slots.with_name("other"), named)).code == "DOWNLOAD_ADDRESS_REFUSED"
    allowed = replace(limits, own_hosts=frozenset(), private_addresses=True)
    assert (await stage(request(server.url), slots.with_name("allowed"), measure, allowed)).source == server.url


async def test_a_redirect_of_a_public_host_into_the_own_network_is_not_followed(
    server: FaultyServer, slots: Path, limits: DownloadLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = release_tar()
    base = server.url.removesuffix("/release.tar")
    real = Outbound.request
    hops: list[tuple[str, bool]] = []

    async def request_(self: Outbound, method: str, url: str, *, public_only: bool = False, **options: Any) -> object:
        hops.append((url, public_only))
        if "public.example" in url:
            return await real(self, method, f"{base}/hop", **options)
        return await real(self, method, url, public_only=public_only, **options)

    monkeypatch.setattr(Outbound, "request", request_)
    server.behave = lambda req: (
        web.Response(status=302, headers={"Location": server.url}) if "hop" in req.path else None
    )
    error = await failure(request("http://public.example/a"), slots, replace(limits, own_hosts=frozenset()))
    assert (error.code, error.kind) == ("DOWNLOAD_ADDRESS_REFUSED", "transient")
    assert hops == [("http://public.example/a", True), (server.url, True)]
    allowed = replace(limits, private_addresses=True)
    assert (await stage(request("http://public.example/a"), slots, measure, allowed)).path.is_dir()


async def follow(
    monkeypatch: pytest.MonkeyPatch, outbound: Outbound, limits: DownloadLimits, *urls: str, own: bool
) -> list[bool]:
    """Request the first of `urls`, each redirecting to the next; returns which of them had to be public."""
    hops: list[bool] = []

    class Answer:
        def __init__(self, url: str) -> None:
            following = urls[urls.index(url) + 1 :]
            self.status, self.headers = (302, {"Location": following[0]}) if following else (200, {})

        def release(self) -> None:
            pass

    async def request_(_: str, url: str, *, public_only: bool = False, **__: object) -> Answer:
        hops.append(public_only)
        return Answer(url)

    monkeypatch.setattr(outbound, "request", request_)
    await outbound.get(urls[0], {}, limits, own=own)
    return hops


async def test_each_redirect_of_a_named_host_is_judged_by_its_own_host(
    outbound: Outbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = DownloadLimits(own_hosts=frozenset({"mirror.lan"}))
    urls = ("http://mirror.lan/a", "http://127.0.0.1:9200/shutdown", "http://mirror.lan:81/b", "http://x.mirror.lan/c")
    assert await follow(monkeypatch, outbound, named, *urls, own=False) == [False, True, False, True]


@pytest.mark.parametrize(
    ("urls", "public_only"),
    [
        (("http://localhost:8080/ipfs/bafy", "http://bafy.ipfs.localhost:8080/"), [False, False]),
        (("http://bafy.ipfs.gw.lan/", "http://bafy.ipfs.gw.lan/x"), [False, False]),
        (("http://gw.lan/ipfs/bafy", "http://router.lan/reboot"), [False, True]),
        (("http://gw.lan/ipfs/bafy", "http://evilgw.lan/"), [False, True]),
        (("http://gw.lan/ipfs/bafy", "http://public.example/", "http://gw.lan/"), [False, True, False]),
    ],
)
async def test_a_gateway_may_send_on_to_itself_and_to_names_below_it(
    outbound: Outbound, monkeypatch: pytest.MonkeyPatch, urls: tuple[str, ...], public_only: list[bool]
) -> None:
    assert await follow(monkeypatch, outbound, DownloadLimits(), *urls, own=True) == public_only
    assert await follow(monkeypatch, outbound, DownloadLimits(), *urls, own=False) == [True] * len(urls)
