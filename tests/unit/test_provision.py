"""What follows when JetStream doesn't show at once what was created. Over a JetStream in memory."""

from __future__ import annotations

from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, StreamConfig

from task_bridge.domain.errors import NatsUnavailable
from task_bridge.domain.subjects import SubjectNames
from task_bridge.jetstream.infos import ConsumerInfo, StreamInfo, StreamReport, StreamState
from task_bridge.jetstream.provision import expected_config, provision_streams
from task_bridge.jetstream.streams import Streams

NAMES = SubjectNames("vcenter.tasks")
EXPECTED = expected_config(NAMES, replicas=3, ack_wait_s=10.0, events_max_age_s=604_800.0)


class JetStream:
    """Streams and consumers that were created. `hidden` ones aren't shown yet."""

    def __init__(self, hidden: str = "") -> None:
        self.hidden = hidden
        self._streams: dict[str, StreamInfo] = {}
        self._consumers: dict[str, ConsumerInfo] = {}

    async def add_stream(self, config: StreamConfig) -> None:
        report = StreamReport(StreamState(), "2026-11-29T08:00:00Z", "2026-11-29T09:00:00Z")
        self._streams[str(config.name)] = StreamInfo(config, report)

    async def add_consumer(self, stream: str, config: ConsumerConfig) -> None:
        self._consumers[f"{stream}/{config.durable_name}"] = ConsumerInfo(config, 0, 0)

    async def read_stream(self, stream: str) -> StreamInfo | None:
        return None if stream == self.hidden else self._streams.get(stream)

    async def read_consumer(self, stream: str, consumer: str) -> ConsumerInfo | None:
        path = f"{stream}/{consumer}"
        return None if path == self.hidden else self._consumers.get(path)


def streams_of(jetstream: Any) -> Streams:
    streams = Streams(Client())
    streams.js = streams.infos = jetstream
    return streams


async def test_what_was_created_is_read_at_once() -> None:
    provisioned = await provision_streams(streams_of(JetStream()), EXPECTED, create=True)
    assert provisioned.differences == []
    assert list(provisioned.streams) == [config.name for config, _ in EXPECTED.streams]
    assert list(provisioned.consumers) == [config.name for config, durable in EXPECTED.streams if durable]


@pytest.mark.parametrize("hidden", [NAMES.watches_stream, f"{NAMES.watches_stream}/bridge", NAMES.events_stream])
async def test_what_a_replica_does_not_show_yet_is_read_again_later(hidden: str) -> None:
    jetstream = JetStream(hidden)
    with pytest.raises(NatsUnavailable, match=hidden.partition("/")[0]):
        await provision_streams(streams_of(jetstream), EXPECTED, create=True)
    jetstream.hidden = ""
    assert (await provision_streams(streams_of(jetstream), EXPECTED, create=True)).differences == []


async def test_what_may_not_be_created_is_a_difference() -> None:
    provisioned = await provision_streams(streams_of(JetStream()), EXPECTED, create=False)
    missing = {str(difference) for difference in provisioned.differences}
    assert f"stream {NAMES.events_stream} is missing" in missing
    assert f"consumer {NAMES.watches_stream}/bridge is missing" in missing
