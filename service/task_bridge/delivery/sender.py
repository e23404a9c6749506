"""Sends events to one HTTP target."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import structlog

from ..settings import DeliverySettings
from ..tls import create_client_context, explain_refusal
from .answers import Verdict, judge_answer
from .rendering import (
    BodyTemplate,
    HttpRequest,
    RenderingFailed,
    add_headers,
    build_authorization,
    build_binary,
    build_rendered,
    build_structured,
)
from .signature import parse_secrets

log = structlog.get_logger(__name__)

_ANSWER_MAX_BYTES = 64 * 1024
"""How much of an answer is read, so that the connection can be used again; it is closed if there is more."""

_ANSWER_BODY_S = 1.0


class Answer(NamedTuple):
    """What a target answered, and the beginning of the body for `deliver --test`."""

    verdict: Verdict
    body: bytes = b""


class Sender:
    """Sends events to the target of a delivery. Files of secrets and of the template are read again when they change.

    Raises ValueError if a secret or the template can't be right.
    """

    def __init__(self, settings: DeliverySettings) -> None:
        self._settings = settings
        self._template = _TemplateFile(settings.template_file) if settings.template_file is not None else None
        self._read_secrets()
        self._client = httpx.AsyncClient(
            verify=_create_tls_context(settings),
            proxy=settings.proxy,
            trust_env=False,
            follow_redirects=False,
            timeout=settings.timeout_s,
            limits=httpx.Limits(max_connections=settings.max_in_flight, max_keepalive_connections=None),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def send(self, event_id: str, body: bytes) -> Answer:
        """Send an event, as it is stored, and return the answer; failures are answers too."""
        try:
            request = self._build_request(event_id, body)
        except RenderingFailed as error:
            return Answer(Verdict("refused", "template", str(error)))
        except ValueError as error:  # a file of a secret was replaced by a wrong one
            return Answer(Verdict("retry", "secret", str(error)))
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                response = await self._post(request)
        except TimeoutError:
            return Answer(Verdict("retry", "timeout", f"no answer within {self._settings.timeout_s:g} s"))
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            return Answer(Verdict("retry", "error", _describe_failure(error)))
        verdict = judge_answer(response.status_code, response.headers.get("retry-after"), time.time())
        return Answer(verdict, await _read_beginning(response))

    async def _post(self, request: HttpRequest) -> httpx.Response:
        """Send the request, and return the answer as soon as its headers have come."""
        posted = self._client.build_request("POST", self._settings.url, content=request.body, headers=request.headers)
        return await self._client.send(posted, stream=True)

    def _build_request(self, event_id: str, body: bytes) -> HttpRequest:
        settings = self._settings
        if self._template is not None:
            request = build_rendered(body, self._template.read(), settings.content_type)
        else:
            request = build_binary(body) if settings.format == "binary" else build_structured(body)
        keys, authorization = self._read_secrets()
        further = {**settings.headers, **authorization}
        return add_headers(request, event_id, int(time.time()), keys=keys, further=further)

    def _read_secrets(self) -> tuple[tuple[bytes, ...], dict[str, str]]:
        """Return the keys of signatures, and a header of authorization. Raises ValueError, which quotes no secret."""
        settings = self._settings
        keys: tuple[bytes, ...] = ()
        if settings.secret_file is not None:
            try:
                keys = parse_secrets(settings.secret_file.read())
            except ValueError as error:
                raise ValueError(f"SECRET_FILE {error}") from None
        return keys, build_authorization(
            bearer=settings.bearer_file.read() if settings.bearer_file else None,
            basic=settings.basic_file.read() if settings.basic_file else None,
        )


async def _read_beginning(response: httpx.Response) -> bytes:
    """Read the answer's body up to a bound. Whatever becomes of the rest, the status has been answered."""
    taken = bytearray()
    try:
        with contextlib.suppress(httpx.HTTPError, httpx.StreamError, TimeoutError, OSError):
            async with asyncio.timeout(_ANSWER_BODY_S):
                async for chunk in response.aiter_raw():
                    taken += chunk
                    if len(taken) > _ANSWER_MAX_BYTES:
                        break
    finally:
        await response.aclose()
    return bytes(taken[:_ANSWER_MAX_BYTES])


def _create_tls_context(settings: DeliverySettings) -> ssl.SSLContext:
    context = create_client_context(settings.ca_file)
    if not settings.verify_tls:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _describe_failure(error: Exception) -> str:
    """Return what failed, without the URL, which may hold secrets."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the target's certificate isn't trusted: {explain_refusal(cause)}; set CA_FILE"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectTimeout | httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
        return f"no answer in time ({type(error).__name__})"
    if isinstance(error, httpx.ConnectError):
        return "the target can't be reached"
    return f"the connection failed ({type(error).__name__})"


class _TemplateFile:
    """A template's file, which is read again when it changes. A wrong one doesn't replace the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = 0
        self._refused = 0
        self._template = self._load()

    def read(self) -> BodyTemplate:
        try:
            if self._path.stat().st_mtime_ns not in (self._version, self._refused):
                self._template = self._load()
        except (OSError, RenderingFailed, UnicodeDecodeError) as error:
            log.warning("template_not_replaced", file=self._path.name, reason=str(error))
        return self._template

    def _load(self) -> BodyTemplate:
        self._refused = self._path.stat().st_mtime_ns
        template = BodyTemplate(self._path.read_text("utf-8-sig"))
        self._version = self._refused
        return template
