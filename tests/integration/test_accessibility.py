"""Each page against the rules of axe-core, at the size of a desk and of a phone, in light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from browser import in_browser, opened, url_of
from lab import Lab, until
from node import node_with_packages_of
from task_bridge.simulator import scenarios
from task_bridge.web.board import build_task_link

pytestmark = in_browser
AXE = Path(__file__).parents[1] / "axe"
SCREENS: list[dict[str, Any]] = [
    {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
]


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, as its lock says."""
    node_with_packages_of(AXE)
    return (AXE / "node_modules/axe-core/axe.min.js").read_text()


async def find_violations(page: Page, axe: str) -> list[str]:
    await page.evaluate(axe)
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((it) => it.violations)")
    return [f"{rule['id']}: {node['html'][:200]}: {node['failureSummary']}" for rule in found for node in rule["nodes"]]


@pytest.mark.timeout(180)  # seven pages, each with a hundred rules
@pytest.mark.parametrize("screen", SCREENS)
async def test_no_page_breaks_a_rule(lab: Lab, browser: Browser, axe: str, screen: dict[str, Any]) -> None:
    fails = lab.vcenter.create(scenarios.fails_with_error(after_s=0.1))
    succeeds = lab.vcenter.create(scenarios.succeeds(after_s=0.1))
    blocked = lab.vcenter.create(scenarios.blocked_then_succeeds(blocked_s=600.0, after_s=600.2))
    runs = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge(not_found_grace_s=600.0) as bridge:
        await lab.listen()
        await lab.ask("follow", {"name": "all"})
        for task in (fails, succeeds, blocked):
            await lab.publish({"task": task, "labels": {"workflow": "patch-42"}})
        await lab.ask("watch", {"task": runs, "stalled_after": "1s"})
        await lab.ask("watch", "nobody-has-seen-it")
        for task in (fails, succeeds):
            await lab.ended(task)
        await until(lambda: any(subject.endswith(".stalled") for subject, _ in lab.live))
        root = url_of(bridge).rstrip("/")
        shown = {
            "/": ("#watches", "stalled"),
            "/?status=stalled&sort=-task": ("#watches", "stalled"),
            build_task_link("lab", fails): ("#error", "The change"),
            build_task_link("lab", succeeds): ("#result pre", "OK"),
            build_task_link("lab", runs): ("#summary", "stalled"),
            build_task_link("lab", "nobody-has-seen-it"): ("#timeline", "No event yet"),
            build_task_link("lab", "unknown"): ("main", "nothing watches it"),
        }
        page, _ = await opened(browser, root + "/livez", **screen)
        for path, (part, text) in shown.items():
            await page.goto(root + path)
            await expect(page.locator(part)).to_contain_text(text)
            assert await find_violations(page, axe) == [], path


@pytest.mark.parametrize("screen", SCREENS[1:3])
async def test_no_page_breaks_a_rule_while_nats_is_away(
    lab: Lab, browser: Browser, axe: str, screen: dict[str, Any]
) -> None:
    async with lab.bridge(not_found_grace_s=600.0) as bridge:
        await lab.ask("watch", "nobody-has-seen-it")
        page, _ = await opened(browser, url_of(bridge), **screen)
        await expect(page.locator("#watches tbody tr")).to_have_count(1)
        lab.server.stop()
        await expect(page.locator("#watches .stale")).to_have_count(1)
        assert await find_violations(page, axe) == []
        of_task, _ = await opened(browser, url_of(bridge) + "task/lab/nobody-has-seen-it", **screen)
        await expect(of_task.locator("main")).to_contain_text("can't be read")
        assert await find_violations(of_task, axe) == []
        lab.server.start()
        await expect(page.locator(".stale")).to_have_count(0)
        await expect(of_task.locator("#timeline")).to_contain_text("No event yet")
