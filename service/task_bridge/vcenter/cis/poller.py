"""Polls of CIS tasks by list and by get, and what follows from each answer.

Each `poll` is about tasks that are POLLING. Afterwards none of them is: whatever happens, each is scheduled again or
parked.
"""

from __future__ import annotations

import asyncio
from itertools import islice

import msgspec
import structlog

from ...domain.errors import VCenterUnavailable
from ...domain.task import UNAVAILABLE, Rendering, Task
from ...domain.task_json import BodyOutOfBounds, UnreadableBody, size_of
from ...metrics import Metrics
from ..backoff import Outage
from ..health import ApiHealthTracker
from ..http import AmbiguousFailure, RequestBudget
from ..parsing import SHORT_BYTES, parse_task_outside_loop
from ..policy import Timeouts
from ..tracked_task import FORGOTTEN, POLLING, WAITING, TaskTracker
from .api import (
    BadAnswer,
    CisTasksApi,
    Listing,
    ListMissing,
    MissingTask,
    TaskAnswerTooLarge,
    TaskLister,
    TaskOutOfBounds,
    UnreadableAnswer,
)
from .renderings import Refusal
from .schedule import PollGroup, TrackedCisTask
from .transport import CisTransport

log = structlog.get_logger(__name__)

_AMBIGUOUS_LOGGED = 3
"""An ambiguous failure is logged when it comes so many times in a row."""
_PARTIAL_RESULTS_TRIED = 3
_FAILING_MAX = 20
_PARSED_BETWEEN_TURNS = 4 * SHORT_BYTES
"""Bytes of short bodies that are parsed between two turns of the event loop."""
_OTHERS_AFTER_LIST, _OTHERS_AFTER_GET = 200, 5
"""How many other tasks are polled at once when one has vanished."""


