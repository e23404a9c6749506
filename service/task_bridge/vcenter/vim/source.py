"""The classic tasks of one vCenter: `TaskSource` over SOAP, by push where it works and by pull where it doesn't.

Two tasks share the work while anything is followed. One tends: it logs in, lists what is followed in the view, asks
about single tasks. The other only waits for updates. Whatever ends the waiting, tending begins it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Literal, Self

import structlog

from ...domain.errors import VCenterUnavailable
from ...domain.ports import PollResult
from ...domain.task import TaskIdentity
from ...metrics import Metrics
from ..absence import Absences
from ..backoff import Outage
from ..http import RequestBudget
from ..policy import TIMEOUTS, VIM_TIMEOUTS, PollPolicy, Timeouts, VCenterConfig, VimTimeouts
from ..shared import SharedVCenter
from . import api
from .api import VmTimeout
from .push import Push
from .questions import QuestionPoller
from .session import SessionEnded, VimSession
from .soap import SoapFault
from .tracker import VimTaskTracker

log = structlog.get_logger(__name__)

Way = Literal["auto", "push", "pull"]


class VimSource:
    """`async with VimSource(link, settings, …) as source:` follows; leaving it logs out. The link is left later."""

    def __init__(
        self,
        link: SharedVCenter,
        settings: VCenterConfig,
        policy: PollPolicy,
        metrics: Metrics,
        *,
        way: Way = "auto",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        patience: Timeouts = TIMEOUTS,
        vim_patience: VimTimeouts = VIM_TIMEOUTS,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - spreads looks in time
        self._name = settings.name
        # The wait keeps a request under way: the others need one beside it.
        self._way: Way = "pull" if settings.max_concurrent_requests == 1 else way
        self._link = link
        self._patience = vim_patience
        self._logout_s = patience.logout_s
        self._monotonic = monotonic
        self._session = VimSession(link, settings)
        absences = Absences(policy.not_found_grace_s, patience)
        self._absences = absences
        self._looks = VimTaskTracker(
            settings.name,
            self._session,
            link.results,
            link.health,
            absences,
            policy,
            vim_patience,
            metrics,
            monotonic,
            clock,
            rng,
        )
        self._outage = Outage(policy, rng)
        self._pace = RequestBudget(vim_patience.updates_per_s, monotonic, burst=vim_patience.updates_burst)
        self._push: Push | None = None
        self._listening: asyncio.Task[None] | None = None
        self._lost: deque[float] = deque(maxlen=vim_patience.push_losses_max)
        self._pull_until = -math.inf
        self._pulled_at = self._used_at = self._modified_at = -math.inf
        self._labels_of = self._endings = 0
        self._is_in_trouble = False
        self._news = asyncio.Event()
        self._apart = QuestionPoller(
            settings.name,
            self._session,
            self._looks,
            vim_patience,
            settings.max_concurrent_requests,
            lambda: self._session.is_open and not self._outage.is_down,
            self._news.set,
        )
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _ended(self._loop)
        await _ended(self._listening)
        await self._apart.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._logout_s):
                await self._session.close_for_good()

    # The port

    def track(self, task: str, since: float, *, seen: bool, birth: TaskIdentity | None) -> None:
        self._looks.follow(task, since, birth, seen=seen)
        self._news.set()

    def resume(self, task: str) -> None:
        self._looks.again(task)
        if self._looks.next_at < math.inf:
            self._news.set()

    def poll_now(self, task: str) -> None:
        self._looks.hurry(task)
        if self._outage.is_down:
            self._looks.answer_hurried()
        self._news.set()

    def forget(self, task: str) -> None:
        self._looks.forget(task)
        if not self._looks.tasks:
            self._news.set()

    @property
    def absent_count(self) -> int:
        return self._absences.vanished_count

    def set_absent_elsewhere(self, count: int) -> None:
        if self._absences.set_vanished_elsewhere(count):
            self._pulled_at = -math.inf
            self._news.set()

    def poll_results(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        return self._link.results.batches()

    async def cancel(self, task: str) -> None:
        self._used_at = self._monotonic()
        self._news.set()
        try:
            await api.cancel_task(self._session, task)
        except SessionEnded:
            await api.cancel_task(self._session, task)

    async def fetch_identity(self, task: str) -> TaskIdentity | None:
        """What the task that has this id now is by its birth, None where there is none.

        Raises VCenterUnavailable.
        """
        self._used_at = self._monotonic()
        self._news.set()
        try:
            return await self._looks.birth(task)
        except SessionEnded:
            return await self._looks.birth(task)

    # Tending

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
            except Exception:
                # Whatever it is, the tasks of this vCenter are still to be looked at.
                log.exception("look_loop_failed", vcenter=self._name, api="vim")
                await asyncio.sleep(1.0)

    async def _step(self) -> None:
        await self._until_due()
        now = self._monotonic()
        if not self._looks.tasks:
            await self._rest(now)
            return
        try:
            await self._tend(now)
        except Exception as error:
            if (self._is_deaf and not isinstance(error, SessionEnded)) or isinstance(error, SoapFault):
                await self._push_lost(error)
            if not isinstance(error, VCenterUnavailable):
                raise
            if isinstance(error, SessionEnded):
                await self._stop_listening()  # what belonged to the session is gone too
                self._endings += 1
            if not isinstance(error, SessionEnded) or self._endings > 1:
                self._failed(error, now)

    async def _until_due(self) -> None:
        while (wait_s := self._next_at() - self._monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s if wait_s < math.inf else None):
                    await self._news.wait()
            self._news.clear()

    def _next_at(self) -> float:
        """When there is something to do, unless news come before."""
        looks = self._looks
        if not looks.tasks:
            if self._is_in_trouble:
                return -math.inf  # of which nobody will hear the end
            return self._used_at + self._patience.idle_logout_s if self._session.is_open else math.inf
        at = min(looks.next_at, self._pulled_at + self._pull_every_s)
        if self._is_pushing:
            if self._awaits_vms and self._push is not None:
                at = min(at, self._push.untold_until)
            elif looks.to_add or len(looks.to_remove) > api.OBJECTS_MAX:
                at = min(at, self._modified_at + self._patience.gather_s)
            if self._is_deaf or self._push is None or not self._push.is_current or self._is_held_up:
                at = -math.inf
        return max(at, self._outage.retry_at)

    @property
    def _is_pushing(self) -> bool:
        return self._way == "push" or (self._way == "auto" and self._monotonic() >= self._pull_until)

    @property
    def _is_deaf(self) -> bool:
        """Whether the wait for updates has ended."""
        return self._listening is not None and self._listening.done()

    @property
    def _awaits_vms(self) -> bool:
        """Whether the view lists VMs that weren't told of yet: a change of it might have to wait for them."""
        return self._push is not None and any(map(self._looks.questions.is_of_interest, self._push.untold))

    @property
    def _is_held_up(self) -> bool:
        """Whether VMs are listed that hold up, or may hold up, the tasks."""
        return self._looks.apart and self._push is not None and self._push.lists_vms

    @property
    def _pull_every_s(self) -> float:
        return self._patience.safety_pull_interval_s if self._is_pushing else self._patience.pull_interval_s

    async def _rest(self, now: float) -> None:
        """Nobody needs the session any more, after a while in which somebody may."""
        if now >= self._used_at + self._patience.idle_logout_s:
            await self._stop_listening()
            await self._apart.end()
            self._looks.poll_questions_with_tasks()
            await self._session.close()
        self._link.health.forget_provider("vim")
        self._outage.record_answer(now)
        self._is_in_trouble = False

    async def _tend(self, now: float) -> None:
        """Everything that is due now. Raises VCenterUnavailable, and whatever ended the wait for updates."""
        if self._listening is not None and self._is_deaf:
            self._listening.result()
        self._used_at = now
        await self._session.ensure_logged_in()
        if self._labels_of != self._session.number:
            self._looks.labels = await api.fetch_labels(self._session)
            self._labels_of = self._session.number
        if self._awaits_vms and self._push is not None and now >= self._push.untold_until:
            self._looks.poll_questions_separately()
        if self._looks.apart:
            self._apart.begin()
        if self._is_pushing:
            await self._list()
        else:
            await self._stop_listening()
        await self._ask(now)
        self._endings = 0
        self._outage.record_answer(self._monotonic())

    async def _list(self) -> None:
        """Begins to listen where nobody does, and brings the view up to date."""
        looks = self._looks
        if self._push is None or not self._push.is_current or self._is_held_up:
            before = self._push
            await self._stop_listening()
            if before is not None and before.is_current:
                await before.close()
            push = await Push.open(self._session, self._pace, self._patience.vm_timeout_s)
            looks.list_all()
            self._push, self._pulled_at = push, self._monotonic()
        if (looks.to_add or looks.to_remove) and not self._awaits_vms:
            add, looks.to_add = list(looks.to_add), {}
            remove, looks.to_remove = list(looks.to_remove), {}
            self._modified_at = self._monotonic()
            try:
                looks.unresolved(await self._push.modify(add, remove))
            except VmTimeout:
                looks.poll_questions_separately()  # and all is listed anew
            except BaseException:
                looks.relist(add, remove)
                raise
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen(self._push))

    async def _listen(self, push: Push) -> None:
        try:
            async for shown in push.updates():
                self._looks.updates(shown)
                if self._looks.next_at < math.inf or self._looks.to_add:
                    self._news.set()
        finally:
            self._news.set()

    async def _stop_listening(self) -> None:
        listening, self._listening, self._push = self._listening, None, None
        await _ended(listening)

    async def _push_lost(self, error: Exception) -> None:
        """Listening has ended or can't begin. Too often in a while, and it is given up for a longer one."""
        await self._stop_listening()
        now = self._monotonic()
        self._lost.append(now)
        log.info("push_lost", vcenter=self._name, reason=str(error))
        often = (
            len(self._lost) == self._patience.push_losses_max
            and now - self._lost[0] <= self._patience.push_losses_window_s
        )
        if often and self._way == "auto" and self._is_pushing:
            self._pull_until = now + self._patience.push_retry_s
            self._lost.clear()
            log.warning("push_given_up", vcenter=self._name, for_s=self._patience.push_retry_s, reason=str(error))

    async def _ask(self, now: float) -> None:
        """Asks about those that are due, and where it is time for that about the others: beside push about some of
        them, in turn.
        """
        those = self._looks.due(now)
        if now >= self._pulled_at + self._pull_every_s:
            few = self._is_pushing and self._pulled_at > -math.inf
            those = list(dict.fromkeys([*those, *self._looks.in_turn(api.OBJECTS_MAX if few else None)]))
            self._pulled_at = now
        for first in range(0, len(those), api.OBJECTS_MAX):
            await self._looks.ask(those[first : first + api.OBJECTS_MAX])

    def _failed(self, error: VCenterUnavailable, now: float) -> None:
        self._absences.record_outage()
        self._outage.record_failure(error, now, self._monotonic())
        self._link.health.record_failure(str(error), "vim")
        self._is_in_trouble = True
        self._looks.answer_hurried()


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
