"""Whether the streams, consumers and the bucket are there and as they must be: asked over and over."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import nats.errors
import structlog

from ..domain.errors import CannotStart, NatsUnavailable
from ..domain.subjects import CONSUMER, SubjectNames
from .provision import Difference, JetStreamConfig, provision
from .pull_consumer import PullConsumer
from .streams import Streams

log = structlog.get_logger(__name__)

EVERY_S = 2.0
RETRY_S = 1.0
MISSING_S = 5.0
"""So long a stream or a consumer may be missing: an operator may be making it anew."""


class MonitoredPart(NamedTuple):
    """One stream, consumer or bucket, and what is wrong with it."""

    name: str
    reason: str | None


class Monitor:
    """What is known of the bridge's part of JetStream. `waiting`: stored watches that nobody holds.

    `trouble`: why JetStream itself can't be worked with, None when it answers.
    """

    def __init__(self, streams: Streams, names: SubjectNames, what: JetStreamConfig, *, create: bool) -> None:
        self._streams = streams
        self._names = names
        self._what = what
        self._create = create
        self._told: set[str] = set()
        self.trouble: str | None = "not looked for yet"
        self._unsafe: dict[str, str] = {}
        self._missing_since = math.inf
        self._pulls: dict[str, PullConsumer] = {}
        self._held: Callable[[], float] = lambda: math.inf
        self._unheld = 0.0
        self.unheld_count: int | None = None
        self.ack_wait_s: float = 10.0
        self.events_max_age_s: float = 0.0

    async def start(self) -> None:
        """Provisions or verifies, waiting while JetStream is away. Raises CannotStart for what is unsafe."""
        while True:
            try:
                differences = await provision(self._streams, self._what, create=self._create)
                self._tell(differences)
                if unsafe := [difference for difference in differences if difference.unsafe]:
                    raise CannotStart(*map(_cure, unsafe))
                await self.read()
            except NatsUnavailable as error:
                self._failed(str(error))
                await asyncio.sleep(RETRY_S)
            else:
                self.trouble = None
                return

    async def run(self) -> None:
        """Looks again and again; what went missing is made again where provisioning is allowed.

        Where it isn't the bridge can't go on, and says so. Raises CannotStart then.
        """
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                differences = await provision(self._streams, self._what, create=self._create)
                missing = [difference for difference in differences if difference.field == "missing"]
                if not missing:
                    await self.read()
            except (NatsUnavailable, CannotStart) as error:
                self._failed(str(error))
                continue
            self._end_if_missing(missing)
            if self.trouble is not None:
                log.info("jetstream_back")
            self.trouble = None
            self._unsafe = {d.where: str(d) for d in differences if d.unsafe}
            self._tell(differences)

    def _end_if_missing(self, missing: list[Difference]) -> None:
        self._missing_since = min(self._missing_since, time.monotonic()) if missing else math.inf
        if time.monotonic() - self._missing_since >= MISSING_S:
            raise CannotStart(*map(_cure, missing))

    def streams(self) -> tuple[MonitoredPart, ...]:
        """The streams and the bucket, each with what is wrong."""
        streams = [f"stream {config.name}" for config, _ in self._what.streams]
        return self._parts([*streams, f"bucket {self._what.bucket.bucket}"])

    def consumers(self) -> tuple[MonitoredPart, ...]:
        """The durable consumers, each with what is wrong."""
        durables = [config.name for config, durable in self._what.streams if durable]
        return self._parts([f"consumer {stream}/{CONSUMER}" for stream in durables])

    def _parts(self, wheres: list[str]) -> tuple[MonitoredPart, ...]:
        return tuple(self._part(where.split(" ", 1)[1], where) for where in wheres)

    def _part(self, name: str, where: str) -> MonitoredPart:
        pull = self._pulls.get(name)
        asked = pull.trouble if pull else self._streams.refusal(name)
        return MonitoredPart(name, self.trouble or self._unsafe.get(where) or asked)

    def set_pulls(self, *pulls: PullConsumer, held: Callable[[], float]) -> None:
        """From now on a consumer isn't well either when the pull on it isn't. `held`: by all replicas together."""
        self._pulls = {pull.name: pull for pull in pulls}
        self._held = held

    async def read(self) -> None:
        """Reads what changes by itself, and what an operator may have tuned. Raises NatsUnavailable."""
        try:
            consumer = await self._streams.js.consumer_info(self._names.watches_stream, CONSUMER)
            events = await self._streams.js.stream_info(self._names.events_stream)
        except (TimeoutError, nats.errors.Error) as error:
            raise NatsUnavailable(str(error) or "JetStream doesn't answer") from error
        # Who was handed a watch may have gone. What seems unheld only once is on its way, or yet to be told.
        unheld = (consumer.num_ack_pending or 0) - self._held()
        self.unheld_count = (consumer.num_pending or 0) + int(max(0, min(unheld, self._unheld)))
        self._unheld = unheld
        self.ack_wait_s = consumer.config.ack_wait or self.ack_wait_s
        self.events_max_age_s = events.config.max_age or 0.0

    def _failed(self, reason: str) -> None:
        if self.trouble != reason:
            log.warning("jetstream_away", reason=reason)
        self.trouble = reason

    def _tell(self, differences: list[Difference]) -> None:
        for difference in differences:
            if str(difference) not in self._told:
                self._told.add(str(difference))
                log.warning("stream_differs", difference=str(difference), cure="see `task-bridge provision --check`")


def _cure(difference: Difference) -> str:
    if difference.field == "missing":
        return f"The {difference} and BRIDGE_PROVISION=verify creates nothing; run `task-bridge provision`."
    return f"{difference}; the bridge can't keep its promises on it. See `task-bridge provision --check`."
