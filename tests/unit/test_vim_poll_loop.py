"""A poller's loop runs once, and tells what ended it."""

from __future__ import annotations

import asyncio

import pytest

from lab import until
from task_bridge.vcenter.vim.poll_loop import PollLoop


class Runs:
    """Counts the runs of a loop, which go on until `end` is set."""

    def __init__(self) -> None:
        self.started = 0
        self.running = 0
        self.end = asyncio.Event()
        self.error: Exception | None = None

    async def run(self) -> None:
        self.started += 1
        self.running += 1
        try:
            await self.end.wait()
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error


async def start(runs: Runs) -> PollLoop:
    loop = PollLoop(runs.run)
    loop.ensure_running()
    await wait_for_runs(runs, running=1)
    return loop


async def wait_for_runs(runs: Runs, *, running: int) -> None:
    await until(lambda: runs.running == running)
    await asyncio.sleep(0)  # the task is done one step after its last line


async def test_a_loop_that_runs_is_not_started_again() -> None:
    runs = Runs()
    loop = await start(runs)
    loop.ensure_running()
    await asyncio.sleep(0)
    assert (runs.started, runs.running) == (1, 1)
    await loop.stop()
    assert runs.running == 0


async def test_a_loop_that_came_to_its_end_starts_again() -> None:
    runs = Runs()
    loop = await start(runs)
    runs.end.set()
    await wait_for_runs(runs, running=0)
    runs.end.clear()
    loop.ensure_running()
    await wait_for_runs(runs, running=1)
    assert runs.started == 2
    await loop.stop()


async def test_what_ended_a_loop_is_told_once_and_the_loop_starts_again() -> None:
    runs = Runs()
    loop = await start(runs)
    runs.error = RuntimeError("a bug")
    runs.end.set()
    await wait_for_runs(runs, running=0)
    with pytest.raises(RuntimeError, match="a bug"):
        loop.ensure_running()
    runs.error = None
    runs.end.clear()
    loop.ensure_running()
    await wait_for_runs(runs, running=1)
    await loop.stop()


async def test_a_loop_that_was_never_started_is_stopped_in_peace() -> None:
    runs = Runs()
    await PollLoop(runs.run).stop()
    assert runs.started == 0
