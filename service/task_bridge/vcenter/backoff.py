"""Whether vCenter as a whole answers, and when it is asked again after it didn't. Pure: times are handed in."""

from __future__ import annotations

import random

from ..domain.errors import VCenterUnavailable
from .policy import PollPolicy

_DOUBTS_MAX = 3
JITTER = 0.1


class Outage:
    """`down` from a failure until an answer; `until` is when to ask again, by one request at first."""

    def __init__(self, policy: PollPolicy, rng: random.Random) -> None:
        self.is_down = False
        self.retry_at = 0.0
        self._policy = policy
        self._rng = rng
        self._failures = 0
        self._doubts = 0
        self._answered_at = self._failed_at = float("-inf")

    def record_failure(self, error: VCenterUnavailable, asked_at: float, now: float) -> None:
        """vCenter didn't answer. Requests that were under way together fail together, and count once."""
        if asked_at >= self._failed_at:
            self._failures += 1
        self.is_down, self._failed_at = True, now
        pause_s = backoff_s(self._failures, self._policy, self._rng.random(), error.retry_after_s)
        self.retry_at = max(self.retry_at, now + pause_s)

    def count_ambiguous_failure(self, now: float) -> bool:
        """A request failed in a way that may be about what was asked for. True when it's more likely vCenter."""
        self._doubts += 1
        quiet = now - self._answered_at > self._policy.poll_max_s
        return self.is_down or quiet or self._doubts >= _DOUBTS_MAX

    def record_answer(self, now: float) -> None:
        """vCenter answered."""
        self.is_down, self.retry_at, self._answered_at = False, 0.0, now
        self._failures = self._doubts = 0


def backoff_s(failures: int, policy: PollPolicy, chance: float, retry_after_s: float | None = None) -> float:
    """How long to wait after the `failures`-th failure in a row: doubling up to the longest interval, spread by
    half, and never shorter than vCenter asked for."""
    longest = min(policy.poll_min_s * 2.0 ** min(failures - 1, 20), policy.poll_max_s)
    asked = (retry_after_s or 0.0) * (1 + JITTER * chance)
    return max(longest * (1 - chance / 2), asked)