class CisPoller:
    """Polls of one vCenter's tasks, whose answers it hands to their tracker."""

    def __init__(
        self,
        tracker: TaskTracker[TrackedCisTask],
        transport: CisTransport,
        api: CisTasksApi,
        health: ApiHealthTracker,
        outage: Outage,
        metrics: Metrics,
        timeouts: Timeouts,
        budget: RequestBudget,
    ) -> None:
        self._tracker = tracker
        self._absences = tracker.absences
        self._transport = transport
        self._agenda = transport.agenda
        self._clock = transport.clock
        self._api = api
        self._lister = TaskLister(api)
        self._health = health
        self._outage = outage
        self._polled = metrics.looks.labels(tracker.vcenter)
        self._timeouts = timeouts
        self._budget = budget
        self._had_no_list = False
        self._failing: set[str] = set()
        self._good_polls_then = 0
        self._polled_others_at = float("-inf")

    def max_tasks(self, group: PollGroup) -> int:
        """Return how many tasks of the group one `poll` may ask for."""
        return 1 if group.method == "get" else self._lister.max_tasks(group)

    async def poll(self, group: PollGroup, batch: list[TrackedCisTask]) -> None:
        """Poll tasks of one group. Raises VCenterUnavailable if vCenter as a whole doesn't answer."""
        try:
            if group.method == "get":
                await self._get(batch[0])
            else:
                await self._list(group, batch)
        except VCenterUnavailable as error:
            self._tracker.last_refusal = error.answer or self._tracker.last_refusal
            if not isinstance(error, AmbiguousFailure) or self._outage.count_ambiguous_failure(self._clock()):
                raise
            self._handle_ambiguous_failure(group, batch, error)
        except Exception as error:
            if group.method == "list":
                raise
            self._handle_bug(batch[0], error)
        finally:
            group.in_flight -= 1
            self._retry_together(batch, self._transport.policy.poll_min_s)
            self._health.set_vanished_reason(self._absences.vanished_reason)

    def poll_others_now(self, provider: str = "", *, at_most: int = _OTHERS_AFTER_LIST) -> None:
        """Poll others soon, those of this provider first: a task that vanished may not have vanished alone."""
        now = self._clock()
        if now - self._polled_others_at < self._timeouts.confirm_s / 2:
            return
        self._polled_others_at = now
        waiting = [one for one in self._tracker.tasks.values() if one.phase == WAITING and not one.awaits_result]
        same = [one for one in waiting if one.provider == provider and one.id not in self._absences]
        chosen = same if len(same) >= at_most else waiting
        for tracked in self._transport.rng.sample(chosen, min(at_most, len(chosen))):
            self._agenda.schedule(tracked, now, now)

    # By list

    async def _list(self, group: PollGroup, batch: list[TrackedCisTask]) -> None:
        was_listed, error = False, None
        refused: list[TrackedCisTask] = []
        async for part in self._lister.list_in_parts(group, batch):
            if part.listing is not None:
                was_listed, group.failures = True, 0
                await self._apply_listing(group, part.tasks, part.listing)
            elif part.error is None:
                self._had_no_list = True
                self._get_instead(part.tasks)
            else:
                error = part.error
                refused += part.tasks[:1] if len(part.tasks) == 1 else []
                for tracked in part.tasks:
                    self._tracker.record_interruption(tracked)
        if was_listed or len(batch) == 1:
            for tracked in refused if not isinstance(error, ListMissing) else ():  # other lists work
                tracked.listable_from = self._clock() + self._timeouts.relist_s
            self._get_instead(refused)
        elif error is not None:
            self._handle_failed_list(group, batch, error)

    async def _apply_listing(self, group: PollGroup, batch: list[TrackedCisTask], listing: Listing) -> None:
        now = self._clock()
        self._had_no_list = False
        self._record_good_poll(now, group.provider)
        bodies, rendering, _ = listing
        for task in islice(bodies, 2):
            self._absences.record_shown(task, group.provider, now)
        unchanged: list[TrackedCisTask] = []
        none_absent, parsed_bytes = not self._absences, 0
        for tracked in batch:
            body = bodies.get(tracked.id)
            if body is None:
                self._handle_unlisted(tracked, now)
            elif (
                tracked.fingerprint == hash(bytes(body))
                and none_absent
                and tracked.phase == POLLING
                and not (tracked.awaits_result or tracked.failures)
            ):
                unchanged.append(tracked)
            else:
                await self._apply_list_entry(tracked, body, rendering)
                parsed_bytes += size_of(body)
                if parsed_bytes > _PARSED_BETWEEN_TURNS:
                    parsed_bytes = 0
                    await asyncio.sleep(0)
        # While others were parsed, some may have been forgotten.
        self._report_unchanged([tracked for tracked in unchanged if tracked.phase == POLLING], now)
        if not group.results:
            self._polled.inc(len(batch))

    async def _apply_list_entry(self, tracked: TrackedCisTask, body: msgspec.Raw, rendering: Rendering) -> None:
        try:
            await self._apply_body(tracked, body, rendering)
        except Exception as error:
            self._handle_bug(tracked, error)

    def _handle_failed_list(self, group: PollGroup, batch: list[TrackedCisTask], error: BadAnswer) -> None:
        """Let all wait but one, whose get shows whether tasks can be had at all: no list works."""
        self._record_answer()
        self._tracker.last_refusal = error.answer
        group.failures += 1
        self._health.record_failure(error, group.provider)
        self._get_instead(batch[:1])
        self._retry_together(batch, self._tracker.backoff_s(group.failures))

    def _handle_ambiguous_failure(self, group: PollGroup, batch: list[TrackedCisTask], error: AmbiguousFailure) -> None:
        """Let these tasks wait: the failure may concern them or their provider alone. Log it when it persists."""
        if group.method == "get":
            self._record_failed_poll(batch[0], str(error))
            self._handle_unreadable(batch[0], error, _AMBIGUOUS_LOGGED)
            return
        self._health.record_failed_poll(str(error))
        for tracked in batch:
            self._tracker.record_interruption(tracked)
        group.failures += 1
        if group.failures >= _AMBIGUOUS_LOGGED:
            self._health.record_failure(error, group.provider)
        self._retry_together(batch, self._tracker.backoff_s(group.failures))

    def _retry_together(self, batch: list[TrackedCisTask], wait_s: float) -> None:
        due = self._clock() + wait_s
        for tracked in batch:
            if tracked.phase == POLLING:
                self._tracker.retry_at(tracked, due)

    def _get_instead(self, those: list[TrackedCisTask]) -> None:
        now = self._clock()
        for tracked in those:
            if tracked.phase == POLLING:
                tracked.by_get = True
                self._agenda.queue(tracked, now, before_others=tracked.is_urgent)

    def _handle_unlisted(self, tracked: TrackedCisTask, now: float) -> None:
        """Handle a task that a list doesn't show, which proves less than an answer about it alone."""
        if tracked.phase != POLLING:
            return
        if tracked.awaits_result:
            self._get_instead([tracked])
            return
        if self._tracker.mark_missing(tracked):
            self.poll_others_now(tracked.provider, at_most=_OTHERS_AFTER_LIST)
        if tracked.is_urgent or self._absences.confirm_at(tracked.id, now) <= now:
            self._get_instead([tracked])
        else:
            self._tracker.retry_missing(tracked)

    # By get

    async def _get(self, tracked: TrackedCisTask) -> None:
        tracked.by_get = False
        try:
            answer = await self._api.get_task(
                tracked.id, with_result=tracked.needs_result, return_all=tracked.needs_all
            )
        except BadAnswer as error:
            self._handle_bad_answer(tracked, error)
            return
        now = self._clock()
        if not tracked.awaits_result:
            self._polled.inc()
        if isinstance(answer, MissingTask):
            self._handle_missing(tracked, answer)
            return
        self._relist_later(tracked, now)
        self._record_good_poll(now, tracked.provider)
        self._absences.record_shown(tracked.id, tracked.provider, now)
        await self._apply_body(tracked, answer.body, answer.rendering)

    def _relist_later(self, tracked: TrackedCisTask, now: float) -> None:
        """Stop listing for a while what lists don't show though a get does."""
        relist_at = now + self._timeouts.relist_s
        if self._had_no_list:
            self._had_no_list = False
            self._agenda.lists_from = relist_at
        if self._absences.is_only_unlisted(tracked.id):
            tracked.listable_from = relist_at
        if tracked.home is not None and tracked.home.failures:
            tracked.home.failures = 0
            tracked.home.listable_from = relist_at

    def _handle_missing(self, tracked: TrackedCisTask, missing: MissingTask) -> None:
        if missing.refusal is not Refusal.TASK:
            self._handle_no_service(tracked, missing)
            return
        self._record_good_poll(self._clock(), tracked.provider)
        if tracked.phase != POLLING:
            return
        if tracked.awaits_result:
            self._give_up_result(tracked, "vCenter no longer shows the task.")
            return
        if self._tracker.mark_missing(tracked):
            self.poll_others_now(tracked.provider, at_most=_OTHERS_AFTER_GET)
        if self._tracker.confirm_missing(tracked, is_denied=missing.denied):
            self._tracker.report_absence(tracked, missing.answer, is_denied=missing.denied)
        else:
            self._tracker.retry_missing(tracked, missing.answer)

    def _handle_no_service(self, tracked: TrackedCisTask, missing: MissingTask) -> None:
        """Poll the task again: a router or a proxy answered, and the service behind it may be restarting."""
        self._record_answer()
        self._tracker.last_refusal = missing.answer
        reason = f"vCenter doesn't offer this task's service: {missing.answer.message}"
        self._record_failed_poll(tracked, reason)
        if tracked.phase != POLLING:
            return
        if tracked.awaits_result:
            self._tracker.retry_at(tracked, self._clock() + self._tracker.backoff_s(1))
        else:
            self._handle_unreadable(tracked, BadAnswer(reason), _AMBIGUOUS_LOGGED)

    # Tasks that vCenter shows

    async def _apply_body(self, tracked: TrackedCisTask, body: bytes | msgspec.Raw, rendering: Rendering) -> None:
        """Report the task if it changed. `body` is its JSON."""
        if tracked.phase != POLLING:
            return
        task, fingerprint = tracked.task, hash(bytes(body))
        if task is None or tracked.awaits_result or fingerprint != tracked.fingerprint:
            try:
                task = await parse_task_outside_loop(
                    body, rendering, with_result=tracked.needs_result, with_extra=tracked.with_details
                )
            except UnreadableBody as error:
                self._handle_unreadable_body(tracked, error)
                return
            if tracked.phase != POLLING:
                return  # forgotten while it was parsed
            task = self._tracker.add_known_names(task)
        if tracked.awaits_result:
            self._apply_result(tracked, task)
            return
        self._tracker.mark_seen(tracked)
        if task == tracked.task:
            self._report_unchanged([tracked], self._clock())
        else:
            self._report_change(tracked, task)
        tracked.fingerprint = fingerprint
        if self._tracker.mark_readable(tracked):
            log.info("task_readable_again", vcenter=self._tracker.vcenter, task=tracked.id)

    def _handle_unreadable_body(self, tracked: TrackedCisTask, error: UnreadableBody) -> None:
        if tracked.phase != POLLING:
            return
        if not tracked.awaits_result:
            self._tracker.mark_seen(tracked)
        kind = TaskOutOfBounds if isinstance(error, BodyOutOfBounds) else UnreadableAnswer
        self._handle_bad_answer(tracked, kind(f"vCenter shows what can't be read: {error}."))

    def _report_unchanged(self, those: list[TrackedCisTask], now: float) -> None:
        self._tracker.report_unchanged(those)
        self._transport.schedule_next(those, now)

    def _report_change(self, tracked: TrackedCisTask, task: Task) -> None:
        """Report a new state. Then fetch what is missing of an ended task: its result, or all that vCenter knows."""
        self._transport.note_change(tracked, task)
        self._tracker.log_unavailable_result(tracked, task)
        tracked.task = task
        if not task.ended or (task.result is not None and tracked.with_details):
            self._tracker.report(tracked, task)
        else:
            self._tracker.report(tracked, msgspec.structs.replace(task, result=None))
            # Results are gathered, unless there are requests enough.
            wait_s = 0.0 if self._budget.is_plentiful else self._timeouts.gather_results_s
            self._transport.schedule_result(tracked, wait_s)
            asyncio.get_running_loop().call_later(
                self._timeouts.result_s, self._give_up_result, tracked, "vCenter didn't show it in time."
            )

    def _apply_result(self, tracked: TrackedCisTask, task: Task) -> None:
        if task.ended:
            self._tracker.log_unavailable_result(tracked, task)
            self._tracker.report(tracked, task)
        else:
            self._handle_bad_answer(tracked, BadAnswer("vCenter shows the task that ended as if it hadn't."))

    def _give_up_result(self, tracked: TrackedCisTask, reason: str) -> None:
        """Report the ended task as its last poll showed it, unless it has been reported by now."""
        if not tracked.awaits_result or tracked.phase == FORGOTTEN or tracked.task is None:
            return
        task = tracked.task
        if task.result is None:
            log.warning("result_unavailable", vcenter=self._tracker.vcenter, task=tracked.id, reason=reason)
            task = msgspec.structs.replace(task, result=UNAVAILABLE)
        self._tracker.report(tracked, task)

    # Failures

    def _handle_bad_answer(self, tracked: TrackedCisTask, error: BadAnswer) -> None:
        """Log it once and poll less and less often: the answer concerns this task alone."""
        self._record_answer()
        self._tracker.last_refusal = error.answer
        self._record_failed_poll(tracked, str(error))
        may_be_return_all = isinstance(error, UnreadableAnswer) and tracked.needs_all and tracked.phase == POLLING
        if may_be_return_all and self._api.forgo_return_all(tracked.id, str(error)):
            self._get_instead([tracked])
            return
        is_too_large = isinstance(error, TaskAnswerTooLarge | TaskOutOfBounds)
        if tracked.awaits_result and is_too_large:
            self._give_up_result(tracked, str(error))
            return
        self._handle_unreadable(tracked, error, log_after=1)
        if is_too_large or tracked.failures >= _PARTIAL_RESULTS_TRIED:
            self._ask_for_less(tracked, str(error))

    def _ask_for_less(self, tracked: TrackedCisTask, reason: str) -> None:
        """Stop asking for partial results and details, since the task's state without them is better than nothing."""
        if tracked.with_result:
            log.warning("partial_results_stopped", vcenter=self._tracker.vcenter, task=tracked.id, reason=reason)
        if tracked.with_details:
            log.warning("details_stopped", vcenter=self._tracker.vcenter, task=tracked.id, reason=reason)
        if tracked.with_result or tracked.with_details:
            tracked.with_result, tracked.with_details, tracked.home = False, False, None

    def _handle_unreadable(self, tracked: TrackedCisTask, error: Exception, log_after: int) -> None:
        is_whole_group = tracked.home is not None and tracked.home.failures > 0  # its own log line says so
        self._tracker.mark_unreadable(tracked, str(error), log_after=log_after, logs=not is_whole_group)
        if tracked.phase == POLLING:
            self._tracker.retry_later(tracked)

    def _handle_bug(self, tracked: TrackedCisTask, error: Exception) -> None:
        """Log a fault of the bridge over one task, which mustn't keep the others from being polled."""
        if not tracked.failures:
            log.error("look_failed", vcenter=self._tracker.vcenter, task=tracked.id, exc_info=error)
        tracked.failures += 1
        if tracked.phase == POLLING:
            self._tracker.retry_later(tracked)

    def _record_failed_poll(self, tracked: TrackedCisTask, reason: str) -> None:
        """Count a failure of one task. It degrades vCenter's health only when most tasks, or many, fail in a row
        without a good poll between: one bad task among others must not make it flap.
        """
        if self._good_polls_then != self._health.good_polls:
            self._good_polls_then = self._health.good_polls
            self._failing.clear()
        self._failing.add(tracked.id)
        if len(self._failing) > min(len(self._tracker.tasks) / 2, _FAILING_MAX):
            self._health.record_failed_poll(reason)

    def _record_good_poll(self, now: float, provider: str) -> None:
        self._absences.record_answer(now)
        self._record_answer()
        self._health.record_good_poll(now, provider)

    def _record_answer(self) -> None:
        """Record that vCenter answered, whatever it said."""
        self._tracker.last_refusal = None
        self._outage.record_answer(self._clock())
        self._health.record_answer()
