"""What the looks found, until it is taken away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ..domain.ports import PollResult


class ResultQueue:
    """What was found, until it is taken away, all at once."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, PollResult]] = []
        self._news = asyncio.Event()
        self._closed = False

    def put(self, task: str, standing: PollResult) -> None:
        self.waiting.append((task, standing))
        self.notify()

    def notify(self) -> None:
        """Wakes whoever takes them."""
        self._news.set()

    def close(self) -> None:
        self._closed = True
        self._news.set()

    async def batches(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        while not self._closed:
            await self._news.wait()
            self._news.clear()
            if self.waiting:
                batch, self.waiting = self.waiting, []
                yield batch
