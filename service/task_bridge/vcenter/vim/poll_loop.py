"""The loop of a poller that runs beside the source's own loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine


class PollLoop:
    """Runs `run` while the source wants it to, and never twice at once."""

    def __init__(self, run: Callable[[], Coroutine[object, object, None]]) -> None:
        self._run = run
        self._task: asyncio.Task[None] | None = None

    def ensure_running(self) -> None:
        """Start the loop unless it goes on. Raise what ended it, which is a bug; the next call starts it again."""
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            task.result()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the loop if it runs. Never raises."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
