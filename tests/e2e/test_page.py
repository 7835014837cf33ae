"""The status page in a real browser, during a real upgrade."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, async_playwright, expect

from devnet.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("DCUPGRADE_SCREENSHOTS")
"""Folder that receives the pictures of docs/; unset, they go with the test's own folder."""
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        context = await browser.new_context(viewport={"width": 1100, "height": 1500})
        page = await context.new_page()
        try:
            yield page
        finally:
            await browser.close()


expect.set_options(timeout=30_000)


async def audit(page: Page) -> list[str]:
    """What axe-core finds wrong with the page, as ids."""
    found = await Axe().run(page)
    return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found.response["violations"]]


async def picture(page: Page, folder: Path, name: str) -> None:
    await page.screenshot(path=Path(SCREENSHOTS or folder) / name)


async def test_the_page_follows_an_upgrade_and_takes_an_action(world: World, page: Page, tmp_path: Path) -> None:
    world.overrides = {"node": {"probation_s": 10.0}}  # long enough for a busy browser to be seen in it
    world.write_settings()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    old, new = world.builder.good("1.0.0"), world.builder.good("1.1.0")
    await world.install(old)
    await page.goto(f"http://127.0.0.1:{world.ports['agent']}/")
    lit = page.locator("#machine g.lit")
    await expect(lit).to_have_attribute("data-state", "idle")
    await expect(page.locator("#releases")).to_contain_text(old.enclave_id)
    await expect(page.locator("#tee")).to_contain_text("Simulated TEE")
    assert await audit(page) == []

    await world.publish(new)
    await expect(lit).to_have_attribute("data-state", "probation", timeout=90_000)
    await expect(page.locator("#work-text")).to_contain_text("left")
    await picture(page, tmp_path, "page-probation.png")
    await expect(lit).to_have_attribute("data-state", "idle", timeout=90_000)
    await expect(page.locator("#history")).to_contain_text("committed")
    await expect(page.locator("#releases")).to_contain_text(new.enclave_id)

    await page.fill("#token", "wrong token")
    await page.fill("#reason", "audit of the data centre")
    await page.get_by_role("button", name="Hold", exact=True).click()
    await expect(page.locator("#answer")).to_contain_text("HTTP_TOKEN_REFUSED")
    errors.clear()  # the browser reports a refused request as an error of its own
    await page.fill("#token", (world.state_dir / "operator.token").read_text().strip())
    await page.get_by_role("button", name="Hold", exact=True).click()
    await expect(page.locator("#answer")).to_contain_text("queued")
    await expect(page.locator("#hold")).to_contain_text("audit of the data centre")
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert await audit(page) == []
        await picture(page, tmp_path, f"page-{scheme}.png")
    assert errors == []


async def test_every_control_is_reached_by_keyboard(world: World, page: Page) -> None:
    await world.install(world.builder.good("1.0.0"))
    await page.goto(f"http://127.0.0.1:{world.ports['agent']}/")
    await expect(page.locator("#machine g.lit")).to_have_attribute("data-state", "idle")
    reached = []
    for _ in range(8):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.value || document.activeElement.id"))
    assert reached[:7] == ["token", "reason", "approve", "hold", "unhold", "resume", "revert"]
