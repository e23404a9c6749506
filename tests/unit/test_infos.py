"""What JetStream says about streams and consumers. Over a connection that answers from memory."""

from __future__ import annotations

from typing import Any

import msgspec
import nats.js.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from task_bridge.jetstream.infos import InfoReader

STREAM = {
    "config": {"name": "EVENTS", "subjects": ["events.>"], "max_age": 5_000_000_000, "metadata": {"_nats.level": "0"}},
    "created": "2026-11-29T08:00:00Z",
    "state": {"messages": 3, "first_seq": 7, "last_seq": 9, "consumer_count": 1},
    "ts": "2026-11-29T09:00:00Z",
}
CONSUMER = {
    "stream_name": "WATCHES",
    "config": {"durable_name": "bridge", "ack_policy": "explicit", "ack_wait": 30_000_000_000},
    "num_pending": 4,
    "num_ack_pending": 5,
}


class Answers(Client):
    """A connection whose answers are set."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: object = {}
        self.asked: list[str] = []

    async def request(self, subject: str, *_: Any, **__: Any) -> Msg:
        self.asked.append(subject)
        return Msg(Client(), subject, "", msgspec.json.encode(self.answer), None)


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def infos(answers: Answers) -> InfoReader:
    return InfoReader(answers, "$JS.hub.API")


async def test_a_stream_is_read_with_its_state_and_the_time(answers: Answers, infos: InfoReader) -> None:
    answers.answer = STREAM
    info = await infos.read_stream("EVENTS")
    assert answers.asked == ["$JS.hub.API.STREAM.INFO.EVENTS"]
    assert info
    assert (info.config.subjects, info.config.max_age) == (["events.>"], 5.0)
    assert (info.report.created, info.report.ts) == (STREAM["created"], STREAM["ts"])
    assert (info.report.state.messages, info.report.state.first_seq, info.report.state.last_seq) == (3, 7, 9)


async def test_a_consumer_is_read_with_what_it_has_not_delivered(answers: Answers, infos: InfoReader) -> None:
    answers.answer = CONSUMER
    info = await infos.read_consumer("WATCHES", "bridge")
    assert answers.asked == ["$JS.hub.API.CONSUMER.INFO.WATCHES.bridge"]
    assert info
    assert (info.config.ack_wait, info.num_pending, info.num_ack_pending) == (30.0, 4, 5)


async def test_a_changed_configuration_is_seen_and_an_unchanged_one_is_not_parsed_again(
    answers: Answers, infos: InfoReader
) -> None:
    async def read() -> Any:
        info = await infos.read_consumer("WATCHES", "bridge")
        assert info
        return info.config

    answers.answer = CONSUMER
    first = await read()
    assert await read() is first
    answers.answer = {**CONSUMER, "config": {**CONSUMER["config"], "ack_wait": 10_000_000_000}}  # type: ignore[dict-item]
    assert (await read()).ack_wait == 10.0
    answers.answer = CONSUMER
    assert (await read()).ack_wait == 30.0


async def test_what_does_not_exist_is_none_and_other_errors_are_raised(answers: Answers, infos: InfoReader) -> None:
    answers.answer = {"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}
    assert await infos.read_stream("EVENTS") is None
    assert await infos.read_consumer("EVENTS", "bridge") is None
    answers.answer = {"error": {"code": 503, "err_code": 10008, "description": "JetStream is away"}}
    with pytest.raises(nats.js.errors.ServiceUnavailableError):
        await infos.read_stream("EVENTS")


async def test_an_answer_of_something_else_is_an_error(answers: Answers, infos: InfoReader) -> None:
    answers.answer = ["hello"]
    with pytest.raises(msgspec.DecodeError):
        await infos.read_stream("EVENTS")
