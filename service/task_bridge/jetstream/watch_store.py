"""Who may begin a watch: one per task, decided by the stream of watches itself; and how one is ended on request.

A second watch on a task whose watch lies in the stream is refused by nats-server (error 10077), however long ago
the first came; what to answer then is read from the leaders.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import NamedTuple
from weakref import WeakValueDictionary

import msgspec

from ..domain.errors import NatsUnavailable, Refused, VCenterUnavailable
from ..domain.events import WatchRef
from ..domain.ports import TaskSource
from ..domain.requests import WatchRequest
from ..domain.subjects import SubjectNames
from ..domain.task import is_vim_task
from ..domain.watch import Policy, Watch, answers_request, next_event, view_from_event
from ..watcher import is_request_answered
from .journal import JetStreamJournal, JournalEntry
from .streams import StoredMessage, StoreRefused, Streams

_TRIES = 500
_decoder = msgspec.json.Decoder(Watch)


class Admission(NamedTuple):
    """What became of a request: the outcome, the watch in force, and the watch's last event."""

    outcome: str
    watch: WatchRef
    last: JournalEntry | None


class StoredWatch(NamedTuple):
    """A watch as it lies in its stream."""

    watch: Watch
    sequence: int

    def is_answered_by(self, last: JournalEntry) -> bool:
        """Return whether the message is about to go: its watch ended, or its request was answered before it started.

        The replica that admitted it or takes it up is about to see that.
        """
        return answers_request(last.event, last.stored_at, self.watch)


def build_watch(
    request: WatchRequest,
    vcenter: str,
    since: float,
    *,
    stored_sequence: int | None,
    stalled_after_s: float,
    trace: tuple[str | None, str | None],
) -> Watch:
    """The watch that a request asks for.

    Its id is made of the request's time and sequence in the stream, so that a redelivery makes the same one; never
    of the sequence alone, since streams get recreated. A request over the API has no sequence.
    """
    tail = f"a{secrets.token_hex(6)}" if stored_sequence is None else str(stored_sequence)
    return Watch(
        id=f"{int(since * 1000)}-{tail}",
        vcenter=vcenter,
        task=request.task,
        since=since,
        api="vim" if is_vim_task(request.task) else "cis",
        timeout_at=None if request.timeout is None else since + request.timeout,
        stalled_after_s=stalled_after_s if request.stalled_after is None else request.stalled_after,
        partial_results=request.partial_results,
        labels=request.labels,
        traceparent=trace[0],
        tracestate=trace[1],
        stored_request=stored_sequence is not None,
    )


def decode_watch(stored: StoredMessage) -> StoredWatch | None:
    """The watch in a message, None when this release can't read it."""
    try:
        return StoredWatch(_decoder.decode(stored.body), stored.sequence)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


