"""The tasks of one vCenter's CIS tasks service: `TaskSource` over HTTP.

One loop takes what is due and starts requests, as many as may be in flight at once and no more than the budget has:
so what is asked for is chosen when it can go, oldest first, and nothing queues in front of vCenter.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import httpx
import structlog

from ...domain.errors import VCenterUnavailable
from ...domain.ports import PollResult
from ...metrics import Metrics
from ..backoff import Outage
from ..health import VCenterHealthTracker
from ..http import RequestBudget, VCenterHttp
from ..policy import TIMEOUTS, PollPolicy, Timeouts, VCenterConfig
from ..shared import SharedVCenter
from . import schedule
from .api import CisTasksApi
from .followed import PollAgenda
from .poller import CisPoller
from .session import CisSession
from .tracker import CisTaskTracker

log = structlog.get_logger(__name__)

_LOOK_AROUND = 200
"""So many are looked at when another replica tells that tasks vanished."""
_FINDS_MAX = 100_000
"""So many finds that nobody took: no more looks until somebody does."""
_EARLY_PER_S, _EARLY_BURST = 2.0, 5.0
"""How often a first look or a result may go without gathering: promptness while idle, few requests under load."""


_Asking = Callable[[], Coroutine[Any, Any, None]]


class CisSource:
    """`async with CisSource(settings, policy, metrics) as source:` looks; leaving it logs out."""

    def __init__(
        self,
        settings: VCenterConfig,
        policy: PollPolicy,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        patience: Timeouts = TIMEOUTS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - spreads looks in time
        self.health = VCenterHealthTracker(settings.name)
        self._settings = settings
        self._patience = patience
        self._clock = clock
        self._monotonic = monotonic
        self._http = VCenterHttp(
            settings, metrics, read_timeout_s=patience.read_timeout_s, clock=monotonic, transport=transport
        )
        self._session = CisSession(self._http, settings, metrics, clock=monotonic, rng=rng)
        self._tasks = CisTasksApi(self._session, settings)
        agenda = PollAgenda(policy.poll_min_s, settings.max_concurrent_requests)
        self._register = CisTaskTracker(settings.name, policy, patience, agenda, monotonic, rng, self._results_wait_s)
        self._outage = Outage(policy, rng)
        self._looks = CisPoller(self._register, self._tasks, self._session, self.health, self._outage, metrics, clock)
        self._news = asyncio.Event()
        self._wakes_at = math.inf
        self._running: set[asyncio.Task[None]] = set()
        self._started_at = -math.inf
        self._early = RequestBudget(_EARLY_PER_S, monotonic, burst=_EARLY_BURST)
        self._pinged_at = -math.inf
        self._answered_at = 0.0
        self._results_last = False
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends what is under way, and the session, within two seconds."""
        if self._loop is not None:
            self._loop.cancel()
        if self._running:
            # A connection that is being made would be left open by canceling it.
            await asyncio.wait(self._running, timeout=self._patience.finish_s)
        under_way = [*self._running, *([self._loop] if self._loop else [])]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._register.forget_all()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience.logout_s):
                await self._session.close()
        await self._http.close()

    @property
    def shared(self) -> SharedVCenter:
        """What another kind of tasks of this vCenter shares with this one; it must be left first."""
        return SharedVCenter(self._http, self._session.login_throttle, self.health, self._register.finds)

    @property
    def budget_used(self) -> float:
        """How much of the budget of requests is spent; above 1 looks get rarer, or requests wait.

        While looks are stretched so that they fit into the budget, it is never spent for long.
        """
        stretch = self._register.stretch
        return max(self._http.budget.used, stretch if stretch > 1 else 0.0)

    # The port

    def track(self, task: str, since: float, *, seen: bool, with_result: bool) -> None:
        self._register.follow(task, self._clock() - since, seen=seen, with_result=with_result)
        self._news.set()

    def resume(self, task: str) -> None:
        if self._register.again(task) < self._wakes_at:
            self._news.set()

    def poll_now(self, task: str) -> None:
        self._register.hurry(task)
        if self._outage.is_down:
            self._register.answer_hurried()
        self._news.set()

    def forget(self, task: str) -> None:
        self._register.forget(task)

    @property
    def absent_count(self) -> int:
        return self._register.absences.vanished_count

    def set_absent_elsewhere(self, count: int) -> None:
        if self._register.absences.set_vanished_elsewhere(count):
            self._register.look_around("", _LOOK_AROUND)
            self._news.set()

    def poll_results(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        return self._register.finds.batches()

    async def cancel(self, task: str) -> None:
        await self._tasks.cancel_task(task)

    # The loop

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
            except Exception:
                # Whatever it is, the tasks of this vCenter are still to be looked at.
                log.exception("look_loop_failed", vcenter=self._settings.name)
                await asyncio.sleep(1.0)

    async def _step(self) -> None:
        """Waits until something is due and may be asked for, and starts the request."""
        await self._until(self._next_at)
        register = self._register
        now = self._monotonic()
        register.stretch = schedule.stretch(
            register.demand, self._tasks_a_request(now), self._settings.max_requests_per_second
        )
        if now < self._started_at + self._patience.gather_s and not register.agenda.is_queued:
            self._early.spend()
        register.urgent = False
        register.agenda.queue_due(now)
        if register.agenda.is_queued and self._http.budget.wait_s() > 0:
            return
        group = register.agenda.next_group(results_first=not self._results_last)
        if group is None:
            if self._ping_at() <= now:
                self._pinged_at = now  # here: the task begins later, and until then more would be started
                self._start(self._ping)
            return
        self._results_last = group.results
        batch = register.agenda.take(group, self._looks.at_most(group))
        if batch:
            self._start(functools.partial(self._looks.ask, group, batch))

    async def _until(self, at: Callable[[], float]) -> None:
        """Waits until the time that `at` tells, asked again whenever there is news."""
        while True:
            self._news.clear()
            self._wakes_at = at()
            wait_s = self._wakes_at - self._monotonic()
            if wait_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s if wait_s < math.inf else None):
                    await self._news.wait()

    def _next_at(self) -> float:
        """When the next request may go; infinity while only news can tell."""
        agenda = self._register.agenda
        # While vCenter is down one request at a time asks whether it still is.
        in_flight_max = 1 if self._outage.is_down else self._settings.max_concurrent_requests
        if len(self._running) >= in_flight_max:
            return math.inf
        if len(self._register.finds.waiting) > _FINDS_MAX:
            return self._monotonic() + 1.0
        if agenda.is_queued:
            at = self._monotonic() + self._http.budget.wait_s()
        else:
            at = min(max(agenda.first(), self._gathered_at()), self._ping_at())
        return max(at, self._outage.retry_at)

    def _gathered_at(self) -> float:
        """Until when due looks wait for others, so that they go together."""
        if self._register.urgent and self._early.wait_s() == 0:
            return -math.inf
        return self._started_at + self._patience.gather_s

    def _tasks_a_request(self, now: float) -> int:
        return 1 if self._register.agenda.lists_from > now else self._tasks.list_max

    def _results_wait_s(self) -> float:
        """How long results are gathered for: not at all while there are requests enough."""
        return 0.0 if self._http.budget.is_plentiful else self._patience.gather_results_s

    def _start(self, asking: _Asking) -> None:
        self._started_at = self._monotonic()
        task = asyncio.create_task(self._asked(asking, self._started_at))
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._news.set()

    async def _asked(self, asking: _Asking, asked_at: float) -> None:
        try:
            await asking()
        except VCenterUnavailable as error:
            self._register.absences.record_outage()
            self._outage.record_failure(error, asked_at, self._monotonic())
            self.health.record_failure(str(error))
            self._register.answer_hurried()
        except Exception:
            log.exception("look_failed", vcenter=self._settings.name)

    # While nothing is followed

    def _ping_at(self) -> float:
        if self._register.tasks:
            return math.inf
        return self._pinged_at + (0.0 if self._outage.is_down else self._patience.ping_s)

    async def _ping(self) -> None:
        """Asks whether vCenter is there: nothing else may tell while no task of this kind is followed."""
        if (self.health.last_good_poll_at or 0.0) > self._answered_at:
            self.health.record_answer()  # another kind's look was good meanwhile
        elif not await self._session.check():
            raise VCenterUnavailable(f"vCenter {self._settings.name} doesn't answer for the session that it gave.")
        else:
            self.health.record_good_poll(self._clock())
        self._answered_at = self.health.last_good_poll_at or 0.0
        self._outage.record_answer(self._monotonic())
