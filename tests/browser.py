"""A real browser for the tests of the pages."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from task_bridge.app import Bridge

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
ARGUMENTS = ["--headless=new", "--no-sandbox", *QUIET, "--disable-component-update", "--disable-sync"]
expect.set_options(timeout=20_000)  # pages follow every 2 or 5 s, later on a busy machine
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def url_of(bridge: Bridge) -> str:
    assert bridge.web.address
    return f"http://127.0.0.1:{bridge.web.address.port}/"


@asynccontextmanager
async def launched_browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


async def opened(browser: Browser, url: str, *, javascript: bool = True, **context: Any) -> tuple[Page, list[str]]:
    """The page, and what its console complains of: a refused script or style would be."""
    page = await (await browser.new_context(java_script_enabled=javascript, **context)).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(url)
    return page, complaints
