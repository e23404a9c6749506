"""Events of follows, and their encoding as CloudEvents. Pure.

The last event of a follow is the bridge's memory of it: how far it has come, and what it has started.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ..durations import parse_time, rfc3339
from ..events import TYPE_PREFIX
from .order import Follow, FollowEntity
from .place import FollowPlace, Gap, KnownTask


class FollowView(msgspec.Struct, frozen=True):
    """A follow in force, as events and replies show it: the request with its defaults. Durations are seconds."""

    id: str
    apis: tuple[str, ...]
    services: tuple[str, ...]
    operations: tuple[str, ...]
    users: tuple[str, ...]
    entity: FollowEntity | None
    top_level_only: bool
    since: str
    events: str
    timeout: float | None
    stalled_after: float
    labels: dict[str, str]


class PlaceView(msgspec.Struct, frozen=True):
    """A place in vCenter's history: from when until when it is complete, and the matching task that was queued last."""

    begins_at: str
    complete_until: str
    task: str | None = None
    queued_at: str | None = None


class FollowEventData(msgspec.Struct, frozen=True):
    """`data` of an event of a follow. All keys are always present.

    `reason`: of `following` why it was published (`started`, `resumed`, `replaced`, `progressed`), of `gap` a sentence.
    `begin` and `end` (`from` and `to`): the span of a gap.
    """

    vcenter: str
    name: str
    follow: FollowView
    kind: str
    final: bool
    sequence: int
    reason: str | None = None
    begin: str | None = msgspec.field(name="from", default=None)
    end: str | None = msgspec.field(name="to", default=None)
    place: PlaceView | None = None
    started_watches: int = 0
    gaps: int = 0


class FollowCloudEvent(msgspec.Struct, frozen=True):
    """A CloudEvent 1.0 in structured mode, of a follow."""

    id: str
    source: str
    type: str
    subject: str
    time: str
    data: FollowEventData


class FollowMemory(NamedTuple):
    """What a follow has done so far, as its last event says."""

    sequence: int = 0
    place: FollowPlace | None = None
    started_watches: int = 0
    gaps: int = 0


class FollowDraft(NamedTuple):
    """An event of a follow that isn't stored yet. `time`: Unix seconds by nats-server's clock."""

    source: str
    time: float
    data: FollowEventData

    @property
    def id(self) -> str:
        return f"{self.data.follow.id}/{self.data.sequence}"


def build_view(follow: Follow) -> FollowView:
    return FollowView(
        id=follow.id,
        apis=follow.apis,
        services=follow.services,
        operations=follow.operations,
        users=follow.users,
        entity=follow.entity,
        top_level_only=follow.top_level_only,
        since=follow.since,
        events=follow.events,
        timeout=follow.timeout_s,
        stalled_after=follow.stalled_after_s,
        labels=follow.labels,
    )


def build_draft(
    follow: Follow, memory: FollowMemory, kind: str, source: str, now: float, *, reason: str | None = None
) -> FollowDraft:
    """Return the next event of a follow: `following` or `unfollowed`. `memory`: what it has done until now."""
    data = FollowEventData(
        vcenter=follow.vcenter,
        name=follow.name,
        follow=build_view(follow),
        kind=kind,
        final=kind == "unfollowed",
        sequence=memory.sequence + 1,
        reason=reason,
        place=None if memory.place is None else _view_place(memory.place),
        started_watches=memory.started_watches,
        gaps=memory.gaps,
    )
    return FollowDraft(source, now, data)


def build_gap(follow: Follow, memory: FollowMemory, gap: Gap, source: str, now: float) -> FollowDraft:
    """Return the event of a gap. `memory` holds the place behind it, and the gaps before it."""
    draft = build_draft(follow, memory._replace(gaps=memory.gaps + 1), "gap", source, now, reason=gap.reason)
    span = {"begin": rfc3339(gap.begin), "end": rfc3339(gap.end)}
    return draft._replace(data=msgspec.structs.replace(draft.data, **span))


def read_memory(data: FollowEventData) -> FollowMemory:
    """Return what an event remembers."""
    place = data.place
    return FollowMemory(data.sequence, None if place is None else _parse_place(place), data.started_watches, data.gaps)


