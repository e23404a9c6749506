"""How often something may be done: a token bucket that holds one second's worth, unless told otherwise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class RequestBudget:
    """Every request takes one token; whoever finds none waits for its own, in the order of asking."""

    def __init__(
        self, per_second: float, clock: Callable[[], float] = time.monotonic, *, at_once: float | None = None
    ) -> None:
        self._per_second = per_second
        self._capacity = max(1.0, per_second if at_once is None else at_once)
        self._tokens = self._capacity
        self._clock = clock
        self._counted_at = clock()

    def wait_s(self) -> float:
        """How long the next request would wait; 0 when it may go."""
        self._refill()
        return max(0.0, (1.0 - self._tokens) / self._per_second)

    @property
    def is_plentiful(self) -> bool:
        """At least half of what may be spent at once is there."""
        self._refill()
        return self._tokens >= self._capacity / 2

    @property
    def used(self) -> float:
        """The part of what may be spent at once that is spent; above 1 there are requests that wait."""
        self._refill()
        return 1.0 - self._tokens / self._capacity

    def spend(self) -> None:
        """Takes a token whether there is one or not: those who come later wait for it."""
        self._refill()
        self._tokens -= 1

    async def take(self) -> None:
        wait_s = self.wait_s()
        self._tokens -= 1
        if wait_s:
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                self._tokens += 1
                raise

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._counted_at) * self._per_second)
        self._counted_at = now
