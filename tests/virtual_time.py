"""An event loop whose time passes only while nothing else is left to do, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Selector(selectors.DefaultSelector):
    """Never waits for a timer: it notes how long the loop would have waited. It does wait for threads."""

    waited_s = 0.0
    threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.threads and timeout != 0:
            return super().select(None)
        ready = super().select(0 if timeout else timeout)
        if not ready:
            self.waited_s += timeout or 0.0
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._waits = _Selector()
        super().__init__(self._waits)

    def time(self) -> float:
        return self._waits.waited_s

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        self._waits.threads += 1
        work = super().run_in_executor(executor, func, *args)
        work.add_done_callback(self._note_end_of_thread)
        return work

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the threads as long as they take: the limit of Python 3.12 and later would pass at once."""
        await super().shutdown_default_executor()

    def _note_end_of_thread(self, _: object) -> None:
        self._waits.threads -= 1


def run_in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Run this in a loop of its own. Use no network in it."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
