"""Pulls and pushed updates of classic tasks, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import structlog

from ...domain.errors import VCenterUnavailable
from ...domain.task import TaskError, TaskIdentity
from ...logs import FailureLog
from ...metrics import Metrics
from ..health import ApiHealthTracker
from ..http import AnswerTooLarge
from ..policy import VimTimeouts
from ..tracked_task import FORGOTTEN, PARKED, TaskTracker
from . import api
from .answers import ObjectState
from .api import VmTimeout
from .history import fetch_history
from .session import VimSession
from .soap import Ref, SoapFault, UnreadableXml, XmlOutOfBounds
from .taskinfo import LIVE, NOT_LIVE, VALUES, Info, build_substitutes, build_task, has_ended, parse_identity
from .transport import TrackedVimTask, VimTransport

log = structlog.get_logger(__name__)

_NOT_FOUND = TaskError("ManagedObjectNotFound", "The task object has been deleted, or never was.")
_OTHER = TaskError("ManagedObjectNotFound", "vCenter was restarted and gave the id to another task.")
_HISTORY_DENIED = {"NoPermission", "RestrictedByAdministrator", "NotSupported"}
_NO_LIVE_FIELDS: Info = dict.fromkeys(LIVE)
"""vCenter leaves out what has no value."""
_SKEW_S = 3_600.0
"""How far vCenter's clock may be from ours when its history is searched by time."""


class _Missing(NamedTuple):
    """A tracked task that vCenter didn't show, and why."""

    tracked: TrackedVimTask
    answer: TaskError
    is_denied: bool = False


