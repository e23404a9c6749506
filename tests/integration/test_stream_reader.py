"""The reader of a stream yields each message once, in order, through outages, and creates no consumer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import RePublish, StreamConfig

from lab import NatsServer, until
from task_bridge.domain.errors import NatsUnavailable
from task_bridge.jetstream import stream_reader
from task_bridge.jetstream.stream_reader import StreamReader
from task_bridge.jetstream.streams import StoredMessage, Streams

STREAM, STORED = "S", 5


class Reading:
    """A stream with five messages on a server that can be restarted, and one connection to it."""

    def __init__(self, server: NatsServer, client: Client) -> None:
        self.server = server
        self.client = client
        self.js = client.jetstream()
        self.read: list[int] = []

    async def create_stream(self, **more: Any) -> None:
        config = StreamConfig(name=STREAM, subjects=["in.>"], **{"allow_direct": True, **more})
        await self.js.add_stream(config)

    async def publish(self, first: int, last: int, subject: str = "in.a") -> None:
        for number in range(first, last + 1):
            await self.js.publish(subject, b"%d" % number)

    async def restart(self) -> None:
        self.server.stop()
        self.server.start()
        await until(lambda: self.client.stats["reconnects"] == 1 and self.client.is_connected)

    def reader(self, *subjects: str, **start: Any) -> StreamReader:
        return StreamReader(Streams(self.client), STREAM, subjects or ["in.a"], **start)

    @asynccontextmanager
    async def following(self, *subjects: str, **start: Any) -> AsyncIterator[None]:
        """Fills `read`."""

        async def read() -> None:
            async with aclosing(self.reader(*subjects, **start).messages()) as messages:
                async for message in messages:
                    self.read.append(int(message.body))

        task = asyncio.create_task(read())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def all(self, *subjects: str, **start: Any) -> list[StoredMessage]:
        async with asyncio.timeout(5), aclosing(self.reader(*subjects, follow=False, **start).messages()) as messages:
            return [message async for message in messages]


@pytest.fixture
async def reading(tmp_path: Path) -> AsyncIterator[Reading]:
    server = NatsServer(tmp_path)
    server.start()
    client = await nats.connect(server.url, error_cb=ignored, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
    reading = Reading(server, client)
    await reading.create_stream()
    await reading.publish(1, STORED)
    yield reading
    await client.close()
    server.stop()


async def ignored(_: Exception) -> None:
    pass


def start(where: str) -> dict[str, Any]:
    return {"first": STORED + 1} if where == "sequence" else {"since": datetime.now(UTC)}


@pytest.mark.parametrize("where", ["sequence", "time"])
async def test_an_outage_before_the_first_message_costs_none_and_repeats_none(reading: Reading, where: str) -> None:
    async with reading.following(**start(where)):
        await reading.restart()
        await reading.publish(6, 8)
        await until(lambda: len(reading.read) >= 3)
    assert reading.read == [6, 7, 8]


async def test_outages_and_messages_in_turn_cost_none_and_repeat_none(reading: Reading) -> None:
    async with reading.following():
        await until(lambda: len(reading.read) == STORED)
        await reading.restart()
        await reading.publish(6, 9)
        await until(lambda: len(reading.read) >= 9)
    assert reading.read == list(range(1, 10))


async def test_it_ends_at_the_newest_message_and_at_once_where_there_is_none(reading: Reading) -> None:
    for subject, expected in ("in.a", [1, 2, 3, 4, 5]), ("in.nothing", []):
        assert [int(message.body) for message in await reading.all(subject)] == expected


async def test_it_reads_several_pages_and_subjects(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_reader, "_PAGE_MESSAGES", 3)
    await reading.publish(101, 110, "in.b")
    assert [int(message.body) for message in await reading.all("in.>")] == [*range(1, 6), *range(101, 111)]
    both = [int(message.body) for message in await reading.all("in.b", "in.a")]
    assert sorted(both) == [*range(1, 6), *range(101, 111)]
    assert [one for one in both if one > 100] == list(range(101, 111))


async def test_a_message_larger_than_a_page_is_passed(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("task_bridge.jetstream.streams.PAGE_MAX_BYTES", 100)
    for number in (6, 7, 8):
        await reading.js.publish("in.a", b"%500d" % number)
    assert [int(message.body) for message in await reading.all("in.a")] == list(range(1, 9))


async def test_no_consumer_is_created_and_a_message_is_read_at_once(reading: Reading) -> None:
    async with reading.following():
        await until(lambda: len(reading.read) == STORED)
        began = asyncio.get_running_loop().time()
        for number in range(6, 16):
            await reading.publish(number, number)
            await until(lambda: len(reading.read) == number)  # noqa: B023 - it is called in this turn only
        took_s = asyncio.get_running_loop().time() - began
        info = await reading.js.stream_info(STREAM)
    assert info.state.consumer_count == 0
    assert took_s < stream_reader.IDLE_S


async def test_a_message_that_no_core_subscription_announced_is_read_too(reading: Reading) -> None:
    """As after a lost one: here the stream stores what was published under another subject."""
    await reading.js.delete_stream(STREAM)
    await reading.create_stream(subject_transform={"src": "in.>", "dest": "out.>"})
    async with reading.following("out.a"):
        await reading.publish(1, 2)
        await until(lambda: len(reading.read) == 2)
    assert reading.read == [1, 2]


async def test_a_message_that_is_announced_before_it_can_be_read_is_waited_for(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a replica of the stream that lags."""
    monkeypatch.setattr(stream_reader, "IDLE_S", 60.0)
    await reading.js.delete_stream(STREAM)
    await reading.create_stream(subject_transform={"src": "in.>", "dest": "out.>"})
    await reading.publish(1, 1)
    async with reading.following("out.a"):
        await until(lambda: reading.read == [1])
        await reading.client.publish("out.a", b"", headers={"Nats-Sequence": "2"})
        await reading.client.flush()
        await reading.publish(2, 2)
        await until(lambda: reading.read == [1, 2])


