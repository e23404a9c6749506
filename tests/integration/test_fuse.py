"""What must never be lived with: it is mended, or the process says so and ends; it is never deaf or spinning."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import nats
import nats.js.errors
import pytest

from lab import EVENTS, PREFIX, BridgeProcess, Lab, NatsServer, until
from task_bridge.app import Bridge
from task_bridge.domain.errors import CannotStart
from task_bridge.simulator import scenarios

REQUESTS, WATCHES = "VCENTER_TASKS_REQUESTS", "VCENTER_TASKS_WATCHES"
HANGS = """
import asyncio, functools, sys, time
import task_bridge.app
async def hang(self):
    await asyncio.sleep(0.5)
    time.sleep(600)
task_bridge.app.Monitor.run = hang
task_bridge.app.Watchdog = functools.partial(task_bridge.app.Watchdog, limit_s=1.0)
from task_bridge.cli import main
sys.argv = ["task-bridge", "serve"]
main()
"""


async def there_again(lab: Lab, stream: str) -> None:
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await lab.js.stream_info(stream)
                return


@pytest.mark.parametrize("stream", [REQUESTS, WATCHES, EVENTS])
async def test_a_deleted_stream_is_made_again_and_work_goes_on(lab: Lab, stream: str) -> None:
    async with lab.bridge():
        await lab.listen()
        await lab.js.delete_stream(stream)
        await there_again(lab, stream)
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        await lab.ended(task)


async def test_the_end_of_a_watch_of_a_deleted_stream_removes_no_other_watch(lab: Lab) -> None:
    """Its ack names the message by its sequence, which the next stream's first message had too."""
    async with lab.bridge():
        await lab.listen()
        old, new = (lab.vcenter.create(scenarios.runs_forever()) for _ in range(2))
        await lab.publish(old)
        await until(lambda: lab.heard(old))
        await lab.js.delete_stream(WATCHES)
        await there_again(lab, WATCHES)
        await lab.publish(new)
        await until(lambda: lab.heard(new))
        lab.vcenter.set(old, status="SUCCEEDED")
        await lab.ended(old)
        await lab.ask("get", {"task": old})  # a round trip behind the ack
        assert (await lab.js.stream_info(WATCHES)).state.messages == 1


@pytest.mark.parametrize("stream", [REQUESTS, WATCHES])
async def test_a_deleted_consumer_is_made_again_and_work_goes_on(lab: Lab, stream: str) -> None:
    async with lab.bridge() as bridge:
        await lab.listen()
        await lab.js.delete_consumer(stream, "bridge")
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        await lab.ended(task)
        await until(lambda: bridge.status.health().status == "ok", within_s=15)


@pytest.mark.parametrize("what", ["stream", "consumer"])
async def test_where_it_may_make_nothing_it_ends_and_says_what_is_missing(lab: Lab, what: str) -> None:
    async with lab.bridge():
        pass
    async with Bridge(lab.settings(provision="verify")).running() as failed:
        if what == "stream":
            await lab.js.delete_stream(REQUESTS)
        else:
            await lab.js.delete_consumer(WATCHES, "bridge")
        await until(failed.done, within_s=15)
        with pytest.raises(CannotStart, match=r"is missing.*task-bridge provision"):
            failed.result()


async def test_an_event_loop_that_hangs_ends_the_process_with_70(lab: Lab, tmp_path: Path) -> None:
    bridge = BridgeProcess(lab.environment(), tmp_path, command=[sys.executable, "-c", HANGS])
    await bridge.start()
    assert await bridge.exit(within_s=40) == 70
    assert "event_loop_stands_still" in bridge.log.read_text()


async def test_a_process_that_was_stopped_and_continued_lives_on(lab: Lab, process: BridgeProcess) -> None:
    await process.start()
    await process.ready()
    await lab.listen()
    os.kill(process.pid, signal.SIGSTOP)
    await until(lambda: "(stopped)" in Path(f"/proc/{process.pid}/status").read_text())
    task = lab.vcenter.create(scenarios.succeeds_at_once())
    await lab.publish(task)
    os.kill(process.pid, signal.SIGCONT)
    await lab.ended(task)
    assert await process.end() == 0


async def test_a_connection_that_is_closed_for_good_ends_the_bridge(lab: Lab) -> None:
    bridge = Bridge(lab.settings())
    async with bridge.running() as failed:
        await until(lambda: bridge.status.health().status == "ok")
        assert bridge.status.connection is not None
        await bridge.status.connection.broker.config.connection_state.connection.close()
        await until(failed.done, within_s=5)
        with pytest.raises(CannotStart, match="has ended for good"):
            failed.result()


