"""Stored watch requests: each is admitted, or rejected once and for all; temporary trouble keeps it queued.

FastStream consumes them from the inbox of a long-lived pull (its own pull subscribers hold a single message back
for up to their timeout, or cost a round trip and 360 µs a message; this costs 110 µs and is prompt).
"""

from __future__ import annotations

import asyncio

import structlog
from faststream import AckPolicy
from faststream.nats import NatsBroker, NatsMessage
from nats.aio.msg import Msg

from ..domain.errors import NatsUnavailable, Refused
from ..domain.requests import WatchRequest, parse_request, parse_trace_context
from ..domain.subjects import CONSUMER
from ..logs import FailureLog
from ..tracing import span
from .pull_consumer import PullConsumer
from .request_context import RequestContext
from .streams import ACK, TERM, nak_later, send_ack
from .watch_store import build_watch

log = structlog.get_logger(__name__)

BATCH = 512
RETRY_S = 1.0


class RequestConsumer:
    """Consumes the stream of requests."""

    def __init__(self, ports: RequestContext, *, stalled_after_s: float) -> None:
        self._ports = ports
        self._stalled_after_s = stalled_after_s
        self._trouble = FailureLog(log, "requests_kept", "requests_served_again")
        self._tasks: set[asyncio.Task[None]] = set()
        inbox = ports.streams.connection.new_inbox()
        self.pull = PullConsumer(ports.streams, ports.names.requests_stream, CONSUMER, inbox, lambda: BATCH)

    def subscribe(self, broker: NatsBroker) -> None:
        """Registers the handler; the broker must be started (again) afterwards."""
        # A decoder that never raises, so that a broken body meets our own parsing, which tells its sender.
        # And no reply: the reply subject of these messages is JetStream's, where an empty answer is an ack.
        subscriber = broker.subscriber(
            self.pull.inbox, ack_policy=AckPolicy.MANUAL, decoder=keep_message_undecoded, no_reply=True
        )
        subscriber(self._on_message)

    async def _on_message(self, message: Msg) -> None:
        if not self.pull.handle_status(message):
            task = asyncio.create_task(self._serve(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Waits for the requests in hand."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, message: Msg) -> None:
        try:
            await self._admit(message)
            await self._say(message, ACK)
            self._trouble.report_recovery()
        except Refused as refused:
            await self._rejected(message, refused)
        except NatsUnavailable as error:
            self._trouble.report_failure(reason=str(error))
            await self._say(message, nak_later(RETRY_S))
        except Exception:
            log.exception("request_failed", subject=message.subject)
            await self._say(message, nak_later(RETRY_S))

    async def _say(self, message: Msg, word: bytes) -> None:
        # FastStream marks what comes by a core subscription as acknowledged, so the message's own ack() refuses.
        await send_ack(self._ports.streams.connection, message.reply, word)

    async def _admit(self, message: Msg) -> None:
        request = parse_request(WatchRequest, message.data)
        vcenter = self._ports.routes.resolve_watchable(request.vcenter, request.task)
        watch = build_watch(
            request,
            vcenter,
            message.metadata.timestamp.timestamp(),
            stored_sequence=message.metadata.sequence.stream,
            stalled_after_s=self._stalled_after_s,
            trace=parse_trace_context(message.headers),
        )
        with span("accept watch", "CONSUMER", parent=watch.traceparent, **watch.log_keys):
            admitted = await self._ports.watches.admit(watch)
        if admitted.outcome != "accepted":  # else told by who takes it up
            self._ports.metrics.requests.labels(admitted.outcome).inc()
            log.info("request", outcome=admitted.outcome, **{**watch.log_keys, "watch": admitted.watch.id})

    async def _rejected(self, message: Msg, refused: Refused) -> None:
        """Publishes the rejection, then ends the request: in this order a crash repeats it, and the id drops it."""
        metadata = message.metadata
        request_id = f"{int(metadata.timestamp.timestamp() * 1000)}-{metadata.sequence.stream}"
        try:
            await self._ports.rejections.publish(request_id, refused, message.data, message.headers)
        except NatsUnavailable as error:
            self._trouble.report_failure(reason=str(error))
            await self._say(message, nak_later(RETRY_S))
            return
        await self._say(message, TERM)
        self._ports.metrics.requests.labels("rejected").inc()
        self._ports.metrics.rejected.labels(refused.code).inc()
        log.info("request", outcome="rejected", code=refused.code, reason=refused.message, request=request_id)


async def keep_message_undecoded(message: NatsMessage) -> Msg:
    # Never the message itself: it keeps what it was decoded to, and would be freed by the garbage collector alone.
    return message.raw_message
