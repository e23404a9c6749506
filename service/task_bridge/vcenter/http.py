"""HTTP to one vCenter: the only place that knows httpx.

An answer is a status and a body, whatever the status; no answer is VCenterUnavailable, in a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import NamedTuple

import httpx

from ..domain.errors import VCenterUnavailable
from ..metrics import Metrics
from ..tracing import span
from .http_errors import describe_http_error, is_tls_error
from .policy import TIMEOUTS, VCenterConfig

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_RETRY_AFTER_S = 3_600.0
CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 90.0
"""Longer than any phase: a list of 500 may take its time, a body that drips may not."""


_SAFE_TO_REPEAT = frozenset({"list", "get", "result", "session", "pull", "modify", "wait"})
_DROPPED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_SILENT = (httpx.ReadTimeout, TimeoutError)
_UNREACHABLE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class AmbiguousFailure(VCenterUnavailable):
    """There is no answer to this request, though vCenter may answer others: a provider behind it may hang."""


class _StaleConnection(AmbiguousFailure):
    """vCenter closed a kept connection just as it was used again: nothing is wrong, and nothing was answered."""


class NoAnswer(AmbiguousFailure):
    """The request was sent, and no answer came in time."""


class AnswerTooLarge(VCenterUnavailable):
    """The body is larger than is taken in: fewer tasks at once, or never."""


class Answer(NamedTuple):
    """What vCenter answered. `retry_after_s` is set when it named a time; `set_cookie` is that header."""

    status: int
    body: bytes
    retry_after_s: float | None = None
    set_cookie: str = ""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class AnswerLimits(NamedTuple):
    """How long an answer may let wait for its next bytes (else as all steps), and how large it may be."""

    read_timeout_s: float | None = None
    max_bytes: int = MAX_BODY_BYTES


DEFAULT_LIMITS = AnswerLimits()


class _Request(NamedTuple):
    operation: str
    method: str
    target: str
    headers: Mapping[str, str]
    content: bytes | None
    urgent: bool
    limits: AnswerLimits


class _CountedClient:
    """An httpx client and the CA file it was made with; closed when the last request that uses it is over."""

    def __init__(self, client: httpx.AsyncClient, made_with: object) -> None:
        self.client = client
        self.made_with = made_with
        self.stale = False
        self.users = 0


class RequestBudget:
    """Every request takes one token; whoever finds none waits for its own, in the order of asking."""

    def __init__(
        self, per_second: float, clock: Callable[[], float] = time.monotonic, *, burst: float | None = None
    ) -> None:
        self._per_second = per_second
        self._capacity = max(1.0, per_second if burst is None else burst)
        self._tokens = self._capacity
        self._clock = clock
        self._counted_at = clock()

    def wait_s(self) -> float:
        """How long the next request would wait; 0 when it may go."""
        self._refill()
        return max(0.0, (1.0 - self._tokens) / self._per_second)

    @property
    def is_plentiful(self) -> bool:
        """At least half of what may be spent at once is there."""
        self._refill()
        return self._tokens >= self._capacity / 2

    @property
    def used(self) -> float:
        """The part of what may be spent at once that is spent; above 1 there are requests that wait."""
        self._refill()
        return 1.0 - self._tokens / self._capacity

    def spend(self) -> None:
        """Takes a token whether there is one or not: those who come later wait for it."""
        self._refill()
        self._tokens -= 1

    async def take(self) -> None:
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
        self._tokens = min(self._capacity, self._tokens + (now - self._counted_at) * self._per_second)
        self._counted_at = now


class VCenterHttp:
    """Requests to one vCenter, within its budget and its number of concurrent requests."""

    def __init__(
        self,
        settings: VCenterConfig,
        metrics: Metrics,
        *,
        read_timeout_s: float = TIMEOUTS.read_timeout_s,
        clock: Callable[[], float] = time.monotonic,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._read_timeout_s = read_timeout_s
        self._transport = transport
        # httpx collapses when many requests queue inside its pool, so they queue here.
        self._slots = asyncio.Semaphore(settings.max_concurrent_requests)
        self.budget = RequestBudget(settings.max_requests_per_second, clock)
        self._current: _CountedClient | None = None

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
        """The answer to one request, counted by `operation`. Raises VCenterUnavailable.

        `urgent` doesn't wait for the budget, which then has one less for others.
        """
        asked = _Request(operation, method, target, headers, content, urgent, limits)
        try:
            return await self._request(asked)
        except _StaleConnection:
            if operation not in _SAFE_TO_REPEAT:
                raise
        return await self._request(asked)

    async def _request(self, asked: _Request) -> Answer:
        async with self._slots:
            if asked.urgent:
                self.budget.spend()
            else:
                await self.budget.take()
            began = time.monotonic()
            try:
                with span(f"vcenter {asked.operation}", "CLIENT", **self._span_keys(asked.method)) as told:
                    answer = await self._answer(asked)
                    if told is not None:
                        told.set_attribute("http.response.status_code", answer.status)
            except VCenterUnavailable:
                self._count(asked.operation, "error")
                raise
        took_s = time.monotonic() - began
        self._metrics.vcenter_seconds.labels(self._settings.name, asked.operation).observe(took_s)
        self._count(asked.operation, str(answer.status))
        return answer

    async def close(self) -> None:
        if self._current is not None:
            await self._current.client.aclose()
            self._current = None

    async def _answer(self, asked: _Request) -> Answer:
        done: set[str] = set()

        async def trace(event: str, _: object) -> None:
            done.add(event)

        seen = {"trace": trace}
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S), self._client() as client:
                request = client.build_request(
                    asked.method,
                    asked.target,
                    headers=asked.headers,
                    content=asked.content,
                    timeout=self._timeout(asked.limits.read_timeout_s),
                    extensions=seen,
                )
                return await self._sent(client, request, asked.limits.max_bytes)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            if is_tls_error(error) and self._current is not None:
                self._current.stale = True  # the CA file may be another, though it looks the same
            raise _classify_error(error, done)(describe_http_error(error, self._settings)) from error

    async def _sent(self, client: httpx.AsyncClient, request: httpx.Request, max_bytes: int) -> Answer:
        response = await client.send(request, stream=True)
        try:
            body, headers = await self._body(response, max_bytes), response.headers
            return Answer(response.status_code, body, _parse_retry_after_s(headers), headers.get("set-cookie", ""))
        finally:
            await response.aclose()

    async def _body(self, response: httpx.Response, max_bytes: int) -> bytes:
        chunks, size = [], 0
        async for chunk in response.aiter_bytes():
            chunks.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                raise AnswerTooLarge(
                    f"vCenter {self._settings.name} answered with more than {max_bytes} bytes, "
                    "more than the bridge takes in."
                )
        return b"".join(chunks)

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        current, ca = self._current, _identify_ca_file(self._settings)
        if current is None or current.stale or current.made_with != ca:
            before, self._current = current, _CountedClient(self._new_client(), ca)
            current = self._current
            if before is not None and not before.users:
                await before.client.aclose()
        current.users += 1
        try:
            yield current.client
        finally:
            current.users -= 1
            if current is not self._current and not current.users:
                await current.client.aclose()

    def _new_client(self) -> httpx.AsyncClient:
        slots = self._settings.max_concurrent_requests
        return httpx.AsyncClient(
            base_url=self._settings.url,
            # Identity: a list is read as it comes, and the cap on it is what is really sent.
            headers={"accept": "application/json", "accept-encoding": "identity"},
            verify=_build_tls_context(self._settings),
            proxy=self._settings.proxy,
            limits=httpx.Limits(max_connections=slots, max_keepalive_connections=slots, keepalive_expiry=60),
            trust_env=False,
            # The session goes by header; a cookie of an older one beside it would be wrong.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            transport=self._transport,
        )

    def _timeout(self, read_s: float | None) -> httpx.Timeout:
        return httpx.Timeout(self._read_timeout_s, connect=CONNECT_TIMEOUT_S, read=read_s or self._read_timeout_s)

    def _span_keys(self, method: str) -> dict[str, str]:
        return {"http.request.method": method, "server.address": self._settings.url, "vcenter": self._settings.name}

    def _count(self, operation: str, code: str) -> None:
        self._metrics.vcenter_requests.labels(self._settings.name, operation, code).inc()


def _classify_error(error: Exception, done: set[str]) -> type[VCenterUnavailable]:
    """What the error means, by what was done until it came."""
    if isinstance(error, _UNREACHABLE):
        return VCenterUnavailable
    if isinstance(error, _SILENT):
        return NoAnswer
    kept = not any(event.startswith("connection.connect_") for event in done)
    answered = "http11.receive_response_headers.complete" in done
    return _StaleConnection if kept and not answered and isinstance(error, _DROPPED) else AmbiguousFailure


def _identify_ca_file(settings: VCenterConfig) -> object:
    """What tells one CA file's content from the next; None where there is no file to read."""
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
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ValueError) as error:
        raise VCenterUnavailable(
            f"The CA file of vCenter {settings.name} ({settings.ca_file}) can't be read: {error}. "
            "It must hold certificates in PEM form."
        ) from error
    # vCenter's own CA makes certificates that the strict mode of newer Pythons refuses.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if settings.ca_file is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the file may hold vCenter's own certificate
    return context


def _parse_retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds until when vCenter asks to be left alone: a number, or a date by its own clock."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value) if value.isascii() and value.isdigit() else _until(value, headers.get("date"))
    except (ValueError, TypeError):
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S)


def _until(date: str, now: str | None) -> float:
    if now is None:
        raise ValueError("no clock to compare with")
    return (parsedate_to_datetime(date) - parsedate_to_datetime(now)).total_seconds()
