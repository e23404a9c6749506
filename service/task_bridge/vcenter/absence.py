"""Rules for when a task that vCenter doesn't show is lost or denied. Pure: callers pass the time, in seconds.

A task is *missing* if a poll doesn't show it, and *absent* from the first such poll until one that shows it. Only an
answer of the tasks service itself counts; a poll that gets another answer, or none, interrupts them. Its watch may end
once vCenter has answered twice about it alone, some time apart and uninterrupted, that it isn't there:

* A task that was seen takes proof that its provider works: another of the provider's tasks was shown in the last
  minute, or vCenter has answered so about the task itself for a minute.
* A task that was never seen takes the grace period.

If several tasks that were seen before are absent at once, they have *vanished together*. Then the service has more
likely forgotten them than they are gone, so no watch ends until vCenter has answered for a good while. Only time in
which it answers counts. Vanished tasks of other replicas count too.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from .policy import Timeouts

_ANSWER_GAP_MAX_S = 60.0
"""Two answers further apart than this prove nothing about the time between them."""
_CONFIRMED_ALONE_MAX = 10
"""With so few absent tasks, those that were never seen are asked about one by one; lists must do for more."""
_PROVIDERS_MAX = 1_000


class _Shown(NamedTuple):
    """A task that vCenter showed, and when."""

    task: str
    at: float


class _AbsentTask(msgspec.Struct):
    """`since_answering_s`: the first poll that didn't show it, by the time in which vCenter answered. `unshown_since`,
    `polled_at`: the first and the last of the uninterrupted polls that didn't. `denied` and `answered_at`: vCenter's
    uninterrupted answer about it alone, and the first time of that answer. `asked_at`: when vCenter was asked about it
    alone. `released`: it was held back long enough after tasks vanished together. `replaced`: another task has its id.
    """

    provider: str
    seen: bool
    since_answering_s: float
    unshown_since: float | None
    polled_at: float
    denied: bool | None = None
    answered_at: float | None = None
    asked_at: float | None = None
    released: bool = False
    replaced: bool = False

    def interrupt(self) -> None:
        self.unshown_since = self.denied = self.answered_at = None


class Absences:
    """The absent tasks of one API of one vCenter."""

    def __init__(self, grace_s: float, timeouts: Timeouts) -> None:
        self._grace_s = grace_s
        self._timeouts = timeouts
        self._absent: dict[str, _AbsentTask] = {}
        self._vanished = 0
        self._vanished_elsewhere = 0
        self._answering_s = 0.0
        self._answered_at: float | None = None
        self._held_since_answering_s: float | None = None
        self._shown: dict[str, list[_Shown]] = {}

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
        for absent in self._absent.values():
            absent.interrupt()

    def record_interruption(self, task: str, now: float) -> None:
        """Record that a poll got no answer of the tasks service about this task, which may be absent."""
        if (absent := self._absent.get(task)) is not None:
            absent.interrupt()
            absent.asked_at = now

    def record_shown(self, task: str, provider: str, now: float) -> None:
        """Record that vCenter showed this task. Of several tasks in one answer, two are enough."""
        if len(self._shown) >= _PROVIDERS_MAX:
            self._shown.clear()
        before = self._shown.get(provider, [])
        self._shown[provider] = [_Shown(task, now), *(one for one in before if one.task != task)][:2]

    def record_absent(self, task: str, provider: str, seen: bool, now: float) -> bool:
        """Record that a poll didn't show the task. Return True if it vanished: seen before, and absent only now."""
        if (absent := self._absent.get(task)) is not None:
            if now - absent.polled_at > _ANSWER_GAP_MAX_S:
                absent.interrupt()
            if absent.unshown_since is None:
                absent.unshown_since = now
            absent.polled_at = now
            return False
        self._absent[task] = _AbsentTask(provider, seen, self._answering_s, now, now)
        if shown := self._shown.get(provider):
            # It was shown before it vanished, which proves nothing to others that vanish with it.
            self._shown[provider] = [one for one in shown if one.task != task]
        self._vanished += seen
        self._hold_if_many_vanished()
        return seen

    def record_replaced(self, task: str, provider: str, now: float) -> None:
        """Record that vCenter shows another task under this id, which proves more than any absence."""
        self.forget(task)
        self._absent[task] = _AbsentTask(provider, False, self._answering_s, now, now, replaced=True)

    def set_vanished_elsewhere(self, count: int) -> bool:
        """Set how many vanished tasks other replicas have. Return True if that is more than before."""
        has_grown = count > self._vanished_elsewhere
        self._vanished_elsewhere = count
        self._hold_if_many_vanished()
        return has_grown

    def confirm_absent(self, task: str, denied: bool, now: float) -> bool:
        """Record vCenter's answer about this absent task alone: it doesn't exist, or access is `denied`.

        Return True if that is enough to end its watch.
        """
        absent = self._absent[task]
        absent.asked_at = now
        if absent.denied is not denied:
            absent.denied, absent.answered_at = denied, now
        return absent.replaced or (not self._is_held(absent) and now >= self._confirmed_at(absent, now))

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
            return max(now, self._confirmed_at(absent, now))
        if absent.answered_at is None or absent.asked_at is None:
            return now
        confirmed_at = self._confirmed_at(absent, now)
        if not absent.seen and len(self._absent) > _CONFIRMED_ALONE_MAX:
            return confirmed_at
        # Asked once in a while, an interruption shows.
        return min(confirmed_at, absent.asked_at + self._timeouts.confirm_s)

    def is_only_unlisted(self, task: str) -> bool:
        """True if lists don't show the task and vCenter wasn't asked about it alone yet."""
        absent = self._absent.get(task)
        return absent is not None and absent.asked_at is None

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
        return self._answering_s - (self._held_since_answering_s or 0.0)

    def _is_held(self, absent: _AbsentTask) -> bool:
        return self._held_since_answering_s is not None and not absent.released

    def _confirmed_at(self, absent: _AbsentTask, now: float) -> float:
        """Return from when on an answer about the task alone ends its watch, unless it is interrupted before."""
        # While tasks were held back, lists went on not to show them.
        begun = absent.unshown_since if absent.released else absent.answered_at
        if begun is None:
            begun = now
        timeouts = self._timeouts
        if not (absent.seen or absent.denied):
            return begun + self._grace_s
        if self._is_provider_proven(absent.provider, now):
            return begun + timeouts.confirm_s
        if absent.seen:
            return begun + timeouts.uninterrupted_s
        return begun + min(max(self._grace_s, timeouts.confirm_s), timeouts.uninterrupted_s)

    def _is_provider_proven(self, provider: str, now: float) -> bool:
        """True if vCenter showed a task of this provider lately that hasn't vanished since."""
        return any(one.at >= now - self._timeouts.proof_s for one in self._shown.get(provider, ()))

    def _release(self) -> None:
        """Release tasks that were absent for the whole hold. If several others remain, hold those longer."""
        held = [absent for absent in self._absent.values() if not absent.released]
        for absent in held:
            if self._answering_s - absent.since_answering_s >= self._timeouts.vanished_hold_s:
                absent.released = True
        remaining = [absent.since_answering_s for absent in held if absent.seen and not absent.released]
        self._vanished = len(remaining)
        self._held_since_answering_s = min(remaining) if remaining and self._are_many(len(remaining)) else None
