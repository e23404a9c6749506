"""How far a follow has come in vCenter's history, and whether that is shown to be complete. Pure.

All times are vCenter's own, in Unix seconds: its clock is the only one that its history knows.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..durations import rfc3339
from .order import FoundTask

OVERLAP_S = 60.0
"""How far back the history is read again after an interruption, for tasks that vCenter recorded late."""
SETTLED_S = 5.0
"""How old a moment must be before an empty answer shows that no more tasks of it will come."""
CLOCK_SLACK_S = 5.0
"""A vCenter whose clock went back by less was corrected, not restored."""
SHORTEST_RETENTION_S = 86_400.0
"""vCenter keeps its history for a day at least, and 30 by default."""


class KnownTask(msgspec.Struct, frozen=True):
    """A task that the history had, by id and queue time."""

    task: str
    queued_at: float


class FollowPlace(msgspec.Struct, frozen=True):
    """Every matching task that was queued until `complete_until` has a watch, or a gap says that it may not.

    `begins_at`: queue time from which on the follow is about tasks. `newest`: the matching task that was queued last,
    which the history must still have after an interruption.
    """

    begins_at: float
    complete_until: float
    newest: KnownTask | None = None

    @property
    def read_from(self) -> float:
        """Queue time from which the history is read again."""
        return max(self.begins_at, self.complete_until - OVERLAP_S)

    def needs_oldest(self, vcenter_now: float) -> bool:
        """Return whether `find_gap` has to know where vCenter's history begins."""
        if self.newest is None:
            return vcenter_now - self.complete_until > SHORTEST_RETENTION_S
        return self.newest.queued_at < self.read_from

    def knows(self, found: Iterable[FoundTask]) -> bool:
        """Return whether the newest known task is among these."""
        newest = self.newest
        return newest is not None and any(
            task.id == newest.task and task.identity.queued_at == newest.queued_at for task in found
        )

    def advance(self, found: Iterable[FoundTask], empty_at: float | None) -> FollowPlace:
        """Return the place after these tasks got their watches.

        `empty_at`: when vCenter answered that it has no more tasks; None if there may be more.
        """
        newest, until = self.newest, self.complete_until
        for task in found:
            queued_at = task.identity.queued_at
            if queued_at is not None and (newest is None or queued_at >= newest.queued_at):
                newest = KnownTask(task.id, queued_at)
        if newest is not None:
            until = max(until, newest.queued_at)
        if empty_at is not None:
            until = max(until, empty_at - SETTLED_S)
        return FollowPlace(self.begins_at, until, newest)


class Gap(msgspec.Struct, frozen=True):
    """A span of queue times for which it can't be shown that every task got a watch."""

    begin: float
    end: float
    reason: str


def find_gap(
    place: FollowPlace,
    vcenter_now: float,
    oldest: float | None,
    *,
    has_newest: bool,
    clock_unknown_s: float = 0.0,
) -> Gap | None:
    """Return what may be missing after the history was read again from `place.read_from` on, None if nothing is.

    `oldest`: queue time of the oldest task of the whole history, whether it matches or not; None if it is empty, or
    not needed.
    `has_newest`: the task that was known as the newest was read again. `clock_unknown_s`: how long ago vCenter's clock
    may have been set; what was queued since then may have queue times that were over already.
    """
    until, newest = place.complete_until, place.newest
    if vcenter_now < until - CLOCK_SLACK_S:
        begin = vcenter_now - clock_unknown_s
        return Gap(begin, until, f"vCenter's clock went back to {rfc3339(vcenter_now)}")
    if newest is not None and newest.queued_at >= place.read_from:
        if has_newest:
            return None
        return Gap(newest.queued_at, vcenter_now, f"vCenter's history no longer has {newest.task}, which it had before")
    if not place.needs_oldest(vcenter_now) or (oldest is not None and oldest <= until):
        return None  # where no task was known, vCenter may just have been quiet
    # The history begins after the place.
    if newest is None and oldest is None:
        return None
    begins = "is empty" if oldest is None else f"begins at {rfc3339(oldest)}"
    return Gap(until, vcenter_now if oldest is None else oldest, f"vCenter's history {begins}")


def restart_after_gap(place: FollowPlace, gap: Gap | None, vcenter_now: float) -> FollowPlace:
    """Return the place to go on from: behind the gap, and never ahead of vCenter's clock."""
    if gap is None:
        return place
    until = min(max(place.complete_until, gap.end), vcenter_now)
    return FollowPlace(min(place.begins_at, until), until)


class Pace:
    """Limits a rate: a second's worth may come at once."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._at = float("-inf")

    def take(self, count: int, now: float) -> float:
        """Take so many, and return how long to wait before the next (s). `now`: monotonic seconds."""
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second) - count
        self._at = now
        return max(0.0, -self._left / self._per_second)
