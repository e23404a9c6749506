"""The NATS service behind `<prefix>.api.<verb>`. It answers every request; a slow one doesn't delay the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.micro import add_service
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER, Request
from nats.micro.service import EndpointConfig, GroupConfig, Service, ServiceConfig

from .. import __version__
from ..domain.api import ApiRequest
from ..domain.errors import Refused
from ..domain.subjects import SERVICE, VERBS, SubjectNames
from .api import Api
from .nats_py_workarounds import drain_endpoints, ignore_utcnow, reply_subject

log = structlog.get_logger(__name__)

_REQUESTER_HEADER = "Nats-Request-Info"


class ApiService:
    """Serves the verbs of `api` to requests over `connection`."""

    def __init__(self, api: Api, connection: Client, names: SubjectNames) -> None:
        self._api = api
        self._connection = connection
        self._names = names
        self._tasks: set[asyncio.Task[None]] = set()
        self._service: Service | None = None

    async def start(self) -> None:
        """Register the service on the connection."""
        config = ServiceConfig(name=SERVICE, version=__version__, description="Watches vCenter tasks")
        ignore_utcnow()
        self._service = await add_service(self._connection, config)
        group = self._service.add_group(GroupConfig(name=self._names.api))
        for verb in VERBS:
            handler = self._create_handler(verb)
            await group.add_endpoint(EndpointConfig(name=verb, handler=handler))
            await group.add_endpoint(EndpointConfig(name=f"{verb}-by-vcenter", subject=f"{verb}.*", handler=handler))

    async def stop(self) -> None:
        """Take no more requests, and answer those that have arrived."""
        if self._service is not None and self._connection.is_connected:
            await drain_endpoints(self._service)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _create_handler(self, verb: str) -> Callable[[Request], Awaitable[None]]:
        async def handle(request: Request) -> None:
            if not is_answerable(reply := reply_subject(request), self._names.prefix):
                log.warning("request_dropped", subject=request.subject, reply=reply)
                return
            # A task of its own: nats.micro calls an endpoint's handler for one request after the other.
            task = asyncio.create_task(self._answer(verb, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return handle

    async def _answer(self, verb: str, request: Request) -> None:
        by, named = describe_requester(request.headers), self._names.parse_named_vcenter(request.subject)
        answer = await self._api.answer(verb, ApiRequest(request.data, request.headers, by=by, named_vcenter=named))
        headers = _error_headers(answer.refused) if answer.refused else None
        try:
            await request.respond(answer.body, headers=headers)
        except (ValueError, nats.errors.Error) as error:
            log.debug("answer_lost", subject=request.subject, reason=str(error))


def _error_headers(refused: Refused) -> dict[str, str]:
    """Return the headers of an error answer. The first is one ASCII line, whatever a stranger wrote."""
    line = " ".join(f"{refused.code}: {refused.message}".encode("ascii", "replace").decode().split())
    return {ERROR_HEADER: line[:512], ERROR_CODE_HEADER: str(refused.status)}


class _RequesterInfo(msgspec.Struct):
    """The header that nats-server adds to requests from another account whose import says `share: true`."""

    acc: str | None = None
    user: str | None = None
    host: str | None = None
    name: str | None = None


def describe_requester(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    """Return the requester's account, user, host and client name where nats-server adds them, else None.

    In the bridge's own account a requester could write the header himself; `deploy/nats` lets no requester in there.
    """
    try:
        info = msgspec.json.decode((headers or {}).get(_REQUESTER_HEADER, "{}"), type=_RequesterInfo)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    known = {"account": info.acc, "user": info.user, "host": info.host, "client": info.name}
    return {key: value for key, value in known.items() if value} or None


def is_answerable(reply: str, prefix: str) -> bool:
    """Return whether the bridge may answer on `reply`: not on subjects of JetStream or of the bridge.

    The bridge may publish there and the requester may not, so the answer would be a forged request or event.
    """
    return not reply.startswith(("$", f"{prefix}."))
