"""The verbs of the API, whichever way a request came in. Every request is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog

from ..domain.api import CHANGING_VERBS, ApiAnswer, ApiRequest
from ..domain.errors import NatsUnavailable, Refused, VCenterUnavailable
from ..domain.events import NULL
from ..domain.follows.event import FollowReply, FollowsReply, UnfollowReply, build_view, list_follow
from ..domain.follows.request import FollowNameRequest, FollowRequest, FollowsRequest
from ..domain.replies import (
    CancelReply,
    GetReply,
    ListedWatch,
    ListReply,
    UnwatchReply,
    WatchReply,
    count_fitting,
    encode_error_reply,
)
from ..domain.requests import (
    ListRequest,
    Model,
    TaskRequest,
    WatchRequest,
    describe_request_target,
    parse_request,
    parse_trace_context,
    unknown_vcenter,
)
from ..domain.subjects import VERBS
from ..domain.vcenter_state import VCenterState
from ..tracing import span
from .follow_requests import admit_follow
from .follow_setup import FollowsOff
from .journal import JournalEntry
from .replicas import Replicas
from .request_consumer import RequestContext, check_headers
from .watch_store import AlreadyEnded, StoredWatch, build_watch, event_of_watch

log = structlog.get_logger(__name__)

MAX_AT_ONCE = 256
DEADLINE_S = 20.0
_HEADERS_MAX_BYTES = 1024
_LIST_AROUND_BYTES = 128
"""Size of a list's reply without its watches."""
_STATUSES = {"accepted": 202}
"""HTTP's status of an outcome; the others have 200."""


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
        self._handlers = {verb: getattr(self, verb) for verb in VERBS}

    @property
    def _max_reply_bytes(self) -> int:
        return self._context.streams.connection.max_payload - _HEADERS_MAX_BYTES

    async def answer(self, verb: str, request: ApiRequest) -> ApiAnswer:
        """Serve a request to one of VERBS. One that may change something is one line of the log."""
        reply, refused = await self._serve(verb, request)
        body = encode_error_reply(refused, _last_event_of(refused)) if refused else msgspec.json.encode(reply)
        if len(body) > self._max_reply_bytes:
            reason = f"The reply has {len(body):,} bytes, more than nats-server accepts (max_payload)."
            refused = Refused(503, "unavailable", reason)
            body = encode_error_reply(refused)
        outcome = refused.code if refused else getattr(reply, "outcome", "")
        if verb in CHANGING_VERBS:
            self._log_change(verb, request, outcome, reply)
        return ApiAnswer(refused.status if refused else _STATUSES.get(outcome, 200), body, refused)

    def _parse(self, model: type[Model], request: ApiRequest) -> Model:
        """Return the request's content. Raises Refused."""
        check_headers(request.headers)
        return parse_request(model, request.data, request.named_vcenter)

    async def _serve(self, verb: str, request: ApiRequest) -> tuple[Any, Refused | None]:
        """Return the verb's reply, or why there is none."""
        if not self._context.streams.connection.is_connected:
            return None, Refused(503, "unavailable", "NATS is away. Try again.")
        try:
            async with self._at_once, asyncio.timeout(DEADLINE_S):
                return await self._handlers[verb](request), None
        except Refused as refused:
            return None, refused
        except VCenterUnavailable as error:
            return None, Refused(503, "vcenter_unavailable", str(error))
        except FollowsOff as error:
            reason = str(error)
            return None, Refused(503, "unavailable", f"{reason[:1].upper()}{reason[1:]}.")
        except (NatsUnavailable, TimeoutError) as error:
            reason = f"JetStream failed: {error}" if str(error) else f"No answer within {DEADLINE_S:.0f} s"
            return None, Refused(503, "unavailable", f"{reason}. Try again.")
        except Exception:
            log.exception("request_failed", verb=verb)
            return None, Refused(503, "unavailable", "The bridge failed on this request; see its log.")

    def _log_change(self, verb: str, request: ApiRequest, outcome: str, reply: Any) -> None:
        """Log who asked for what, and the outcome: the reply's, or the code of the error."""
        target = describe_request_target(request.data)
        keys = {
            "vcenter": request.named_vcenter or target["vcenter"] or self._context.routes.default,
            "task": target["task"],
            "follow": target["name"],
        }
        if reply is not None:
            keys |= {"vcenter": reply.vcenter, "task": getattr(reply, "task", None)}
            if (watch := getattr(reply, "watch", None)) is not None:
                keys["watch"] = watch.id
        if trace := parse_trace_context(request.headers)[0]:
            keys["trace_id"] = trace.split("-")[1]
        log.info("request", verb=verb, outcome=outcome, **keys, by=request.by)

    def _context_of(self, request: ApiRequest) -> RequestContext:
        """Return the context with those vCenters that the requester may name."""
        return self._context._replace(routes=self._context.routes.restrict(request.vcenters))

    async def watch(self, request: ApiRequest) -> WatchReply:
        """Watch a task until it ends."""
        context = self._context_of(request)
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

    async def get(self, request: ApiRequest) -> GetReply:
        """Return a task's watch and last event, whether it is watched or has ended."""
        context = self._context_of(request)
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

    async def list(self, request: ApiRequest) -> ListReply:
        """List the active watches of all replicas, oldest request first."""
        context = self._context_of(request)
        list_request = self._parse(ListRequest, request)
        vcenter = list_request.vcenter
        vcenters = context.routes.resolve_scope(vcenter)
        page, following = await context.watches.read_page(vcenters, list_request.after, list_request.limit)
        total = await context.watches.count(vcenters) if list_request.after else len(page) + following
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

    async def unwatch(self, request: ApiRequest) -> UnwatchReply:
        """End a watch with its final event; the task itself is not touched."""
        context = self._context_of(request)
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

    async def follow(self, request: ApiRequest) -> FollowReply:
        """Watch every task that matches, from a time on."""
        context, follow_request = self._context_of(request), self._parse(FollowRequest, request)
        admission = await admit_follow(context, self._stalled_after_s, follow_request, request.headers)
        follow = admission.follow
        return FollowReply(admission.outcome, follow.vcenter, follow.name, build_view(follow))

    async def unfollow(self, request: ApiRequest) -> UnfollowReply:
        """End a follow with its final event. The watches that it has started go on."""
        context = self._context_of(request)
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

    async def follows(self, request: ApiRequest) -> FollowsReply:
        """List the follows of a vCenter, or of all."""
        context = self._context_of(request)
        vcenter = self._parse(FollowsRequest, request).vcenter
        vcenters = context.routes.resolve_scope(vcenter)
        stored = await context.follows.read_all(vcenter)
        if vcenter is not None and not stored and vcenter not in context.routes.urls:
            raise unknown_vcenter(vcenter, context.routes.urls)
        reports = self._replicas.list_follows()
        return FollowsReply(
            [
                list_follow(one.follow, reports.get(one.follow.key))
                for one in stored
                if vcenters is None or one.follow.vcenter in vcenters
            ]
        )

    async def cancel(self, request: ApiRequest) -> CancelReply:
        """Ask vCenter to cancel a task."""
        context = self._context_of(request)
        task_request = self._parse(TaskRequest, request)
        vcenter = context.routes.resolve_watchable(task_request.vcenter, task_request.task)
        if not self._allow_cancel:
            raise Refused(403, "forbidden", "Canceling is switched off; BRIDGE_ALLOW_CANCEL=true switches it on.")
        await context.sources[vcenter].cancel(task_request.task)
        return CancelReply("cancel_requested", vcenter, task_request.task)


def _raw_event(entry: JournalEntry | None) -> msgspec.Raw:
    return msgspec.Raw(entry.body) if entry and entry.body else NULL


def _last_event_of(refused: Refused) -> msgspec.Raw:
    return _raw_event(refused.last) if isinstance(refused, AlreadyEnded) else NULL
