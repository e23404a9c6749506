"""A Python client of the bridge: request watches, wait for tasks, read events.

    async with TaskBridge("nats://127.0.0.1:4222") as bridge:
        event = await bridge.wait(task_id, timeout=3600)

Errors are raised as

    Refused           the bridge answered with an error (`ErrorAnswer`, with the answer as it came)
    NatsUnavailable   no NATS, or no bridge answers
    TaskFailed        the awaited task failed or was canceled
    WatchAbandoned    the watch ended without knowing the task's end
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec
import nats.errors
from nats.aio.client import Client

from .domain.errors import BridgeError, NatsUnavailable, Problem, Refused, invalid_request
from .domain.events import FINAL_KINDS, SUBJECT_KINDS, Event, from_cloudevent
from .domain.replies import CancelReply, ErrorBody, GetReply, ListReply, UnwatchReply, WatchReply
from .domain.subjects import SubjectNames, is_vcenter_name
from .domain.task_ids import parse_task_id
from .jetstream.connect import connect, denied_permission
from .jetstream.stream_reader import StreamReader
from .jetstream.streams import StoredMessage, Streams
from .settings.nats import ClientSettings, load_client_settings

if TYPE_CHECKING:
    from .settings import Settings

log = logging.getLogger(__name__)

CONNECT_S = 4.0
ANSWER_S = 25.0  # the bridge answers within 20 s, whatever happens
MAX_FILTERS = 200  # above, one filter for all events is cheaper to nats-server


class ErrorAnswer(Refused):
    """The bridge answered with an error; `body` is the answer as it came."""

    def __init__(self, error: ErrorBody, body: bytes) -> None:
        details = [Problem(detail.field, detail.problem) for detail in error.details]
        super().__init__(error.status, error.code, error.message, details)
        self.body = body


class _UnsuccessfulEnd(BridgeError):  # noqa: N818 - the names of its subclasses say what happened
    def __init__(self, event: Event) -> None:
        error = event.data.error
        super().__init__(f"{event.kind}: {error.message}" if error else event.kind)
        self.event = event
        self.messages = tuple(message.text for message in error.messages) if error else ()


class TaskFailed(_UnsuccessfulEnd):
    """The task failed or was `canceled`. `messages` are vCenter's, the cause last."""

    @property
    def canceled(self) -> bool:
        return self.event.data.outcome == "canceled"


class WatchAbandoned(_UnsuccessfulEnd):
    """The watch ended as lost, denied, timed out or unwatched (`event.data.outcome`); the task may go on."""


class StoredCloudEvent(NamedTuple):
    """An event, and the CloudEvent as it is stored."""

    event: Event
    body: bytes


