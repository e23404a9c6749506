"""How often somebody may do something. Pure."""

from __future__ import annotations

from collections import deque


class RequestRate:
    """At most `limit` requests within any second."""

    def __init__(self, limit: int) -> None:
        self._accepted: deque[float] = deque(maxlen=limit)

    def take(self, now: float) -> float:
        """Accept a request and return 0, or return in how many seconds one can be accepted."""
        if len(self._accepted) == self._accepted.maxlen and (wait_s := self._accepted[0] + 1.0 - now) > 0:
            return wait_s
        self._accepted.append(now)
        return 0.0
