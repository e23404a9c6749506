"""Stored watch requests: admit each one, or reject it for good if it can never be served.

Temporary trouble leaves a request queued. FastStream consumes the requests from the inbox of a long-lived pull:
FastStream's own pull subscribers (0.7.8) hold a single message back until their batch is full or their timeout is
over (2.3 s of 5 at the median), or cost a round trip and 360 µs per message; this way costs 110 µs and takes 2 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

import structlog
from faststream import AckPolicy
from faststream.nats import NatsBroker, NatsMessage
from nats.aio.msg import Msg

from ..domain.errors import NatsUnavailable, Problem, Refused
from ..domain.events import is_own_event
from ..domain.ports import TaskSource
from ..domain.requests import VCenterRouting, WatchRequest, invalid_request, parse_request, parse_trace_context
from ..domain.subjects import CONSUMER, SubjectNames
from ..domain.watch import Watch
from ..logs import FailureLog
from ..metrics import Metrics
from ..tracing import span
from .journal import JetStreamJournal
from .nats_py_workarounds import UNREADABLE_HEADERS
from .pull_consumer import PullConsumer
from .rejections import Rejections
from .streams import ACK, TERM, StoredMessage, Streams, nak_later, send_ack
from .watch_store import WatchStore, build_watch, rebuild_watch

log = structlog.get_logger(__name__)

BATCH = 512
RETRY_S = 1.0


class RequestContext(NamedTuple):
    """Dependencies shared by the request consumer and the API."""

    streams: Streams
    names: SubjectNames
    watches: WatchStore
    journal: JetStreamJournal
    rejections: Rejections
    routes: VCenterRouting
    sources: Mapping[str, TaskSource]
    metrics: Metrics
    clock: Callable[[], float]


class RequestConsumer:
    """Consumes the stream of requests."""

    def __init__(self, context: RequestContext, *, stalled_after_s: float) -> None:
        self._context = context
        self._stalled_after_s = stalled_after_s
        self._failures = FailureLog(log, "requests_kept", "requests_served_again")
        self._logged_own_event = False
        self._tasks: set[asyncio.Task[None]] = set()
        inbox = context.streams.connection.new_inbox()
        self.pull = PullConsumer(context.streams, context.names.requests_stream, CONSUMER, inbox, lambda: BATCH)

    def subscribe(self, broker: NatsBroker) -> None:
        """Register the handler; the broker must be started (again) afterwards."""
        # The decoder never raises: a broken body gets to our own parsing, which answers with a rejection.
        # No reply: the reply subject of these messages is JetStream's, where an empty answer is an ack.
        subscriber = broker.subscriber(
            self.pull.inbox, ack_policy=AckPolicy.MANUAL, decoder=keep_raw_message, no_reply=True
        )
        subscriber(self._on_message)

    async def _on_message(self, message: Msg) -> None:
        if not self.pull.handle_status(message):
            task = asyncio.create_task(self._serve(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait for the requests that are being served."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, message: Msg) -> None:
        try:
            if is_own_event(message.data):
                await self._drop_own_event(message)
                return
            await self._admit(message)
            await self._send_ack(message, ACK)
            self._failures.report_recovery()
        except Refused as refused:
            await self._reject(message, refused)
        except NatsUnavailable as error:
            self._failures.report_failure(reason=str(error))
            await self._send_ack(message, nak_later(RETRY_S))
        except Exception:
            log.exception("request_failed", subject=message.subject)
            await self._send_ack(message, nak_later(RETRY_S))

    async def _drop_own_event(self, message: Msg) -> None:
        """Drop one of the bridge's own events. A rejection would be the next event to come back as a request."""
        await self._send_ack(message, TERM)
        self._context.metrics.requests.labels("dropped").inc()
        if not self._logged_own_event:
            self._logged_own_event = True
            log.warning("event_as_request", subject=message.subject, stream=self._context.names.requests_stream)

    async def _send_ack(self, message: Msg, ack: bytes) -> None:
        # Not message.ack(): FastStream marks messages of a core subscription as acknowledged, so it refuses.
        await send_ack(self._context.streams.connection, message.reply, ack)

    async def _admit(self, message: Msg) -> None:
        check_headers(message.headers)
        request = parse_request(WatchRequest, message.data)
        vcenter = self._context.routes.resolve_watchable(request.vcenter, request.task)
        watch = build_watch(
            request,
            vcenter,
            message.metadata.timestamp.timestamp(),
            stored_sequence=message.metadata.sequence.stream,
            stalled_after_s=self._stalled_after_s,
            trace=parse_trace_context(message.headers),
        )
        with span("accept watch", "CONSUMER", parent=watch.traceparent, **watch.log_keys):
            admission = await self._context.watches.admit(watch)
        if admission.outcome != "accepted":  # the replica that takes the watch up counts and logs `accepted`
            self._context.metrics.requests.labels(admission.outcome).inc()
            log.info("request", outcome=admission.outcome, **{**watch.log_keys, "watch": admission.watch.id})

    async def _reject(self, message: Msg, refused: Refused) -> None:
        """Publish the rejection, then end the request. A crash in between repeats it, and its id drops the repeat."""
        metadata = message.metadata
        request_id = f"{int(metadata.timestamp.timestamp() * 1000)}-{metadata.sequence.stream}"
        try:
            await self._context.rejections.publish(request_id, refused, message.data, message.headers)
        except NatsUnavailable as error:
            self._failures.report_failure(reason=str(error))
            await self._send_ack(message, nak_later(RETRY_S))
            return
        await self._send_ack(message, TERM)
        self._context.metrics.requests.labels("rejected").inc()
        self._context.metrics.rejected.labels(refused.code).inc()
        log.info("request", outcome="rejected", code=refused.code, reason=refused.message, request=request_id)


def check_headers(headers: Mapping[str, str] | None) -> None:
    """Refuse a request whose header block can't be read. Raises Refused (400)."""
    if UNREADABLE_HEADERS in (headers or {}):
        problem = Problem("headers", "can't be read; they begin with NATS/1.0 and have a name and a value per line")
        raise invalid_request("The headers of the request can't be read.", problem)


async def keep_raw_message(message: NatsMessage) -> Msg:
    # Never the NatsMessage itself: it keeps what it was decoded to, so only the garbage collector would free it.
    return message.raw_message


_UNREADABLE = Refused(
    400,
    "invalid_request",
    "This release of the bridge can't read this stored watch, so it was removed. Request the task again.",
)


async def quarantine_unreadable_watch(context: RequestContext, message: StoredMessage) -> None:
    """Reject a stored watch that can't be read, written by hand or by another release. Raises NatsUnavailable.

    If its subject names vCenter and task, end the watch with its final event. The caller deletes the message.
    """
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
