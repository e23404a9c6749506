"""Rules for when a task that vCenter doesn't show is lost or denied. Pure: callers pass the time, in seconds.

A task is *missing* if a poll doesn't show it, and *absent* from the first such poll until one that shows it. Its watch
may end once vCenter has answered twice, some time apart, that the task isn't there, and something else proves that its
tasks service answers.

If several tasks that were seen before are absent at once, they have *vanished together*. Then the service has more
likely forgotten them than they are gone, so no watch ends until vCenter has answered for a good while. Only time in
which it answers counts. Vanished tasks of other replicas count too.
"""

from __future__ import annotations

import math

import msgspec

from .policy import Timeouts

_ANSWER_GAP_MAX_S = 60.0
"""Two answers further apart than this prove nothing about the time between them."""


class _AbsentTask(msgspec.Struct):
    """`since` and `since_answering_s`: the first poll that didn't show it, by the clock and by the time in which
    vCenter answered. `denied` and `answered_at`: vCenter's answer about it alone, and the first time of that answer.
    `released`: it was held back long enough after tasks vanished together.
    """

    seen: bool
    since: float
    since_answering_s: float
    denied: bool | None = None
    answered_at: float | None = None
    released: bool = False


class Absences:
    """The absent tasks of one vCenter."""

    def __init__(self, grace_s: float, timeouts: Timeouts) -> None:
        self._grace_s = grace_s
        self._timeouts = timeouts
        self._absent: dict[str, _AbsentTask] = {}
        self._vanished = 0
        self._vanished_elsewhere = 0
        self._answering_s = 0.0
        self._answered_at: float | None = None
        self._held_since_answering_s: float | None = None
        self._last_shown: tuple[str, float] | None = None
        self._shown_before: tuple[str, float] | None = None

    # Poll results

    def record_answer(self, now: float) -> None:
        """Record that the tasks service answered."""
        if self._answered_at is not None and now - self._answered_at <= _ANSWER_GAP_MAX_S:
            self._answering_s += now - self._answered_at
        self._answered_at = now
        if self._held_since_answering_s is not None and self._held_s >= self._timeouts.vanished_hold_s:
            self._release()

    def record_outage(self) -> None:
        """Record that vCenter didn't answer: the time until it does counts for nothing."""
        self._answered_at = None

    def record_shown(self, task: str, now: float) -> None:
        """Record that vCenter showed this task. Of several tasks in one answer, two are enough."""
        if self._last_shown is None or self._last_shown[0] != task:
            self._shown_before = self._last_shown
        self._last_shown = (task, now)

    def record_absent(self, task: str, seen: bool, now: float) -> bool:
        """Record that a poll didn't show the task. Return True if it vanished: seen before, and absent only now."""
        if task in self._absent:
            return False
        self._absent[task] = _AbsentTask(seen, now, self._answering_s)
        self._vanished += seen
        self._hold_if_many_vanished()
        return seen

    def set_vanished_elsewhere(self, count: int) -> bool:
        """Set how many vanished tasks other replicas have. Return True if that is more than before."""
        has_grown = count > self._vanished_elsewhere
        self._vanished_elsewhere = count
        self._hold_if_many_vanished()
        return has_grown

    def confirm_absent(self, task: str, denied: bool, now: float) -> bool:
        """Record vCenter's answer about this absent task alone: it doesn't exist, or access is `denied`.

        Return True if that is enough to end its watch, given the proof that the service answers.
        """
        absent = self._absent[task]
        if absent.denied is not denied:
            absent.denied, absent.answered_at = denied, now
        if self._is_held(absent) or absent.answered_at is None:
            return False
        if absent.released:
            return now >= absent.since + self._timeouts.confirm_s
        return now >= absent.answered_at + self._confirm_after_s(absent)

    def forget(self, task: str) -> bool:
        """Forget a task that is shown again, or no longer tracked. Return True if it was absent."""
        absent = self._absent.pop(task, None)
        if absent is None:
            return False
        self._vanished -= absent.seen and not absent.released
        if not self._vanished:
            self._held_since_answering_s = None
        return True

    # Decisions

    def confirm_at(self, task: str, now: float) -> float:
        """Return when to ask vCenter about this absent task alone."""
        absent = self._absent[task]
        if self._is_held(absent):
            return now + self._timeouts.vanished_hold_s - self._held_s
        if absent.released:
            return max(now, absent.since + self._timeouts.confirm_s)
        return now if absent.answered_at is None else absent.answered_at + self._confirm_after_s(absent)

    def is_another_shown(self, task: str, now: float, since: float = -math.inf) -> bool:
        """True if vCenter showed another task recently, and after `since`: the proof that its service answers."""
        after = max(since, now - self._timeouts.proof_s)
        shown = (self._last_shown, self._shown_before)
        return any(other is not None and other[0] != task and other[1] >= after for other in shown)

    def is_only_unlisted(self, task: str) -> bool:
        """True if lists don't show the task and vCenter wasn't asked about it alone yet."""
        absent = self._absent.get(task)
        return absent is not None and absent.answered_at is None

    def absent_since(self, task: str) -> float:
        return self._absent[task].since

    def __contains__(self, task: str) -> bool:
        return task in self._absent

    def __len__(self) -> int:
        return len(self._absent)

    @property
    def vanished_count(self) -> int:
        """The number of absent tasks that were seen before, without those that were held back long enough."""
        return self._vanished

    @property
    def vanished_reason(self) -> str | None:
        """A sentence for operators while tasks that vanished together are held back; otherwise None."""
        if self._held_since_answering_s is None:
            return None
        left_min = max(0.0, self._timeouts.vanished_hold_s - self._held_s) / 60
        count = self._vanished + self._vanished_elsewhere
        return (
            f"vCenter no longer shows {count} tasks that were seen before; they vanished together. None is given up "
            f"before vCenter has answered for {left_min:.0f} more minutes. Check its services."
        )

    # Tasks that vanished together

    def _hold_if_many_vanished(self) -> None:
        if self._vanished and self._held_since_answering_s is None and self._are_many(self._vanished):
            self._held_since_answering_s = self._answering_s

    def _are_many(self, vanished_here: int) -> bool:
        return vanished_here + self._vanished_elsewhere >= self._timeouts.vanished_min

    @property
    def _held_s(self) -> float:
        """For how long vCenter has answered since tasks vanished together, in seconds."""
        return 0.0 if self._held_since_answering_s is None else self._answering_s - self._held_since_answering_s

    def _is_held(self, absent: _AbsentTask) -> bool:
        return self._held_since_answering_s is not None and not absent.released

    def _confirm_after_s(self, absent: _AbsentTask) -> float:
        return self._timeouts.confirm_s if absent.seen or absent.denied else self._grace_s

    def _release(self) -> None:
        """Release tasks that were absent for the whole hold. If several others remain, hold those longer."""
        held = [absent for absent in self._absent.values() if not absent.released]
        for absent in held:
            if self._answering_s - absent.since_answering_s >= self._timeouts.vanished_hold_s:
                absent.released = True
        remaining = [absent.since_answering_s for absent in held if absent.seen and not absent.released]
        self._vanished = len(remaining)
        self._held_since_answering_s = min(remaining) if remaining and self._are_many(len(remaining)) else None
