"""The API over HTTP, below `/v1`: the requests and replies of the NATS API, and stored events as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..domain.access import EVENTS_VERB, Token
from ..domain.api import CHANGING_VERBS, ApiHandler, ApiRequest
from ..domain.errors import NatsUnavailable, Problem, Refused, invalid_request
from ..domain.event_query import EventFeed, EventQuery, parse_event_query, parse_last_event_id
from ..domain.replies import encode_error_reply
from ..domain.requests import REQUEST_MAX_BYTES
from ..domain.subjects import VERBS
from ..metrics import Metrics
from .event_stream import EventStream
from .gate import Gate, HttpRefused

log = structlog.get_logger(__name__)

PREFIX = "/v1/"
BODY_MAX_BYTES = 1024 * 1024
_SKIPPED_MAX_BYTES = 8 * BODY_MAX_BYTES
"""A body that is too large is read up to here, so that its sender, who may only read afterwards, gets the answer."""
BODY_S = 10.0
"""Time for the body of a request."""
_CLOSE = {"Connection": "close"}
_TRACE_HEADERS = ("traceparent", "tracestate")
_OPENAPI = "openapi.json"
_METHODS = {**dict.fromkeys(VERBS, ("POST",)), EVENTS_VERB: ("GET", "HEAD"), _OPENAPI: ("GET", "HEAD")}


def is_api_path(path: str) -> bool:
    return path == PREFIX.rstrip("/") or path.startswith(PREFIX)


class HttpApi:
    """The ASGI app of all paths below `/v1`. `handler` serves the verbs; it is None while NATS is away."""

    def __init__(
        self, gate: Gate, feed: EventFeed, vcenters: Mapping[str, object], openapi: bytes, metrics: Metrics
    ) -> None:
        self.handler: ApiHandler | None = None
        self._gate = gate
        self._feed = feed
        self._vcenters = vcenters
        self._openapi = openapi
        self._metrics = metrics
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Take no more requests, and end the streams."""
        self.handler = None
        self._stopping.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        what = scope["path"].removeprefix(PREFIX)
        try:
            _check_method(request, what)
            if what == EVENTS_VERB and request.method == "GET":
                await self._stream_events(request, send)
                return
            response = await self._respond(request, what)
        except ClientDisconnect:
            return
        except Refused as refused:
            response = build_refusal(refused)
        except NatsUnavailable as error:
            response = build_refusal(Refused(503, "unavailable", f"{error} Try again."))
        self._metrics.http_requests.labels(what if what in _METHODS else "other", response.status_code).inc()
        await response(scope, receive, send)

    async def _respond(self, request: Request, what: str) -> Response:
        if what == _OPENAPI:
            return Response(self._openapi, media_type="application/json")
        token = self._admit(request, what)
        if what == EVENTS_VERB:
            self._parse_query(request, token)
            return Response(media_type="text/event-stream")
        body = await read_body(request)
        handler = self._get_handler()
        headers = {name: value for name in _TRACE_HEADERS if (value := request.headers.get(name))}
        answer = await handler.answer(what, ApiRequest(body, headers, by=token.name, vcenters=token.vcenters))
        return Response(answer.body, answer.status, media_type="application/json")

    def _admit(self, request: Request, verb: str) -> Token:
        """Return the token of a request that may use the verb. Raises Refused."""
        _check_framing(request)
        token = self._gate.admit(request)
        if not token.may(verb):
            if verb in CHANGING_VERBS:
                log.info("request", verb=verb, outcome="forbidden", vcenter=None, task=None, follow=None, by=token.name)
            raise Refused(403, "forbidden", f"The token {token.name!r} may not use the verb {verb!r}.")
        return token

    def _get_handler(self) -> ApiHandler:
        if self.handler is None:
            reason = "The bridge stops" if self._stopping.is_set() else "NATS isn't connected yet; see /readyz"
            raise Refused(503, "unavailable", f"{reason}. Try again.")
        return self.handler

    def _parse_query(self, request: Request, token: Token) -> EventQuery:
        query = parse_event_query(request.query_params.multi_items())
        if query.vcenter is not None and token.vcenters is not None and query.vcenter not in token.vcenters:
            raise Refused(403, "forbidden", f"The token {token.name!r} may not use the vCenter {query.vcenter!r}.")
        if query.vcenter is not None and query.vcenter not in self._vcenters:
            known = sorted(name for name in self._vcenters if token.vcenters is None or name in token.vcenters)
            problem = Problem("vcenter", f"must be one of {', '.join(known)}")
            raise invalid_request(f"No vCenter named {query.vcenter!r} is configured.", problem)
        return query

    async def _stream_events(self, request: Request, send: Send) -> None:
        token = self._admit(request, EVENTS_VERB)
        query = self._parse_query(request, token)
        after = parse_last_event_id(request.headers.get("last-event-id"))
        self._get_handler()
        with self._gate.stream(token):
            async with self._feed.open(query, token.vcenters, after) as events:
                self._metrics.http_requests.labels(EVENTS_VERB, 200).inc()
                stream = EventStream(events, self._stopping, lambda: self._gate.is_current(token))
                await stream(request.scope, request.receive, send)


def _check_method(request: Request, what: str) -> None:
    if what not in _METHODS or not request.scope["path"].startswith(PREFIX):
        raise HttpRefused(404, "not_found", "There is no such path; see /v1/openapi.json.")
    if request.method not in _METHODS[what]:
        allowed = ", ".join(_METHODS[what])
        raise HttpRefused(405, "method_not_allowed", f"Use {allowed} here.", {"Allow": allowed})


def _check_framing(request: Request) -> None:
    """Refuse a request of which a proxy in front may have seen another end of the body (request smuggling)."""
    if "transfer-encoding" in request.headers and "content-length" in request.headers:
        message = "The request has both Transfer-Encoding and Content-Length; send one of them."
        raise HttpRefused(400, "invalid_request", message, _CLOSE)


async def read_body(request: Request) -> bytes:
    """Return the body, at most a byte more than any request may have. Raises Refused (408, 413)."""
    announced = int(request.headers.get("content-length", "0"))
    if announced > _SKIPPED_MAX_BYTES or (announced > BODY_MAX_BYTES and "expect" in request.headers):
        raise _too_large()
    kept, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                kept += chunk[: max(0, REQUEST_MAX_BYTES + 1 - len(kept))]
                if size > _SKIPPED_MAX_BYTES:
                    break
    except TimeoutError:
        message = f"The body didn't arrive within {BODY_S:.0f} s."
        raise HttpRefused(408, "request_timeout", message, _CLOSE) from None
    if size > BODY_MAX_BYTES:
        raise _too_large()
    return bytes(kept)


def _too_large() -> HttpRefused:
    return HttpRefused(413, "too_large", f"The body must have at most {BODY_MAX_BYTES:,} bytes.", _CLOSE)


def build_refusal(refused: Refused) -> Response:
    headers = dict(refused.headers) if isinstance(refused, HttpRefused) else {}
    return Response(encode_error_reply(refused), refused.status, headers, media_type="application/json")


async def refuse_all(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 404: the API over HTTP is off."""
    message = "The API over HTTP is off; BRIDGE_HTTP_TOKENS_FILE switches it on."
    await build_refusal(Refused(404, "not_found", message))(scope, receive, send)
