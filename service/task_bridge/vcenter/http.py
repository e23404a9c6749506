"""HTTP to one vCenter: the only module that sends requests with httpx.

A response becomes an `Answer`, whatever its status. No response raises VCenterUnavailable, in a sentence that says
what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx

from .. import __version__
from ..domain.errors import VCenterUnavailable, VCenterUnreachable
from ..metrics import Metrics
from ..tls import create_client_context
from ..tracing import span
from .http_errors import describe_http_error, is_certificate_error
from .network import use_own_connections
from .policy import VCenterConfig

USER_AGENT = f"vcenter-task-bridge/{__version__}"
MAX_BODY_BYTES = 32 * 1024 * 1024
ERROR_MAX_BYTES = 64 * 1024
"""Of an answer that isn't a success only the beginning is read, since it is parsed in the event loop."""
SMALL_MAX_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 3_600.0
CONNECT_TIMEOUT_S = 10.0
WHOLE_ANSWER_S = 60.0
"""How much longer than one step a request may take: a list of 500 tasks may take its time, but a body that drips may
not."""

# Identity: the bridge reads a list as it arrives, and the limit counts the bytes that are really sent.
_HEADERS = {"user-agent": USER_AGENT, "accept": "application/json", "accept-encoding": "identity"}
_READS_BETWEEN_TURNS = 200
"""Pieces of a body between two turns of the event loop: one read of the socket may bring 10,000 of 2 bytes."""
_SAFE_TO_REPEAT = frozenset({"list", "get", "result", "session", "pull", "modify", "wait", "names"})
_DROPPED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_TIMED_OUT = (httpx.ReadTimeout, TimeoutError)
_UNREACHABLE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class AmbiguousFailure(VCenterUnavailable):
    """This request failed, though vCenter may answer others: perhaps only a provider behind it hangs."""


class _StaleConnection(AmbiguousFailure):
    """vCenter closed a kept connection just as a request reused it. Nothing is wrong, and nothing was answered."""


class NoAnswer(AmbiguousFailure):
    """The request was sent, but no answer came in time."""

    trouble = "unreachable"


class AnswerTooLarge(VCenterUnavailable):
    """The body exceeds the limit. Ask for fewer tasks at once; one task alone may never fit."""


class UnexpectedEncoding(AmbiguousFailure):
    """The body is compressed, though the bridge didn't ask for that. A few kilobytes could be gigabytes."""


class Answer(NamedTuple):
    """vCenter's response. `retry_after_s` is set if vCenter named a time; `set_cookie` is that header, and `challenge`
    is `WWW-Authenticate`. `date`: when vCenter wrote it, in whole Unix seconds by its own clock.

    Of the body of an error only the beginning is here, at most ERROR_MAX_BYTES.
    """

    status: int
    body: bytes
    retry_after_s: float | None = None
    set_cookie: str = ""
    challenge: str = ""
    date: float | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class AnswerLimits(NamedTuple):
    """The longest wait for the next bytes of an answer (default: the setting TIMEOUT) and its largest size."""

    read_timeout_s: float | None = None
    max_bytes: int = MAX_BODY_BYTES


DEFAULT_LIMITS = AnswerLimits()
SMALL_LIMITS = AnswerLimits(max_bytes=SMALL_MAX_BYTES)
"""For the answer to a login: a word."""


class RequestBudget:
    """A token bucket: each request takes a token, or waits for one in the order of arrival.

    It holds the tokens of one second unless `burst` says otherwise.
    """

    def __init__(
        self, per_second: float, clock: Callable[[], float] = time.monotonic, *, burst: float | None = None
    ) -> None:
        self._per_second = per_second
        self._capacity = max(1.0, per_second if burst is None else burst)
        self._tokens = self._capacity
        self._clock = clock
        self._refilled_at = clock()

    def wait_s(self) -> float:
        """Return how long the next request would wait, in seconds; 0 if it may go now."""
        self._refill()
        return max(0.0, (1.0 - self._tokens) / self._per_second)

    @property
    def is_plentiful(self) -> bool:
        """True while at least half of the tokens are left."""
        self._refill()
        return self._tokens >= self._capacity / 2

    @property
    def used(self) -> float:
        """The share of the tokens that is spent. Above 1, requests are waiting."""
        self._refill()
        return 1.0 - self._tokens / self._capacity

    def spend(self) -> None:
        """Take a token without waiting, even if none is left: later requests wait for it."""
        self._refill()
        self._tokens -= 1

    async def take(self) -> None:
        """Take a token, and wait until it is available."""
        wait_s = self.wait_s()
        self._tokens -= 1
        if wait_s:
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                self._tokens += 1
                raise

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._refilled_at) * self._per_second)
        self._refilled_at = now


