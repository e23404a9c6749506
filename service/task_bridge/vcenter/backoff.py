"""Pauses before the bridge asks a vCenter again that didn't answer. Pure: callers pass the time."""

from __future__ import annotations

import random

from ..domain.errors import VCenterUnavailable
from .policy import PollPolicy

_AMBIGUOUS_FAILURES_MAX = 3
JITTER = 0.1


class Outage:
    """`is_down` from a failure until an answer. At `retry_at`, one request tests whether vCenter is back."""

    def __init__(self, policy: PollPolicy, rng: random.Random) -> None:
        self.is_down = False
        self.retry_at = 0.0
        self._policy = policy
        self._rng = rng
        self._failures = 0
        self._ambiguous_failures = 0
        self._answered_at = self._failed_at = float("-inf")

    def record_failure(self, error: VCenterUnavailable, asked_at: float, now: float) -> None:
        """Record that vCenter didn't answer. Requests that were in flight together count as one failure."""
        if asked_at >= self._failed_at:
            self._failures += 1
        self.is_down, self._failed_at = True, now
        pause_s = backoff_s(self._failures, self._policy, self._rng.random(), error.retry_after_s)
        self.retry_at = max(self.retry_at, now + pause_s)

    def count_ambiguous_failure(self, now: float) -> bool:
        """Count a failure that may concern only what was requested. Return True if vCenter is the likelier cause."""
        self._ambiguous_failures += 1
        has_been_silent = now - self._answered_at > self._policy.poll_max_s
        return self.is_down or has_been_silent or self._ambiguous_failures >= _AMBIGUOUS_FAILURES_MAX

    def record_answer(self, now: float) -> None:
        """Record that vCenter answered, which ends the outage."""
        self.is_down, self.retry_at, self._answered_at = False, 0.0, now
        self._failures = self._ambiguous_failures = 0


def backoff_s(failures: int, policy: PollPolicy, chance: float, retry_after_s: float | None = None) -> float:
    """Return how long to wait after the `failures`-th failure in a row, in seconds.

    It doubles up to the longest poll interval, less up to a half by `chance` (0 to 1), and is never shorter than
    vCenter asked for.
    """
    longest_s = min(policy.poll_min_s * 2.0 ** min(failures - 1, 20), policy.poll_max_s)
    requested_s = (retry_after_s or 0.0) * (1 + JITTER * chance)
    return max(longest_s * (1 - chance / 2), requested_s)