def _view_place(place: FollowPlace) -> PlaceView:
    begins, until, newest = rfc3339(place.begins_at), rfc3339(place.complete_until), place.newest
    if newest is None:
        return PlaceView(begins, until)
    return PlaceView(begins, until, newest.task, rfc3339(newest.queued_at))


def _parse_place(view: PlaceView) -> FollowPlace | None:
    begins, until = parse_time(view.begins_at), parse_time(view.complete_until)
    if begins is None or until is None:
        return None
    queued_at = parse_time(view.queued_at)
    return FollowPlace(begins, until, KnownTask(view.task, queued_at) if view.task and queued_at is not None else None)


def to_follow_cloudevent(draft: FollowDraft) -> bytes:
    """Encode the event as it is stored: a CloudEvent in structured-mode JSON."""
    data = draft.data
    event = FollowCloudEvent(
        id=draft.id,
        source=draft.source,
        type=f"{TYPE_PREFIX}.follow.{data.kind}.v1",
        subject=data.name,
        time=rfc3339(draft.time),
        data=data,
    )
    return _FIXED + msgspec.json.encode(event)[1:]


def from_follow_cloudevent(body: bytes) -> FollowCloudEvent | None:
    """Decode a stored event of a follow; None if this release can't read it."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


_FIXED = b'{"specversion":"1.0","datacontenttype":"application/json",'
_decoder = msgspec.json.Decoder(FollowCloudEvent)


class FollowReply(msgspec.Struct, frozen=True):
    """Reply of `follow`: `accepted`, `already_following` or `updated`, and the follow in force."""

    outcome: str
    vcenter: str
    name: str
    follow: FollowView


class UnfollowReply(msgspec.Struct, frozen=True):
    """Reply of `unfollow`. The watches that the follow has started go on."""

    outcome: str
    vcenter: str
    name: str
    follow: FollowView


class ListedFollow(msgspec.Struct, frozen=True):
    """An entry of `follows`.

    `state`: `starting`, `following`, `slowed`, `waiting` (vCenter can't be read; `reason` says why), `unconfigured`, or
    `unheld` while no replica reports it. `since`: from when on tasks are followed, `last_task_at`: when the newest of
    them was queued, both by vCenter's clock.
    """

    vcenter: str
    name: str
    follow: FollowView
    state: str
    reason: str | None
    since: str | None
    last_task_at: str | None
    started_watches: int
    gaps: int


class FollowsReply(msgspec.Struct, frozen=True):
    """Reply of `follows`."""

    follows: list[ListedFollow]


class FollowReport(msgspec.Struct, frozen=True):
    """What the replica that runs a follow reports to the others. `read_age_s`: how long ago vCenter answered it."""

    vcenter: str
    name: str
    state: str
    reason: str | None = None
    since: str | None = None
    last_task_at: str | None = None
    started_watches: int = 0
    gaps: int = 0
    read_age_s: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.vcenter, self.name

    @property
    def is_late(self) -> bool:
        """True if tasks are found later than usual, or not at all."""
        return self.state in ("slowed", "waiting", "unconfigured")

    @property
    def note(self) -> str | None:
        """Why tasks are found late, and whether some may be missing; None if all is well."""
        late = {
            "slowed": "finds more tasks than BRIDGE_FOLLOW_MAX_RATE lets it watch at once; they are watched later",
            "waiting": f"waits for vCenter: {self.reason or 'no answer yet'}",
            "unconfigured": "waits: its vCenter isn't in the settings of this replica",
        }.get(self.state)
        return "; ".join(filter(None, (late, describe_gaps(self.gaps)))) or None


def describe_gaps(gaps: int) -> str | None:
    """Say that a follow may have missed tasks; None without gaps, since silence means complete."""
    if not gaps:
        return None
    spans = "1 gap" if gaps == 1 else f"{gaps} gaps"
    return f"{spans}, in which tasks may be missing: see `task-bridge follows --events`"


def list_follow(follow: Follow, report: FollowReport | None) -> ListedFollow:
    """Return the entry of a follow; `report` is that of the replica that runs it, None if there is none."""
    return ListedFollow(
        follow.vcenter,
        follow.name,
        build_view(follow),
        report.state if report else "unheld",
        report.reason if report else "No replica reports that it runs this follow.",
        report.since if report else None,
        report.last_task_at if report else None,
        report.started_watches if report else 0,
        report.gaps if report else 0,
    )
