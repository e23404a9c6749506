"""A monitor that verifies the streams, consumers and the bucket again and again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog
from nats.js.api import ConsumerConfig, StreamConfig

from ..domain.clock import ServerClock, describe_difference
from ..domain.errors import CannotStart, NatsUnavailable
from ..domain.ports import StreamContents
from ..domain.subjects import CONSUMER, SubjectNames
from ..waits import sleep_to_tick
from .follow_setup import FollowSetup
from .lost_memories import LostMemories
from .provision import Difference, JetStreamConfig, Provisioned, provision
from .pull_consumer import PullConsumer
from .streams import Streams

log = structlog.get_logger(__name__)

INTERVAL_S = 2.0
RETRY_S = 1.0
UNKNOWN_S = 60.0
"""How long a work queue's consumer may not know messages: the two numbers aren't read at one moment."""
MISSING_MAX_S = 5.0
"""How long a stream or a consumer may be missing: an operator may be recreating it."""


class MonitoredPart(NamedTuple):
    """One stream, consumer or bucket. `reason` says why it doesn't work, `warning` what is wrong although it works."""

    name: str
    reason: str | None
    warning: str | None


class _Unknown(NamedTuple):
    """Messages that a work queue's consumer doesn't know: since when, the oldest in the stream, at least how many."""

    since: float
    first_sequence: int
    messages: int


