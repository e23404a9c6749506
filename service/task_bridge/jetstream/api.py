"""The NATS service behind `<prefix>.api.<verb>`. It answers every request; a slow one doesn't delay the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
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
from ..domain.follows.event import FollowReply, FollowsReply, UnfollowReply, build_view, list_follow
from ..domain.follows.request import FollowNameRequest, FollowRequest, FollowsRequest
from ..domain.replies import (
    CancelReply,
    ErrorBody,
    GetReply,
    ListedWatch,
    ListReply,
    UnwatchReply,
    WatchReply,
    count_fitting,
    error_body,
)
from ..domain.requests import (
    ListRequest,
    Model,
    TaskRequest,
    WatchRequest,
    describe_rejected_request,
    parse_request,
    parse_trace_context,
    unknown_vcenter,
)
from ..domain.subjects import SERVICE, VERBS, is_vcenter_name
from ..domain.vcenter_state import VCenterState
from ..tracing import span
from .follow_requests import admit_follow
from .journal import JournalEntry
from .nats_py_workarounds import drain_endpoints, reply_subject
from .replicas import Replicas
from .request_consumer import RequestContext, check_headers
from .watch_store import AlreadyEnded, StoredWatch, build_watch, event_of_watch

log = structlog.get_logger(__name__)

MAX_AT_ONCE = 256
DEADLINE_S = 20.0
_HEADERS_MAX_BYTES = 1024
_LIST_AROUND_BYTES = 128
"""Size of a list's reply without its watches."""
_REQUESTER_HEADER = "Nats-Request-Info"


