"""The client: every event once, whatever happens to the connection; endings as results and exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lab import EVENTS, Lab, as_user, guarded, until
from task_bridge.client import ErrorAnswer, TaskBridge, TaskFailed, WatchAbandoned
from task_bridge.domain.errors import NatsUnavailable, Refused
from task_bridge.domain.events import Event
from task_bridge.jetstream.stream_reader import StreamReader
from task_bridge.settings import load
from task_bridge.simulator import scenarios


@pytest.fixture
async def client(lab: Lab) -> AsyncIterator[TaskBridge]:
    async with TaskBridge(lab.server.url) as client:
        yield client


async def test_wait_returns_the_event_of_the_success(lab: Lab, client: TaskBridge) -> None:
    async with lab.bridge():
        task = lab.vcenter.create(scenarios.succeeds(after_s=0.3))
        event = await client.wait(task, vcenter="lab", labels={"workflow": "patch-42"}, timeout=10)
    assert (event.kind, event.data.task, event.data.status) == ("completed.succeeded", task, "SUCCEEDED")
    assert event.data.watch.labels == {"workflow": "patch-42"}


async def test_wait_for_a_task_that_ended_before_returns_the_same_event(lab: Lab, client: TaskBridge) -> None:
    async with lab.bridge():
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        first = await client.wait(task, timeout=10)
        reply = await client.watch(task)
        again = await client.wait(task, timeout=10)
    assert reply.outcome == "already_completed"
    assert again.id == first.id == f"{reply.watch.id}/2"


@pytest.mark.parametrize("canceled", [False, True], ids=["failed", "canceled"])
async def test_wait_raises_what_vcenter_says_of_a_failure(lab: Lab, client: TaskBridge, canceled: bool) -> None:
    fate = scenarios.canceled(after_s=0.2) if canceled else scenarios.fails_with_error(after_s=0.2)
    async with lab.bridge():
        with pytest.raises(TaskFailed) as raised:
            await client.wait(lab.vcenter.create(fate), timeout=10)
    error = raised.value
    assert error.canceled == canceled
    assert error.event.data.final
    assert error.messages[-1] == ("The task was canceled." if canceled else "Host 'esx2' did not answer.")
    assert error.messages[0] in str(error)


async def test_wait_raises_when_the_watch_is_given_up_and_follows_only_the_watch_it_asked_for(
    lab: Lab, client: TaskBridge
) -> None:
    async with lab.bridge():
        task = lab.vcenter.create(scenarios.succeeds(after_s=2.0))
        waiting = asyncio.create_task(client.wait(task, timeout=10))
        await client.watch(task)
        ended = await client.unwatch(task)
        with pytest.raises(WatchAbandoned) as raised:
            await waiting
        # The abandoned event lies before those of the second watch, and isn't its end.
        event = await client.wait(task, timeout=10)
    assert raised.value.event.data.outcome == "unwatched"
    assert (ended.outcome, event.kind) == ("unwatched", "completed.succeeded")
    assert event.data.watch.id != raised.value.event.data.watch.id


async def test_the_local_timeout_ends_the_call_and_not_the_watch(lab: Lab, client: TaskBridge) -> None:
    async with lab.bridge():
        task = lab.vcenter.create(scenarios.runs_forever())
        with pytest.raises(TimeoutError):
            await client.wait(task, timeout=0.5)
        assert (await client.get(task)).watching


async def test_the_verbs_answer_typed_and_lists_have_pages(lab: Lab, client: TaskBridge) -> None:
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(3)]
    async with lab.bridge(allow_cancel=True):
        for task in tasks:
            await client.watch(task, timeout="2h", stalled_after=60, partial_results=True)
        page = await client.list(limit=2)
        rest = await client.list(limit=2, cursor=page.cursor)
        canceled = await client.cancel(tasks[0])
        with pytest.raises(TaskFailed):
            await client.wait(tasks[0], timeout=10)
    assert [watch.task for watch in [*page.watches, *rest.watches]] == tasks
    assert (page.total, rest.cursor, canceled.outcome) == (3, None, "cancel_requested")


async def test_an_error_answer_is_raised_with_its_code_and_fields(lab: Lab, client: TaskBridge) -> None:
    async with lab.bridge():
        with pytest.raises(Refused) as refused:
            await client.watch("a/b")
        with pytest.raises(ErrorAnswer) as unknown:
            await client.get("nobody-knows-it")
    assert (refused.value.status, refused.value.code) == (400, "invalid_request")
    assert refused.value.details[0].field == "task"
    assert (unknown.value.status, b"unknown_task" in unknown.value.body) == (404, True)


async def test_without_a_bridge_it_says_so_and_without_nats_too(lab: Lab, client: TaskBridge) -> None:
    with pytest.raises(NatsUnavailable, match=r"No bridge answers on vcenter.tasks.api.get"):
        await client.get("a-task")
    with pytest.raises(NatsUnavailable, match="VCENTER_TASKS_EVENTS"):
        await anext(client.events())
    lab.server.stop()
    with pytest.raises(NatsUnavailable, match="can't be reached"):
        async with TaskBridge(lab.server.url):
            pass


async def test_a_missing_permission_is_named_where_no_answer_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_bridge.client.ANSWER_S", 0.5)
    with guarded(tmp_path, 'publish: "foo"') as server:
        async with TaskBridge(settings=load(as_user("u", server), need_vcenters=False)) as client:
            for verb in ("list", "get"):
                subject = f"vcenter.tasks.api.{verb}"
                with pytest.raises(NatsUnavailable, match=f'permissions violation for publish to "{subject}"'):
                    await client.request(verb, {})


async def test_a_reading_that_had_begun_outlives_a_permission_that_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_bridge.jetstream.stream_reader.IDLE_S", 0.3)  # it reads again and again
    with guarded(tmp_path, 'publish: {deny: ["none"]}') as server:
        async with TaskBridge(settings=load(as_user("u", server), need_vcenters=False)) as client:
            js = client._client.jetstream()
            await js.add_stream(name=EVENTS, subjects=["vcenter.tasks.events.>"], allow_direct=True)
            reading = StreamReader(client._streams, EVENTS, ["vcenter.tasks.events.>"])
            async with aclosing(reading.messages()) as messages:
                first = asyncio.ensure_future(anext(messages))
                await js.publish("vcenter.tasks.events.lab.t.status", b"1")
                assert (await first).body == b"1"
                config = tmp_path / "guarded" / "nats.conf"
                allowed = config.read_text()
                config.write_text(allowed.replace("none", "$JS.API.DIRECT.GET.>"))
                server.reload()
                second = asyncio.ensure_future(anext(messages))
                await until(lambda: "permissions violation" in str(client._client.last_error))
                config.write_text(allowed)
                server.reload()
                await js.publish("vcenter.tasks.events.lab.t.status", b"2")
                assert (await asyncio.wait_for(second, 20)).body == b"2"


async def test_stored_events_are_filtered_by_kind_vcenter_task_and_age(lab: Lab, client: TaskBridge) -> None:
    async with lab.bridge():
        good, bad = (
            lab.vcenter.create(scenarios.succeeds_at_once()),
            lab.vcenter.create(scenarios.fails_with_error(0.1)),
        )
        await client.wait(good, timeout=10)
        with pytest.raises(TaskFailed):
            await client.wait(bad, timeout=10)

        async def found(**wanted: object) -> list[tuple[str, str]]:
            return [(event.data.task, event.kind) async for event in client.events(**wanted)]  # type: ignore[arg-type]

        everything = await found()
        assert everything == [(body["subject"], _kind(body)) for body in await lab.events()]
        assert await found(kind="completed") == [(good, "completed.succeeded"), (bad, "completed.failed")]
        assert await found(kind="completed.failed") == [(bad, "completed.failed")]
        assert await found(task=good, vcenter="lab") == everything[:2]
        assert await found(vcenter="other") == []
        assert await found(since=datetime.now(UTC)) == []
    for wrong in ({"vcenter": "*"}, {"kind": "completed.>"}, {"task": ""}):
        with pytest.raises(Refused, match=r"kind|vCenter|bytes"):
            await found(**wrong)


def _kind(body: dict[str, dict[str, str]]) -> str:
    return ".".join(filter(None, (body["data"]["kind"], body["data"]["outcome"])))


async def test_a_restart_of_nats_costs_no_event_and_repeats_none(lab: Lab, client: TaskBridge) -> None:
    got: list[Event] = []

    async def collect() -> None:
        async with aclosing(client.stored_events(follow=True)) as stored:
            async for event, _ in stored:
                got.append(event)

    async with lab.bridge(progress_interval_s=0.05):
        task = lab.vcenter.create(scenarios.succeeds(after_s=3.0, looks=20))
        waiting = asyncio.create_task(client.wait(task))
        collecting = asyncio.create_task(collect())
        await until(lambda: len(got) >= 2)
        lab.server.stop()
        lab.server.start()
        final = await asyncio.wait_for(waiting, 20)
        await until(lambda: got[-1].data.final)
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
    assert [event.data.sequence for event in got] == list(range(1, len(got) + 1))
    assert final.id == got[-1].id