class TaskBridge:
    """A connection to a bridge's NATS: at a URL or by `settings`; without both, by the environment and `.env`.

    It calls `on_connection` with a sentence when the connection is lost and when it is back.
    """

    def __init__(
        self,
        nats_url: str | None = None,
        *,
        settings: ClientSettings | Settings | None = None,
        on_connection: Callable[[str], None] = log.info,
    ) -> None:
        if settings is None:
            environ = None if nats_url is None else {"BRIDGE_NATS_URL": nats_url}
            settings = load_client_settings(environ)
        self.names = SubjectNames(settings.subject_prefix)
        self._nats = settings.nats
        self._client = Client()
        self._report = on_connection

    async def __aenter__(self) -> Self:
        """Connect. Raises NatsUnavailable within seconds."""
        self._client = await connect(
            self._nats,
            CONNECT_S,
            name="task-bridge client",
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            ping_interval=5,
            max_outstanding_pings=2,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
        )
        self._streams = Streams(self._client, self._nats.js_domain)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def request(self, verb: str, request: Mapping[str, Any]) -> bytes:
        """Return the answer of `<prefix>.api.<verb>`; values that are None aren't sent.

        Raises Refused and NatsUnavailable.
        """
        subject = f"{self.names.api}.{verb}"
        try:
            body = msgspec.json.encode({key: value for key, value in request.items() if value is not None})
            answer = await self._client.request(subject, body, timeout=ANSWER_S)
        except UnicodeEncodeError as error:
            raise invalid_request("The request isn't text that UTF-8 can encode.") from error
        except nats.errors.NoRespondersError as error:
            raise NatsUnavailable(f"No bridge answers on {subject}.") from error
        except (nats.errors.Error, OSError) as error:
            denied = denied_permission(self._client, subject) if isinstance(error, TimeoutError) else None
            raise NatsUnavailable(f"No answer on {subject}: {denied or error or 'NATS is away'}.") from error
        if "Nats-Service-Error-Code" in (answer.headers or {}):
            raise ErrorAnswer(msgspec.json.decode(answer.data, type=_ErrorReply).error, answer.data)
        return answer.data

    async def watch(
        self,
        task: str,
        *,
        vcenter: str | None = None,
        timeout: float | str | None = None,
        stalled_after: float | str | None = None,
        partial_results: bool = False,
        details: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> WatchReply:
        """Request a watch. `timeout`, in seconds or like "2h", ends the watch; the task itself is never touched."""
        request = {
            "task": task,
            "vcenter": vcenter,
            "timeout": timeout,
            "stalled_after": stalled_after,
            "partial_results": partial_results or None,
            "details": details or None,
            "labels": dict(labels) if labels else None,
        }
        return msgspec.json.decode(await self.request("watch", request), type=WatchReply)

    async def get(self, task: str, *, vcenter: str | None = None) -> GetReply:
        """Return the state of a task that is watched or has ended."""
        return msgspec.json.decode(await self.request("get", {"task": task, "vcenter": vcenter}), type=GetReply)

    async def list(
        self, *, vcenter: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> ListReply:
        """Return a page of the active watches; pass the reply's `cursor` to get the next one."""
        request = {"vcenter": vcenter, "limit": limit, "cursor": cursor}
        return msgspec.json.decode(await self.request("list", request), type=ListReply)

    async def unwatch(self, task: str, *, vcenter: str | None = None) -> UnwatchReply:
        """End a watch; the task goes on."""
        return msgspec.json.decode(await self.request("unwatch", {"task": task, "vcenter": vcenter}), type=UnwatchReply)

    async def cancel(self, task: str, *, vcenter: str | None = None) -> CancelReply:
        """Ask vCenter to cancel a task; the task's final event says whether it did."""
        return msgspec.json.decode(await self.request("cancel", {"task": task, "vcenter": vcenter}), type=CancelReply)

    async def wait(
        self,
        task: str,
        *,
        vcenter: str | None = None,
        timeout: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Event:
        """Watch a task and return the event of its success. `timeout` (seconds) ends this call; the watch goes on.

        Raises TaskFailed, WatchAbandoned, TimeoutError, Refused and NatsUnavailable.
        """
        async with asyncio.timeout(timeout):
            reply = await self.watch(task, vcenter=vcenter, labels=labels)
            async with aclosing(self.follow(reply)) as events:
                final = [event async for event, _ in events][-1]
        if final.data.kind == "abandoned":
            raise WatchAbandoned(final)
        if final.data.outcome != "succeeded":
            raise TaskFailed(final)
        return final

    async def follow(self, *replies: WatchReply) -> AsyncGenerator[StoredCloudEvent, None]:
        """Yield the events of these watches, from their first on, until each has ended; those of a task in order."""
        unfinished = {reply.watch.id for reply in replies}
        filters = list({reply.events: None for reply in replies})
        if len(filters) > MAX_FILTERS:
            filters = [f"{self.names.events}.>"]
        if not replies:
            return
        async with aclosing(StreamReader(self._streams, replies[0].stream, filters).messages()) as messages:
            async for message in messages:
                if message.headers.get("Bridge-Watch") not in unfinished:
                    continue
                stored = _parse_stored_event(message)
                yield stored
                if stored.event.data.kind in FINAL_KINDS:
                    unfinished.discard(stored.event.data.watch.id)
                    if not unfinished:
                        return

    async def events(
        self,
        *,
        kind: str | None = None,
        vcenter: str | None = None,
        task: str | None = None,
        since: datetime | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Event]:
        """Yield stored events, all or those since a moment; with `follow` go on with new ones, without end."""
        stored = self.stored_events(kind=kind, vcenter=vcenter, task=task, since=since, follow=follow)
        async with aclosing(stored) as events:
            async for event, _ in events:
                yield event

    async def stored_events(
        self,
        *,
        kind: str | None = None,
        vcenter: str | None = None,
        task: str | None = None,
        since: datetime | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[StoredCloudEvent, None]:
        """Yield the same, each with its CloudEvent as stored. Raises Refused for filters that can match no event."""
        subject = _event_filter(self.names, vcenter, task, kind)
        reader = StreamReader(self._streams, self.names.events_stream, [subject], since=since, follow=follow)
        async with aclosing(reader.messages()) as messages:
            async for message in messages:
                yield _parse_stored_event(message)

    async def follow_events(self, *, vcenter: str | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the stored events of all follows, oldest first, as CloudEvents. Raises Refused for such a vCenter."""
        if vcenter is not None and not is_vcenter_name(vcenter):
            raise invalid_request(f"{vcenter!r} can't be a vCenter's name")
        subjects = [f"{self.names.follows}.{vcenter or '*'}.>"]
        reader = StreamReader(self._streams, self.names.events_stream, subjects, follow=False)
        async with aclosing(reader.messages()) as messages:
            async for message in messages:
                yield message.body

    async def _on_disconnected(self) -> None:
        if self._client.is_reconnecting:  # and wasn't closed, or never opened
            self._report("The connection to NATS is lost; waiting for it.")

    async def _on_reconnected(self) -> None:
        self._report("NATS is back.")


_EVENT_KINDS = (*SUBJECT_KINDS, *FINAL_KINDS)


class _ErrorReply(msgspec.Struct):
    error: ErrorBody


def _parse_stored_event(message: StoredMessage) -> StoredCloudEvent:
    event = from_cloudevent(message.body, stalled_reported=False)
    if event is None:
        raise BridgeError(f"The event {message.sequence} of the stream can't be read; upgrade task-bridge.")
    return StoredCloudEvent(event, message.body)


def _event_filter(names: SubjectNames, vcenter: str | None, task: str | None, kind: str | None) -> str:
    """Return the subject of these events. Raises Refused if no event can have it."""
    if vcenter is not None and not is_vcenter_name(vcenter):
        raise invalid_request(f"{vcenter!r} can't be a vCenter's name")
    if task is not None:
        try:
            task = parse_task_id(task)
        except ValueError as error:
            raise invalid_request(f"{task!r} {error}") from error
    if kind is not None and kind not in _EVENT_KINDS:
        raise invalid_request(f"{kind!r} isn't a kind of event; there are {', '.join(_EVENT_KINDS)}")
    kinds = ">" if kind is None else f"{kind}.*" if kind in FINAL_KINDS else kind
    return names.stored_events_filter(vcenter, task, kinds)
