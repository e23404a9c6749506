"""The classic tasks of one vCenter over SOAP: pushed where that works, pulled where it doesn't.

While anything is tracked, three asyncio tasks share the work. The loop logs in, lists what is tracked in the view and
polls single tasks. The listener only waits for updates; whatever ends it, the loop starts it again. The poller in
`unshown` polls what the listener isn't shown, so that no end depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from types import TracebackType
from typing import Literal, Self

import structlog

from ...domain.errors import VCenterUnavailable
from ...domain.follows.event import FollowMemory
from ...domain.follows.order import Follow
from ...domain.follows.ports import FoundBatch
from ...domain.ports import PollResult
from ...domain.task import Task, TaskIdentity
from ...metrics import Metrics
from ...waits import wait_for_event
from ..backoff import Outage
from ..health import ApiHealth, ApiHealthTracker
from ..http import AnswerTooLarge, NoAnswer, RequestBudget
from ..policy import TIMEOUTS, VIM_TIMEOUTS, PollPolicy, Timeouts, VCenterConfig, VimTimeouts
from ..shared import SharedVCenter
from ..tracked_task import TaskTracker
from . import api
from .api import EntitiesRefused, VmTimeout
from .finder import VimFinder
from .inventory import Entity
from .poller import VimPoller
from .push import Push
from .questions import QuestionPoller
from .session import SessionEnded, VimSession
from .soap import Ref, SoapFault, XmlOutOfBounds
from .taskinfo import Info, has_ended
from .transport import TrackedVimTask, VimTransport
from .unshown import UnshownTaskPoller

log = structlog.get_logger(__name__)

VimMode = Literal["auto", "push", "pull"]
_REMEMBERED_FOUND = 5_000
"""Found tasks whose watches may not have come to this replica yet, or never do."""
_FOUND_VALID_S = 2.0
"""How long a found task that runs counts as it was read. Later it may have changed, and events must not go back."""
_SLOTS_TAKEN = 3
"""The wait for updates, the polls of tasks and the separate polls of questions take a request each."""


class VimSource:
    """The classic tasks of one vCenter, followed until it is left, which must be before `shared` closes.

    `async with VimSource(shared, settings, …) as source:`
    """

    def __init__(
        self,
        shared: SharedVCenter,
        settings: VCenterConfig,
        policy: PollPolicy,
        metrics: Metrics,
        *,
        mode: VimMode = "auto",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        timeouts: Timeouts = TIMEOUTS,
        vim_timeouts: VimTimeouts = VIM_TIMEOUTS,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - spreads polls in time
        self.on_missing: Callable[[Ref], None] = lambda _: None
        """Called with each object that vCenter doesn't have."""
        self._name = settings.name
        # The wait keeps a request under way: the others need one beside it.
        self.health = ApiHealthTracker(settings.name, "vim")
        self._slots = settings.max_concurrent_requests
        self._mode: VimMode = "pull" if self._slots == 1 else mode
        # Without a slot of its own, a lookup that hangs would hold up the tasks.
        is_tight = self._slots <= _SLOTS_TAKEN
        self._names_timeout_s = vim_timeouts.names_timeout_tight_s if is_tight else vim_timeouts.names_timeout_s
        self._timeouts = vim_timeouts
        self._logout_s = timeouts.logout_s
        self._monotonic = monotonic
        self._session = VimSession(shared, settings)
        self._transport = VimTransport(settings.name, policy, monotonic)
        self._tracker: TaskTracker[TrackedVimTask] = TaskTracker(
            settings.name, policy, timeouts, self._transport, shared.results, monotonic, rng
        )
        self._poller = VimPoller(
            self._tracker, self._transport, self._session, self.health, vim_timeouts, metrics, clock
        )
        self._outage = Outage(policy, rng)
        self._pace = RequestBudget(vim_timeouts.updates_per_s, monotonic, burst=vim_timeouts.updates_burst)
        self._push: Push | None = None
        self._push_lost_at: deque[float] = deque(maxlen=vim_timeouts.push_losses_max)
        self._pull_until = -math.inf
        self._pull_all_at = self._used_at = self._view_changed_at = -math.inf
        self._labels_session = self._sessions_ended = self._users = 0
        self._is_failing = False
        self._wake_up = asyncio.Event()
        self._question_poller = self._create_question_poller(settings.max_concurrent_requests)
        self._unshown_poller = self._create_unshown_poller()
        self._found: dict[str, tuple[Info, float]] = {}
        self._finder = VimFinder(
            self._session, clock, self._prepare_finding, self._keeping_session, self._remember_found, shared.turns
        )
        self._loop: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    def _create_question_poller(self, slots: int) -> QuestionPoller:
        return QuestionPoller(
            self._name,
            self._session,
            self._transport.questions,
            self._timeouts,
            slots,
            may_poll=lambda: self._session.is_open and not self._outage.is_down,
            apply=self._poller.apply_questions,
            rejoin=self._transport.poll_questions_with_tasks,
            wake_up=self._wake_up.set,
            clock=self._monotonic,
        )

    def _create_unshown_poller(self) -> UnshownTaskPoller:
        return UnshownTaskPoller(
            self._name,
            self._tracker.tasks,
            self._timeouts.silence_s,
            may_poll=self._may_poll_beside,
            poll=self._poller.poll_beside_push,
            on_answer=self._note_answer,
            on_failure=self._note_unreachable,
            wake_up=self._wake_up.set,
            clock=self._monotonic,
        )

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _cancel(self._loop)
        await _cancel(self._listener)
        await self._unshown_poller.loop.stop()
        await self._question_poller.loop.stop()
        await self._finder.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._logout_s):
                await self._session.close_for_good()

    def name_tasks_by(self, add_known_names: Callable[[Task], Task]) -> None:
        """Add names to tasks by this function from now on."""
        self._tracker.add_known_names = add_known_names

    # The port

    def track(self, task: str, since: float, *, seen: bool, begun: bool, identity: TaskIdentity | None) -> None:
        self.forget(task)
        now = self._monotonic()
        info, read_at = self._found.pop(task, ({}, -math.inf))
        is_new = not begun and now - read_at < _FOUND_VALID_S
        tracked = TrackedVimTask(
            task, seen, since=since, identity=identity, awaits_question=seen and not is_new, shown_at=now
        )
        self._tracker.track(tracked)
        if info and (is_new or has_ended(info)):
            self._poller.apply_found(tracked, info)
        self._wake_up.set()

    def resume(self, task: str, *, quiet_until: float) -> None:
        tracked = self._tracker.resume(task, quiet_until)
        if tracked is not None and tracked.task is not None:
            self._poller.report_change(tracked)  # updates may have come while it was parked
        if self._transport.next_at < math.inf:
            self._wake_up.set()

    def poll_now(self, task: str) -> None:
        self._tracker.poll_now(task)
        if self._outage.is_down:
            self._tracker.report_unreachable()
        self._wake_up.set()

    def forget(self, task: str) -> None:
        if self._tracker.forget(task):
            self._poller.update_health()
        if not self._tracker.tasks:
            self._wake_up.set()

    def report_health(self) -> ApiHealth:
        return self.health.report(watches=len(self._tracker.tasks), vanished=self.absent_count)

    @property
    def absent_count(self) -> int:
        return self._tracker.absences.vanished_count

    def set_absent_elsewhere(self, count: int) -> None:
        if self._tracker.absences.set_vanished_elsewhere(count):
            self._pull_all_at = -math.inf
            self._wake_up.set()

    def poll_results(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        return self._tracker.results.batches()

    async def cancel(self, task: str) -> None:
        with self._keeping_session():
            try:
                await api.cancel_task(self._session, task)
            except SessionEnded:
                await api.cancel_task(self._session, task)

    async def fetch_identity(self, task: str) -> TaskIdentity | None:
        """Return the identity of the task that has this id now, None if there is none. Raises VCenterUnavailable."""
        with self._keeping_session():
            try:
                return await self._poller.fetch_identity(task)
            except SessionEnded:
                return await self._poller.fetch_identity(task)

    async def prepare_lookup(self) -> None:
        """Log in for a lookup of names, unless there is a session. Raises VCenterUnavailable."""
        with self._keeping_session():
            if not self._session.is_open:
                await self._session.check_reachable()  # a login that hangs would hold up that of the other API
            await self._session.ensure_logged_in()

    async def fetch_entities(self, refs: list[Ref], take_turn: Callable[[], Awaitable[None]]) -> dict[Ref, Entity]:
        """Return these objects of the inventory and all above them. Raises VCenterUnavailable, EntitiesRefused."""
        with self._keeping_session():
            try:
                return await api.fetch_entities(self._session, refs, take_turn, self._names_timeout_s)
            except NoAnswer as error:
                if self._slots <= _SLOTS_TAKEN:
                    raise
                raise EntitiesRefused(error) from error  # one of them may be locked, as vcsim locks VMs

    @contextlib.contextmanager
    def _keeping_session(self) -> Iterator[None]:
        """Keep the session open while it is used, and for a while after, though no task may be tracked."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._used_at = self._monotonic()
            self._wake_up.set()

    # Finding tasks

    def find_tasks(self, follow: Follow, memory: Callable[[], FollowMemory]) -> AsyncGenerator[FoundBatch]:
        """Yield the classic tasks that a follow may be about, without end."""
        return self._finder.find_tasks(follow, memory)

    async def _prepare_finding(self) -> None:
        await self.prepare_lookup()
        await self._ensure_labels()

    def _remember_found(self, task: str, info: Info) -> None:
        """Remember a task as it was found, so that its watch begins without a poll."""
        self._found[task] = info, self._monotonic()
        if len(self._found) > _REMEMBERED_FOUND:
            del self._found[next(iter(self._found))]

    # The loop

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
            except Exception:
                # Whatever it is, the tasks of this vCenter must still be polled.
                log.exception("look_loop_failed", vcenter=self._name, api="vim")
                await asyncio.sleep(1.0)

    async def _step(self) -> None:
        while (wait_s := self._next_at() - self._monotonic()) > 0:
            await wait_for_event(self._wake_up, wait_s)
            self._wake_up.clear()
        now = self._monotonic()
        if self._end_late_at() <= now:
            await self._lose_push("The wait for updates doesn't show ends of tasks that polls show.")
        if not self._tracker.tasks:
            await self._rest(now)
            return
        try:
            await self._do_due(now)
        except Exception as error:
            await self._handle_failure(error, now)

    def _next_at(self) -> float:
        """Return when there is something to do, unless a wake-up comes before."""
        if not self._tracker.tasks:
            if self._is_failing:
                return -math.inf  # nothing would show the end of the failure
            is_idle = self._session.is_open and not self._users
            at = self._used_at + self._timeouts.idle_logout_s if is_idle else math.inf
            return min(at, self._end_late_at())
        at = min(self._transport.next_at, self._pull_all_at, self._end_late_at())
        if self._is_pushing:
            view = self._transport.view
            if self._awaits_vms and self._push is not None:
                at = min(at, self._push.vms_due_at)
            elif view.to_add or len(view.to_remove) > api.OBJECTS_MAX:
                at = min(at, self._view_changed_at + self._timeouts.gather_s)
            if self._has_listener_ended or self._needs_new_view:
                at = -math.inf
        return max(at, self._outage.retry_at)

    @property
    def _is_pushing(self) -> bool:
        return self._mode == "push" or (self._mode == "auto" and self._monotonic() >= self._pull_until)

    @property
    def _has_listener_ended(self) -> bool:
        return self._listener is not None and self._listener.done()

    @property
    def _awaits_vms(self) -> bool:
        """True while listed VMs haven't been shown yet: a change of the view might have to wait for them."""
        return self._push is not None and any(map(self._transport.questions.has_tasks, self._push.unreported_vms))

    @property
    def _needs_new_view(self) -> bool:
        """True without a view of this session, or if it lists VMs that may hold up the tasks."""
        push = self._push
        return push is None or not push.is_current or (self._transport.separate_questions and push.has_listed_vms)

    def _end_late_at(self) -> float:
        """Return when push will be late with the end of a task that a pull showed; infinity if there is none."""
        return math.inf if self._push is None else self._poller.first_pulled_end_at + self._timeouts.end_late_s

    async def _rest(self, now: float) -> None:
        """Log out if nobody has used the session for a while."""
        if not self._users and now >= self._used_at + self._timeouts.idle_logout_s:
            await self._stop_listening()
            await self._unshown_poller.loop.stop()
            await self._question_poller.loop.stop()
            self._transport.poll_questions_with_tasks()
            await self._session.close()
        self.health.reset()
        self._outage.record_answer(now)
        self._is_failing = False

    async def _do_due(self, now: float) -> None:
        """Do everything that is due. Raises VCenterUnavailable, and whatever ended the listener."""
        if self._listener is not None and self._listener.done():
            self._listener.result()
        self._used_at = now
        await self._ensure_labels()
        if self._awaits_vms and self._push is not None and now >= self._push.vms_due_at:
            self._transport.poll_questions_separately()
        if self._transport.separate_questions:
            self._question_poller.loop.ensure_running()
        if self._is_pushing:
            self._unshown_poller.loop.ensure_running()
            await self._update_view()
        else:
            await self._stop_listening()
            await self._unshown_poller.loop.stop()
        await self._poll_due(now)
        self._sessions_ended = 0
        self._note_answer()

    async def _ensure_labels(self) -> None:
        """Log in if needed, and fetch the descriptions of operations once a session. Raises VCenterUnavailable."""
        await self._session.ensure_logged_in()
        if self._labels_session != self._session.number:
            self._poller.labels = await api.fetch_labels(self._session)
            self._labels_session = self._session.number

    async def _poll_due(self, now: float) -> None:
        """Poll the tasks that are due by themselves and, without push, all."""
        due = self._transport.find_due(now)
        if now >= self._pull_all_at:
            due = list(self._tracker.tasks.values())
            self._pull_all_at = math.inf if self._is_pushing else now + self._timeouts.pull_interval_s
        for first in range(0, len(due), api.OBJECTS_MAX):
            await self._poller.poll(due[first : first + api.OBJECTS_MAX])

    async def _handle_failure(self, error: Exception, now: float) -> None:
        """Give up what the failure ended. Raise an error that is a bug."""
        has_session_ended = isinstance(error, SessionEnded)
        if (self._has_listener_ended and not has_session_ended) or isinstance(error, SoapFault):
            await self._stop_listening()
            if await self._is_answering():
                await self._lose_push(str(error))
            if isinstance(error, XmlOutOfBounds | AnswerTooLarge):
                self._poller.poll_all()  # which finds the task that is to blame
        if not isinstance(error, VCenterUnavailable):
            raise error
        if has_session_ended:
            await self._stop_listening()  # what belonged to the session is gone too
            self._sessions_ended += 1
        if not has_session_ended or self._sessions_ended > 1:
            self._note_unreachable(error, now)

    async def _is_answering(self) -> bool:
        """Pull a task: if vCenter doesn't answer that in this session, what failed wasn't push."""
        number = self._session.number
        try:
            await api.fetch_objects(self._session, list(islice(self._tracker.tasks, 1)))
        except VCenterUnavailable:
            return False
        return self._session.number == number

    def _note_unreachable(self, error: VCenterUnavailable, asked_at: float) -> None:
        self._tracker.absences.record_outage()
        self._outage.record_failure(error, asked_at, self._monotonic())
        self.health.record_failure(error)
        self._is_failing = True
        self._tracker.report_unreachable()

    def _note_answer(self) -> None:
        self._outage.record_answer(self._monotonic())

    # Push

    def _may_poll_beside(self) -> bool:
        """True while vCenter answers, or while nothing but a poll beside push can show that it answers again."""
        is_listening = self._listener is not None and not self._listener.done()
        is_due = is_listening and self._monotonic() >= self._outage.retry_at
        return self._session.is_open and (is_due or not self._outage.is_down)

    async def _update_view(self) -> None:
        """Create the view if there is none, bring it up to date, and start the listener."""
        transport = self._transport
        if self._push is None or self._needs_new_view:
            before = self._push
            await self._stop_listening()
            if before is not None and before.is_current:
                await before.close()
            push = await Push.open(self._session, self._pace, self._timeouts.vm_timeout_s, self._monotonic)
            transport.list_all([tracked.ref for tracked in self._tracker.tasks.values()])
            self._push, self._pull_all_at = push, math.inf
        if transport.view and not self._awaits_vms:
            add, remove = transport.view.take()
            self._view_changed_at = self._monotonic()
            try:
                missing = await self._push.modify(add, remove)
                self._poller.poll_refs(missing)
                for ref in missing:
                    self.on_missing(ref)
            except VmTimeout:
                transport.poll_questions_separately()  # and a new view lists everything
            except BaseException:
                transport.view.put_back(add, remove)
                raise
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen(self._push))

    async def _listen(self, push: Push) -> None:
        try:
            async for objects, asked_at in push.updates():
                self._poller.apply_updates(objects, asked_at)
                if self._transport.next_at < math.inf or self._transport.view.to_add:
                    self._wake_up.set()
        finally:
            self._wake_up.set()

    async def _stop_listening(self) -> None:
        listener, self._listener, self._push = self._listener, None, None
        self._poller.forget_pulled_ends()
        await _cancel(listener)

    async def _lose_push(self, reason: str) -> None:
        """Stop listening. After several losses in a while, pull instead for some time."""
        await self._stop_listening()
        now, timeouts, lost_at = self._monotonic(), self._timeouts, self._push_lost_at
        lost_at.append(now)
        log.info("push_lost", vcenter=self._name, reason=reason)
        is_frequent = len(lost_at) == timeouts.push_losses_max and now - lost_at[0] <= timeouts.push_losses_window_s
        if is_frequent and self._mode == "auto" and self._is_pushing:
            self._pull_until, self._pull_all_at = now + timeouts.push_retry_s, now
            lost_at.clear()
            log.warning("push_given_up", vcenter=self._name, for_s=timeouts.push_retry_s, reason=reason)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
