"""How far a follow has come with the tasks of one CIS service, which vCenter only lists. Pure.

A list shows the live tasks, and those that ended, for as long as their provider keeps them: about a day, usually. All
times are vCenter's own, in Unix seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from ..durations import rfc3339
from .order import FoundTask
from .place import CLOCK_SLACK_S, OVERLAP_S, FollowPlace, Gap, KnownTask

LISTED_S = 43_200.0
"""How long a task is sure to be listed after its end: half of what providers are known to do."""
INCOMPLETE_REPORTED_S = 300.0
"""How often a gap is published while lists stay incomplete."""
_AWAY_S = 90.0
"""Time without a whole list after which the newest known task must be in the next one."""


class ListedTask(NamedTuple):
    """A task of a list, and when it started and ended, if the list says so."""

    found: FoundTask
    started_at: float | None = None
    ended_at: float | None = None


class ServiceList(NamedTuple):
    """A list of all tasks of a service, live and ended.

    `listed_at`: when vCenter was asked, by its own clock. `problem`: why it may lack tasks, None if it is complete.
    """

    tasks: Sequence[ListedTask]
    listed_at: float
    problem: str | None = None


def select_first(listing: ServiceList, place: FollowPlace) -> list[ListedTask]:
    """Return the tasks of the first list that a follow gets which it is about, and which may not be settled yet.

    It is about tasks that hadn't ended when it began. One that doesn't say when it ended may be such a task.
    """
    if listing.listed_at < place.complete_until - CLOCK_SLACK_S:
        return list(listing.tasks)  # vCenter's clock went back, so its times say nothing
    since = max(place.begins_at, place.complete_until - OVERLAP_S)
    return [task for task in listing.tasks if not task.found.ended or _find_end(task, since) >= since]


def _find_end(task: ListedTask, unknown: float) -> float:
    ended_at = task.started_at if task.ended_at is None else task.ended_at
    return unknown if ended_at is None else ended_at


def find_list_gap(
    place: FollowPlace, listing: ServiceList, live_before: Collection[str], *, is_first: bool
) -> Gap | None:
    """Return what may be missing after a list of all tasks, None if nothing is.

    `live_before`: the tasks that earlier lists showed as live. `is_first`: no list was read since the follow was
    taken over.
    """
    now, until, newest = listing.listed_at, place.complete_until, place.newest
    shown = {task.found.id for task in listing.tasks}
    if now < until - CLOCK_SLACK_S:
        return Gap(now, until, f"vCenter's clock went back to {rfc3339(now)}")
    if listing.problem is not None:
        return Gap(until, now, listing.problem)
    if now - until > LISTED_S:
        kept = f"what ended more than {LISTED_S / 3600:.0f} hours ago may not be listed any more"
        return Gap(until, now - LISTED_S, kept)
    if vanished := sorted(set(live_before) - shown):
        return Gap(until, now, f"vCenter no longer lists {vanished[0]}, which hadn't ended")
    is_reread = is_first or now - until > _AWAY_S
    if is_reread and newest is not None and newest.task not in shown and now - newest.queued_at <= LISTED_S:
        return Gap(until, now, f"vCenter no longer lists {newest.task}, which it listed before")
    return None


def is_gap_due(listing: ServiceList, reported_at: float | None) -> bool:
    """Return whether a gap is published now: while lists stay incomplete, one covers some minutes."""
    return listing.problem is None or reported_at is None or listing.listed_at >= reported_at + INCOMPLETE_REPORTED_S


def advance_by_list(place: FollowPlace, listing: ServiceList) -> FollowPlace:
    """Return the place after the tasks of a list got their watches. It is never ahead of vCenter's clock."""
    until, begins_at = listing.listed_at, min(place.begins_at, listing.listed_at)
    return FollowPlace(begins_at, until, _find_newest(listing.tasks, until))


def adjust_clock(ahead_s: float, date: float | None, asked_at: float, answered_at: float) -> float:
    """Return how far vCenter's clock is ahead of nats-server's, by an answer that was written in the second `date`.

    `ahead_s` is what was known before, which stays if the answer doesn't contradict it.
    """
    if date is None:
        return ahead_s
    return min(max(ahead_s, date - answered_at), date + 1.0 - asked_at)


def _find_newest(tasks: Iterable[ListedTask], listed_at: float) -> KnownTask | None:
    """Return the task that started last, with that time. One that hasn't started counts as started now."""
    known = [(listed_at if task.started_at is None else task.started_at, task.found.id) for task in tasks]
    if not known:
        return None
    started_at, task_id = max(known)
    return KnownTask(task_id, started_at)
