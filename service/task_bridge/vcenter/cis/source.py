"""The CIS tasks of one vCenter over HTTP.

One loop takes what is due and starts requests, as many as may be in flight at once and no more than the budget allows.
It chooses what to ask for when a request can go, oldest first, so nothing queues in front of vCenter.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import httpx
import structlog

from ...domain.errors import VCenterUnavailable
from ...domain.follows.event import FollowMemory
from ...domain.follows.order import Follow
from ...domain.follows.ports import FoundBatch
from ...domain.ports import PollResult
from ...domain.task import Task
from ...metrics import Metrics
from ...waits import wait_for_event
from ..backoff import Outage
from ..health import ApiHealth, ApiHealthTracker
from ..http import RequestBudget, VCenterHttp
from ..policy import TIMEOUTS, PollPolicy, Timeouts, VCenterConfig
from ..shared import DiscoveryTurns, ResultQueue, SharedVCenter
from ..tracked_task import TaskTracker
from . import schedule
from .api import CisTasksApi
from .finder import CisFinder
from .poller import CisPoller
from .schedule import PollAgenda, TrackedCisTask
from .session import CisSession
from .transport import CisTransport

log = structlog.get_logger(__name__)

_RESULTS_MAX = 100_000
"""With so many results that nobody has taken, polling pauses."""
_EARLY_PER_S, _EARLY_BURST = 2.0, 5.0
"""How often a first poll or a result may go without gathering: promptness while idle, few requests under load."""


class CisSource:
    """The CIS tasks of one vCenter, polled until it is left, which logs out.

    `async with CisSource(settings, policy, metrics) as source:`
    """

    def __init__(
        self,
        settings: VCenterConfig,
        policy: PollPolicy,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        timeouts: Timeouts = TIMEOUTS,
        http_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - spreads polls in time
        timeouts = timeouts.with_answer_timeout(settings.timeout_s)
        self.health = ApiHealthTracker(settings.name, "cis")
        self._settings = settings
        self._timeouts = timeouts
        self._clock = clock
        self._monotonic = monotonic
        self._http = VCenterHttp(settings, metrics, clock=monotonic, transport=http_transport)
        self._session = CisSession(self._http, settings, metrics, clock=monotonic, rng=rng)
        self._api = CisTasksApi(self._session, settings, clock=monotonic, return_all_timeout_s=timeouts.return_all_s)
        self._turns = DiscoveryTurns()
        self._finder = CisFinder(self._api, clock, self._turns)
        self._agenda = PollAgenda(policy.poll_min_s, settings.max_concurrent_requests)
        self._transport = CisTransport(self._agenda, policy, monotonic, rng)
        self._tracker: TaskTracker[TrackedCisTask] = TaskTracker(
            settings.name, policy, timeouts, self._transport, ResultQueue(), monotonic, rng
        )
        self._outage = Outage(policy, rng)
        self._poller = CisPoller(
            self._tracker,
            self._transport,
            self._api,
            self.health,
            self._outage,
            metrics,
            timeouts,
            self._http.budget,
        )
        self._wake_up = asyncio.Event()
        self._wakes_at = math.inf
        self._requests: set[asyncio.Task[None]] = set()
        self._newest: asyncio.Task[None] | None = None
        self._requested_at = -math.inf
        self._early = RequestBudget(_EARLY_PER_S, monotonic, burst=_EARLY_BURST)
        self._pinged_at = -math.inf
        self._results_last = False
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the requests that are under way, and the session, within two seconds."""
        if self._loop is not None:
            self._loop.cancel()
        await self._finder.close()
        if self._requests:
            # Canceling a connection that is being made would leave it open.
            await asyncio.wait(self._requests, timeout=self._timeouts.finish_s)
        under_way = [*self._requests, *([self._loop] if self._loop else [])]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._tracker.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.logout_s):
                await self._session.close()
        await self._http.close()

    @property
    def shared(self) -> SharedVCenter:
        """The parts that another source of the same vCenter uses too. That source must be left first."""
        return SharedVCenter(self._http, self._session.login_throttle, self._tracker.results, self._turns)

    @property
    def budget_used(self) -> float:
        """The share of the requests that is spent. Above 1, tasks are polled less often or requests wait.

        While intervals are stretched to fit the budget, it is never spent for long.
        """
        stretch = self._transport.stretch
        return max(self._http.budget.used, stretch if stretch > 1 else 0.0)

    def name_tasks_by(self, add_known_names: Callable[[Task], Task]) -> None:
        """Add names to tasks by this function from now on."""
        self._tracker.add_known_names = add_known_names

    # The port

    def track(self, task: str, since: float, *, seen: bool, with_result: bool, with_details: bool = False) -> None:
        age_s, now = self._clock() - since, self._monotonic()
        self._tracker.track(
            TrackedCisTask.with_age(task, age_s, now, seen=seen, with_result=with_result, with_details=with_details)
        )
        self._wake_up.set()

    def resume(self, task: str, *, quiet_until: float) -> None:
        tracked = self._tracker.resume(task, quiet_until)
        if tracked is not None and tracked.due < self._wakes_at:
            self._wake_up.set()

    def poll_now(self, task: str) -> None:
        self._tracker.poll_now(task)
        if self._outage.is_down:
            self._tracker.report_unreachable()
        self._wake_up.set()

    def forget(self, task: str) -> None:
        self._tracker.forget(task)

    def report_health(self) -> ApiHealth:
        return self.health.report(watches=len(self._tracker.tasks), vanished=self.absent_count)

    @property
    def absent_count(self) -> int:
        return self._tracker.absences.vanished_count

    def set_absent_elsewhere(self, count: int) -> None:
        if self._tracker.absences.set_vanished_elsewhere(count):
            self._poller.poll_others_now()
            self._wake_up.set()

    def poll_results(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        return self._tracker.results.batches()

    async def cancel(self, task: str) -> None:
        await self._api.cancel_task(task)

    def find_tasks(self, follow: Follow, memory: Callable[[], FollowMemory]) -> AsyncGenerator[FoundBatch]:
        """Yield the CIS tasks that a follow may be about, without end."""
        return self._finder.find_tasks(follow, memory)

    # The loop

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
            except Exception:
                # Whatever it is, the tasks of this vCenter must still be polled.
                log.exception("look_loop_failed", vcenter=self._settings.name)
                await asyncio.sleep(1.0)

    async def _step(self) -> None:
        """Wait until something is due and may be asked for, and start the request."""
        await self._wait_until_due()
        agenda, now = self._agenda, self._monotonic()
        tasks_a_request = 1 if agenda.lists_from > now else self._api.list_max
        self._transport.stretch = schedule.stretch(
            self._transport.polls_per_s, tasks_a_request, self._settings.max_requests_per_second
        )
        if now < self._requested_at + self._timeouts.gather_s and not agenda.has_queued():
            self._early.spend()
        self._transport.is_prompt = False
        agenda.queue_due(now)
        if agenda.has_queued() and self._http.budget.wait_s() > 0:
            return
        group = agenda.next_group(results_first=not self._results_last)
        if group is None:
            if self._ping_at() <= now:
                self._pinged_at = now  # here: the request starts later, and until then more would be started
                self._start(self._ping)
            return
        self._results_last = group.results
        batch = agenda.take(group, self._poller.max_tasks(group))
        if batch:
            self._start(functools.partial(self._poller.poll, group, batch))

    async def _wait_until_due(self) -> None:
        """Wait until the next request may go. Ask again when is whenever something wakes the loop."""
        while True:
            self._wake_up.clear()
            self._wakes_at = self._next_at()
            wait_s = self._wakes_at - self._monotonic()
            if wait_s <= 0:
                return
            await wait_for_event(self._wake_up, wait_s)

    def _next_at(self) -> float:
        """Return when the next request may go; infinity if only a wake-up can tell."""
        # While vCenter is down, one request at a time asks whether it still is.
        in_flight_max = 1 if self._outage.is_down else self._settings.max_concurrent_requests
        if len(self._requests) >= in_flight_max:
            return math.inf
        if len(self._tracker.results) > _RESULTS_MAX:
            return self._monotonic() + 1.0
        if self._agenda.has_queued():
            is_answered = self._newest is None or self._newest.done()
            paced_at = -math.inf if is_answered else self._requested_at + self._timeouts.pace_s
            at = max(self._monotonic() + self._http.budget.wait_s(), paced_at)
        else:
            goes_early = self._transport.is_prompt and self._early.wait_s() == 0
            gathered_at = -math.inf if goes_early else self._requested_at + self._timeouts.gather_s
            at = min(max(self._agenda.first_due(), gathered_at), self._ping_at())
        return max(at, self._outage.retry_at)

    def _start(self, request: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._requested_at = self._monotonic()
        task = asyncio.create_task(self._run_request(request, self._requested_at))
        self._newest = task
        self._requests.add(task)
        task.add_done_callback(self._end_request)

    def _end_request(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        self._wake_up.set()

    async def _run_request(self, request: Callable[[], Coroutine[Any, Any, None]], requested_at: float) -> None:
        try:
            await request()
        except VCenterUnavailable as error:
            self._tracker.absences.record_outage()
            self._outage.record_failure(error, requested_at, self._monotonic())
            self.health.record_failure(error)
            self._tracker.report_unreachable()
        except Exception:
            log.exception("look_failed", vcenter=self._settings.name)

    # While no task is tracked

    def _ping_at(self) -> float:
        if self._tracker.tasks:
            return math.inf
        return self._pinged_at + (0.0 if self._outage.is_down else self._timeouts.ping_s)

    async def _ping(self) -> None:
        """Check that vCenter is there: no poll shows it while no CIS task is tracked."""
        if not await self._session.check():
            raise VCenterUnavailable(
                f"vCenter {self._settings.name} doesn't answer for the session that it gave to the bridge."
            )
        now = self._monotonic()
        self.health.record_good_poll(now)
        self._outage.record_answer(now)
