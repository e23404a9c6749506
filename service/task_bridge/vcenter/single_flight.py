"""What many need and one does: a login, say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs `make` once for all who wait for it at the same time."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._running: asyncio.Task[T] | None = None

    async def run(self) -> T:
        """What `make` returns or raises. Whoever waits may be canceled: the others still need it."""
        if self._running is None:
            self._running = asyncio.create_task(self._make())
            self._running.add_done_callback(self._over)
        return await asyncio.shield(self._running)

    async def wait(self) -> None:
        """Until nothing is being made. Never raises, unless canceled."""
        if self._running is not None:
            with contextlib.suppress(Exception):
                await self._running

    def _over(self, running: asyncio.Task[T]) -> None:
        self._running = None
        if not running.cancelled():
            running.exception()  # told to those who wait, if anybody still does
