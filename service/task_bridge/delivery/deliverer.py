"""One delivery: takes events from its durable, sends them in order, and acknowledges those that are done.

One replica at a time gets the events of a delivery (see `jetstream.delivery_consumer`). So two events of a task are
never under way at once, also across replicas, by these rules:

* Nothing is sent before this replica holds all events that the durable has delivered and not seen acknowledged. After
  a takeover those of the replica before come back once its heartbeats have been missing for `ack_wait`.
* Nothing is sent once nats-server hasn't confirmed the pin for `_LEASE_S`. A request takes `TIMEOUT` at most, and
  `ack_wait` is longer than both together, so the last request of a replica that was cut off has ended before another
  one starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable

import nats.errors
import structlog
from nats.aio.msg import Msg

from ..domain.deliveries import DeliveryReport, DeliveryState, read_task_key
from ..domain.durations import parse_duration, parse_time, rfc3339
from ..domain.errors import NatsUnavailable
from ..domain.events import CONTENT_TYPE, from_cloudevent
from ..domain.subjects import SubjectNames
from ..jetstream.delivery_consumer import GROUP, WINDOW, ConsumerReport, ConsumerStart, DeliveryConsumers
from ..jetstream.ownership import parse_ack_subject
from ..jetstream.pull_consumer import PullConsumer
from ..jetstream.streams import ACK, IN_PROGRESS, NAK, Streams, send_ack
from ..logs import FailureLog
from ..settings import DeliverySettings
from ..waits import wait_for_event
from .answers import LAST_RETRY_S, Verdict, compute_retry_delay
from .metrics import DeliveryMetrics
from .order import DeliveryOrder
from .report import UndeliveredData, build_undelivered
from .sender import Sender

log = structlog.get_logger(__name__)

RETRY_S = 1.0
_HEARTBEAT_S = 3.0
_CONFIRM_S = 2.0
_LEASE_S = 5.0
_MARGIN_S = 10.0
"""How much `ack_wait` is longer than a request may take: a missed heartbeat, the lease, and some more."""
_SETTLE_S = 0.2
_IDLE_S = 60.0
_HEADERS_MAX_BYTES = 4096
_STOP_S = 1.0
"""How long a stop waits for answers; a replica that stops has little more time in all."""
_FINISHED_KEPT = 4 * WINDOW
_MISSING_LIMIT = 3
"""How often a replica that doesn't send sees no consumer before it makes one: the one that sends knows from where."""


class HeldEvent:
    """An event that this replica holds.

    `reply`: where its newest delivery is acknowledged. `is_again`: it was undeliverable, and is sent again.
    `given_up`: the answer after which it isn't tried again, because the target asks to wait for too long.
    """

    __slots__ = ("body", "event_id", "given_up", "is_again", "reply", "sequence", "stored_at", "task_key", "tries")

    def __init__(self, message: Msg, names: SubjectNames) -> None:
        about = parse_ack_subject(message.reply)
        headers = message.headers or {}
        self.sequence = about.sequence
        self.stored_at = about.stored_ns / 1e9
        self.reply = message.reply
        self.body = message.data
        self.tries = 0
        self.given_up: Verdict | None = None
        self.is_again = message.subject.startswith(f"{names.redeliveries}.")
        self.task_key = headers.get("Bridge-Task", "") if self.is_again else read_task_key(names, message.subject)
        numbered = "/".join((headers.get("Bridge-Watch", ""), headers.get("Bridge-Sequence", "")))
        self.event_id = headers.get("Bridge-Event") or numbered