class Monitor:
    """The state of the bridge's part of JetStream.

    `unheld_count`: stored watches that no replica holds; `stored_follows`, `unheld_follows`: all follows, and those
    that no replica runs. `trouble`: why JetStream doesn't work, None if it does.
    """

    def __init__(
        self,
        streams: Streams,
        names: SubjectNames,
        expected: JetStreamConfig,
        follow_setup: FollowSetup,
        clock: ServerClock,
        lost_memories: LostMemories,
        *,
        create: bool,
    ) -> None:
        self._streams = streams
        self._names = names
        self._expected = expected.without_follows()
        self._expected_by_follows = expected.only_follows()
        self._follow_setup = follow_setup
        self._clock = clock
        self._clock_differs = False
        self._create = create
        self._lost_memories = lost_memories
        self._warnings: dict[str, str] = {}
        self._unknown: dict[str, _Unknown] = {}
        self.events_contents: StreamContents | None = None
        self._logged: set[str] = set()
        self.trouble: str | None = "not checked yet"
        self._unsafe: dict[str, str] = {}
        self._missing_since = math.inf
        self._pulls: dict[str, PullConsumer] = {}
        self._count_held: Callable[[], float] = lambda: math.inf
        self._count_held_follows: Callable[[], float] = lambda: math.inf
        self._unheld_before = self._unheld_follows_before = 0.0
        self.unheld_count: int | None = None
        self.stored_follows = self.unheld_follows = 0
        self.ack_wait_s: float = 10.0
        self.events_max_age_s: float = 0.0

    async def start(self) -> None:
        """Provision or verify; wait while JetStream is away. Raises CannotStart for unsafe differences."""
        while True:
            try:
                provisioned = await provision(self._streams, self._expected, create=self._create)
                self._log_new(provisioned.differences)
                if unsafe := [difference for difference in provisioned.differences if difference.unsafe]:
                    raise CannotStart(*map(_explain, unsafe))
                await self._apply(provisioned, await self._follow_setup.check())
            except NatsUnavailable as error:
                self._set_trouble(str(error))
                await asyncio.sleep(RETRY_S)
            else:
                self.trouble = None
                return

    async def run(self) -> None:
        """Verify without end, and create again what went missing if provisioning is allowed.

        Raises CannotStart if it isn't: the bridge can't go on.
        """
        while True:
            await sleep_to_tick(INTERVAL_S)
            # Replicas may hold messages of a queue that was deleted: an ack of one must not hit a message that has the
            # same sequence in the next queue. No queue stores more than a message per millisecond for long.
            first_sequence = int(self._clock.now() * 1000)
            try:
                provisioned = await provision(
                    self._streams, self._expected, create=self._create, first_sequence=first_sequence
                )
                differences = provisioned.differences
                missing = [difference for difference in differences if difference.field == "missing"]
                if not missing:
                    await self._apply(provisioned, await self._follow_setup.check(first_sequence))
            except (NatsUnavailable, CannotStart) as error:
                self._set_trouble(str(error))
                continue
            self._missing_since = min(self._missing_since, time.monotonic()) if missing else math.inf
            if time.monotonic() - self._missing_since >= MISSING_MAX_S:
                raise CannotStart(*map(_explain, missing))
            if self.trouble is not None:
                log.info("jetstream_back")
            self.trouble = None
            self._unsafe = {d.where: str(d) for d in differences if d.unsafe}
            self._log_new(differences)

    def streams(self) -> tuple[MonitoredPart, ...]:
        """Return the state of each stream and of the bucket."""
        wheres = [f"stream {config.name}" for config, _ in self._needed_streams()]
        return tuple(map(self._part, [*wheres, f"bucket {self._names.results_bucket}"]))

    def consumers(self) -> tuple[MonitoredPart, ...]:
        """Return the state of each durable consumer."""
        streams = [config.name for config, durable in self._needed_streams() if durable]
        return tuple(self._part(f"consumer {stream}/{CONSUMER}") for stream in streams)

    def _needed_streams(self) -> list[tuple[StreamConfig, ConsumerConfig | None]]:
        *queues, events = self._expected.streams
        by_follows = () if self._follow_setup.off_reason else self._expected_by_follows.streams
        return [*queues, *by_follows, events]

    def _part(self, where: str) -> MonitoredPart:
        name = where.split(" ", 1)[1]
        pull = self._pulls.get(name)
        failure = pull.trouble if pull else self._streams.refusal(name)
        lost = self._lost_memories.reason if name == self._names.events_stream else None
        warnings = "; ".join(filter(None, (self._warnings.get(name), lost)))
        return MonitoredPart(name, self.trouble or self._unsafe.get(where) or failure, warnings or None)

    def set_pulls(self, *pulls: PullConsumer, held: Callable[[], float], held_follows: Callable[[], float]) -> None:
        """Include the trouble of these pulls from now on.

        `held` counts the watches that all replicas hold together, `held_follows` the follows.
        """
        self._pulls = {pull.name: pull for pull in pulls}
        self._count_held, self._count_held_follows = held, held_follows

    async def _apply(self, provisioned: Provisioned, for_follows: Provisioned | None) -> None:
        """Take over the numbers and the settings that an operator may have tuned, and the time of nats-server.

        Raises NatsUnavailable.
        """
        names = self._names
        for stream in (names.requests_stream, names.watches_stream):
            self._check_queue(stream, provisioned)
        if for_follows is not None:
            self._apply_follows(for_follows)
        await self._streams.measure_clock(names.events_stream, self._clock)
        self._log_clock()
        events, watches = provisioned.streams[names.events_stream], provisioned.consumers[names.watches_stream]
        self._warn_about_caps(events.config)
        state = events.report.state
        self.events_contents = StreamContents(state.first_seq, (events.report.created, state.num_deleted))
        # The replica that got a watch may have gone. A watch that seems unheld only once is on its way to a replica,
        # or the replica hasn't reported it yet.
        unheld = watches.num_ack_pending - self._count_held()
        self.unheld_count = watches.num_pending + int(max(0, min(unheld, self._unheld_before)))
        self._unheld_before = unheld
        self.ack_wait_s = watches.config.ack_wait or self.ack_wait_s
        self.events_max_age_s = events.config.max_age or 0.0

    def _apply_follows(self, provisioned: Provisioned) -> None:
        """Count the unheld follows; what was counted before stays known while follows are off."""
        names = self._names
        for stream in (names.vcenter_requests_stream, names.follow_requests_stream, names.follows_stream):
            self._check_queue(stream, provisioned)
        self.stored_follows = provisioned.streams[names.follows_stream].report.state.messages
        unheld = self.stored_follows - self._count_held_follows()
        self.unheld_follows = int(max(0, min(unheld, self._unheld_follows_before)))
        self._unheld_follows_before = unheld

    def _log_clock(self) -> None:
        reason = describe_difference(self._clock.difference_s)
        if reason is not None and not self._clock_differs:
            log.warning("clock_differs", reason=reason)
        if reason is None and self._clock_differs:
            log.info("clock_agrees")
        self._clock_differs = reason is not None

    def _check_queue(self, stream: str, provisioned: Provisioned) -> None:
        """Warn if the consumer of a work queue hasn't known some of its messages for a while."""
        name = f"{stream}/{CONSUMER}"
        state, consumer = provisioned.streams[stream].report.state, provisioned.consumers[stream]
        count = state.messages - consumer.num_pending - consumer.num_ack_pending
        before, now = self._unknown.get(name), time.monotonic()
        if count <= 0 or before is None or before.first_sequence != state.first_seq:
            before = _Unknown(now, state.first_seq, count)
        self._unknown[name] = before = before._replace(messages=min(count, before.messages))
        if before.messages <= 0 or now - before.since < UNKNOWN_S:
            self._set_warning(name, None)
        else:
            messages = "1 message" if before.messages == 1 else f"{before.messages} messages"
            reason = (
                f"{messages} of {stream} will never be delivered: the consumer doesn't know of them. Delete the "
                "consumer and run `task-bridge provision`; all messages are delivered again then"
            )
            if self._set_warning(name, reason):
                log.warning("messages_unknown", consumer=name, messages=before.messages, reason=reason)

    def _warn_about_caps(self, config: StreamConfig) -> None:
        """Warn about limits that remove the oldest events, which may be the memory of quiet watches."""
        limits = {"max_bytes": config.max_bytes, "max_msgs": config.max_msgs}
        caps = ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None and value > 0)
        reason = caps and (
            f"capped by {caps}: when it is full, events of quiet watches are evicted, which are the bridge's memory. "
            "Remove the cap and limit the age instead (BRIDGE_EVENTS_MAX_AGE)"
        )
        if self._set_warning(str(config.name), reason or None):
            log.warning("events_capped", stream=config.name, reason=reason)

    def _set_warning(self, name: str, reason: str | None) -> bool:
        """Keep the warning for readiness. Return whether it began now."""
        began = reason is not None and name not in self._warnings
        if reason is None:
            self._warnings.pop(name, None)
        else:
            self._warnings[name] = reason
        return began

    def _set_trouble(self, reason: str) -> None:
        if self.trouble != reason:
            log.warning("jetstream_away", reason=reason)
        self.trouble = reason

    def _log_new(self, differences: list[Difference]) -> None:
        for difference in differences:
            if str(difference) not in self._logged:
                self._logged.add(str(difference))
                log.warning("stream_differs", difference=str(difference), cure="see `task-bridge provision --check`")


def _explain(difference: Difference) -> str:
    if difference.field == "missing":
        return f"The {difference} and BRIDGE_PROVISION=verify creates nothing; run `task-bridge provision`."
    return f"{difference}; the bridge can't keep its promises on it. See `task-bridge provision --check`."