class WatchStore:
    """The stream of watches: admission (which may raise VCenterUnavailable), reading, unwatch: NatsUnavailable."""

    def __init__(
        self,
        streams: Streams,
        names: SubjectNames,
        journal: JetStreamJournal,
        policy_of: Callable[[str], Policy],
        sources: Mapping[str, TaskSource],
        clock: Callable[[], float],
    ) -> None:
        self._sources = sources
        self._streams = streams
        self._names = names
        self._journal = journal
        self._policy_of = policy_of
        self._clock = clock
        self._unwatching: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def admit(self, watch: Watch) -> Admission:
        """Begins the watch unless the task is watched or has completed.

        Whether a stored request was served before is left to who takes the watch up, and reads the last event
        anyway: nobody waits for an answer.
        """
        for _ in range(_TRIES):
            taken = await self._put(watch)
            if taken is not None and watch.stored_request:
                return Admission("accepted", watch.ref, None)
            if taken is not None:
                last = await self._journal.last(watch.vcenter, watch.task, leader=True)
                return await self._admitted(watch, taken, last)
            present, last = await self.read_watch_and_last_event(watch.vcenter, watch.task)
            if present is None:
                # R3 frees a subject some milliseconds after the ack (measured), and one that can't be read is
                # being put aside by whoever was handed it.
                await asyncio.sleep(0.005)
                continue
            if present.watch.id == watch.id or last is None or not present.is_answered_by(last):
                return Admission("already_watching", present.watch.ref, event_of_watch(last, present.watch))
            if last.event.data.kind == "completed":
                return Admission("already_completed", last.event.data.watch, last)
            # The old watch was abandoned and its message is about to go: it makes room now.
            await self._streams.delete(self._names.watches_stream, present.sequence)
        raise NatsUnavailable(f"The place of {watch.task!r} among the watches doesn't become free.")

    async def _admitted(self, watch: Watch, sequence: int, last: JournalEntry | None) -> Admission:
        if last is None or last.event.data.watch.id == watch.id:
            # It may even have ended already, by whoever took it up or unwatched it meanwhile.
            return Admission("accepted", watch.ref, last and event_of_watch(last, watch))
        try:
            answered = await is_request_answered(self._sources.get(watch.vcenter), watch, last.event, last.stored_at)
        except VCenterUnavailable:
            await self._streams.delete(self._names.watches_stream, sequence)
            raise
        if not answered:
            return Admission("accepted", watch.ref, None)
        await self._streams.delete(self._names.watches_stream, sequence)
        return Admission("already_completed", last.event.data.watch, last)

    async def _put(self, watch: Watch) -> int | None:
        """The sequence under which the watch lies in the stream now, None when another one lies there."""
        subject = self._names.watch_subject(watch.vcenter, watch.task)
        headers = {"Nats-Msg-Id": watch.id}
        try:
            body = msgspec.json.encode(watch)
            return (await self._streams.publish(self._names.watches_stream, subject, body, headers)).seq
        except StoreRefused as refused:
            if refused.is_taken:
                return None
            raise

    async def read_watch(self, vcenter: str, task: str) -> StoredWatch | None:
        """The task's watch, None when nobody watches it."""
        subject = self._names.watch_subject(vcenter, task)
        stored = await self._streams.last(self._names.watches_stream, subject, leader=True)
        return stored and decode_watch(stored)

    async def read_watch_and_last_event(
        self, vcenter: str, task: str
    ) -> tuple[StoredWatch | None, JournalEntry | None]:
        """The task's watch and its last event, as both were at one moment.

        Two answers of JetStream may be seconds apart over a connection that hangs. A watch that was there before
        and after the last event was read is the one in force, or its end is that event; a request that is told to
        be watched by one that had been served and is gone would be lost.
        """
        while True:
            present = await self.read_watch(vcenter, task)
            last = await self._journal.last(vcenter, task, leader=True)
            if present is None or event_of_watch(last, present.watch):
                return present, last
            again = await self.read_watch(vcenter, task)
            if again is not None and again.sequence == present.sequence:
                return present, last

    async def read_page(self, vcenter: str | None, after: int, limit: int) -> tuple[list[StoredWatch], int]:
        """Up to `limit` watches behind sequence `after`, oldest first, and how many more follow."""
        subjects = f"{self._names.watches}.{vcenter or '*'}.*"
        found, pending = await self._streams.page(self._names.watches_stream, subjects, after, limit)
        return [watch for watch in map(decode_watch, found) if watch], pending

    async def count(self, vcenter: str | None) -> int:
        """How many watches there are, over all replicas."""
        found, pending = await self._streams.page(
            self._names.watches_stream, f"{self._names.watches}.{vcenter or '*'}.*", 0, 1
        )
        return len(found) + pending

    async def unwatch(self, vcenter: str, task: str) -> tuple[Watch, JournalEntry]:
        """Ends the task's watch with its final event, whoever owns it, and even if that one is dead.

        Raises Refused: 409 `already_ended` when it ended first, 404 `not_watched`; and NatsUnavailable.
        """
        # Of those who want it over at the same time one ends it, and the others are told so. Across replicas it
        # is the writer's instance that tells, inside of one it is their order.
        async with self._unwatching.setdefault((vcenter, task), asyncio.Lock()):
            return await self._unwatch(vcenter, task)

    async def _unwatch(self, vcenter: str, task: str) -> tuple[Watch, JournalEntry]:
        while True:
            present, last = await self.read_watch_and_last_event(vcenter, task)
            if present is None or (last and present.is_answered_by(last)):
                raise _not_watched(vcenter, task, last)
            stored = await self._abandoned(present.watch, last)
            if stored is not None:
                await self._streams.delete(self._names.watches_stream, present.sequence)
                return present.watch, stored

    async def abandon(self, watch: Watch, *, timed_out: bool = False) -> None:
        """Ends a watch whose message can't be read, or whose time is up, unless it has ended."""
        while True:
            last = await self._journal.last(watch.vcenter, watch.task, leader=True)
            if last and answers_request(last.event, last.stored_at, watch):
                return
            if await self._abandoned(watch, last, timed_out=timed_out):
                return

    async def time_out(self, stored: StoredWatch) -> None:
        """Ends a watch whose time is up, unless it has ended. Raises NatsUnavailable."""
        await self.abandon(stored.watch, timed_out=True)
        await self._streams.delete(self._names.watches_stream, stored.sequence)

    async def _abandoned(
        self, watch: Watch, last: JournalEntry | None, *, timed_out: bool = False
    ) -> JournalEntry | None:
        """The final event, None when something else was stored behind `last`."""
        own = event_of_watch(last, watch)
        view = view_from_event(own.event if own else None)
        if timed_out:
            view.last_poll_until = watch.deadline
        else:
            view.unwatched = True
        draft = next_event(watch, own.event if own else None, view, self._clock(), self._policy_of(watch.vcenter))
        if draft is None:
            return None
        stored = await self._journal.append(draft, last.sequence if last else 0)
        own_event_stored = (stored.event.id, stored.event.kind) == (draft.event.id, draft.event.kind)
        return stored if own_event_stored and stored.instance == self._journal.instance else None


class AlreadyEnded(Refused):
    """409: what was to be ended had ended; `last` is the final event."""

    def __init__(self, message: str, last: JournalEntry) -> None:
        super().__init__(409, "already_ended", message)
        self.last = last


def _not_watched(vcenter: str, task: str, last: JournalEntry | None) -> Refused:
    if last is not None and last.event.data.final:
        told = f"The watch of {task!r} on {vcenter!r} had ended already: {last.event.kind}."
        return AlreadyEnded(told, last)
    return Refused(404, "not_watched", f"Nobody watches {task!r} on {vcenter!r}.")


def event_of_watch(last: JournalEntry | None, watch: Watch) -> JournalEntry | None:
    """The last event, if it is one of `watch`."""
    return last if last and last.event.data.watch.id == watch.id else None