class Deliverer:
    """Delivers the events of one delivery, without end. `clock`: Unix seconds by nats-server's clock."""

    def __init__(
        self,
        settings: DeliverySettings,
        streams: Streams,
        names: SubjectNames,
        metrics: DeliveryMetrics,
        clock: Callable[[], float],
        *,
        create: bool,
    ) -> None:
        self._settings = settings
        self._streams = streams
        self._names = names
        self._metrics = metrics
        self._clock = clock
        self._create = create
        self._consumers = DeliveryConsumers(streams, names)
        self._sender = Sender(settings)
        self._held: DeliveryOrder[HeldEvent] = DeliveryOrder()
        self._pull = PullConsumer(
            streams,
            names.events_stream,
            self._consumers.name_consumer(settings.name),
            streams.connection.new_inbox(),
            lambda: WINDOW,  # more than may come, so that the pin stays; also while the delivery is paused
            group=GROUP,
        )
        self._pin: str | None = None
        self._is_settled = False
        self._confirmed_at = -math.inf
        self._is_sent_elsewhere = False
        self._missing = 0
        self._made_at = 0.0
        self._next_sequence = 0
        self._finished: dict[int, None] = {}  # their acknowledgements may be lost; the newest come last
        self._wake = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._failures = FailureLog(log, "delivery_fails", "delivery_succeeds_again")
        self._outage = FailureLog(log, "delivery_waits", "delivery_goes_on")
        self._trouble: str | None = "not started"
        self._is_paused = False
        self._is_failing = False
        self._last_answer: tuple[str, float] | None = None
        self._delivered = 0

    def report(self) -> DeliveryReport:
        """Return how the delivery is at this replica."""
        oldest = min((event.stored_at for event in self._held), default=None)
        state, reason = self._describe_state()
        return DeliveryReport(
            self._settings.name,
            self._settings.origin,
            state,
            reason,
            len(self._held),
            None if oldest is None else max(0.0, self._clock() - oldest),
            self._last_answer and self._last_answer[0],
            self._last_answer and rfc3339(self._last_answer[1]),
            self._delivered,
        )

    def _describe_state(self) -> tuple[DeliveryState, str | None]:
        if self._is_paused:
            return "paused", "the target answered 410 Gone; nothing is sent until this replica is restarted"
        if self._trouble is not None:
            return "blocked", self._trouble
        if self._pull.pin is None:
            return "waiting", "another replica sends" if self._is_sent_elsewhere else "no event has come yet"
        if self._is_failing and self._last_answer is not None:
            return "failing", self._last_answer[0]
        return "delivering", None

    async def run(self) -> None:
        """Deliver, without end; whatever fails is logged and tried again."""
        while True:
            try:
                await self._run_once()
            except NatsUnavailable as error:
                self._trouble = str(error)
                self._outage.report_failure(delivery=self._settings.name, reason=str(error))
            except Exception:
                log.exception("delivery_failed", delivery=self._settings.name)
            await asyncio.sleep(RETRY_S)

    async def _run_once(self) -> None:
        await self._prepare()
        subscription = await self._streams.connection.subscribe(self._pull.inbox, cb=self._take_message)
        self._trouble = None
        self._outage.report_recovery(delivery=self._settings.name)
        log.info("delivery_started", delivery=self._settings.name, target=self._settings.origin)
        try:
            async with asyncio.TaskGroup() as group:
                for loop in (self._pull.run(), self._send_due(), self._send_heartbeats()):
                    group.create_task(loop)
        except* NatsUnavailable as errors:
            raise errors.exceptions[0] from None
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def stop(self) -> None:
        """Finish what is being sent, and let another replica have the rest at once. `run` must have been canceled."""
        if self._sending:
            await asyncio.wait(self._sending, timeout=_STOP_S)
        unanswered = {task.get_name() for task in self._sending}
        for task in self._sending:
            task.cancel()
        for event in list(self._held):
            # The target may still be at work on a request that was cut off, so nobody gets that event at once.
            if str(event.sequence) not in unanswered:
                await send_ack(self._streams.connection, event.reply, NAK)
        if self._pin is not None:
            with contextlib.suppress(NatsUnavailable):
                await self._consumers.unpin(self._settings.name)
        await self._sender.close()

    def reset(self) -> None:
        """Ask again after the connection was lost."""
        self._pull.reset()
        self._is_settled = False

    async def _prepare(self) -> None:
        first_held = min((event.sequence for event in self._held), default=self._next_sequence)
        start = ConsumerStart("by_start_sequence", first_held) if first_held else None
        report = await prepare_consumer(
            self._consumers, self._settings, self._names, self._clock(), create=self._create, start=start
        )
        made_at = parse_time(report.created) or 0.0
        if self._made_at not in (0.0, made_at):
            if self._sending:
                await asyncio.wait(self._sending)
            self._pin = self._pull.pin = None  # the events that are held come again with the new pin
        self._made_at, self._missing, self._is_settled = made_at, 0, False

    # Messages in

    async def _take_message(self, message: Msg) -> None:
        if self._pull.handle_status(message):
            if self._pull.pin is None and self._pin is not None:
                self._let_go("another replica was pinned")
            return
        if self._pull.pin != self._pin:
            self._let_go("this replica was pinned")
        self._pin = self._pull.pin
        event = HeldEvent(message, self._names)
        self._next_sequence = max(self._next_sequence, event.sequence + 1)
        if event.sequence in self._finished:
            await send_ack(self._streams.connection, event.reply, ACK)
        elif (held := self._held.find(event.sequence, event.task_key)) is not None:
            held.reply = event.reply
        elif self._selects(event):
            self._held.add(event)
        else:
            await send_ack(self._streams.connection, event.reply, ACK)
        self._wake.set()

    def _selects(self, event: HeldEvent) -> bool:
        """Return whether this event is sent; one that this release can't read is."""
        if event.is_again:
            return True
        decoded = from_cloudevent(event.body, stalled_reported=False)
        return decoded is None or self._settings.selection.selects(decoded.data)

    def _let_go(self, reason: str) -> None:
        """Forget all that is held: whichever replica is pinned gets it again."""
        if self._held:
            log.info("delivery_let_go", delivery=self._settings.name, events=len(self._held), reason=reason)
        self._held.clear()
        self._is_settled = False

    async def _send_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            if self._streams.connection.is_connected:
                for event in list(self._held):
                    await send_ack(self._streams.connection, event.reply, IN_PROGRESS)
                if self._pull.trouble is not None or self._pull.pin is None:
                    self._check_consumer(await self._consumers.read(self._settings.name))

    def _check_consumer(self, report: ConsumerReport | None) -> None:
        """Note whether another replica sends. Raises NatsUnavailable if the consumer has to be made again."""
        self._is_sent_elsewhere = report is not None and report.pinned is not None
        self._missing = 0 if report is not None else self._missing + 1
        if self._missing and (self._pin is not None or self._missing >= _MISSING_LIMIT):
            raise NatsUnavailable("the delivery's consumer was deleted; it is made again")

    # Events out

    async def _send_due(self) -> None:
        while True:
            self._wake.clear()
            if self._held and not self._is_paused and await self._may_send():
                self._start_due()
            await wait_for_event(self._wake, self._wait_s())

    def _start_due(self) -> None:
        while len(self._sending) < self._settings.max_in_flight:
            event = self._held.take_due(time.monotonic())
            if event is None:
                return
            task = asyncio.create_task(self._try(event), name=str(event.sequence))
            self._sending.add(task)
            task.add_done_callback(self._end_try)

    def _end_try(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._wake.set()

    def _wait_s(self) -> float:
        """Return for how long nothing can be due, unless something happens."""
        if not self._held or self._is_paused:
            return _IDLE_S
        if not self._is_settled:
            return _SETTLE_S
        due_at = self._held.next_due_at()
        if due_at is None or len(self._sending) >= self._settings.max_in_flight:
            return _IDLE_S
        return max(0.01, due_at - time.monotonic())

    async def _may_send(self) -> bool:
        """Return whether no other replica can be sending events of this delivery.

        Whatever is asked of nats-server arrives behind the heartbeats that were sent before. So while it says that the
        pin is this replica's, the held events stay here for `ack_wait` from then on.
        """
        asked_at = time.monotonic()
        if not self._is_settled or asked_at - self._confirmed_at > _CONFIRM_S:
            try:
                report = await self._consumers.read(self._settings.name)
            except NatsUnavailable as error:
                self._trouble = str(error)
                report = None
            if report is not None:
                self._trouble = None
                self._apply_report(report, asked_at)
        if time.monotonic() - self._confirmed_at > _LEASE_S:
            self._is_settled = False
        return self._is_settled

    def _apply_report(self, report: ConsumerReport, asked_at: float) -> None:
        """Learn from what nats-server said of the consumer whether this replica is pinned and holds all events.

        Events that were delivered after the report are here too, and don't count.
        """
        if report.pinned is None or report.pinned != self._pull.pin:
            self._is_settled = False
            return
        self._confirmed_at = asked_at
        self._is_settled = self._is_settled or report.ack_pending == self._held.count_up_to(report.delivered)

    async def _try(self, event: HeldEvent) -> None:
        """Send the event once, and do what the answer asks for. Whatever fails here, it is tried again."""
        try:
            await self._send(event)
        except Exception:
            log.exception("delivery_failed", delivery=self._settings.name, event_id=event.event_id)
            self._held.postpone(event, time.monotonic() + LAST_RETRY_S)

    async def _send(self, event: HeldEvent) -> None:
        name = self._settings.name
        if event.given_up is not None:
            await self._report_undelivered(event, event.given_up)
            return
        event.tries += 1
        verdict = (await self._sender.send(event.event_id, event.body)).verdict
        self._metrics.tries.labels(name, verdict.code).inc()
        self._last_answer = verdict.reason, self._clock()
        self._is_failing = verdict.outcome != "delivered"
        if verdict.outcome == "delivered":
            self._failures.report_recovery(delivery=name)
            self._delivered += 1
            await self._finish(event)
            return
        self._failures.report_failure(delivery=name, target=self._settings.origin, reason=verdict.reason)
        if verdict.outcome == "retry" and (delay_s := self._retry_delay(event, verdict)) is not None:
            self._held.postpone(event, time.monotonic() + delay_s)
            return
        if verdict.outcome == "gone":
            self._pause()
        await self._report_undelivered(event, verdict)

    def _retry_delay(self, event: HeldEvent, verdict: Verdict) -> float | None:
        """Return when to try again (s), None if the event is given up."""
        left_s = max(event.stored_at, self._made_at) + self._settings.give_up_after_s - self._clock()
        if left_s <= 0:
            return None
        delay_s = compute_retry_delay(event.tries, verdict.retry_after_s, random.random())  # noqa: S311 - spreads tries
        if verdict.retry_after_s > left_s:
            event.given_up = verdict
        return min(delay_s, max(left_s, 0.1))

    async def _report_undelivered(self, event: HeldEvent, verdict: Verdict) -> None:
        """Store that the event wasn't delivered, then let go of it. Retries until it is stored."""
        name = self._settings.name
        report_id = f"{name}/{event.event_id}/{event.sequence}"
        data = UndeliveredData.build(
            name, self._settings.origin, verdict.reason, event.tries, event.sequence, event.body
        )
        body = build_undelivered(report_id, data, self._clock())
        if len(body) > self._streams.connection.max_payload - _HEADERS_MAX_BYTES:
            body = build_undelivered(report_id, data.without_event(), self._clock())
        headers = {
            "Content-Type": CONTENT_TYPE,
            "Nats-Msg-Id": f"undelivered-{report_id}",
            "Bridge-Event": event.event_id,
            "Bridge-Task": event.task_key,
        }
        subject = f"{self._names.undelivered}.{name}"
        while True:
            try:
                await self._streams.publish(self._names.events_stream, subject, body, headers)
                break
            except NatsUnavailable as error:
                self._outage.report_failure(delivery=name, reason=str(error))
                await asyncio.sleep(RETRY_S)
        self._outage.report_recovery(delivery=name)
        self._metrics.undelivered.labels(name).inc()
        log.error("event_undelivered", delivery=name, event_id=event.event_id, tries=event.tries, reason=verdict.reason)
        await self._finish(event)

    async def _finish(self, event: HeldEvent) -> None:
        self._held.remove(event)
        self._finished[event.sequence] = None
        if len(self._finished) > _FINISHED_KEPT:
            del self._finished[next(iter(self._finished))]
        await send_ack(self._streams.connection, event.reply, ACK)

    def _pause(self) -> None:
        """Send nothing more, and keep the pin, so that no other replica goes on either."""
        self._is_paused = True
        _, reason = self._describe_state()
        log.error("delivery_paused", delivery=self._settings.name, target=self._settings.origin, reason=reason)


async def prepare_consumer(
    consumers: DeliveryConsumers,
    settings: DeliverySettings,
    names: SubjectNames,
    now: float,
    *,
    create: bool,
    start: ConsumerStart | None = None,
) -> ConsumerReport:
    """Make the durable of a delivery, or give it its filters. `start`: instead of the setting; `now`: Unix seconds."""
    if start is None and settings.start in ("new", "all"):
        start = ConsumerStart("new" if settings.start == "new" else "all")
    elif start is None:
        start = ConsumerStart("by_start_time", now - parse_duration(settings.start))
    filters = settings.selection.to_filters(names)
    return await consumers.prepare(
        settings.name, filters, ack_wait_s=settings.timeout_s + _MARGIN_S, start=start, create=create
    )
