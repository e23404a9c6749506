"""`<prefix>.api.<verb>`: a NATS service that answers every request, the slow ones without holding up the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import nats.errors
import structlog
from nats.micro import add_service
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER, Request
from nats.micro.service import EndpointConfig, GroupConfig, Service, ServiceConfig

from .. import __version__
from ..domain.errors import NatsUnavailable, Refused, VCenterUnavailable
from ..domain.events import NULL
from ..domain.requests import (
    CancelReply,
    ErrorBody,
    GetReply,
    ListedWatch,
    ListReply,
    ListRequest,
    TaskRequest,
    UnwatchReply,
    WatchReply,
    WatchRequest,
    count_fitting,
    describe_rejected_request,
    error_body,
    parse_request,
    parse_trace_context,
    unknown_vcenter,
)
from ..domain.subjects import SERVICE, VERBS, is_vcenter_name
from ..tracing import span
from .journal import JournalEntry
from .request_context import RequestContext
from .requester import describe_requester, is_answerable, reply_subject
from .watch_store import AlreadyEnded, StoredWatch, build_watch, event_of_watch

log = structlog.get_logger(__name__)

MAX_AT_ONCE = 256
DEADLINE_S = 20.0
_HEADERS_MAX_BYTES = 1024
_LIST_AROUND_BYTES = 128
"""What a list's reply has beside its watches."""


