"""The stream of follows: one message each, held by the replica that runs the follow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import structlog

from ..domain.errors import NatsUnavailable, Refused
from ..domain.follows.event import FollowMemory, build_draft, read_memory
from ..domain.follows.order import Follow
from ..domain.subjects import SubjectNames
from .follow_journal import FollowJournal
from .follow_setup import FollowSetup
from .ownership import HeldStream
from .provision import add_late_subject, follow_events
from .streams import StoredMessage, StoreRefused, Streams

log = structlog.get_logger(__name__)

_TRIES = 100
_PAGE = 1_000
_decoder = msgspec.json.Decoder(Follow)


class StoredFollow(NamedTuple):
    """A follow and the sequence of its message in the stream."""

    follow: Follow
    sequence: int


class FollowAdmission(NamedTuple):
    """The answer to a request to follow: `accepted`, `already_following` or `updated`, and the follow in force."""

    outcome: str
    follow: Follow


def hold_follows(names: SubjectNames) -> HeldStream[Follow]:
    """Return the stream of follows as their owners hold its messages."""
    return HeldStream(names.follows_stream, _decoder.decode, names.held_follow_subject)


class FollowStore:
    """The follows of all replicas. Every method raises NatsUnavailable: FollowsOff if NATS isn't prepared for them.

    `create`: the bridge may change the events stream, so that it stores the events of follows.
    """

    def __init__(
        self,
        setup: FollowSetup,
        streams: Streams,
        names: SubjectNames,
        journal: FollowJournal,
        source_of: Callable[[str], str],
        clock: Callable[[], float],
        *,
        create: bool,
    ) -> None:
        self._create = create
        self._setup = setup
        self._streams = streams
        self._names = names
        self._journal = journal
        self._source_of = source_of
        self._clock = clock

    async def admit(self, follow: Follow) -> FollowAdmission:
        """Start the follow, or replace the one of its name; a replaced one keeps its id, and so its place in time."""
        self._setup.require_on()
        events, subject = self._names.events_stream, follow_events(self._names)
        await add_late_subject(self._streams, events, subject, create=self._create)
        for _ in range(_TRIES):
            present = await self.read(follow.vcenter, follow.name)
            if present is None:
                outcome, admitted, after = "accepted", follow, 0
            elif present.follow.asks_the_same_as(follow):
                return FollowAdmission("already_following", present.follow)
            else:
                outcome, after = "updated", present.sequence
                kept = {"id": present.follow.id, "requested_at": present.follow.requested_at}
                admitted = msgspec.structs.replace(follow, **kept)
            if await self._publish(admitted, after):
                return FollowAdmission(outcome, admitted)
        raise NatsUnavailable(f"can't store the follow {follow.name!r}: others replace it at the same time")

    async def _publish(self, follow: Follow, after: int) -> bool:
        """Store the follow's message. Return False if another one was stored meanwhile."""
        subject = self._names.held_follow_subject(follow.vcenter, follow.name)
        headers = {"Nats-Expected-Last-Subject-Sequence": str(after)}
        try:
            await self._streams.publish(self._names.follows_stream, subject, msgspec.json.encode(follow), headers)
        except StoreRefused as refused:
            if refused.is_fenced:
                await asyncio.sleep(0.005)  # a replicated stream frees a subject some milliseconds after an ack
                return False
            raise
        return True

    async def read(self, vcenter: str, name: str) -> StoredFollow | None:
        """Return the follow of this name, None if there is none that this release can read."""
        self._setup.require_on()
        subject = self._names.held_follow_subject(vcenter, name)
        stored = await self._streams.read_last(self._names.follows_stream, subject, leader=True)
        return stored and decode_follow(stored)

    async def read_all(self, vcenter: str | None) -> list[StoredFollow]:
        """Return all follows of a vCenter, or of all, oldest first."""
        self._setup.require_on()
        follows: list[StoredFollow] = []
        after, following = 0, 1
        while following:
            subjects = f"{self._names.held_follows}.{vcenter or '*'}.*"
            page, following = await self._streams.read_page(self._names.follows_stream, subjects, after, _PAGE)
            follows += [follow for follow in map(decode_follow, page) if follow]
            after = page[-1].sequence if page else after
        return follows

    async def unfollow(self, vcenter: str, name: str) -> Follow:
        """End the follow with its final event, whichever replica runs it. Raises Refused (404 `not_following`)."""
        while True:
            present = await self.read(vcenter, name)
            if present is None:
                raise Refused(404, "not_following", f"There is no follow named {name!r} on {vcenter!r}.")
            follow, last = present.follow, await self._journal.read_last(vcenter, name)
            data = last.data if last is not None and last.data and last.data.follow.id == follow.id else None
            if data is None or not data.final:
                memory = read_memory(data) if data else FollowMemory()
                draft = build_draft(follow, memory, "unfollowed", self._source_of(vcenter), self._clock())
                stored = await self._journal.append(draft, last.sequence if last else 0)
                if stored.event_id != draft.id:
                    continue  # the owner stored another event meanwhile
            await self._streams.delete(self._names.follows_stream, present.sequence)
            return follow


def decode_follow(stored: StoredMessage) -> StoredFollow | None:
    """Return the follow in a message, None if this release can't read it."""
    try:
        return StoredFollow(_decoder.decode(stored.body), stored.sequence)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


async def quarantine_unreadable_follow(message: StoredMessage, reason: str) -> bool:
    """Delete a stored follow that can't be read, written by hand or by another release."""
    log.error("follow_unreadable", subject=message.subject, reason=reason)
    return True