class VimPoller:
    """Updates and polls of one vCenter's tasks, which it hands to their tracker. `labels`: of description ids."""

    def __init__(
        self,
        tracker: TaskTracker[TrackedVimTask],
        transport: VimTransport,
        session: VimSession,
        health: ApiHealthTracker,
        timeouts: VimTimeouts,
        metrics: Metrics,
        wall_clock: Callable[[], float],
    ) -> None:
        self.labels: dict[str, str] = {}
        self._tracker = tracker
        self._absences = tracker.absences
        self._transport = transport
        self._session = session
        self._health = health
        self._timeouts = timeouts
        self._polled = metrics.looks.labels(tracker.vcenter)
        self._poll_min_s, self._poll_max_s = transport.policy.poll_min_s, transport.policy.poll_max_s
        self._clock = transport.clock
        self._wall_clock = wall_clock
        self._unchanged_reported_at = self._clock()
        self._history_log = FailureLog(log, "history_unavailable", "history_available_again")
        self._to_report: dict[str, TrackedVimTask] = {}
        self._pulled_ends: dict[Ref, float] = {}

    # Push

    def apply_updates(self, objects: list[ObjectState], asked_at: float) -> None:
        """Apply an update set that was asked for at this time. What it doesn't show is unchanged."""
        now = self._clock()
        self._record_good_poll(now)
        self._polled.inc(len(objects))
        for one in objects:
            self._pulled_ends.pop(one.ref, None)
            if (tracked := self._tracker.tasks.get(one.ref.id)) is not None:
                tracked.updated_at, tracked.shown_at = now, max(tracked.shown_at, asked_at)
            if (missing := self._apply(one)) is not None:
                self._transport.poll_at(missing.tracked, now)  # an answer about it alone decides
        self._report_changes()
        if now - self._unchanged_reported_at >= self._poll_max_s:
            self._unchanged_reported_at = now
            pushed = [one for one in self._tracker.tasks.values() if one.due is None and one.task is not None]
            self._tracker.report_unchanged([one for one in pushed if one.phase != PARKED])

    def poll_refs(self, refs: Iterable[Ref]) -> None:
        """Poll the tasks among objects that the view couldn't list, because vCenter doesn't have them."""
        for ref in refs:
            if ref.type == "Task" and (tracked := self._tracker.tasks.get(ref.id)):
                self._transport.poll_at(tracked, self._clock())

    @property
    def first_pulled_end_at(self) -> float:
        """When a pull showed the first of the ends that push hasn't shown yet; infinity if there is none."""
        return min(self._pulled_ends.values(), default=math.inf)

    def poll_all(self) -> None:
        """Poll every task as soon as possible."""
        now = self._clock()
        for tracked in self._tracker.tasks.values():
            self._transport.poll_at(tracked, now)

    def forget_pulled_ends(self) -> None:
        self._pulled_ends.clear()

    # Polls

    async def poll(self, those: list[TrackedVimTask]) -> None:
        """Poll these tasks, and the VMs whose questions may block them. Raises VCenterUnavailable."""
        started_at = self._clock()
        for tracked in those:
            # Unless the answer shows it, the task is polled again, whatever happens.
            self._transport.poll_at(tracked, started_at + self._poll_min_s)
        missing = {one.id: _Missing(one, _NOT_FOUND) for one in those}
        with_vm = [one for one in those if one.vm]
        objects = await self._fetch([one.id for one in those], missing, failures=[], with_vms=True)
        shown = self._apply_answer(objects, missing, started_at)
        for tracked in with_vm:
            tracked.awaits_question = False
        self._report_changes()
        for tracked in shown:
            if not (tracked.failures or tracked.awaits_question):
                if tracked.phase != PARKED:
                    self._tracker.report_unchanged([tracked])
                self._transport.cancel_poll(tracked)
        await self._handle_missing([one for one in missing.values() if one.tracked.phase != FORGOTTEN])

    async def poll_beside_push(self, those: list[TrackedVimTask]) -> None:
        """Poll these tasks without their VMs, which may hold up an answer. Raises VCenterUnavailable.

        All of a task is only asked for if its state has changed, since whole tasks take twice the CPU to read. A task
        that isn't shown, or that changed and has a VM, is polled by itself then. An end needs no more.
        """
        started_at = self._clock()
        missing = {one.id: _Missing(one, _NOT_FOUND) for one in those}
        before = {one.id: one.info for one in those}
        changed, in_other_state, unchanged = list[ObjectState](), list[str](), list[TrackedVimTask]()
        for one in await self._fetch(list(missing), missing, failures=[], with_vms=False, without=NOT_LIVE):
            tracked = self._tracker.tasks.get(one.ref.id)
            if tracked is None:
                continue
            if self._is_known(tracked, one):
                unchanged.append(tracked)
                missing.pop(tracked.id, None)
            elif one.info and one.info.get("state") != tracked.info.get("state"):
                in_other_state.append(tracked.id)
            else:
                changed.append(one._replace(info=one.info and {**_NO_LIVE_FIELDS, **one.info}, is_complete=False))
        self._note_unchanged(unchanged, started_at)
        if in_other_state:
            changed += await self._fetch(in_other_state, missing, failures=[], with_vms=False)
        shown = self._apply_answer(changed, missing, started_at)
        for tracked in shown:
            if tracked.vm and tracked.info != before[tracked.id] and not tracked.is_shown_ended:
                tracked.awaits_question = True
        self._report_changes()
        self._tracker.report_unchanged([one for one in shown if one.phase != PARKED and not one.awaits_question])
        for absent in missing.values():
            self._transport.poll_at(absent.tracked, started_at)

    def _is_known(self, tracked: TrackedVimTask, shown: ObjectState) -> bool:
        """Return True if these fields are as they were when the task was reported: nothing follows from them."""
        if tracked.task is None or tracked.failures or tracked.awaits_question or tracked.is_other:
            return False
        if not shown.info or tracked.id in self._absences:
            return False
        return all(shown.info.get(field) == tracked.info.get(field) for field in LIVE)

    def _note_unchanged(self, those: list[TrackedVimTask], started_at: float) -> None:
        for tracked in those:
            tracked.shown_at = max(tracked.shown_at, started_at)
        for tracked in those[:2]:
            self._absences.record_shown(tracked.id, tracked.provider, self._clock())
        self._tracker.report_unchanged([one for one in those if one.phase != PARKED])

    async def _fetch(
        self,
        tasks: list[str],
        missing: dict[str, _Missing],
        failures: list[Exception],
        *,
        with_vms: bool,
        without: tuple[str, ...] = (),
    ) -> list[ObjectState]:
        """Fetch the tasks and their VMs, by halves if the answer is refused or can't be read.

        The task that is to blame is alone at last. It is unreadable and not `missing`. `without`: fields to leave out.
        """
        with_vms = with_vms and not self._transport.separate_questions
        found = [one for task in tasks if (one := self._tracker.tasks.get(task))]
        vms = {one.vm for one in found if one.vm and with_vms}
        try:
            objects = await api.fetch_objects(self._session, tasks, vms, self._timeouts.vm_timeout_s, without=without)
        except VmTimeout:
            self._transport.poll_questions_separately()
            return await self._fetch(tasks, missing, failures, with_vms=False, without=without)
        except (UnreadableXml, AnswerTooLarge, SoapFault) as error:
            failures.append(error)
            if len(failures) > 4 + 2 * len(missing).bit_length():
                raise
            if len(tasks) == 1:
                return await self._fetch_unreadable(tasks[0], missing, error)
        else:
            self._polled.inc(len(tasks))
            self._record_good_poll(self._clock())
            return objects
        middle = len(tasks) // 2
        found_in_halves = list[ObjectState]()
        for half in (tasks[:middle], tasks[middle:]):
            found_in_halves += await self._fetch(half, missing, failures, with_vms=with_vms, without=without)
        return found_in_halves

    async def _fetch_unreadable(
        self, task: str, missing: dict[str, _Missing], error: VCenterUnavailable
    ) -> list[ObjectState]:
        """Fetch the task without its result, then without its error too, if that is what the bridge can't read."""
        for without in (VALUES[:1], VALUES) if isinstance(error, XmlOutOfBounds | AnswerTooLarge) else ():
            try:
                objects = await api.fetch_objects(self._session, [task], without=without)
            except (UnreadableXml, AnswerTooLarge, SoapFault):
                continue
            self._polled.inc()
            self._record_good_poll(self._clock())
            substitutes = build_substitutes(without, str(error).removesuffix("."))
            return [one._replace(info=one.info | substitutes) if one.info else one for one in objects]
        missing.pop(task, None)
        if (tracked := self._tracker.tasks.get(task)) is not None:
            self._handle_unreadable(tracked, str(error))
        return []

    def _apply_answer(
        self, objects: list[ObjectState], missing: dict[str, _Missing], started_at: float
    ) -> list[TrackedVimTask]:
        """Apply the answer to a poll. Return the tasks that it shows, and keep in `missing` those that it doesn't."""
        shown = []
        for one in objects:
            tracked = self._tracker.tasks.get(one.ref.id)
            if tracked is not None and tracked.updated_at > started_at and not has_ended(one.info):
                missing.pop(tracked.id, None)  # an update that came meanwhile is newer
                continue
            was_ended = tracked is not None and tracked.is_shown_ended
            reason = self._apply(one)
            if tracked is not None and reason is None:
                self._note_pulled(tracked, started_at, is_new_end=not was_ended and tracked.is_shown_ended)
            if one.ref.type == "Task" and one.ref.id in missing:
                del missing[one.ref.id]
                if reason is not None:
                    missing[one.ref.id] = reason
                elif tracked is not None:
                    shown.append(tracked)
        return shown

    def _note_pulled(self, tracked: TrackedVimTask, started_at: float, *, is_new_end: bool) -> None:
        tracked.shown_at = max(tracked.shown_at, started_at)
        if is_new_end and tracked.ref not in self._transport.view.to_add:
            self._pulled_ends[tracked.ref] = self._clock()

    async def fetch_identity(self, task: str) -> TaskIdentity | None:
        """Return the identity of the task that has this id now, None if vCenter shows none.

        Raises VCenterUnavailable.
        """
        objects = await api.fetch_objects(self._session, [task], without=VALUES)
        return next((parse_identity(one.info) for one in objects if one.ref.id == task and one.info.get("state")), None)

    # Objects that vCenter shows

    def apply_questions(self, objects: list[ObjectState]) -> None:
        """Apply the answer to a separate poll of VMs."""
        for one in objects:
            self._apply_question(one)
        self._report_changes()

    def _apply(self, shown: ObjectState) -> _Missing | None:
        """Apply an object. Return the reason if it is a tracked task that isn't shown."""
        if shown.ref.type == "VirtualMachine":
            self._apply_question(shown)
            return None
        tracked = self._tracker.tasks.get(shown.ref.id)
        if tracked is None:
            return None
        if shown.is_withheld:
            self._handle_unreadable(tracked, "vCenter withholds it as from somebody who isn't logged in")
            return None
        if shown.is_gone or not (shown.info or shown.denied):
            return _Missing(tracked, _NOT_FOUND)
        if shown.denied:
            return _Missing(tracked, TaskError(shown.denied, "vCenter refuses to show this task."), is_denied=True)
        if not tracked.apply_info(shown.info, is_complete=shown.is_complete):
            return _Missing(tracked, _OTHER)
        if self._tracker.mark_seen(tracked):
            self.update_health()
            self._transport.list_in_view(tracked.ref, tracked)
        self._absences.record_shown(tracked.id, tracked.provider, self._clock())
        self._to_report[tracked.id] = tracked
        return None

    def _apply_question(self, shown: ObjectState) -> None:
        if shown.has_question_field:
            self._transport.questions.put(shown.ref.id, shown.question)
            blocked = self._transport.questions.tasks_on(shown.ref.id)
            self._to_report |= {task: self._tracker.tasks[task] for task in blocked}

    def _report_changes(self) -> None:
        """Report what changed, once all is applied: a VM's question and its task change in one moment."""
        those, self._to_report = self._to_report, {}
        for tracked in those.values():
            if tracked.phase != PARKED:
                self.report_change(tracked)

    def report_change(self, tracked: TrackedVimTask) -> None:
        """Report the task if what vCenter has shown so far differs from the last report."""
        task = build_task(tracked.info, self._transport.questions.get(tracked.vm), self.labels)
        if task is None:
            self._handle_unreadable(tracked, "it has no state")
            return
        task = self._tracker.add_known_names(task)
        self._tracker.mark_readable(tracked)
        if task.ended:
            self._transport.end_question(tracked)
        else:
            self._transport.start_question(tracked)
        if tracked.vm is None or self._transport.separate_questions:
            tracked.awaits_question = False
        if tracked.awaits_question:
            self._transport.poll_at(tracked, self._clock())  # with its VM, or BLOCKED would be reported as RUNNING
        elif task != tracked.task:
            self._tracker.log_unavailable_result(tracked, task)
            self._tracker.report_task(tracked, task)

    def _handle_unreadable(self, tracked: TrackedVimTask, reason: str) -> None:
        """Poll the task less and less often: this concerns it alone."""
        vcenter = self._tracker.vcenter
        self._health.record_failed_poll(f"vCenter {vcenter} shows {tracked.id} as what can't be read: {reason}")
        self._tracker.mark_unreadable(tracked, reason)
        self._tracker.retry_later(tracked)

    # Tasks that vCenter doesn't show

    async def _handle_missing(self, missing: list[_Missing]) -> None:
        """Search vCenter's history for missing tasks before they are reported as lost or denied."""
        confirmed: list[_Missing] = []
        unconfirmed: list[_Missing] = []
        for one in missing:
            (confirmed if self._is_confirmed(one) else unconfirmed).append(one)
        self.update_health()
        undenied = [one for one in missing if not one.is_denied]
        searched = [one.tracked for one in undenied if one in confirmed or not one.tracked.history_read]
        if searched:
            await self._read_history(searched)
        for one in confirmed:
            if one.is_denied or self._is_history_settled(one.tracked):
                self._report_absence(one)
            else:
                unconfirmed.append(one)
        for one in unconfirmed:
            self._tracker.retry_missing(one.tracked, one.answer)

    def _is_confirmed(self, missing: _Missing) -> bool:
        """Record vCenter's answer. Return True if it suffices to report the task as lost or denied."""
        if missing.tracked.is_other:
            self._tracker.mark_replaced(missing.tracked)
        else:
            self._tracker.mark_missing(missing.tracked)
        return self._tracker.confirm_missing(missing.tracked, is_denied=missing.is_denied)

    def _report_absence(self, missing: _Missing) -> None:
        """Report a task that the history doesn't show either."""
        if self._tracker.is_missing(missing.tracked):
            missing.tracked.task = None
            self._tracker.report_absence(missing.tracked, missing.answer, is_denied=missing.is_denied)

    # vCenter's history

    async def _read_history(self, those: list[TrackedVimTask]) -> None:
        """Report the ends of tasks that only vCenter's history still shows. Raises VCenterUnavailable."""
        queued = [one.identity.queued_at if one.identity else None for one in those]
        begins = [at or one.since - self._timeouts.history_lookback_s for at, one in zip(queued, those, strict=True)]
        end = self._wall_clock() + _SKEW_S if None in queued else max(at for at in queued if at) + 60.0
        identities = {one.id: one.identity for one in those}
        try:
            infos = await fetch_history(self._session, identities, min(begins) - 60.0, end)
        except SoapFault as fault:
            self._handle_refused_history(those, fault)
            return
        self._history_log.report_recovery(vcenter=self._tracker.vcenter)
        for tracked in those:
            tracked.history_read, tracked.history_refused_at = True, None
            if has_ended(info := infos.get(tracked.id, {})):
                self.apply_found(tracked, info)

    def apply_found(self, tracked: TrackedVimTask, info: Info) -> None:
        """Report a task as a history showed it. One that has ended needs no poll then."""
        task = build_task(info, None, self.labels)
        if task is None or tracked.phase == FORGOTTEN or not tracked.apply_info(info, is_complete=True):
            return
        self._tracker.mark_seen(tracked)
        if task.ended:
            self._transport.cancel_poll(tracked)
        if tracked.phase != PARKED:
            self.report_change(tracked)

    def _handle_refused_history(self, those: list[TrackedVimTask], fault: SoapFault) -> None:
        self._history_log.report_failure(vcenter=self._tracker.vcenter, reason=str(fault))
        for tracked in those:
            if fault.kind in _HISTORY_DENIED:
                tracked.history_read, tracked.history_refused_at = True, None
            elif tracked.history_refused_at is None:
                tracked.history_refused_at = self._clock()

    def _is_history_settled(self, tracked: TrackedVimTask) -> bool:
        """Return True if there is no reason to ask for the history once more before the task is reported as lost."""
        refused_at = tracked.history_refused_at
        return not tracked.seen or refused_at is None or self._clock() - refused_at >= self._timeouts.history_retry_s

    # vCenter's state

    def update_health(self) -> None:
        """Tell the health why tasks that vanished together aren't given up yet, or that there are none."""
        self._health.set_vanished_reason(self._absences.vanished_reason)

    def _record_good_poll(self, now: float) -> None:
        self._absences.record_answer(now)
        self._health.record_good_poll(now)
