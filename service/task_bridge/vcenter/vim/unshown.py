"""Pulls beside push, of live tasks that the wait for updates doesn't show: it may be silent, slow or wrong."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from operator import attrgetter
from typing import NamedTuple

import structlog

from ...domain.errors import VCenterUnavailable
from ...waits import round_up
from ..tracked_task import PARKED
from . import api
from .poll_loop import PollLoop
from .session import SessionEnded
from .transport import TrackedVimTask

log = structlog.get_logger(__name__)

INTERVAL_MIN_S = 0.5
"""Of 5,000 tasks and more each is pulled less often, so that the pulls don't spend the requests of all others."""
_TICK_S = 1.0
"""Tasks are added and shown at any time, so the next pull is decided anew so often."""


class DuePull(NamedTuple):
    """When to pull next, and which tasks."""

    at: float
    tasks: list[TrackedVimTask]


def find_due_pull(tasks: Mapping[str, TrackedVimTask], silence_s: float, pulled_at: float) -> DuePull | None:
    """Return the next pull, None if there is none to come. Pure.

    It is due when a task hasn't been shown for a while, and takes along others, so that their turns stay together. Each
    task is pulled once per `silence_s`, and up to 500 in one request.
    """
    live = [one for one in tasks.values() if _is_live(one)]
    if not live:
        return None
    interval_s = max(INTERVAL_MIN_S, silence_s / math.ceil(len(live) / api.OBJECTS_MAX))
    chosen = sorted(live, key=attrgetter("shown_at"))[: api.OBJECTS_MAX]
    return DuePull(max(chosen[0].shown_at, pulled_at) + interval_s, chosen)


def _is_live(tracked: TrackedVimTask) -> bool:
    """True if push alone would show the end of the task."""
    has_ended = tracked.task is not None and tracked.task.ended
    return tracked.phase != PARKED and tracked.due is None and not has_ended


class UnshownTaskPoller:
    """Polls tasks while its loop runs. The source starts and stops the loop with push.

    `may_poll` returns True while a poll may go out. `poll` polls the tasks. `on_answer` and `on_failure` are called
    afterwards, with the time of the request. `wake_up` wakes the source's loop.
    """

    def __init__(
        self,
        vcenter: str,
        tasks: Mapping[str, TrackedVimTask],
        silence_s: float,
        *,
        may_poll: Callable[[], bool],
        poll: Callable[[list[TrackedVimTask]], Awaitable[None]],
        on_answer: Callable[[], None],
        on_failure: Callable[[VCenterUnavailable, float], None],
        wake_up: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._vcenter = vcenter
        self._clock = clock
        self._tasks = tasks
        self._silence_s = silence_s
        self._may_poll = may_poll
        self._poll = poll
        self._on_answer = on_answer
        self._on_failure = on_failure
        self._wake_up = wake_up
        self._pulled_at = -math.inf
        self.loop = PollLoop(self._run)

    async def _run(self) -> None:
        while True:
            now = self._clock()
            due = find_due_pull(self._tasks, self._silence_s, self._pulled_at)
            if due is None or due.at > now or not self._may_poll():
                await asyncio.sleep(_TICK_S if due is None or due.at <= now else min(_TICK_S, round_up(due.at - now)))
            else:
                self._pulled_at = now
                await self._pull(due.tasks, now)

    async def _pull(self, those: list[TrackedVimTask], now: float) -> None:
        try:
            await self._poll(those)
        except SessionEnded:
            pass  # the loop begins another
        except VCenterUnavailable as error:
            self._on_failure(error, now)
        except Exception:
            # Whatever it is, the tasks must still be polled.
            log.exception("look_failed", vcenter=self._vcenter, api="vim")
        else:
            self._on_answer()
        self._wake_up()