class Api:
    """The verbs. Each takes a request and returns the reply, or raises Refused."""

    def __init__(
        self, context: RequestContext, replicas: Replicas, *, stalled_after_s: float, allow_cancel: bool
    ) -> None:
        self._context = context
        self._replicas = replicas
        self._stalled_after_s = stalled_after_s
        self._allow_cancel = allow_cancel
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._service: Service | None = None

    async def start(self) -> None:
        """Register the service on the connection."""
        config = ServiceConfig(name=SERVICE, version=__version__, description="Watches vCenter tasks")
        self._service = await add_service(self._context.streams.connection, config)
        group = self._service.add_group(GroupConfig(name=self._context.names.api))
        for verb in VERBS:
            handler = self._create_handler(getattr(self, verb))
            await group.add_endpoint(EndpointConfig(name=verb, handler=handler))
            await group.add_endpoint(EndpointConfig(name=f"{verb}-by-vcenter", subject=f"{verb}.*", handler=handler))

    async def stop(self) -> None:
        """Take no more requests, and answer those that have arrived."""
        if self._service is not None and self._context.streams.connection.is_connected:
            await drain_endpoints(self._service)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _max_reply_bytes(self) -> int:
        return self._context.streams.connection.max_payload - _HEADERS_MAX_BYTES

    def _create_handler(self, verb: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[None]]:
        async def handle(request: Request) -> None:
            if not is_answerable(reply := reply_subject(request), self._context.names.prefix):
                log.warning("request_dropped", subject=request.subject, reply=reply)
                return
            # A task of its own: nats.micro calls an endpoint's handler for one request after the other.
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
            headers, body = _encode_error(refused)
        except VCenterUnavailable as error:
            headers, body = _encode_error(Refused(503, "vcenter_unavailable", str(error)))
        except (NatsUnavailable, TimeoutError) as error:
            reason = f"JetStream failed: {error}" if str(error) else f"No answer within {DEADLINE_S:.0f} s"
            headers, body = _encode_error(Refused(503, "unavailable", f"{reason}. Try again."))
        except Exception:
            log.exception("request_failed", subject=request.subject)
            reason = "The bridge failed on this request; see its log."
            headers, body = _encode_error(Refused(503, "unavailable", reason))
        if len(body) > self._max_reply_bytes:
            reason = f"The reply has {len(body):,} bytes, more than nats-server accepts (max_payload)."
            headers, body = _encode_error(Refused(503, "unavailable", reason))
        try:
            await request.respond(body, headers=headers or None)
        except (ValueError, nats.errors.Error) as error:
            log.debug("answer_lost", subject=request.subject, reason=str(error))

    def _parse(self, model: type[Model], request: Request) -> Model:
        """Return the request's content. Raises Refused."""
        check_headers(request.headers)
        return parse_request(model, request.data, self._context.names.parse_named_vcenter(request.subject))

    async def watch(self, request: Request) -> WatchReply:
        """Watch a task until it ends."""
        context = self._context
        try:
            watch_request = self._parse(WatchRequest, request)
            vcenter = context.routes.resolve_watchable(watch_request.vcenter, watch_request.task)
        except Refused as refused:
            context.metrics.requests.labels("rejected").inc()
            context.metrics.rejected.labels(refused.code).inc()
            raise
        watch = build_watch(
            watch_request,
            vcenter,
            context.clock(),
            stored_as=None,
            stalled_after_s=self._stalled_after_s,
            trace=parse_trace_context(request.headers),
        )
        with span("accept watch", "SERVER", parent=watch.traceparent, **watch.log_keys):
            admission = await context.watches.admit(watch)
        context.metrics.requests.labels(admission.outcome).inc()
        log.info("request", outcome=admission.outcome, **{**watch.log_keys, "watch": admission.watch.id})
        return WatchReply(
            admission.outcome,
            vcenter,
            watch.task,
            admission.watch,
            context.names.events_stream,
            context.names.event_filter(vcenter, watch.task),
            _raw_event(admission.last),
            self._replicas.vcenter_state(vcenter),
        )

    async def get(self, request: Request) -> GetReply:
        """Return a task's watch and last event, whether it is watched or has ended."""
        context = self._context
        task_request = self._parse(TaskRequest, request)
        task, vcenter = task_request.task, context.routes.resolve(task_request.vcenter)
        present, last = await context.watches.read_watch_and_last_event(vcenter, task)
        if present is None and last is None:
            if vcenter not in context.routes.urls:
                raise unknown_vcenter(vcenter, context.routes.urls)
            raise Refused(404, "unknown_task", f"{task!r} on {vcenter!r} is neither watched nor in the stream.")
        watching = present is not None and not (last and present.is_answered_by(last))
        if watching and present is not None:
            ref, last = present.watch.ref, event_of_watch(last, present.watch)
        else:
            ref = last.event.data.watch if last else present.watch.ref  # type: ignore[union-attr] # one is there
        return GetReply(
            watching,
            vcenter,
            task,
            ref,
            context.names.events_stream,
            context.names.event_filter(vcenter, task),
            _raw_event(last),
            self._replicas.vcenter_state(vcenter),
        )

    async def list(self, request: Request) -> ListReply:
        """List the active watches of all replicas, oldest request first."""
        context = self._context
        list_request = self._parse(ListRequest, request)
        vcenter = list_request.vcenter
        if vcenter is not None and not is_vcenter_name(vcenter):
            raise unknown_vcenter(vcenter, context.routes.urls)
        page, following = await context.watches.read_page(vcenter, list_request.after, list_request.limit)
        total = await context.watches.count(vcenter) if list_request.after else len(page) + following
        if vcenter is not None and not total and vcenter not in context.routes.urls:
            raise unknown_vcenter(vcenter, context.routes.urls)
        states = {name: self._replicas.vcenter_state(name) for name in {stored.watch.vcenter for stored in page}}
        watches = await asyncio.gather(*(self._describe_watch(one, states[one.watch.vcenter]) for one in page))
        fitting = count_fitting(watches, self._max_reply_bytes - _LIST_AROUND_BYTES)
        has_more = following or fitting < len(watches)
        return ListReply(watches[:fitting], total, str(page[fitting - 1].sequence) if page and has_more else None)

    async def _describe_watch(self, stored: StoredWatch, state: VCenterState) -> ListedWatch:
        watch = stored.watch
        last = event_of_watch(await self._context.journal.read_last(watch.vcenter, watch.task), watch)
        data = last.event.data if last else None
        return ListedWatch(
            watch.vcenter,
            watch.task,
            watch.ref,
            data.status if data else None,
            data.progress if data else None,
            state.state == "unconfigured",
            data.target if data else None,
            state,
        )

    async def unwatch(self, request: Request) -> UnwatchReply:
        """End a watch with its final event; the task itself is not touched."""
        context = self._context
        task_request = self._parse(TaskRequest, request)
        vcenter = context.routes.resolve(task_request.vcenter)
        try:
            watch, final = await context.watches.unwatch(vcenter, task_request.task)
        except Refused as refused:
            if refused.code == "not_watched" and vcenter not in context.routes.urls:
                raise unknown_vcenter(vcenter, context.routes.urls) from refused
            raise
        log.info("watch_over", outcome="unwatched", **watch.log_keys)
        return UnwatchReply("unwatched", vcenter, task_request.task, watch.ref, _raw_event(final))

    async def follow(self, request: Request) -> FollowReply:
        """Watch every task that matches, from a time on."""
        follow_request = self._parse(FollowRequest, request)
        admission = await admit_follow(self._context, self._stalled_after_s, follow_request, request.headers)
        follow = admission.follow
        return FollowReply(admission.outcome, follow.vcenter, follow.name, build_view(follow))

    async def unfollow(self, request: Request) -> UnfollowReply:
        """End a follow with its final event. The watches that it has started go on."""
        context = self._context
        name_request = self._parse(FollowNameRequest, request)
        vcenter = context.routes.resolve(name_request.vcenter)
        try:
            follow = await context.follows.unfollow(vcenter, name_request.name)
        except Refused as refused:
            if refused.code == "not_following" and vcenter not in context.routes.urls:
                raise unknown_vcenter(vcenter, context.routes.urls) from refused
            raise
        log.info("follow_over", **follow.log_keys)
        return UnfollowReply("unfollowed", vcenter, follow.name, build_view(follow))

    async def follows(self, request: Request) -> FollowsReply:
        """List the follows of a vCenter, or of all."""
        context = self._context
        vcenter = self._parse(FollowsRequest, request).vcenter
        if vcenter is not None and not is_vcenter_name(vcenter):
            raise unknown_vcenter(vcenter, context.routes.urls)
        stored = await context.follows.read_all(vcenter)
        if vcenter is not None and not stored and vcenter not in context.routes.urls:
            raise unknown_vcenter(vcenter, context.routes.urls)
        reports = self._replicas.list_follows()
        return FollowsReply([list_follow(one.follow, reports.get(one.follow.key)) for one in stored])

    async def cancel(self, request: Request) -> CancelReply:
        """Ask vCenter to cancel a task. Whatever the answer, one log line names the requester and the task."""
        answer = "unavailable"
        try:
            reply = await self._cancel_task(request)
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
            described = describe_rejected_request(request.data)
            task, by = (described["task"] or "")[:256], describe_requester(request.headers, reply_subject(request))
            named = self._context.names.parse_named_vcenter(request.subject)
            vcenter = named or described["vcenter"] or self._context.routes.default
            log.info("cancel", answer=answer, vcenter=vcenter, task=task, by=by)

    async def _cancel_task(self, request: Request) -> CancelReply:
        task_request = self._parse(TaskRequest, request)
        vcenter = self._context.routes.resolve_watchable(task_request.vcenter, task_request.task)
        if not self._allow_cancel:
            raise Refused(403, "forbidden", "Canceling is switched off; BRIDGE_ALLOW_CANCEL=true switches it on.")
        await self._context.sources[vcenter].cancel(task_request.task)
        return CancelReply("cancel_requested", vcenter, task_request.task)


