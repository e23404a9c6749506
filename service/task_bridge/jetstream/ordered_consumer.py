"""A stream read in order, each message once, however often the connection or nats-server goes away.

nats-py's own ordered consumer goes on making itself anew while the connection is away, and what it sent meanwhile
piles up in the connection. This one waits, and knows by sequence where it was.
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

_TRIES = 3
HEARTBEAT_S = 1.0
SILENCE_S = 2.5
PAUSE_S = 0.2


class OrderedConsumer:
    """The messages of `stream` under `subjects`, all, those stored since a moment, or from sequence `first` on;
    `async for` over `messages`.

    With `follow` without end, else up to the newest.
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
        self._next = first
        self._left: int | None = None  # None until JetStream said how many there are
        self._unanswered = 0

    async def messages(self) -> AsyncGenerator[Msg, None]:
        """Raises NatsUnavailable when the stream can't be read from the first, or the connection was closed."""
        while not self._over():
            await self._connected()
            async with aclosing(self._of_one_consumer()) as messages:
                async for message in messages:
                    yield message

    def _over(self) -> bool:
        return self._left == 0 and not self._follow

    async def _connected(self) -> None:
        while not self._client.is_connected:
            if self._client.is_closed:
                raise NatsUnavailable("The connection to NATS was closed.")
            await asyncio.sleep(PAUSE_S)

    async def _of_one_consumer(self) -> AsyncGenerator[Msg, None]:
        """Until all was read, or the consumer is gone or left something out."""
        inbox = self._client.new_inbox()
        try:
            async with queued_subscription(self._client, inbox) as heard:
                async for message in self._heard(heard, inbox):
                    yield message
        except (nats.errors.Error, TimeoutError, OSError):  # the heart stopped beating; BridgeErrors go through
            await asyncio.sleep(PAUSE_S)

    async def _heard(self, heard: SubscriptionQueue, inbox: str) -> AsyncGenerator[Msg, None]:
        number = 0
        await self._create(inbox)
        while not self._over():
            message = await heard.next(SILENCE_S)
            if "Status" in (message.headers or {}):
                if await self._delivered(message, number) != number:
                    return
                continue
            number += 1
            place = message.metadata
            if place.sequence.consumer != number:
                return
            self._next, self._left = place.sequence.stream + 1, place.num_pending
            yield message

    async def _create(self, inbox: str) -> None:
        """Has JetStream deliver from where this one was. A stream that was there will be again."""
        outages = self._client.stats["reconnects"]
        try:
            info = await self._js.add_consumer(self._stream, self._config(inbox))
        except (nats.js.errors.APIError, nats.errors.NoRespondersError, TimeoutError) as error:
            lost = not self._client.is_connected or self._client.stats["reconnects"] != outages
            if self._left is not None or (isinstance(error, TimeoutError) and (lost or self._may_answer_yet())):
                raise
            told = self._forbidden() or getattr(error, "description", None) or "JetStream doesn't answer"
            raise NatsUnavailable(f"The stream {self._stream} can't be read: {told}.") from error
        self._left = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0)

    def _may_answer_yet(self) -> bool:
        """A stream whose leader has gone has another one soon; a user who isn't permitted waits in vain."""
        self._unanswered += 1
        return self._unanswered < _TRIES and self._forbidden() is None

    def _forbidden(self) -> str | None:
        return denied_permission(self._client, f"{api_prefix(self._js)}.CONSUMER.CREATE.{self._stream}")

    async def _delivered(self, status: Msg, number: int) -> int:
        """How many messages JetStream says it sent. Flow control is answered: all before it is read by now."""
        headers = status.headers or {}
        if answer_to := status.reply or headers.get("Nats-Consumer-Stalled"):
            await self._client.publish(answer_to)
        return int(headers.get("Nats-Last-Consumer", number))

    def _config(self, inbox: str) -> ConsumerConfig:
        from_the_moment = self._since is not None and self._next == 1
        one = self._subjects[0] if len(self._subjects) == 1 else None
        return ConsumerConfig(
            deliver_subject=inbox,
            deliver_policy=DeliverPolicy.BY_START_TIME if from_the_moment else DeliverPolicy.BY_START_SEQUENCE,
            opt_start_time=self._since if from_the_moment else None,
            opt_start_seq=None if from_the_moment else self._next,
            filter_subject=one,
            filter_subjects=None if one else self._subjects,
            ack_policy=AckPolicy.NONE,
            max_deliver=1,
            idle_heartbeat=HEARTBEAT_S,
            flow_control=True,
            mem_storage=True,
            num_replicas=1,
        )