class Api:
    """The verbs. Each takes a request's body and headers and returns the reply, or raises Refused."""

    def __init__(self, ports: RequestContext, *, stalled_after_s: float, allow_cancel: bool) -> None:
        self._ports = ports
        self._stalled_after_s = stalled_after_s
        self._allow_cancel = allow_cancel
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._service: Service | None = None

    async def start(self) -> None:
        """Registers the service on the connection."""
        config = ServiceConfig(name=SERVICE, version=__version__, description="Watches vCenter tasks")
        self._service = await add_service(self._ports.streams.connection, config)
        group = self._service.add_group(GroupConfig(name=self._ports.names.api))
        for verb in VERBS:
            await group.add_endpoint(EndpointConfig(name=verb, handler=self._handler(getattr(self, verb))))

    async def stop(self) -> None:
        """Takes no more requests and answers those in hand."""
        if self._service is not None and self._ports.streams.connection.is_connected:
            for endpoint in self._service._endpoints:
                # Service.stop() would drop the requests that have arrived and aren't handled yet (nats-py 2.16).
                if endpoint._subscription is not None:
                    await endpoint._subscription.drain()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _max_bytes(self) -> int:
        return self._ports.streams.connection.max_payload - _HEADERS_MAX_BYTES

    def _handler(self, verb: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[None]]:
        async def handle(request: Request) -> None:
            if not is_answerable(reply := reply_subject(request), self._ports.names.prefix):
                log.warning("request_dropped", subject=request.subject, reply=reply)
                return
            # nats.micro calls an endpoint's handler for one request after the other.
            task = asyncio.create_task(self._answer(verb, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return handle

    async def _answer(self, verb: Callable[[Request], Awaitable[Any]], request: Request) -> None:
        headers: dict[str, str] = {}
        try:
            async with self._at_once, asyncio.timeout(DEADLINE_S):
                body = msgspec.json.encode(await verb(request))
        except Refused as refused:
            headers, body = _error(refused)
        except VCenterUnavailable as error:
            headers, body = _error(Refused(503, "vcenter_unavailable", str(error)))
        except (NatsUnavailable, TimeoutError) as error:
            told = f"JetStream doesn't answer: {error}. Try again." if str(error) else "No answer in time; try again."
            headers, body = _error(Refused(503, "unavailable", told))
        except Exception:
            log.exception("request_failed", subject=request.subject)
            headers, body = _error(Refused(503, "unavailable", "The bridge failed on this request; see its log."))
        if len(body) > self._max_bytes:
            told = f"The answer of {len(body):,} bytes is larger than nats-server takes (max_payload)."
            headers, body = _error(Refused(503, "unavailable", told))
        try:
            await request.respond(body, headers=headers or None)
        except (ValueError, nats.errors.Error) as error:
            log.debug("answer_lost", subject=request.subject, reason=str(error))

    async def watch(self, request: Request) -> WatchReply:
        """Watches a task until it ends."""
        ports = self._ports
        try:
            asked = parse_request(WatchRequest, request.data)
            vcenter = ports.routes.resolve_watchable(asked.vcenter, asked.task)
        except Refused as refused:
            ports.metrics.requests.labels("rejected").inc()
            ports.metrics.rejected.labels(refused.code).inc()
            raise
        watch = build_watch(
            asked,
            vcenter,
            ports.clock(),
            stored_sequence=None,
            stalled_after_s=self._stalled_after_s,
            trace=parse_trace_context(request.headers),
        )
        with span("accept watch", "SERVER", parent=watch.traceparent, **watch.log_keys):
            admitted = await ports.watches.admit(watch)
        ports.metrics.requests.labels(admitted.outcome).inc()
        log.info("request", outcome=admitted.outcome, **{**watch.log_keys, "watch": admitted.watch.id})
        return WatchReply(
            admitted.outcome,
            vcenter,
            asked.task,
            admitted.watch,
            ports.names.events_stream,
            ports.names.event_filter(vcenter, asked.task),
            _raw(admitted.last),
        )

    async def get(self, request: Request) -> GetReply:
        """How a task stands, watched or ended."""
        ports = self._ports
        asked = parse_request(TaskRequest, request.data)
        vcenter = ports.routes.resolve(asked.vcenter)
        present, last = await ports.watches.read_watch_and_last_event(vcenter, asked.task)
        if present is None and last is None:
            if vcenter not in ports.routes.urls:
                raise unknown_vcenter(vcenter, ports.routes.urls)
            raise Refused(404, "unknown_task", f"{asked.task!r} on {vcenter!r} is neither watched nor in the stream.")
        watching = present is not None and not (last and present.is_answered_by(last))
        if watching and present is not None:
            ref, last = present.watch.ref, event_of_watch(last, present.watch)
        else:
            ref = last.event.data.watch if last else present.watch.ref  # type: ignore[union-attr] # one is there
        return GetReply(
            watching,
            vcenter,
            asked.task,
            ref,
            ports.names.events_stream,
            ports.names.event_filter(vcenter, asked.task),
            _raw(last),
        )

    async def list(self, request: Request) -> ListReply:
        """The active watches of all replicas, oldest request first."""
        ports = self._ports
        asked = parse_request(ListRequest, request.data)
        if asked.vcenter is not None and not is_vcenter_name(asked.vcenter):
            raise unknown_vcenter(asked.vcenter, ports.routes.urls)
        page, following = await ports.watches.read_page(asked.vcenter, asked.after, asked.limit)
        total = await ports.watches.count(asked.vcenter) if asked.after else len(page) + following
        if asked.vcenter is not None and not total and asked.vcenter not in ports.routes.urls:
            raise unknown_vcenter(asked.vcenter, ports.routes.urls)
        listed = await asyncio.gather(*map(self._listed, page))
        fits = count_fitting(listed, self._max_bytes - _LIST_AROUND_BYTES)
        more = following or fits < len(listed)
        return ListReply(listed[:fits], total, str(page[fits - 1].sequence) if page and more else None)

    async def _listed(self, stored: StoredWatch) -> ListedWatch:
        watch = stored.watch
        last = event_of_watch(await self._ports.journal.last(watch.vcenter, watch.task), watch)
        data = last.event.data if last else None
        return ListedWatch(
            watch.vcenter,
            watch.task,
            watch.ref,
            data.status if data else None,
            data.progress if data else None,
            watch.vcenter not in self._ports.routes.urls,
        )

    async def unwatch(self, request: Request) -> UnwatchReply:
        """Ends a watch with its final event; the task itself is not touched."""
        ports = self._ports
        asked = parse_request(TaskRequest, request.data)
        vcenter = ports.routes.resolve(asked.vcenter)
        try:
            watch, final = await ports.watches.unwatch(vcenter, asked.task)
        except Refused as refused:
            if refused.code == "not_watched" and vcenter not in ports.routes.urls:
                raise unknown_vcenter(vcenter, ports.routes.urls) from refused
            raise
        log.info("watch_over", outcome="unwatched", **watch.log_keys)
        return UnwatchReply("unwatched", vcenter, asked.task, watch.ref, _raw(final))

    async def cancel(self, request: Request) -> CancelReply:
        """Asks vCenter to cancel a task. Whatever the answer, one line of the log tells who asked for what."""
        answer = "unavailable"
        try:
            reply = await self._cancel(request.data)
        except Refused as refused:
            answer = refused.code
            raise
        except VCenterUnavailable:
            answer = "vcenter_unavailable"
            raise
        else:
            answer = reply.outcome
            return reply
        finally:
            told = describe_rejected_request(request.data)
            task, by = (told["task"] or "")[:256], describe_requester(request.headers, reply_subject(request))
            vcenter = told["vcenter"] or self._ports.routes.default
            log.info("cancel", answer=answer, vcenter=vcenter, task=task, by=by)

    async def _cancel(self, body: bytes) -> CancelReply:
        asked = parse_request(TaskRequest, body)
        vcenter = self._ports.routes.resolve_watchable(asked.vcenter, asked.task)
        if not self._allow_cancel:
            raise Refused(403, "forbidden", "Canceling is switched off; BRIDGE_ALLOW_CANCEL=true switches it on.")
        await self._ports.sources[vcenter].cancel(asked.task)
        return CancelReply("cancel_requested", vcenter, asked.task)


def _raw(entry: JournalEntry | None) -> msgspec.Raw:
    return msgspec.Raw(entry.body) if entry and entry.body else NULL


class _ErrorReply(msgspec.Struct, omit_defaults=True):
    error: ErrorBody
    last_event: msgspec.Raw = NULL


def _error(refused: Refused) -> tuple[dict[str, str], bytes]:
    """Headers and body of an error answer; the header is one ASCII line, whatever a stranger wrote."""
    line = " ".join(f"{refused.code}: {refused.message}".encode("ascii", "replace").decode().split())
    headers = {ERROR_HEADER: line[:512], ERROR_CODE_HEADER: str(refused.status)}
    reply = _ErrorReply(error_body(refused))
    if isinstance(refused, AlreadyEnded):
        reply.last_event = _raw(refused.last)
    return headers, msgspec.json.encode(reply)