async def test_what_is_written_to_a_transport_that_closed_unnoticed_goes_out_by_the_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """uvloop refuses it by a RuntimeError, which has ended nats-py's flusher by then."""
    async with lab.bridge() as bridge:
        await lab.listen()
        assert bridge.status.connection is not None
        client = bridge.status.connection.broker.config.connection_state.connection
        heard = await lab.client.subscribe("kept")
        flusher = client._flusher_task

        def closed(_: object) -> None:
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

        monkeypatch.setattr(client._transport, "writelines", closed)
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        await until(flusher.done)
        await client.publish("kept", b"")
        monkeypatch.undo()
        await client.force_reconnect()
        await heard.next_msg(timeout=10)
        await lab.ended(task)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("stream", [EVENTS, WATCHES])
async def test_a_full_stream_is_told_and_nothing_is_lost(lab: Lab, stream: str) -> None:
    async with lab.bridge() as bridge:
        await lab.listen()
        config = (await lab.js.stream_info(stream)).config
        config.max_bytes, before = 1, config.max_bytes
        config.discard = "new"  # type: ignore[assignment] # as its text
        await lab.js.update_stream(config)
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        await until(lambda: bridge.status.health().status == "unready", within_s=15)
        told = {check.name: check.reason for check in bridge.status.health().streams}
        assert "maximum bytes" in (told[stream] or "") or "discard" in (told[stream] or "")
        config.max_bytes = before
        config.discard = "old" if stream == EVENTS else "new"  # type: ignore[assignment]
        await lab.js.update_stream(config)
        await lab.ended(task, within_s=15)
        await until(lambda: bridge.status.health().status == "ok", within_s=15)
    assert [event["data"]["sequence"] for event in await lab.events(task)] == [1, 2]


DENIED = {
    "events": f'publish: {{deny: "{PREFIX}.internal.put.>"}}',
    "watches": f'publish: {{deny: "{PREFIX}.internal.watches.>"}}',
    "pull": f'publish: {{deny: "$JS.API.CONSUMER.MSG.NEXT.{WATCHES}.>"}}',
    "service": f'subscribe: {{deny: "{PREFIX}.api.watch"}}',
}
USERS = "authorization {{users: [{{user: u, password: p {}}}, {{user: other, password: p}}]}}"


async def test_a_subject_that_is_not_permitted_is_told_and_nothing_is_lost(lab: Lab, tmp_path: Path) -> None:
    """All at the same time, since each is waited for: what is forbidden is tried again only now and then."""
    async with asyncio.TaskGroup() as group:
        for name, denied in DENIED.items():
            (directory := tmp_path / name).mkdir()
            group.create_task(is_told_and_nothing_is_lost(lab, directory, denied), name=name)


async def is_told_and_nothing_is_lost(lab: Lab, directory: Path, denied: str) -> None:
    config = directory / "nats.conf"
    config.write_text(USERS.format(""))
    guarded = NatsServer(directory, "-c", str(config))
    guarded.start()
    given = {"urls": guarded.url, "user": "u", "given_password": "p"}
    try:
        client = await nats.connect(guarded.url, user="other", password="p")
        async with lab.bridge(nats=given) as bridge:
            config.write_text(USERS.format(f", permissions: {{{denied}}}"))
            guarded.reload()
            task = lab.vcenter.create(scenarios.succeeds_at_once())
            await client.publish(f"{PREFIX}.watch", json.dumps(task).encode())
            await until(lambda: bridge.status.health().status == "unready", within_s=20)
            health = bridge.status.health()
            told = [health.nats.reason, *(check.reason for check in (*health.streams, *health.consumers))]
            assert any("ermission" in (reason or "") or "publish there" in (reason or "") for reason in told), told
            config.write_text(USERS.format(""))
            guarded.reload()
            events = await client.jetstream().subscribe(f"{PREFIX}.events.>", stream=EVENTS, ordered_consumer=True)
            while not json.loads((await events.next_msg(timeout=30)).data)["data"]["final"]:
                pass
            await until(lambda: bridge.status.health().status == "ok", within_s=30)
            answer = await client.request(f"{PREFIX}.api.watch", json.dumps(task).encode())
            assert json.loads(answer.data)["outcome"] == "already_completed"
        await client.close()
    finally:
        guarded.stop()