class _HttpRequest(NamedTuple):
    operation: str
    method: str
    target: str
    headers: Mapping[str, str]
    content: bytes | None
    urgent: bool
    limits: AnswerLimits


class _ReplaceableTransport:
    """An httpx transport and the CA file that it was created with. The last request that uses a replaced one closes it.

    A transport, since a client costs a quarter of a request (measured) for what isn't wanted here: redirects, cookies,
    authentication and the proxies of the environment.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, ca_file: object) -> None:
        self.transport = transport
        self.ca_file = ca_file
        self.is_stale = False
        self.users = 0


class VCenterHttp:
    """Sends requests to one vCenter, within its budget and its number of concurrent requests."""

    def __init__(
        self,
        settings: VCenterConfig,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._transport = transport
        # httpx collapses when many requests queue inside its pool, so they queue here.
        self._slots = asyncio.Semaphore(settings.max_concurrent_requests)
        self.budget = RequestBudget(settings.max_requests_per_second, clock)
        self._current: _ReplaceableTransport | None = None

    async def request(
        self,
        operation: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        content: bytes | None = None,
        *,
        urgent: bool = False,
        limits: AnswerLimits = DEFAULT_LIMITS,
    ) -> Answer:
        """Send a request and return its answer; metrics count it as `operation`. Raises VCenterUnavailable.

        An `urgent` request doesn't wait for the budget; others then wait longer.
        """
        request = _HttpRequest(operation, method, target, headers, content, urgent, limits)
        try:
            return await self._request_once(request)
        except _StaleConnection:
            if operation not in _SAFE_TO_REPEAT:
                raise
        return await self._request_once(request)

    async def close(self) -> None:
        if self._current is not None:
            await self._current.transport.aclose()
            self._current = None

    async def _request_once(self, request: _HttpRequest) -> Answer:
        """Send the request once a slot and the budget allow it. Record its result in metrics and traces."""
        name = self._settings.name
        attributes = {"http.request.method": request.method, "server.address": self._settings.url, "vcenter": name}
        async with self._slots:
            if request.urgent:
                self.budget.spend()
            else:
                await self.budget.take()
            began = time.monotonic()
            try:
                with span(f"vcenter {request.operation}", "CLIENT", **attributes) as request_span:
                    answer = await self._send(request)
                    if request_span is not None:
                        request_span.set_attribute("http.response.status_code", answer.status)
            except VCenterUnavailable:
                self._metrics.vcenter_requests.labels(name, request.operation, "error").inc()
                raise
        self._metrics.vcenter_seconds.labels(name, request.operation).observe(time.monotonic() - began)
        self._metrics.vcenter_requests.labels(name, request.operation, str(answer.status)).inc()
        return answer

    async def _send(self, request: _HttpRequest) -> Answer:
        """Send the request and read its answer. Translate every failure to VCenterUnavailable or a subclass."""
        events: set[str] = set()

        async def trace(event: str, _: object) -> None:
            events.add(event)

        step_s = self._settings.timeout_s
        read_timeout_s = request.limits.read_timeout_s or step_s
        try:
            timeout = httpx.Timeout(step_s, connect=CONNECT_TIMEOUT_S, read=read_timeout_s).as_dict()
            async with (
                asyncio.timeout(max(step_s, read_timeout_s) + WHOLE_ANSWER_S),
                self._use_transport() as transport,
            ):
                http_request = httpx.Request(
                    request.method,
                    _build_url(self._settings.url, request.target),
                    headers={**_HEADERS, **request.headers},
                    content=request.content,
                    extensions={"timeout": timeout, "trace": trace},
                )
                return await self._read_answer(transport, http_request, request.limits.max_bytes)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            if is_certificate_error(error) and self._current is not None:
                self._current.is_stale = True  # the CA file may have new content under the same time and size
            at_proxy = self._settings.proxy is not None and "connection.connect_tcp.failed" in events
            message = describe_http_error(error, self._settings, at_proxy=at_proxy)
            raise _classify_error(error, events)(message) from error

    async def _read_answer(self, transport: httpx.AsyncBaseTransport, request: httpx.Request, max_bytes: int) -> Answer:
        response = await transport.handle_async_request(request)
        try:
            encoding = response.headers.get("content-encoding", "").strip().lower()
            if encoding not in ("", "identity"):
                raise UnexpectedEncoding(
                    f"vCenter {self._settings.name} answers in the encoding {encoding[:40]!r}, though the bridge asks "
                    "for none. Let the proxy in front of it pass answers on as they are."
                )
            body = await self._read_body(response, max_bytes)
            retry_after_s = _parse_retry_after_s(response.headers)
            cookie = response.headers.get("set-cookie", "")
            challenge = response.headers.get("www-authenticate", "")
            date = _parse_date(response.headers.get("date", ""))
            return Answer(response.status_code, body, retry_after_s, cookie, challenge, date)
        finally:
            await response.aclose()

    async def _read_body(self, response: httpx.Response, max_bytes: int) -> bytes:
        """Return the body, of an error only its beginning. Raises AnswerTooLarge."""
        body, pieces = io.BytesIO(), 0  # holds the body once, whereas joining pieces would hold it twice
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - an async transport gives no other
        async for piece in response.stream:
            body.write(piece)
            if not response.is_success and body.tell() > ERROR_MAX_BYTES:
                return body.getvalue()[:ERROR_MAX_BYTES]
            if body.tell() > max_bytes:
                raise AnswerTooLarge(
                    f"vCenter {self._settings.name} answered with more than the {max_bytes} bytes "
                    "that the bridge accepts."
                )
            pieces += 1
            if pieces % _READS_BETWEEN_TURNS == 0:
                await asyncio.sleep(0)
        return body.getvalue()

    @contextlib.asynccontextmanager
    async def _use_transport(self) -> AsyncIterator[httpx.AsyncBaseTransport]:
        """Yield the current transport, a new one if the CA file has changed."""
        current, ca_file = self._current, _identify_ca_file(self._settings)
        if current is None or current.is_stale or current.ca_file != ca_file:
            transport = self._transport or self._create_transport()
            previous, self._current = current, _ReplaceableTransport(transport, ca_file)
            current = self._current
            if previous is not None and not previous.users:
                await previous.transport.aclose()
        current.users += 1
        try:
            yield current.transport
        finally:
            current.users -= 1
            if current is not self._current and not current.users:
                await current.transport.aclose()

    def _create_transport(self) -> httpx.AsyncHTTPTransport:
        slots = self._settings.max_concurrent_requests
        transport = httpx.AsyncHTTPTransport(
            verify=_build_tls_context(self._settings),
            proxy=self._settings.proxy,
            limits=httpx.Limits(max_connections=slots, max_keepalive_connections=slots, keepalive_expiry=60),
            trust_env=False,
        )
        use_own_connections(transport)
        return transport


@functools.lru_cache(maxsize=1024)
def _build_url(base: str, target: str) -> httpx.URL:
    return httpx.URL(base.rstrip("/") + target)


def _classify_error(error: Exception, events: set[str]) -> type[VCenterUnavailable]:
    """Return the exception class that fits the error. `events`: httpx's trace events of the request so far."""
    if isinstance(error, _UNREACHABLE):
        return VCenterUnreachable
    if isinstance(error, _TIMED_OUT):
        return NoAnswer
    is_reused = not any(event.startswith("connection.connect_") for event in events)
    has_answer = "http11.receive_response_headers.complete" in events
    return _StaleConnection if is_reused and not has_answer and isinstance(error, _DROPPED) else AmbiguousFailure


def _identify_ca_file(settings: VCenterConfig) -> object:
    """Return a value that changes with the CA file's content; None if there is no file to read."""
    if settings.ca_file is None:
        return None
    try:
        stat = os.stat(settings.ca_file)
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _build_tls_context(settings: VCenterConfig) -> ssl.SSLContext:
    if not settings.verify_tls or settings.url.startswith("http:"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        return create_client_context(settings.ca_file)
    except (OSError, ValueError) as error:
        raise VCenterUnreachable(
            f"The CA file of vCenter {settings.name} ({settings.ca_file}) can't be read: {error}. "
            "It must contain certificates in PEM format."
        ) from error


def _parse_retry_after_s(headers: httpx.Headers) -> float | None:
    """Return the seconds of `Retry-After`, None if it is missing or unreadable.

    It is a number, or a date by vCenter's clock, which the `Date` header shows.
    """
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        if value.isascii() and value.isdigit():
            seconds = float(value)
        else:
            wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
            seconds = wait.total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S)


def _parse_date(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
