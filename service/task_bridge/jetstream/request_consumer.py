"""Stored watch requests: admit each one, or reject it for good if it can never be served.

Temporary trouble leaves a request queued. FastStream consumes the requests from the inbox of a long-lived pull:
FastStream's own pull subscribers (0.7.8) hold a single message back until their batch is full or their timeout is
over (2.3 s of 5 at the median), or cost a round trip and 360 µs per message; this way costs 110 µs and takes 2 ms.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import structlog
from faststream import AckPolicy
from faststream.nats import NatsBroker, NatsMessage
from faststream.nats.subscriber.usecases import LogicSubscriber
from nats.aio.msg import Msg

from ..domain.errors import NatsUnavailable, Problem, Refused, invalid_request
from ..domain.events import is_own_event
from ..domain.ports import TaskSource
from ..domain.requests import VCenterRouting, WatchRequest, parse_request, parse_trace_context, unknown_vcenter
from ..domain.subjects import CONSUMER, SubjectNames
from ..domain.watch import Watch
from ..logs import FailureLog
from ..metrics import Metrics
from ..tracing import span
from ..waits import wait_for_event
from .follow_store import FollowStore
from .journal import JetStreamJournal
from .nats_py_workarounds import UNREADABLE_HEADERS
from .ownership import parse_ack_subject
from .pull_consumer import PullConsumer
from .rejections import Rejections
from .replicas import Replicas
from .reported_vcenters import hand_back_interval_s
from .streams import ACK, IN_PROGRESS, NAK, TERM, StoredMessage, Streams, nak_later, send_ack
from .unfinished_requests import UnfinishedRequests
from .watch_store import WatchStore, build_watch, rebuild_watch

log = structlog.get_logger(__name__)

BATCH = 128
"""Requests that are pulled at once. What arrives together is served together, in turns of the event loop that grow with
it."""
RETRY_S = 1.0
MAX_KEPT = 2_048
MAX_DELIVERIES = 5
"""A request that was delivered so often without an outcome may be what ends its replicas."""


class RequestContext(NamedTuple):
    """Dependencies shared by the request consumer and the API."""

    streams: Streams
    names: SubjectNames
    watches: WatchStore
    follows: FollowStore
    journal: JetStreamJournal
    rejections: Rejections
    routes: VCenterRouting
    sources: Mapping[str, TaskSource]
    metrics: Metrics
    clock: Callable[[], float]


class RequestQueue(NamedTuple):
    """A stream of requests. `admit` serves one of them; it raises Refused, UnknownVCenter or NatsUnavailable.

    `mark`: begins its sequences where they are part of an id, since another stream has the same ones.
    """

    stream: str
    subject: str
    admit: Callable[[Msg], Awaitable[None]]
    mark: str = ""


class RequestConsumer:
    """Consumes a stream of requests.

    A request that can't be served now is kept and tried again, not handed back: a redelivery that a replica asks for
    looks like one after a crash. At most `MAX_KEPT` are being served or kept.
    """

    def __init__(self, context: RequestContext, replicas: Replicas, queue: RequestQueue, *, ack_wait_s: float) -> None:
        self._context = context
        self._replicas = replicas
        self._queue = queue
        self._heartbeat_s = ack_wait_s / 3
        self._failures = FailureLog(log, "requests_kept", "requests_served_again")
        self._logged_own_event = False
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies: dict[str, str] = {}
        """The ack subject of the newest delivery of each request that is being served or kept."""
        self._subscriber: LogicSubscriber[Any] | None = None
        self._unfinished = UnfinishedRequests()
        replicas.add_requests(self._unfinished.__contains__, self._hand_on)
        inbox = context.streams.connection.new_inbox()
        self.pull = PullConsumer(context.streams, queue.stream, CONSUMER, inbox, self._free_capacity)

    def _free_capacity(self) -> int:
        return max(0, min(BATCH, MAX_KEPT - len(self._replies)))

    def subscribe(self, broker: NatsBroker) -> None:
        """Register the handler; the broker must be started (again) afterwards."""
        # The decoder never raises: a broken body gets to our own parsing, which answers with a rejection.
        # No reply: the reply subject of these messages is JetStream's, where an empty answer is an ack.
        self._subscriber = broker.subscriber(
            self.pull.inbox, ack_policy=AckPolicy.MANUAL, parser=wrap_message, decoder=keep_raw_message, no_reply=True
        )
        # FastStream (0.7.8) parses the inbox's name for each message, for log lines that this broker doesn't write.
        self._subscriber.get_log_context = lambda message: {}  # type: ignore[method-assign]
        self._subscriber(self._on_message)

    async def run(self) -> None:
        """Pull requests, and keep those that take long in progress, without end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.pull.run())
            group.create_task(self._send_heartbeats())

    async def _send_heartbeats(self) -> None:
        while True:
            served = set(self._replies)
            await asyncio.sleep(self._heartbeat_s)
            for key in served & self._replies.keys():
                if self._context.streams.connection.is_connected:
                    await self._send_ack(key, IN_PROGRESS)

    async def _on_message(self, message: Msg) -> None:
        if self.pull.handle_status(message):
            return
        key = build_request_key(message, self._queue.mark)
        is_kept = key in self._replies  # it was delivered again, after an outage
        self._replies[key] = message.reply
        if not is_kept:
            task = asyncio.create_task(self._serve(message, key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait for the requests that are being served, and hand those back that are kept."""
        # Unsubscribe first: JetStream would answer this replica's open pull with the requests that it hands back.
        if self._subscriber is not None:
            await self._subscriber.stop()
        self._stopping.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, message: Msg, key: str) -> None:
        try:
            while not await self._try_to_serve(message, key):
                if await self._stops_within(RETRY_S):
                    await self._send_ack(key, NAK)
                    return
        finally:
            del self._replies[key]
            if len(self._replies) >= MAX_KEPT - BATCH:
                self.pull.request_more()

    async def _stops_within(self, seconds: float) -> bool:
        return await wait_for_event(self._stopping, seconds)

    async def _try_to_serve(self, message: Msg, key: str) -> bool:
        """Serve, reject or hand back a request. Return whether that is done; else it must be tried again."""
        try:
            await self._admit_or_reject(message, key)
        except NatsUnavailable as error:
            self._unfinished.remember(key, time.monotonic())
            self._failures.report_failure(reason=str(error))
            return False
        return True

    async def _admit_or_reject(self, message: Msg, key: str) -> None:
        try:
            await self._check_deliveries(message, key)
            if is_own_event(message.data):
                await self._drop_own_event(key)
                return
            await self._queue.admit(message)
            await self._finish(key, ACK)
            self._failures.report_recovery()
        except UnknownVCenter as unknown:
            await self._hand_back_or_reject(message, key, unknown.name)
        except Refused as refused:
            await self._reject(message, key, refused)
        except NatsUnavailable:
            raise
        except Exception:
            log.exception("request_failed", subject=message.subject)
            if parse_ack_subject(message.reply).delivered >= MAX_DELIVERIES:
                await self._reject(message, key, _WITHOUT_OUTCOME)
            else:
                self._unfinished.remember(key, time.monotonic())
                await self._send_ack(key, nak_later(RETRY_S))

    async def _check_deliveries(self, message: Msg, key: str) -> None:
        """Refuse a request that was delivered five times before and that no replica is known to have survived."""
        if parse_ack_subject(message.reply).delivered <= MAX_DELIVERIES or key in self._unfinished:
            return
        if not await self._replicas.was_survived(key):
            raise _WITHOUT_OUTCOME
        self._unfinished.remember(key, time.monotonic())

    async def _drop_own_event(self, key: str) -> None:
        """Drop one of the bridge's own events. A rejection would be the next event to come back as a request."""
        await self._finish(key, TERM)
        self._context.metrics.requests.labels("dropped").inc()
        if not self._logged_own_event:
            self._logged_own_event = True
            log.warning("event_as_request", subject=self._queue.subject, stream=self._queue.stream)

    async def _finish(self, key: str, ack: bytes) -> None:
        self._unfinished.forget(key)
        await self._send_ack(key, ack)

    async def _send_ack(self, key: str, ack: bytes) -> None:
        # Not message.ack(): FastStream marks messages of a core subscription as acknowledged, so it refuses.
        await send_ack(self._context.streams.connection, self._replies[key], ack)

    async def _hand_back_or_reject(self, message: Msg, key: str, vcenter: str) -> None:
        """Leave a request to a replica that knows its vCenter; reject it if none does for long."""
        delay_s = self._replicas.hand_back_s(vcenter, self._waiting_time_s(message, key))
        if delay_s <= 0:
            known = {*self._context.routes.urls, *self._replicas.list_reported_vcenters()}
            await self._reject(message, key, unknown_vcenter(vcenter, known))
            return
        reply = self._replies[key]
        if self._unfinished.remember(key, time.monotonic(), vcenter=vcenter, reply=reply):
            log.info("request_handed_back", vcenter=vcenter, request=key)
        await self._send_ack(key, nak_later(delay_s))

    def _waiting_time_s(self, message: Msg, key: str) -> float:
        """Return for how long the request has waited: as this replica knows, or as the number of deliveries shows.

        The host's clock alone may be wrong, and deliveries alone may have followed each other at once.
        """
        delivery = parse_ack_subject(message.reply)
        by_deliveries_s = (delivery.delivered - 1) * hand_back_interval_s()
        by_clock_s = self._context.clock() - delivery.stored_ns / 1e9
        return max(self._unfinished.age_s(key, time.monotonic()) or 0.0, min(by_deliveries_s, by_clock_s))

    async def _hand_on(self, vcenter: str) -> None:
        """Have the requests for a vCenter delivered again at once, since a replica that has it came."""
        for reply in self._unfinished.list_ack_subjects(vcenter):
            await send_ack(self._context.streams.connection, reply, NAK)

    async def _reject(self, message: Msg, key: str, refused: Refused) -> None:
        """Publish the rejection, then end the request. A crash in between repeats it, and its id drops the repeat."""
        named = self._context.names.parse_named_vcenter(message.subject)
        known = {"vcenter": named} if named else None
        await self._context.rejections.publish(key, refused, message.data, message.headers, known)
        await self._finish(key, TERM)
        self._context.metrics.requests.labels("rejected").inc()
        self._context.metrics.rejected.labels(refused.code).inc()
        verb = self._queue.subject.rpartition(".")[2]
        log.info(
            "request", verb=verb, outcome="rejected", code=refused.code, reason=refused.message, request=key, by=None
        )


class UnknownVCenter(Exception):  # noqa: N818 - no failure: another replica may know it
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


_WITHOUT_OUTCOME = invalid_request(
    "The bridge received this request five times and failed each time before it could answer, so it was removed. "
    "Report this with the request and the bridge's log; the same request will fail again."
)


def build_request_key(message: Msg, mark: str) -> str:
    """Return what identifies a stored request: its time in ms and its sequence. Sequences alone repeat in new streams.

    It is the id of the request's rejection, and of its watch.
    """
    delivery = parse_ack_subject(message.reply)
    return f"{delivery.stored_ns // 1_000_000}-{mark}{delivery.sequence}"


def check_headers(headers: Mapping[str, str] | None) -> None:
    """Refuse a request whose header block can't be read. Raises Refused (400)."""
    if UNREADABLE_HEADERS in (headers or {}):
        problem = Problem("headers", "can't be read; they begin with NATS/1.0 and have a name and a value per line")
        raise invalid_request("The headers of the request can't be read.", problem)


def resolve_known(context: RequestContext, vcenter: str | None) -> str:
    """Return the vCenter that a stored request means. Raises Refused; UnknownVCenter: another replica may know it."""
    if (named := context.routes.resolve(vcenter)) not in context.routes.urls:
        raise UnknownVCenter(named)
    return named


async def admit_watch_request(context: RequestContext, stalled_after_s: float, mark: str, message: Msg) -> None:
    """Start the watch that a stored request asks for. Raises Refused, UnknownVCenter or NatsUnavailable."""
    check_headers(message.headers)
    request = parse_request(WatchRequest, message.data, context.names.parse_named_vcenter(message.subject))
    vcenter = context.routes.resolve_watchable(resolve_known(context, request.vcenter), request.task)
    watch = build_watch(
        request,
        vcenter,
        message.metadata.timestamp.timestamp(),
        stored_as=f"{mark}{message.metadata.sequence.stream}",
        stalled_after_s=stalled_after_s,
        trace=parse_trace_context(message.headers),
    )
    with span("accept watch", "CONSUMER", parent=watch.traceparent, **watch.log_keys):
        admission = await context.watches.admit(watch)
    if admission.outcome != "accepted":  # the replica that takes the watch up counts and logs `accepted`
        context.metrics.requests.labels(admission.outcome).inc()
        keys = {**watch.log_keys, "watch": admission.watch.id}
        log.info("request", verb="watch", outcome=admission.outcome, **keys, by=None)


async def wrap_message(message: Msg) -> NatsMessage:
    """Return what FastStream passes on. Its own parser would make a UUID for each message, which nothing reads."""
    return NatsMessage(raw_message=message, body=message.data, correlation_id=message.reply)


async def keep_raw_message(message: NatsMessage) -> Msg:
    # Never the NatsMessage itself: it keeps what it was decoded to, so only the garbage collector would free it.
    return message.raw_message


_UNREADABLE = Refused(
    400,
    "invalid_request",
    "This release of the bridge can't read this stored watch, so it was removed. Request the task again.",
)


def report_first_take_over(context: RequestContext, watch: Watch, outcome: str) -> None:
    """Count and log the outcome of the request for a watch that a replica took up: only this answers a stored one."""
    if watch.stored_request:
        context.metrics.requests.labels(outcome).inc()
        log.info("request", verb="watch", outcome=outcome, **watch.log_keys, by=None)  # a stream keeps no sender


async def quarantine_unreadable_watch(context: RequestContext, message: StoredMessage, reason: str) -> bool:
    """Reject a stored watch that can't be read, written by hand or by another release.

    If its subject names vCenter and task, end the watch with its final event. Return whether the message may be
    deleted; otherwise it is delivered again.
    """
    log.error("watch_unreadable", subject=message.subject, reason=reason)
    try:
        await _reject_unreadable_watch(context, message)
    except NatsUnavailable as error:
        log.warning("watch_not_put_aside", subject=message.subject, reason=str(error))
        return False
    return True


async def _reject_unreadable_watch(context: RequestContext, message: StoredMessage) -> None:
    vcenter_and_task = context.names.parse_watch_subject(message.subject)
    known = dict(zip(("vcenter", "task"), vcenter_and_task, strict=True)) if vcenter_and_task else None
    stored_ms = int(message.stored_at * 1000)
    rejection_id = f"watch-{stored_ms}-{message.sequence}"
    await context.rejections.publish(rejection_id, _UNREADABLE, message.body, message.headers, known)
    context.metrics.rejected.labels(_UNREADABLE.code).inc()
    if vcenter_and_task is None:
        return
    vcenter, task = vcenter_and_task
    last = await context.journal.read_last(vcenter, task, leader=True)
    if last is not None and not last.event.data.final:
        watch = rebuild_watch(last, vcenter, task)
    else:
        watch_id = message.headers.get("Nats-Msg-Id") or f"{stored_ms}-{message.sequence}"
        watch = Watch(id=watch_id, vcenter=vcenter, task=task, since=message.stored_at)
    await context.watches.abandon(watch)