def _raw_event(entry: JournalEntry | None) -> msgspec.Raw:
    return msgspec.Raw(entry.body) if entry and entry.body else NULL


class _ApiErrorReply(msgspec.Struct, omit_defaults=True):
    error: ErrorBody
    last_event: msgspec.Raw = NULL


def _encode_error(refused: Refused) -> tuple[dict[str, str], bytes]:
    """Return headers and body of an error answer. The header is one ASCII line, whatever a stranger wrote."""
    line = " ".join(f"{refused.code}: {refused.message}".encode("ascii", "replace").decode().split())
    headers = {ERROR_HEADER: line[:512], ERROR_CODE_HEADER: str(refused.status)}
    reply = _ApiErrorReply(error_body(refused))
    if isinstance(refused, AlreadyEnded):
        reply.last_event = _raw_event(refused.last)
    return headers, msgspec.json.encode(reply)


class _RequesterInfo(msgspec.Struct):
    """The header that nats-server adds to requests from another account whose import says `share: true`."""

    acc: str | None = None
    user: str | None = None
    host: str | None = None
    name: str | None = None


def describe_requester(headers: Mapping[str, str] | None, reply: str) -> dict[str, str]:
    """Return the requester's account, user, host and client name where nats-server adds them, else the reply subject.

    In the bridge's own account a requester could write the header himself; `deploy/nats` lets no requester in there.
    """
    try:
        info = msgspec.json.decode((headers or {}).get(_REQUESTER_HEADER, "{}"), type=_RequesterInfo)
    except (msgspec.DecodeError, msgspec.ValidationError):
        info = _RequesterInfo()
    known = {"account": info.acc, "user": info.user, "host": info.host, "client": info.name}
    return {key: value for key, value in known.items() if value} or {"reply": reply}


def is_answerable(reply: str, prefix: str) -> bool:
    """Return whether the bridge may answer on `reply`: not on subjects of JetStream or of the bridge.

    The bridge may publish there and the requester may not, so the answer would be a forged request or event.
    """
    return not reply.startswith(("$", f"{prefix}."))
