"""A reader of a stream that yields each message once, in order, through every outage.

nats-py's own ordered consumer (2.16, `subscribe(ordered_consumer=True)`) lost nothing over 30 s without a server, a
restart, a deleted consumer and the loss of a stream's leader. This one stays for what it does wrong (measured):

* Started at a time (`opt_start_time`), it never reads again after an outage: nats-server refuses the new consumer
  (10094), which only the error callback gets to know.
* Started at a sequence, it repeats the whole stream after an outage before the first message.
* While NATS is away it asks for a new consumer every two heartbeats. The requests pile up in the connection and
  arrive together: 15 consumers after 30 s.
* An empty stream doesn't end it, and a missing permission is a bare timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from ..domain.errors import NatsUnavailable
from .connect import denied_permission
from .nats_py_workarounds import SubscriptionQueue, api_prefix, queued_subscription

_ATTEMPTS = 3
HEARTBEAT_S = 1.0
SILENCE_S = 2.5
PAUSE_S = 0.2


class _StreamRecreated(nats.errors.Error):
    """The stream is shorter than what was read of it."""


class OrderedConsumer:
    """Reads the messages of `stream` under `subjects`: all, those stored since a moment, or from sequence `first` on.

    Iterate over `messages()`. It ends at the newest message, or never with `follow`.
    """

    def __init__(
        self,
        js: JetStreamContext,
        client: Client,
        stream: str,
        subjects: Sequence[str],
        *,
        since: datetime | None = None,
        follow: bool = True,
        first: int = 1,
    ) -> None:
        self._js = js
        self._client = client
        self._stream = stream
        self._subjects = list(subjects)
        self._since = since
        self._follow = follow
        self._next_sequence = first
        self._pending: int | None = None  # None until JetStream reported the number of messages to come
        self._unanswered = 0
        self._created: object = None  # of the stream that is read; None while unknown
        self._may_read_info = True

    async def messages(self) -> AsyncGenerator[Msg, None]:
        """Yield the messages.

        A stream that is deleted and created again meanwhile is read from its first message.
        Raises NatsUnavailable when the stream can't be read at the start, or the connection was closed.
        """
        while not self._is_complete():
            while not self._client.is_connected:
                if self._client.is_closed:
                    raise NatsUnavailable("The connection to NATS was closed.")
                await asyncio.sleep(PAUSE_S)
            async with aclosing(self._read_with_new_consumer()) as messages:
                async for message in messages:
                    yield message

    def _is_complete(self) -> bool:
        return self._pending == 0 and not self._follow

    async def _read_with_new_consumer(self) -> AsyncGenerator[Msg, None]:
        """Yield messages until all were read, or the consumer is gone or left something out."""
        inbox = self._client.new_inbox()
        try:
            async with queued_subscription(self._client, inbox) as queue:
                if self._pending is not None:
                    await self._start_over_after_recreation()
                await self._create_consumer(inbox)
                if self._created is None:  # only now: a JetStream that is silent is waited for once per attempt
                    await self._start_over_after_recreation()
                async for message in self._read_in_sequence(queue):
                    yield message
        except (nats.errors.Error, TimeoutError, OSError):  # such as no heartbeat; BridgeErrors go through
            await asyncio.sleep(PAUSE_S)

    async def _read_in_sequence(self, queue: SubscriptionQueue) -> AsyncGenerator[Msg, None]:
        delivered = 0
        while not self._is_complete():
            message = await queue.next(SILENCE_S)
            headers = message.headers or {}
            if "Status" in headers:
                # Answer flow control: all messages sent before it have been read by now.
                if reply := message.reply or headers.get("Nats-Consumer-Stalled"):
                    await self._client.publish(reply)
                if int(headers.get("Nats-Last-Consumer", delivered)) != delivered:
                    return
                continue
            delivered += 1
            metadata = message.metadata
            if metadata.sequence.consumer != delivered:
                return
            self._next_sequence, self._pending = metadata.sequence.stream + 1, metadata.num_pending
            yield message

    async def _start_over_after_recreation(self) -> None:
        """Read from the first message if the stream isn't the one that was read; its sequences mean others then."""
        if not self._may_read_info:
            return
        reading = asyncio.ensure_future(self._js.stream_info(self._stream))
        try:
            while not reading.done():
                await asyncio.wait((reading,), timeout=PAUSE_S)
                if not reading.done() and self._is_info_denied():
                    # No answer comes then. Only a stream that is shorter than what was read is noticed.
                    self._may_read_info = False
                    return
            created = reading.result().created
        except (nats.js.errors.APIError, nats.errors.NoRespondersError, TimeoutError):
            return  # the consumer can't be created either, which reports the reason
        finally:
            reading.cancel()
        if self._created not in (None, created):
            self._next_sequence = 1
        self._created = created

    def _is_info_denied(self) -> bool:
        return denied_permission(self._client, f"{api_prefix(self._js)}.STREAM.INFO.{self._stream}") is not None

    async def _create_consumer(self, inbox: str) -> None:
        """Create a consumer that goes on where the last one ended.

        Once the stream was read, any error is raised as it is, to be tried again: a stream that was there comes back.
        """
        outages = self._client.stats["reconnects"]
        try:
            info = await self._js.add_consumer(self._stream, self._consumer_config(inbox))
        except (nats.js.errors.APIError, nats.errors.NoRespondersError, TimeoutError) as error:
            if self._pending is not None:
                raise
            subject = f"{api_prefix(self._js)}.CONSUMER.CREATE.{self._stream}"
            denied = denied_permission(self._client, subject)
            if isinstance(error, TimeoutError):
                was_away = not self._client.is_connected or self._client.stats["reconnects"] != outages
                self._unanswered += not was_away
                # A stream that lost its leader soon has another; a missing permission stays missing.
                if was_away or (self._unanswered < _ATTEMPTS and denied is None):
                    raise
            reason = denied or getattr(error, "description", None) or "JetStream doesn't answer"
            raise NatsUnavailable(f"The stream {self._stream} can't be read: {reason}.") from error
        if info.delivered and 0 <= info.delivered.stream_seq < self._next_sequence - 1 and self._pending is not None:
            # nats-server starts behind the last message of a stream that is shorter than what was read.
            self._next_sequence = 1
            raise _StreamRecreated
        self._pending = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0)

    def _consumer_config(self, inbox: str) -> ConsumerConfig:
        by_time = self._since is not None and self._next_sequence == 1
        single = self._subjects[0] if len(self._subjects) == 1 else None
        return ConsumerConfig(
            deliver_subject=inbox,
            deliver_policy=DeliverPolicy.BY_START_TIME if by_time else DeliverPolicy.BY_START_SEQUENCE,
            opt_start_time=self._since if by_time else None,
            opt_start_seq=None if by_time else self._next_sequence,
            filter_subject=single,
            filter_subjects=None if single else self._subjects,
            ack_policy=AckPolicy.NONE,
            max_deliver=1,
            idle_heartbeat=HEARTBEAT_S,
            flow_control=True,
            mem_storage=True,
            num_replicas=1,
        )
