"""The pages of tasks, and how one finds one's way to them on the board, in a real browser."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, expect

from browser import in_browser, opened, url_of
from lab import PREFIX, BridgeProcess, Lab, free_ports, until
from task_bridge.jetstream import board_reader
from task_bridge.simulator import scenarios
from task_bridge.web.board import build_task_link

pytestmark = in_browser


WATCHED_IDS = "#watches tbody tr code bdi"


async def test_the_page_of_a_task_follows_it_to_its_end(lab: Lab, browser: Browser) -> None:
    task = lab.vcenter.create(scenarios.fails_with_error(after_s=15.0))
    async with lab.bridge() as bridge:
        await lab.publish({"task": task, "labels": {"workflow": "patch-42"}})
        page, complaints = await opened(browser, url_of(bridge))
        await page.locator("#watches").get_by_role("link", name=task).click()
        await expect(page).to_have_title("production: vcenter-task-bridge")
        assert page.url == url_of(bridge).rstrip("/") + build_task_link("lab", task)
        summary = page.locator("#summary")
        await expect(summary).to_contain_text("RUNNING")
        await expect(summary).to_contain_text("/DC/host/production")
        await expect(summary).to_contain_text("workflow=patch-42")
        await expect(summary).to_contain_text("✗ failed")
        await expect(page.locator("#live")).to_have_text("Ended.")
        messages = await page.locator("#error li").all_inner_texts()
        assert [message.partition(" simulator.")[0] for message in messages] == [
            "The change could not be applied.",
            "Host 'esx2' did not answer.",
        ]
        kinds = await page.locator("#timeline td[data-label=Event]").all_inner_texts()
        assert (kinds[0], kinds[-1]) == ("watching", "✗ failed")
        assert await page.locator("#timeline time").first.get_attribute("title")
        content = await page.evaluate(
            "fetch(document.querySelector('a[href$=\"format=json\"]').href).then((it) => it.json())"
        )
        assert [one["data"]["kind"] for one in content["events"]] == [
            kind.removeprefix("✗ ") for kind in kinds[:-1]
        ] + ["completed"]
        await page.get_by_role("link", name="All watches").click()
        await expect(page.locator("#endings")).to_contain_text(task)
        assert complaints == []


async def test_a_result_is_shown_as_json_and_one_in_the_store_by_its_name(lab: Lab, browser: Browser) -> None:
    small = lab.vcenter.create(scenarios.succeeds(after_s=0.1))
    large = lab.vcenter.create(scenarios.large_result(400_000, after_s=0.1))
    async with lab.bridge() as bridge:
        await lab.listen()
        for task in (small, large):
            await lab.publish(task)
            await lab.ended(task)
        page, _ = await opened(browser, url_of(bridge).rstrip("/") + build_task_link("lab", small))
        assert json.loads(await page.locator("#result pre").inner_text())["status"] == "OK"
        await page.goto(url_of(bridge).rstrip("/") + build_task_link("lab", large))
        await expect(page.locator("#result")).to_contain_text("bytes in the object store")


async def test_what_needs_attention_comes_first_and_chips_choose(lab: Lab, browser: Browser) -> None:
    running = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(2)]
    blocked = lab.vcenter.create(scenarios.blocked_then_succeeds(blocked_s=600.0, after_s=600.2))
    fails = lab.vcenter.create(scenarios.fails_with_error(after_s=0.1))
    succeeds = lab.vcenter.create(scenarios.succeeds(after_s=0.2))
    async with lab.bridge() as bridge:
        await lab.listen()
        for task in (*running, blocked, fails):
            await lab.publish(task)
        await lab.ended(fails)
        await lab.publish(succeeds)
        await lab.ended(succeeds)
        page, complaints = await opened(browser, url_of(bridge))
        watches, endings = page.locator(WATCHED_IDS), page.locator("#endings tbody tr code bdi")
        await expect(watches).to_have_text([blocked, *running])
        await expect(endings).to_have_text([fails, succeeds])
        await expect(page.locator("#state")).to_contain_text("Needs attention: 1 failed, 1 blocked.")
        await page.get_by_role("navigation", name="Statuses").get_by_role("link", name="blocked 1").click()
        await expect(watches).to_have_text([blocked])
        assert "status=blocked" in page.url
        await expect(endings).to_have_count(2)
        await page.get_by_label("Filter").fill("lab")
        await expect(page).to_have_url(re.compile(r"q=lab"))
        await expect(watches).to_have_text([blocked])  # the chip stays
        csv = await page.get_by_role("link", name="CSV").get_attribute("href")
        assert csv == "/view.csv?" + page.url.partition("?")[2]
        await page.get_by_role("navigation", name="Statuses").get_by_role("link", name="all").click()
        await expect(watches).to_have_count(3)
        await page.locator("#state").get_by_role("link", name="1 failed").click()
        await expect(endings).to_have_text([fails])
        await page.evaluate("window.isSamePage = true")
        await page.get_by_role("link", name="NATS").click()  # a part of this page
        await expect(page).to_have_url(re.compile("#nats$"))
        assert await page.evaluate("window.isSamePage") is True
        await page.go_back()
        await page.go_back()
        await expect(page.locator("#endings tbody tr code bdi")).to_have_text([fails, succeeds])
        assert complaints == []


async def test_rows_are_sorted_by_headings_and_by_the_list_of_orders(lab: Lab, browser: Browser) -> None:
    async with lab.bridge(not_found_grace_s=60.0) as bridge:
        for number in (2, 1, 3):
            await lab.ask("watch", f"sorted:{number}")
        page, complaints = await opened(browser, url_of(bridge))
        watches = page.locator(WATCHED_IDS)
        await expect(watches).to_have_text([f"sorted:{number}" for number in (2, 1, 3)])
        heading = page.locator("#watches th", has_text="Task")
        await heading.get_by_role("link").press("Enter")
        await expect(watches).to_have_text([f"sorted:{number}" for number in (1, 2, 3)])
        await expect(heading).to_have_attribute("aria-sort", "ascending")
        await heading.get_by_role("link").click()
        await expect(watches).to_have_text([f"sorted:{number}" for number in (3, 2, 1)])
        await page.get_by_label("Order").select_option("newest first")
        await expect(page).to_have_url(re.compile(r"sort=-since"))
        await expect(watches).to_have_text([f"sorted:{number}" for number in (3, 1, 2)])
        await page.reload()
        await expect(watches).to_have_text([f"sorted:{number}" for number in (3, 1, 2)])
        assert complaints == []


async def test_a_page_can_be_jumped_to_and_a_slash_leads_to_the_filter(lab: Lab, browser: Browser) -> None:
    async with lab.bridge(not_found_grace_s=60.0) as bridge:
        for number in range(430):
            await lab.client.publish(f"{PREFIX}.watch", json.dumps(f"task:{number:03}").encode())
        page, complaints = await opened(browser, url_of(bridge))
        watches = page.locator("#watches tbody tr")
        await expect(page.locator("#watches")).to_contain_text("page 1 of 3")
        await page.get_by_label("Page", exact=True).fill("3")
        await expect(watches).to_have_count(30)
        assert page.url.endswith("/?page=3")
        await page.keyboard.press("Tab")
        await page.keyboard.press("/")
        await expect(page.get_by_label("Filter")).to_be_focused()
        await page.keyboard.type("a/b")
        await expect(page.get_by_label("Filter")).to_have_value("a/b")
        await page.get_by_label("Filter").fill("task:")
        await expect(watches).to_have_count(200)  # the first page of what matches now
        await expect(page.get_by_label("Page", exact=True)).to_have_value("1")
        await page.get_by_role("link", name="Last").click()
        await expect(watches).to_have_count(30)
        await expect(page.get_by_label("Page", exact=True)).to_have_value("3")
        assert complaints == []


async def test_the_keyboard_stays_where_it_is_while_the_view_changes(lab: Lab, browser: Browser) -> None:
    async with lab.bridge(not_found_grace_s=60.0) as bridge:
        for number in range(230):
            await lab.client.publish(f"{PREFIX}.watch", json.dumps(f"task:{number:03}").encode())
        page, complaints = await opened(browser, url_of(bridge))
        section = page.locator("#watches")
        await expect(section).to_contain_text("page 1 of 2")
        later = section.get_by_role("link", name="Later")
        await later.press("Enter")
        await expect(section).to_contain_text("page 2 of 2")
        await expect(section.get_by_role("link", name="First")).to_be_focused()  # there is no later page
        heading = section.get_by_role("columnheader", name="Task").get_by_role("link")
        for order in ("ascending", "descending"):
            await heading.press("Enter")
            await expect(section.locator(f"th[aria-sort={order}]")).to_have_text("Task")
            await expect(heading).to_be_focused()
        chip = section.get_by_role("link", name="not seen yet 230")
        for is_chosen in (True, False):
            await chip.press("Enter")
            await expect(section.locator("h2")).to_contain_text("230 of 230" if is_chosen else re.compile(r"s\s*230"))
            await expect(chip).to_be_focused()
        assert complaints == []


@pytest.mark.parametrize("may_write", [True, False])
async def test_an_id_can_be_copied(lab: Lab, browser: Browser, may_write: bool) -> None:
    async with lab.bridge(not_found_grace_s=60.0) as bridge:
        await lab.ask("watch", "copied:1")
        permissions = ["clipboard-read", "clipboard-write"]
        page, _ = await opened(browser, url_of(bridge), permissions=permissions)
        if not may_write:  # as on a page by plain HTTP from another host
            await page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
        row = page.locator("#watches tbody tr")
        await row.hover()
        await row.get_by_role("button", name="Copy the id copied:1").click()
        await expect(row.get_by_role("button")).to_have_text("Copied")
        assert await page.evaluate("navigator.clipboard.readText()") == "copied:1"


async def test_every_row_is_stale_while_nats_is_away(lab: Lab, browser: Browser) -> None:
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(2)]
    ended = lab.vcenter.create(scenarios.succeeds(after_s=0.1))
    async with lab.bridge() as bridge:
        await lab.listen()
        for task in (*tasks, ended):
            await lab.publish(task)
        await lab.ended(ended)
        page, _ = await opened(browser, url_of(bridge))
        rows = page.locator("#watches tbody tr, #endings tbody tr")
        await expect(rows).to_have_count(3)
        await expect(page.locator(".stale")).to_have_count(0)
        of_task, _ = await opened(browser, url_of(bridge).rstrip("/") + build_task_link("lab", tasks[0]))
        events = of_task.locator("#timeline tbody tr")
        await expect(events).not_to_have_count(0)
        lab.server.stop()
        await expect(rows.filter(has_text="stale")).to_have_count(3)
        await expect(page.locator("#state")).to_contain_text("NATS is away")
        await expect(events.filter(has_text="stale")).not_to_have_count(0)  # what was known stays
        await expect(of_task.locator("#summary dd").first).to_have_text("stale RUNNING")
        lab.server.start()
        for one in (page, of_task):
            await expect(one.locator(".stale")).to_have_count(0)
        await expect(rows).to_have_count(3)


async def test_every_row_is_stale_while_the_bridge_is_away(lab: Lab, browser: Browser, tmp_path: Path) -> None:
    port = free_ports(1)[0]
    bridge = BridgeProcess(lab.environment(BRIDGE_HTTP_LISTEN=f"127.0.0.1:{port}"), tmp_path)
    bridge.log.touch()
    try:
        await bridge.start()
        await bridge.ready()
        task = lab.vcenter.create(scenarios.runs_forever())
        await lab.ask("watch", task)
        board, _ = await opened(browser, f"http://127.0.0.1:{port}/")
        of_task, _ = await opened(browser, f"http://127.0.0.1:{port}{build_task_link('lab', task)}")
        await expect(board.locator("#watches tbody tr")).to_have_count(1)
        assert await bridge.end() == 0
        for page in (board, of_task):
            count = await page.locator("main tbody tr").count()
            assert count
            await expect(page.locator("main tbody tr", has_text="stale")).to_have_count(count)
            await expect(page.locator("#live")).to_contain_text("Not live")
        await bridge.start()
        await bridge.ready()
        for page in (board, of_task):
            await expect(page.locator(".stale")).to_have_count(0)
    finally:
        await bridge.close()


async def test_a_deep_link_says_that_rows_are_being_read(
    lab: Lab, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_read = asyncio.Event()
    read_states = board_reader._BoardUpdater._read_states

    async def wait_and_read(*arguments: object, **more: object) -> None:
        await may_read.wait()
        await read_states(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(board_reader._BoardUpdater, "_read_states", wait_and_read)
    monkeypatch.setattr(board_reader, "_PAGE_MESSAGES", 5)
    async with lab.bridge(not_found_grace_s=60.0) as bridge:
        for number in range(12):
            await lab.ask("watch", f"deep:{number:02}")
        page, complaints = await opened(browser, url_of(bridge) + "?q=deep:11")
        section = page.locator("#watches")
        await expect(section).to_contain_text("Being read… No watch matches so far")
        await expect(section).to_contain_text("0 of 12, 12 being read…")
        await expect(page.locator("#endings")).to_contain_text("Being read…")
        may_read.set()
        await expect(page.locator(WATCHED_IDS)).to_have_text(["deep:11"])
        await expect(section).not_to_contain_text("being read")
        assert complaints == []


async def test_chips_orders_and_pages_of_tasks_need_no_script(lab: Lab, browser: Browser) -> None:
    async with lab.bridge(not_found_grace_s=60.0) as bridge:
        for task in ("one:2", "one:1"):
            await lab.ask("watch", task)
        page, _ = await opened(browser, url_of(bridge), javascript=False)
        await page.get_by_role("navigation", name="Statuses").get_by_role("link", name="not seen yet 2").click()
        await page.get_by_label("Order").select_option("by task id")
        await page.get_by_role("button", name="Filter").click()
        assert "status=not+seen+yet" in page.url
        await expect(page.locator(WATCHED_IDS)).to_have_text(["one:1", "one:2"])
        await expect(page.get_by_role("button", name=re.compile("Copy"))).to_have_count(0)  # only a script can
        await page.get_by_role("link", name="one:1").click()
        await expect(page.locator("#timeline")).to_contain_text("No event yet")


async def test_the_page_of_a_task_fits_a_phone(lab: Lab, browser: Browser) -> None:
    lab.vcenter.create(scenarios.runs_forever(), id="x" * 250)
    async with lab.bridge() as bridge:
        await lab.listen()
        await lab.ask("watch", {"task": "x" * 250, "labels": {"long": "y" * 250}})
        await until(lambda: lab.heard("x" * 250))
        link = url_of(bridge).rstrip("/") + build_task_link("lab", "x" * 250)
        page, _ = await opened(browser, link, viewport={"width": 360, "height": 740})
        await expect(page.locator("#summary")).to_contain_text("y" * 250)
        assert await page.evaluate("document.documentElement.scrollWidth") == 360


async def test_every_outcome_fits_a_phone(lab: Lab, browser: Browser) -> None:
    async with lab.bridge(not_found_grace_s=60.0) as bridge:
        await lab.listen()
        await lab.ask("watch", {"task": "times-out", "timeout": "100ms"})
        await lab.ended("times-out")
        page, _ = await opened(browser, url_of(bridge), viewport={"width": 360, "height": 740})
        await expect(page.locator("#endings")).to_contain_text("! abandoned: watch timed out")
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
        await page.locator("#endings").get_by_role("link", name="times-out").click()
        await expect(page.locator("#timeline")).to_contain_text("! abandoned: watch timed out")
        assert await page.evaluate("document.documentElement.scrollWidth") == 360


async def test_a_restated_standstill_is_shown_on_the_page_of_its_task(lab: Lab, browser: Browser) -> None:
    task = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge(events_max_age_s=8.0) as bridge:
        await lab.listen()
        await lab.publish({"task": task, "stalled_after": "500ms"})
        kinds = ["watching", "stalled", "status"]
        await until(lambda: [event["data"]["kind"] for event in lab.heard(task)][:3] == kinds)
        page, _ = await opened(browser, url_of(bridge).rstrip("/") + build_task_link("lab", task))
        await expect(page.locator("#summary dd").first).to_have_text("RUNNING ! stalled")


async def test_the_files_have_all_rows_and_not_only_a_page(lab: Lab) -> None:
    async with lab.bridge(not_found_grace_s=60.0) as bridge:
        for number in range(230):
            await lab.client.publish(f"{PREFIX}.watch", json.dumps(f"=task:{number:03}").encode())
        async with httpx.AsyncClient(trust_env=False, base_url=url_of(bridge), timeout=20) as client:
            async with asyncio.timeout(30):
                while True:
                    everything = (await client.get("view.json")).json()
                    if len(everything["watches"]) == 230 and not everything["unread_watches"]:
                        break
                    await asyncio.sleep(0.05)
            answer = await client.get("view.csv?q=task:01")
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        lines = answer.text.splitlines()
        assert len(lines) == 11
        assert lines[0].startswith('"table"')  # no byte order mark, which programs would read as part of it
        assert all(line.startswith('"watches","lab","\'=task:01') for line in lines[1:])
