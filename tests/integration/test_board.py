"""The board of a running bridge: what it reads of the streams, and in a real browser."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, expect

from browser import in_browser, opened, url_of
from lab import PREFIX, BridgeProcess, Lab, free_ports, until
from task_bridge.domain.board import WatchBoard
from task_bridge.domain.durations import rfc3339
from task_bridge.domain.events import Event, EventData, WatchRef, from_cloudevent, to_cloudevent
from task_bridge.domain.subjects import SubjectNames
from task_bridge.jetstream.board_reader import BoardReader
from task_bridge.settings import NatsSettings
from task_bridge.simulator import scenarios
from task_bridge.simulator.script import std_error

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> \x1b[31m\u202e&amp;"


class TestFeed:
    async def test_it_shows_what_the_streams_hold_and_follows(self, lab: Lab) -> None:
        runs = lab.vcenter.create(scenarios.runs_forever())
        over = lab.vcenter.create(scenarios.fails_with_error(after_s=0.1))
        feed = BoardReader(NatsSettings(urls=(lab.server.url,)), SubjectNames(PREFIX))
        async with lab.bridge() as bridge:
            await lab.listen()
            await lab.publish({"task": runs, "labels": {"workflow": "patch-42"}})
            await lab.publish(over)
            await lab.ended(over)
            await until(lambda: lab.heard(runs))
            with feed.keep_current():
                overview = await until(lambda: complete(feed))
                (row,) = overview.rows_in_order()
                assert (row.task, row.labels, row.status) == (runs, "workflow=patch-42", "RUNNING")
                assert row.owner == bridge.status.instance
                assert [(ending.task, ending.kind) for ending in overview.endings] == [(over, "completed.failed")]
                late = lab.vcenter.create(scenarios.succeeds(after_s=0.1))
                await lab.publish(late)
                await until(lambda: overview.endings[0].task == late)
                await lab.ask("unwatch", runs)
                await until(lambda: not list(overview.rows_in_order()))
                assert overview.endings[0].kind == "abandoned.unwatched"
        await feed.close()

    async def test_it_survives_a_restart_of_nats(self, lab: Lab) -> None:
        task = lab.vcenter.create(scenarios.runs_forever())
        feed = BoardReader(NatsSettings(urls=(lab.server.url,)), SubjectNames(PREFIX))
        async with lab.bridge():
            await lab.listen()
            await lab.publish(task)
            await until(lambda: lab.heard(task))
            with feed.keep_current():
                before = await until(lambda: complete(feed))
                lab.server.stop()
                await until(lambda: feed.trouble)
                assert feed.board is before  # what was known stays to be seen
                lab.server.start()
                after = await until(lambda: None if complete(feed) is before else complete(feed))
                assert [row.task for row in after.rows_in_order()] == [task]
        await feed.close()

    async def test_watches_of_which_no_event_is_there_yet_are_shown(self, lab: Lab) -> None:
        async with lab.bridge(not_found_grace_s=60.0):
            await lab.ask("watch", "nobody-has-seen-it")
            feed = BoardReader(NatsSettings(urls=(lab.server.url,)), SubjectNames(PREFIX))
            with feed.keep_current():
                overview = await until(lambda: complete(feed))
                (row,) = overview.rows_in_order()
            await feed.close()
        assert (row.task, row.status, row.sequence, row.is_loaded) == ("nobody-has-seen-it", None, 0, True)

    async def test_only_the_newest_endings_are_read_however_many_there_are(self, lab: Lab) -> None:
        tasks = [lab.vcenter.create(scenarios.succeeds_at_once()) for _ in range(250)]
        async with lab.bridge():
            await lab.listen()
            for task in tasks:
                await lab.client.publish(f"{PREFIX}.watch", json.dumps(task).encode())
            for task in tasks:
                await lab.ended(task)
            ended = [event["subject"] for event in await lab.events() if event["data"]["final"]]
            feed = BoardReader(NatsSettings(urls=(lab.server.url,)), SubjectNames(PREFIX))
            with feed.keep_current():
                overview = await until(lambda: complete(feed))
            await feed.close()
        assert {row.task for row in overview.endings} == set(ended[-100:])

    async def test_of_a_task_with_many_events_only_the_newest_are_read(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[bytes] = []

        def count(body: bytes, *, stalled_reported: bool) -> Event | None:
            read.append(body)
            return from_cloudevent(body, stalled_reported=stalled_reported)

        monkeypatch.setattr("task_bridge.jetstream.timeline_reader.from_cloudevent", count)
        names = SubjectNames(PREFIX)
        async with lab.bridge():
            pass  # creates the streams
        for number in range(1, 4001):
            for task in ("busy", *(["other"] if number % 3 == 0 else [])):
                data = EventData("lab", "cis", task, WatchRef("w-1", rfc3339(1.0)), "progress", None, False, number)
                body = to_cloudevent(Event("https://lab", float(number), data))
                await lab.client.publish(names.put_subject("lab", task, "progress"), body)
        await lab.js.publish(names.put_subject("lab", "last", "progress"), body)  # once it is stored, all are
        feed = BoardReader(NatsSettings(urls=(lab.server.url,)), names)
        timeline = await feed.read_timeline("lab", "busy")
        numbers = [stored.event.data.sequence for stored in timeline.events]
        assert (numbers, timeline.dropped) == (list(range(3501, 4001)), 3500)
        assert len(read) < 1500
        assert len((await feed.read_timeline("lab", "other")).events) == 500
        assert (await feed.read_timeline("lab", "none")).events == ()

    async def test_nobody_who_looks_nothing_that_is_read(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("task_bridge.jetstream.board_reader.LINGER_S", 0.05)
        feed = BoardReader(NatsSettings(urls=(lab.server.url,)), SubjectNames(PREFIX))
        async with lab.bridge():
            with feed.keep_current(), feed.keep_current():
                await until(lambda: complete(feed))
            await until(lambda: feed.board is None)
            await feed.close()


def complete(feed: BoardReader) -> WatchBoard | None:
    return feed.board if feed.board and feed.board.complete else None


@in_browser
class TestInABrowser:
    async def test_watches_come_go_on_and_end_before_ones_eyes(self, lab: Lab, browser: Browser) -> None:
        async with lab.bridge() as bridge:
            page, complaints = await opened(browser, url_of(bridge))
            await expect(page.locator("#live")).to_have_text("Live.")
            await expect(page.locator("#watches")).to_contain_text("Nothing is watched.")
            task = lab.vcenter.create(scenarios.succeeds(after_s=3, looks=30))
            await lab.publish({"task": task, "labels": {"workflow": "patch-42"}})
            row = page.locator("#watches tr", has_text=task)
            await expect(row).to_contain_text("workflow=patch-42")
            await expect(row.locator("progress")).to_be_visible()
            ending = page.locator("#endings tr", has_text=task)
            await expect(ending).to_contain_text("✓ succeeded", timeout=10_000)
            await expect(row).to_have_count(0)
            assert complaints == []

    async def test_what_strangers_wrote_is_text(self, lab: Lab, browser: Browser) -> None:
        error = std_error("INTERNAL_SERVER_ERROR", {"id": "x", "default_message": HOSTILE, "args": []})
        fails = lab.vcenter.create(scenarios.fails_with_error(after_s=0.1, error=error))
        runs = lab.vcenter.create(scenarios.runs_forever())
        async with lab.bridge(not_found_grace_s=60.0) as bridge:
            await lab.listen()
            for request in ({"task": fails}, {"task": runs, "labels": {HOSTILE[:60]: HOSTILE}}):
                await lab.publish(request)
            await lab.publish({"task": "<script>document.title=0<script>"})
            await lab.ended(fails)
            page, complaints = await opened(browser, url_of(bridge) + "?q=%3Cscript%3Ealert(1)")
            await page.get_by_label("Filter").fill("")
            await expect(page.locator("#endings")).to_contain_text("onerror=")
            await expect(page.locator("#watches tbody tr")).to_have_count(2)
            assert await page.locator("main img, main script").count() == 0
            assert (await page.title(), complaints) == ("vcenter-task-bridge", [])
            text = await page.locator("body").inner_text()
            assert "\x1b" not in text
            assert "\u202e" not in text

    async def test_the_filter_is_the_servers_and_by_keyboard(self, lab: Lab, browser: Browser) -> None:
        async with lab.bridge(not_found_grace_s=60.0) as bridge:
            for number in range(230):
                await lab.client.publish(f"{PREFIX}.watch", json.dumps(f"task:{number:03}").encode())
            page, complaints = await opened(browser, url_of(bridge))
            await expect(page.locator("#watches tbody tr")).to_have_count(200)
            await page.get_by_role("link", name="Later").press("Enter")
            await expect(page.locator("#watches tbody tr")).to_have_count(30)
            assert page.url.endswith("page=2")
            await page.get_by_label("Filter").press_sequentially("TASK:229")
            await expect(page.locator("#watches tbody tr")).to_have_count(1)
            await expect(page.locator("#watches h2")).to_contain_text("1 of 230")
            await expect(page.get_by_label("Filter")).to_be_focused()
            assert page.url.endswith("/?q=TASK%3A229")
            assert complaints == []

    async def test_it_can_be_read_and_filtered_without_scripts(self, lab: Lab, browser: Browser) -> None:
        async with lab.bridge(not_found_grace_s=60.0) as bridge:
            for task in ("one", "two"):
                await lab.ask("watch", task)
            page, _ = await opened(browser, url_of(bridge), javascript=False)
            await expect(page.locator("#watches tbody tr")).to_have_count(2)
            await page.get_by_label("Filter").fill("two")
            await page.get_by_role("button", name="Filter").click()
            await expect(page.locator("#watches tbody tr")).to_have_count(1)

    async def test_it_lives_on_over_a_restart_of_the_bridge(self, lab: Lab, browser: Browser, tmp_path: Path) -> None:
        task = lab.vcenter.create(scenarios.runs_forever())
        port = free_ports(1)[0]
        bridge = BridgeProcess(lab.environment(BRIDGE_HTTP_LISTEN=f"127.0.0.1:{port}"), tmp_path)
        bridge.log.touch()
        try:
            await bridge.start()
            await bridge.ready()
            await lab.ask("watch", task)
            page, _ = await opened(browser, f"http://127.0.0.1:{port}/")
            await expect(page.locator("#live")).to_have_text("Live.")
            began = time.monotonic()
            assert await bridge.end() == 0
            assert time.monotonic() - began < 5
            await expect(page.locator("#live")).to_contain_text("Not live")
            await bridge.start()
            await bridge.ready()
            await expect(page.locator("#live")).to_have_text("Live.", timeout=15_000)
            await expect(page.locator("#watches")).to_contain_text(task)
        finally:
            await bridge.close()

    async def test_a_phone_shows_cards_and_nothing_sticks_out(self, lab: Lab, browser: Browser) -> None:
        async with lab.bridge(not_found_grace_s=60.0) as bridge:
            await lab.ask("watch", {"task": "x" * 250, "labels": {"long": "y" * 250}})
            context = await browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
            page = await context.new_page()
            await page.goto(url_of(bridge))
            await expect(page.locator("#watches")).to_contain_text("x" * 250)
            assert await page.evaluate("document.documentElement.scrollWidth") == 360
            await expect(page.get_by_role("row")).not_to_have_count(0)  # still a table to a screen reader


async def test_the_board_holds_up_no_end(lab: Lab, process: BridgeProcess) -> None:
    await process.start()
    await process.ready()
    (listening,) = [line for line in process.log.read_text().splitlines() if "http_listening" in line]
    url = f"http://127.0.0.1:{json.loads(listening)['port']}/live"
    async with httpx.AsyncClient(trust_env=False) as client, client.stream("GET", url) as live:
        lines = live.aiter_lines()
        while not (await asyncio.wait_for(anext(lines), 10)).startswith("data: "):
            pass
        began = time.monotonic()
        assert await process.end() == 0
        assert time.monotonic() - began < 5
    assert '"level": "error"' not in process.log.read_text()
