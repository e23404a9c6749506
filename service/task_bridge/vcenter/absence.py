"""When a task that vCenter doesn't show counts as lost or denied. Pure: the time is handed in, in seconds.

A task is absent from the first look that didn't show it until one does. It is over when vCenter has said so
twice with some time between, and something else proves that its tasks service answers. When several that were
seen before are absent together, the service is more likely to have forgotten than the tasks to be gone: nothing
ends then until vCenter has answered for a good while. That while is counted in time in which it answers. Those
that other replicas miss count too.
"""

from __future__ import annotations

import math

import msgspec

from .policy import Timeouts

_LONGEST_GAP_S = 60.0
"""Two answers further apart than this tell nothing about the time between them."""


class _AbsentTask(msgspec.Struct):
    """`since` and `counted_from`: its first look, by our clock and by the count of answering time. `denied` and
    `told_at`: what vCenter answered about it alone, and since when. `excused`: it was held back long enough."""

    seen: bool
    since: float
    counted_from: float
    denied: bool | None = None
    told_at: float | None = None
    excused: bool = False


class Absences:
    """The absent tasks of one vCenter."""

    def __init__(self, grace_s: float, patience: Timeouts) -> None:
        self._grace_s = grace_s
        self._patience = patience
        self._absent: dict[str, _AbsentTask] = {}
        self._together = 0
        self._elsewhere = 0
        self._answering_s = 0.0
        self._answered_at: float | None = None
        self._held_from: float | None = None
        self._shown: tuple[str, float] | None = None
        self._shown_before: tuple[str, float] | None = None

    # What the looks tell

    def record_answer(self, now: float) -> None:
        """The tasks service answered."""
        if self._answered_at is not None and now - self._answered_at <= _LONGEST_GAP_S:
            self._answering_s += now - self._answered_at
        self._answered_at = now
        if self._held_from is not None and self._held_s >= self._patience.vanished_hold_s:
            self._excuse()

    def record_outage(self) -> None:
        """vCenter didn't answer: the time until it does counts for nothing."""
        self._answered_at = None

    def record_shown(self, task: str, now: float) -> None:
        """vCenter showed this task. Of those shown together it suffices to tell of two."""
        if self._shown is None or self._shown[0] != task:
            self._shown_before = self._shown
        self._shown = (task, now)

    def record_absent(self, task: str, seen: bool, now: float) -> bool:
        """A look didn't show the task. True when it is the first one not to, of a task that was seen before."""
        if task in self._absent:
            return False
        self._absent[task] = _AbsentTask(seen, now, self._answering_s)
        self._together += seen
        self._hold_if_many()
        return seen

    def set_vanished_elsewhere(self, count: int) -> bool:
        """Other replicas miss so many that were seen before. True when these are more than they told before."""
        more = count > self._elsewhere
        self._elsewhere = count
        self._hold_if_many()
        return more

    def _hold_if_many(self) -> None:
        if self._together and self._held_from is None and self._many(self._together):
            self._held_from = self._answering_s

    def _many(self, here: int) -> bool:
        return here + self._elsewhere >= self._patience.vanished_min

    def confirm_absent(self, task: str, denied: bool, now: float) -> bool:
        """vCenter answered about this task alone that it isn't there, or is `denied`.

        True when that is enough for its end, given the proof that the service answers.
        """
        absent = self._absent[task]
        if absent.denied is not denied:
            absent.denied, absent.told_at = denied, now
        return self._is_over(absent, now)

    def forget(self, task: str) -> bool:
        """The task is shown again, or followed no longer. True when it was absent."""
        absent = self._absent.pop(task, None)
        if absent is None:
            return False
        self._together -= absent.seen and not absent.excused
        if not self._together:
            self._held_from = None
        return True

    # What follows

    def confirm_at(self, task: str, now: float) -> float:
        """When vCenter should be asked about this task alone."""
        absent = self._absent[task]
        if self._is_held(absent):
            return now + self._patience.vanished_hold_s - self._held_s
        if absent.excused:
            return max(now, absent.since + self._patience.confirm_s)
        return now if absent.told_at is None else absent.told_at + self._confirm_s(absent)

    def is_another_shown(self, task: str, now: float, since: float = -math.inf) -> bool:
        """Whether vCenter showed another task within the last while: the proof that its service answers."""
        after = max(since, now - self._patience.proof_s)
        shown = (self._shown, self._shown_before)
        return any(other is not None and other[0] != task and other[1] >= after for other in shown)

    def is_only_unlisted(self, task: str) -> bool:
        """Whether lists don't show the task, and vCenter wasn't heard about it alone."""
        absent = self._absent.get(task)
        return absent is not None and absent.told_at is None

    def absent_since(self, task: str) -> float:
        return self._absent[task].since

    def __contains__(self, task: str) -> bool:
        return task in self._absent

    def __len__(self) -> int:
        return len(self._absent)

    @property
    def vanished_count(self) -> int:
        """How many tasks that were seen before are absent, and not yet for long enough to end all the same."""
        return self._together

    @property
    def vanished_reason(self) -> str | None:
        """The sentence for operators while nothing is given up, else None."""
        if self._held_from is None:
            return None
        left_min = max(0.0, self._patience.vanished_hold_s - self._held_s) / 60
        many = self._together + self._elsewhere
        return (
            f"{many} tasks that were seen before are no longer shown by vCenter, all together: none is given up "
            f"before vCenter has answered for {left_min:.0f} more minutes. Check its services."
        )

    @property
    def _held_s(self) -> float:
        return self._answering_s - (self._answering_s if self._held_from is None else self._held_from)

    def _is_held(self, absent: _AbsentTask) -> bool:
        return self._held_from is not None and not absent.excused

    def _is_over(self, absent: _AbsentTask, now: float) -> bool:
        if self._is_held(absent) or absent.told_at is None:
            return False
        if absent.excused:
            return now >= absent.since + self._patience.confirm_s
        return now >= absent.told_at + self._confirm_s(absent)

    def _confirm_s(self, absent: _AbsentTask) -> float:
        if absent.seen or absent.denied:
            return self._patience.confirm_s
        return self._grace_s

    def _excuse(self) -> None:
        """Lets those go on that were absent for the whole while; the others, if still several, are held on."""
        held = [absent for absent in self._absent.values() if not absent.excused]
        for absent in held:
            if self._answering_s - absent.counted_from >= self._patience.vanished_hold_s:
                absent.excused = True
        rest = [absent.counted_from for absent in held if absent.seen and not absent.excused]
        self._together = len(rest)
        self._held_from = min(rest) if rest and self._many(len(rest)) else None