@pytest.mark.parametrize("stored_again", [3, 40])
async def test_a_stream_that_was_deleted_and_recreated_is_read_from_its_first_message(
    reading: Reading, stored_again: int
) -> None:
    """Whether it has fewer messages than were read before, or more."""
    async with reading.following():
        await until(lambda: len(reading.read) == STORED)
        await reading.js.delete_stream(STREAM)
        await reading.create_stream()
        await reading.publish(101, 100 + stored_again)
        await until(lambda: len(reading.read) >= STORED + stored_again)
    assert reading.read[STORED:] == list(range(101, 101 + stored_again))


async def test_a_purge_loses_only_what_it_removes(reading: Reading) -> None:
    async with reading.following():
        await until(lambda: len(reading.read) == STORED)
        await reading.js.purge_stream(STREAM)
        await reading.publish(6, 8)
        await until(lambda: len(reading.read) >= STORED + 3)
    assert reading.read == list(range(1, 9))


async def test_republished_events_announce_themselves(reading: Reading) -> None:
    await reading.js.delete_stream(STREAM)
    await reading.create_stream(republish=RePublish(src="in.>", dest="seen.>"))
    async with reading.following("in.a", "in.b"):
        await reading.publish(1, 3)
        await reading.publish(4, 6, "in.b")
        await until(lambda: len(reading.read) == 6)
    assert sorted(reading.read) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("stream", "reason"),
    [("missing", "stream not found"), ("indirect", "it allows no direct gets; run `task-bridge provision`")],
)
async def test_a_stream_that_cannot_be_read_is_an_error_with_the_reason(
    reading: Reading, stream: str, reason: str
) -> None:
    await reading.js.delete_stream(STREAM)
    if stream == "indirect":
        await reading.create_stream(allow_direct=False)
    with pytest.raises(NatsUnavailable, match=f"^The stream S can't be read: {reason}.$"):
        await reading.all("in.a")
