"""A nats-server that takes less than one would like: events come out all the same, or as soon as they can."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import nats.js.errors
import pytest

from lab import EVENTS, Lab, lab_in, until
from task_bridge.simulator import Script, Step, scenarios
from task_bridge.simulator.script import message, std_error


def configured(directory: Path, text: str) -> list[str]:
    file = directory / "nats.conf"
    file.write_text(text)
    return ["-c", str(file)]


async def filled(lab: Lab) -> None:
    """Somebody else's stream takes all the room that there is."""
    await lab.js.add_stream(name="SOMEBODYS", subjects=["somebodys.>"])
    for size in (500_000, 50_000, 1_000):
        with suppress(nats.js.errors.APIError):
            while True:
                await lab.js.publish("somebodys.data", b"x" * size)


async def test_full_storage_loses_nothing_and_work_goes_on_when_there_is_room(tmp_path: Path) -> None:
    async with (
        lab_in(tmp_path, *configured(tmp_path, "jetstream { max_file_store: 6MB }")) as lab,
        lab.bridge() as bridge,
    ):
        await lab.listen()
        tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(5)]
        for task in tasks:
            await lab.publish(task)
        await until(lambda: len(lab.live) == 5)
        await filled(lab)
        for task in tasks:
            lab.vcenter.set(task, status="SUCCEEDED")
        registry = bridge.status.metrics()
        await until(lambda: (registry.get_sample_value("task_bridge_publish_retries_total") or 0) > 10)
        assert len(await lab.events()) == 5
        await lab.js.delete_stream("SOMEBODYS")
        for task in tasks:
            final = await lab.ended(task, within_s=30)
            assert (final["data"]["kind"], final["data"]["sequence"]) == ("completed", 2)


LONG = "A very long story. " * 2_000


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ({"status": "SUCCEEDED", "result": {"log": "x" * 100_000}}, "stored"),
        ({"status": "FAILED", "error": std_error("ERROR", *[message(LONG)] * 5), "result": {"a": LONG}}, "stored"),
        ({"status": "SUCCEEDED", "result": {"short": 1}, "notifications": {"info": [LONG] * 3}}, "inline"),
        ({"status": "SUCCEEDED", "result": {"short": 1}, "notifications": {"info": ["x" * 23_000]}}, "stored"),
        ({"status": "FAILED", "error": std_error("ERROR", *[message(LONG)] * 5)}, "none"),
        ({"status": "FAILED", "parent": LONG, "error": std_error(LONG, message("Why"))}, "none"),
        ({"status": "FAILED", "user": LONG, "target": {"type": LONG, "id": LONG}}, "none"),
    ],
    ids=["result", "error", "extra", "just-too-large-for-a-reply", "no-result", "odd-words", "odd-target"],
)
async def test_a_small_max_payload_takes_every_event(tmp_path: Path, ending: dict[str, object], state: str) -> None:
    async with lab_in(tmp_path, *configured(tmp_path, "max_payload: 32768")) as lab, lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(Script((Step(0.3, ending),)))
        await lab.publish({"task": task, "labels": {f"label-{number}": "y" * 250 for number in range(16)}})
        final = await lab.ended(task)
        events = await lab.events(task)
        assert (await lab.ask("get", task))["last_event"] == final
        if state == "stored":
            ref = final["data"]["result_ref"]
            stored = await (await lab.js.object_store(ref["bucket"])).get(ref["name"])
            assert len(stored.data or b"") == ref["size"]
    assert final["data"]["result_state"] == state
    assert (final["data"]["error"] is None) == (ending["status"] == "SUCCEEDED")
    assert [event["data"]["sequence"] for event in events] == list(range(1, len(events) + 1))


async def test_a_task_whose_status_is_a_novel_holds_nothing_up(tmp_path: Path) -> None:
    async with lab_in(tmp_path, *configured(tmp_path, "max_payload: 32768")) as lab, lab.bridge() as bridge:
        await lab.listen()
        task = lab.vcenter.create(Script((Step(0, {"status": LONG}), Step(1.0, {"status": "SUCCEEDED"}))))
        await lab.publish(task)
        final = (await lab.ended(task))["data"]
        assert LONG.startswith(final["previous_status"])
        assert final["previous_status"]
        assert bridge.status.health().status == "ok"


async def test_a_list_that_is_too_large_for_one_reply_comes_in_more_pages(tmp_path: Path) -> None:
    async with lab_in(tmp_path, *configured(tmp_path, "max_payload: 32768")) as lab, lab.bridge():
        tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(20)]
        for task in tasks:
            await lab.ask("watch", {"task": task, "labels": {f"label-{number}": "y" * 250 for number in range(16)}})
        found, cursor, pages = [], None, 0
        while pages == 0 or cursor is not None:
            reply = await lab.ask("list", {"limit": 100, "cursor": cursor})
            found += [one["task"] for one in reply["watches"]]
            cursor, pages = reply["cursor"], pages + 1
            assert reply["total"] == len(tasks)
        assert (found, pages > 1) == (tasks, True)


async def test_a_stream_that_takes_only_small_messages_is_told_of(tmp_path: Path) -> None:
    """An operator's `max_msg_size` is no limit of the server's; what it refuses is kept, and told."""
    async with lab_in(tmp_path) as lab, lab.bridge():
        await lab.listen()
        config = (await lab.js.stream_info(EVENTS)).config
        await lab.js.update_stream(config.evolve(max_msg_size=200))
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        await until(lambda: lab.vcenter.request_log.polls[task])
        await lab.js.update_stream(config)
        assert (await lab.ended(task, within_s=30))["data"]["sequence"] == 2
