"""Whether vCenter as a whole answers, and when it is asked again after it didn't. Pure: times are handed in."""

from __future__ import annotations

import random

from ..errors import VCenterUnavailable
from .config import LookPolicy
from .schedule import backoff_s


class Outage:
    """`down` from a failure until an answer; `until` is when to ask again, by one request at first."""

    def __init__(self, policy: LookPolicy, rng: random.Random) -> None:
        self.down = False
        self.until = 0.0
        self._policy = policy
        self._rng = rng
        self._failures = 0
        self._failed_at = float("-inf")

    def failed(self, error: VCenterUnavailable, asked_at: float, now: float) -> None:
        """vCenter didn't answer. Requests that were under way together fail together, and count once."""
        if asked_at >= self._failed_at:
            self._failures += 1
        self.down, self._failed_at = True, now
        pause_s = backoff_s(self._failures, self._policy, self._rng.random(), error.retry_after_s)
        self.until = max(self.until, now + pause_s)

    def over(self) -> None:
        """vCenter answered."""
        self.down, self.until, self._failures = False, 0.0, 0
