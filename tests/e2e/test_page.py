"""The status page in a real browser: a real upgrade, an alarm on a small screen, no scripts, keyboard, audit by axe.

`DCUPGRADE_SCREENSHOTS=docs/pictures` makes the pictures of the documentation.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from devnet.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("DCUPGRADE_SCREENSHOTS")
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            yield started
        finally:
            await started.close()


@pytest.fixture
async def page(browser: Browser) -> Page:
    context = await browser.new_context(viewport={"width": 1280, "height": 1100})
    return await context.new_page()


expect.set_options(timeout=30_000)


def address(world: World) -> str:
    return f"http://127.0.0.1:{world.ports['agent']}/"


async def audit(page: Page) -> list[str]:
    """Return the ids of axe-core's findings on the page."""
    found = await Axe().run(page)
    return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found.response["violations"]]


async def picture(page: Page, folder: Path, name: str) -> None:
    await page.screenshot(path=Path(SCREENSHOTS or folder) / name, full_page=True)


async def test_the_page_follows_an_upgrade_and_takes_an_action(world: World, page: Page, tmp_path: Path) -> None:
    world.overrides = {"node": {"probation_s": 10.0}}  # long enough for a busy browser to be seen in it
    world.write_settings()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    old, new = world.builder.good("1.0.0"), world.builder.good("1.1.0")
    await world.install(old)
    await page.goto(address(world))
    await expect(page.locator("#headline")).to_contain_text("Up to date: 1.0.0 serves.")
    await expect(page.locator("#card-release")).to_contain_text(old.enclave_id)
    await expect(page.locator("#tee")).to_contain_text("Simulated TEE")
    await expect(page).to_have_title(re.compile("✓ .*: up"))
    assert await audit(page) == []

    await world.publish(new)
    now = page.locator("#way [aria-current=step]")
    await expect(now).to_have_attribute("data-state", "probation", timeout=90_000)
    await expect(page.locator("#way-title")).to_have_text("Upgrade to 1.1.0")
    await expect(page.locator("#work-text")).to_contain_text("left")
    await expect(page).to_have_title(re.compile("… .*: probation"))
    assert "level=busy" in str(await page.locator("#icon").get_attribute("href"))
    await picture(page, tmp_path, "page-probation.png")
    await expect(page.locator("#headline")).to_contain_text("Up to date: 1.1.0 serves.", timeout=90_000)
    newest = page.locator("#history details").first
    await expect(newest).to_contain_text("committed")
    await newest.locator("summary").click()
    await expect(newest.locator("ol")).to_contain_text("delivering")

    await page.fill("#token", "wrong token")
    await page.fill("#reason", "audit of the data centre")
    await page.get_by_role("button", name="Hold", exact=True).click()
    await expect(page.locator("#answer")).to_contain_text("HTTP_TOKEN_REFUSED")
    errors.clear()  # the browser reports a refused request as an error of its own
    await page.fill("#token", (world.state_dir / "operator.token").read_text().strip())
    await page.get_by_role("button", name="Hold", exact=True).click()
    await expect(page.locator("#answer")).to_contain_text("hold")
    await expect(page.locator("#card-release")).to_contain_text("audit of the data centre")
    await expect(page.get_by_role("button", name="Hold", exact=True)).to_be_disabled()
    await expect(page.get_by_role("button", name="Lift the hold")).to_be_enabled()
    await expect(newest).to_have_attribute("open", "")  # what the reader opened stays open
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert await audit(page) == []
        await picture(page, tmp_path, f"page-{scheme}.png")
    assert errors == []


async def test_revert_asks_first_and_an_alarm_fits_a_small_screen(world: World, page: Page, tmp_path: Path) -> None:
    old, new = world.builder.good("1.0.0"), world.builder.good("1.1.0")
    await world.install(old)
    await world.publish(new)
    await world.wait_committed(new.enclave_id)
    await page.goto(address(world))
    await page.fill("#token", (world.state_dir / "operator.token").read_text().strip())
    page.once("dialog", lambda dialog: dialog.dismiss())
    await page.get_by_role("button", name="Revert…").click()
    await expect(page.locator("#answer")).to_have_text("")
    page.once("dialog", lambda dialog: dialog.accept())
    await page.get_by_role("button", name="Revert…").click()
    await expect(page.locator("#headline")).to_contain_text("1.0.0 serves", timeout=90_000)
    alarm = page.locator("#attention li")
    await expect(alarm).to_contain_text("OPERATOR_REVERT")
    await expect(alarm).to_contain_text("Do:")
    for width in (320, 390, 1280, 3840):
        await page.set_viewport_size({"width": width, "height": 900})
        assert await page.evaluate(SIDEWAYS) == 0, width
        assert await audit(page) == []
    await page.set_viewport_size({"width": 320, "height": 900})
    await picture(page, tmp_path, "page-alarm-320.png")


async def test_the_rate_of_a_download_is_drawn_and_begins_anew_with_the_next_one(world: World, page: Page) -> None:
    await world.install(world.builder.good("1.0.0"))
    await page.goto(address(world))
    await expect(page.locator("#rate")).to_be_hidden()
    draw = "([at, bytes]) => sample({done_bytes: bytes}, at)"
    for at, megabytes in ((0.0, 0), (1.0, 4), (2.0, 6)):
        await page.evaluate(draw, [at, megabytes * 1e6])
    await expect(page.locator("#rate")).to_be_visible()
    await expect(page.locator("#rate-text")).to_have_text("Download rate: 2.0 MB/s, at most 4.0 MB/s")
    await expect(page.locator("#rate-line")).to_have_attribute("points", "16.0,16.0 584.0,60.0")
    for at, megabytes in ((9.0, 1), (10.0, 2), (11.0, 3)):  # less than before: another download
        await page.evaluate(draw, [at, megabytes * 1e6])
    await expect(page.locator("#rate-text")).to_have_text("Download rate: 1.0 MB/s, at most 1.0 MB/s")
    assert await audit(page) == []


async def test_the_page_can_be_read_without_scripts(world: World, browser: Browser) -> None:
    old = world.builder.good("1.0.0")
    await world.install(old)
    while (await world.status() or {})["overview"]["level"] != "good":  # noqa: ASYNC110 - the agent looks now and then
        await asyncio.sleep(0.2)
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(address(world))
    await expect(page.locator("#headline")).to_contain_text("1.0.0 serves")
    await expect(page.locator("#card-chain")).to_contain_text("last finalized block")
    await expect(page.locator("#history")).to_contain_text("committed")
    await expect(page.locator("noscript p")).to_contain_text("dcupgrade hold")
    assert await page.locator("meta[http-equiv=refresh]").count() == 1


async def test_every_control_is_reached_by_keyboard(world: World, page: Page) -> None:
    await world.install(world.builder.good("1.0.0"))
    await page.goto(address(world))
    await expect(page.locator("#headline")).to_contain_text("1.0.0 serves")
    reached: list[str] = []
    while "machine-details" not in reached and len(reached) < 60:
        await page.keyboard.press("Tab")
        reached.append(
            await page.evaluate(
                "(one => one.value || one.id || one.dataset.copy || one.parentElement.id)(document.activeElement)"
            )
        )
    wanted = ["main", "token", "reason", "hours", "hold", "endpoints-details", "machine-details"]
    found = [name for name in reached if name in wanted]
    assert found == wanted[1:]
    await page.keyboard.press("Enter")
    await expect(page.locator("#machine g.lit")).to_have_attribute("data-state", "idle")
