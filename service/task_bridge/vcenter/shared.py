"""The parts that the sources of one vCenter share: connection, logins and the queue of poll results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

from ..domain.ports import PollResult
from .http import VCenterHttp
from .login import LoginThrottle

DISCOVERY_INTERVAL_S = 0.5


class ResultQueue:
    """Poll results that the watcher hasn't taken yet. It takes all of them at once."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, PollResult]] = []
        self._changed = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, task: str, result: PollResult) -> None:
        self._waiting.append((task, result))
        self._changed.set()

    def put_all(self, results: Iterable[tuple[str, PollResult]]) -> None:
        self._waiting += results
        self._changed.set()

    def close(self) -> None:
        """End `batches`."""
        self._closed = True
        self._changed.set()

    async def batches(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        """Yield everything that has been put since the last batch, until the queue is closed."""
        while not self._closed:
            await self._changed.wait()
            self._changed.clear()
            if self._waiting:
                batch, self._waiting = self._waiting, []
                yield batch


class DiscoveryTurns:
    """Spreads the requests that find tasks of a vCenter, over both APIs: one every `DISCOVERY_INTERVAL_S`."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._next_at = float("-inf")

    async def wait(self) -> None:
        """Wait for the next turn, in the order of the calls."""
        async with self._lock:
            clock = asyncio.get_running_loop().time
            await asyncio.sleep(self._next_at - clock())
            self._next_at = clock() + DISCOVERY_INTERVAL_S


class SharedVCenter(NamedTuple):
    """One budget of requests, one rule for logins and one queue of results for all APIs of a vCenter."""

    http: VCenterHttp
    login_throttle: LoginThrottle
    results: ResultQueue
    turns: DiscoveryTurns
