"""What JetStream says about streams and consumers. To ask about many at once costs little more than about one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, StreamConfig

from ..domain.durations import parse_time
from .request_mux import REQUEST_TIMEOUT_S

ConfigT = TypeVar("ConfigT", StreamConfig, ConsumerConfig)


class StreamState(msgspec.Struct, frozen=True):
    """The contents of a stream, and when the first and the newest message were stored, by nats-server's clock."""

    messages: int = 0
    first_seq: int = 0
    first_ts: str = ""
    last_seq: int = 0
    last_ts: str = ""
    num_deleted: int = 0


class StreamReport(msgspec.Struct, frozen=True):
    """The state of a stream, when it was created, and the time of nats-server now."""

    state: StreamState
    created: str
    ts: str

    def was_created_after(self, since: float) -> bool:
        return (parse_time(self.created) or 0.0) > since

    def may_have_lost(self, since: float) -> bool:
        """Return whether a message that was stored after `since` (Unix s) may have gone from the stream."""
        state = self.state
        if self.was_created_after(since) or state.num_deleted:
            return True
        if state.first_seq <= 1 and state.messages:
            return False
        # Nothing is known of what went before the first message, but that it was stored earlier.
        newest_gone = state.first_ts if state.messages else state.last_ts
        gone_at = parse_time(newest_gone) or 0.0
        return state.last_seq > 0 and (gone_at <= 0 or gone_at >= since)  # without a message there may be no time


class StreamInfo(NamedTuple):
    """The configuration of a stream and its state."""

    config: StreamConfig
    report: StreamReport


class ConsumerInfo(NamedTuple):
    """The configuration of a consumer, how many messages it hasn't delivered, and how many nobody has acknowledged."""

    config: ConsumerConfig
    num_pending: int
    num_ack_pending: int


class _Answer(msgspec.Struct):
    config: msgspec.Raw = msgspec.Raw()
    state: StreamState = StreamState()
    created: str = ""
    ts: str = ""
    num_pending: int = 0
    num_ack_pending: int = 0
    error: dict[str, Any] | None = None


class InfoReader:
    """Reads infos of streams and consumers, and parses a configuration again only when it has changed.

    nats-py builds each model anew: such reads, one after the other, were a quarter of what an idle bridge costs.
    """

    def __init__(self, connection: Client, prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix
        self._configs: dict[str, tuple[bytes, Any]] = {}

    async def read_stream(self, stream: str) -> StreamInfo | None:
        """Return the info of a stream, None if there is none. Raises NATS's errors and msgspec.DecodeError."""
        path = f"STREAM.INFO.{stream}"
        answer = await self._ask(path)
        if answer is None:
            return None
        config = self._parse_config(path, answer, StreamConfig.from_response)
        return StreamInfo(config, StreamReport(answer.state, answer.created, answer.ts))

    async def read_consumer(self, stream: str, consumer: str) -> ConsumerInfo | None:
        """Return the info of a durable consumer, None if there is none. Raises the same."""
        path = f"CONSUMER.INFO.{stream}.{consumer}"
        answer = await self._ask(path)
        if answer is None:
            return None
        config = self._parse_config(path, answer, ConsumerConfig.from_response)
        return ConsumerInfo(config, answer.num_pending, answer.num_ack_pending)

    async def _ask(self, path: str) -> _Answer | None:
        message = await self._connection.request(f"{self._prefix}.{path}", timeout=REQUEST_TIMEOUT_S)
        answer = _decoder.decode(message.data)
        if answer.error is None:
            return answer
        try:
            raise nats.js.errors.APIError.from_error(answer.error)
        except nats.js.errors.NotFoundError:
            return None

    def _parse_config(self, path: str, answer: _Answer, parse: Callable[[dict[str, Any]], ConfigT]) -> ConfigT:
        raw = bytes(answer.config)
        known = self._configs.get(path)
        if known is not None and known[0] == raw:
            config: ConfigT = known[1]
        else:
            config = parse(msgspec.json.decode(raw))
            self._configs[path] = raw, config
        return config


_decoder = msgspec.json.Decoder(_Answer)
