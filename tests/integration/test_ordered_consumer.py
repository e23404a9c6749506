"""The reader of a stream goes on after an outage where it was, and why it isn't nats-py's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

from lab import NatsServer, until
from task_bridge.jetstream.ordered_consumer import OrderedConsumer

STREAM, STORED = "S", 5


class Reading:
    """A stream with five messages on a server that can be restarted, and one connection to it."""

    def __init__(self, server: NatsServer, client: Client, errors: list[Exception]) -> None:
        self.server = server
        self.client = client
        self.errors = errors
        self.js = client.jetstream()
        self.read: list[int] = []

    async def publish(self, first: int, last: int) -> None:
        for number in range(first, last + 1):
            await self.js.publish("s", b"%d" % number)

    async def restart(self) -> None:
        """Once the consumer is there."""
        while (await self.js.stream_info(STREAM)).state.consumer_count == 0:  # noqa: ASYNC110 -- nats-server's
            await asyncio.sleep(0.01)
        self.server.stop()
        self.server.start()
        await until(lambda: self.client.stats["reconnects"] == 1 and self.client.is_connected)


@pytest.fixture
async def reading(tmp_path: Path) -> AsyncIterator[Reading]:
    server, errors = NatsServer(tmp_path), list[Exception]()
    server.start()

    async def keep(error: Exception) -> None:
        errors.append(error)

    client = await nats.connect(server.url, error_cb=keep, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
    reading = Reading(server, client, errors)
    await reading.js.add_stream(name=STREAM, subjects=["s"])
    await reading.publish(1, STORED)
    yield reading
    await client.close()
    server.stop()


def start(where: str) -> dict[str, Any]:
    return {"first": STORED + 1} if where == "sequence" else {"since": datetime.now(UTC)}


@pytest.mark.parametrize("where", ["sequence", "time"])
async def test_an_outage_before_the_first_message_costs_none_and_repeats_none(reading: Reading, where: str) -> None:
    async def read() -> None:
        consumer = OrderedConsumer(reading.js, reading.client, STREAM, ["s"], **start(where))
        async with aclosing(consumer.messages()) as messages:
            async for message in messages:
                reading.read.append(int(message.data))

    task = asyncio.create_task(read())
    await reading.restart()
    await reading.publish(6, 8)
    await until(lambda: len(reading.read) >= 3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert reading.read == [6, 7, 8]


async def test_it_ends_at_the_newest_message_and_at_once_where_there_is_none(reading: Reading) -> None:
    for subjects, expected in (["s"], [1, 2, 3, 4, 5]), (["nothing"], []):
        consumer = OrderedConsumer(reading.js, reading.client, STREAM, subjects, follow=False)
        async with asyncio.timeout(5), aclosing(consumer.messages()) as messages:
            assert [int(message.data) async for message in messages] == expected


async def test_nats_pys_own_repeats_the_stream_after_such_an_outage(reading: Reading) -> None:
    """By a sequence; nats-py 2.16 goes on at the last that it read, plus one, which is 1 then."""
    await subscribe(reading, ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=STORED + 1))
    await reading.restart()
    await reading.publish(6, 8)
    await until(lambda: len(reading.read) >= 8)
    assert reading.read == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_nats_pys_own_never_reads_again_after_an_outage_when_it_began_by_a_time(reading: Reading) -> None:
    """nats-server refuses the new consumer, which has a start time and a start sequence then."""
    await subscribe(
        reading,
        ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=datetime.now(UTC)),
    )
    await reading.publish(6, 8)
    await until(lambda: len(reading.read) == 3)
    await reading.restart()
    await until(lambda: any("10094" in str(error) for error in reading.errors))
    await reading.publish(9, 9)
    assert reading.read == [6, 7, 8]


async def subscribe(reading: Reading, config: ConsumerConfig) -> None:
    async def keep(message: Msg) -> None:
        reading.read.append(int(message.data))

    await reading.js.subscribe("s", stream=STREAM, config=config, cb=keep, ordered_consumer=True, idle_heartbeat=0.3)


@pytest.mark.parametrize("stored_again", [3, 40])
async def test_a_stream_that_was_deleted_and_recreated_is_read_from_its_first_message(
    reading: Reading, stored_again: int
) -> None:
    """Whether it has fewer messages than were read before, or more."""

    async def read() -> None:
        consumer = OrderedConsumer(reading.js, reading.client, STREAM, ["s"])
        async with aclosing(consumer.messages()) as messages:
            async for message in messages:
                reading.read.append(int(message.data))

    task = asyncio.create_task(read())
    await until(lambda: len(reading.read) == STORED)
    await reading.js.delete_stream(STREAM)
    await reading.js.add_stream(name=STREAM, subjects=["s"])
    await reading.publish(101, 100 + stored_again)
    await until(lambda: len(reading.read) >= STORED + stored_again)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert reading.read[STORED:] == list(range(101, 101 + stored_again))
