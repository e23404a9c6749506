"""What follows from what vCenter tells of the followed tasks: shown, changed, absent, or nothing that helps."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

import structlog

from ...domain.ports import UNCHANGED, PollResult, Unanswered
from ...domain.task import TaskError, TaskIdentity
from ...domain.watch import Absence
from ...logs import FailureLog
from ...metrics import Metrics
from ..absence import Absences
from ..health import VCenterHealthTracker
from ..http import AnswerTooLarge
from ..outage import backoff_s
from ..policy import PollPolicy
from ..result_queue import ResultQueue
from . import api as methods
from .api import HeldUp, ObjectState
from .followed import Questions, TrackedVimTask
from .patience import VimTimeouts
from .session import VimSession
from .soap import Ref, SoapFault, UnreadableXml
from .taskinfo import Info, build_task, parse_identity

log = structlog.get_logger(__name__)

_NOT_FOUND = TaskError("ManagedObjectNotFound", "The task object has been deleted, or never was.")
_OTHER = TaskError("ManagedObjectNotFound", "vCenter was restarted and gave the id to another task.")
_SKEW_S = 3_600.0
"""How far vCenter's clock may be from ours, where its history is asked by time."""


class _Gone(NamedTuple):
    """A task that an answer about it didn't show, and why."""

    followed: TrackedVimTask
    answer: TaskError
    denied: bool = False


class VimTaskTracker:
    """The followed classic tasks of one vCenter. `to_add` and `to_remove`: what the view is to list. `apart`: no VM
    is listed or asked about together with tasks.
    """

    def __init__(
        self,
        vcenter: str,
        session: VimSession,
        finds: ResultQueue,
        health: VCenterHealthTracker,
        absences: Absences,
        policy: PollPolicy,
        patience: VimTimeouts,
        metrics: Metrics,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._vcenter = vcenter
        self._session = session
        self._finds = finds
        self._health = health
        self._absences = absences
        self._policy = policy
        self._patience = patience
        self._counted = metrics.looks.labels(vcenter)
        self._clock = clock
        self._wall_clock = wall_clock
        self._rng = rng
        self._all_good_at = clock()
        self._no_history = FailureLog(log, "history_unavailable", "history_available_again")
        self.tasks: dict[str, TrackedVimTask] = {}
        self._asking: dict[str, TrackedVimTask] = {}
        self._to_tell: dict[str, TrackedVimTask] = {}
        self.questions = Questions()
        self.labels: dict[str, str] = {}
        self.to_add: dict[Ref, None] = {}
        self.to_remove: dict[Ref, None] = {}
        self.apart = False

    # What is asked for

    def follow(self, task: str, since: float, birth: TaskIdentity | None, *, seen: bool) -> None:
        self.forget(task)
        followed = self.tasks[task] = TrackedVimTask(task, since, seen, birth, resumed=seen)
        self._list(followed.ref, followed)

    def again(self, task: str) -> None:
        followed = self.tasks.get(task)
        if followed is not None and followed.parked:
            followed.parked = False
            if followed.task is None:
                self._ask_later(followed, self._clock() + self._policy.poll_min_s)  # it was absent
            else:
                self._tell(followed)

    def hurry(self, task: str) -> None:
        if (followed := self.tasks.get(task)) is not None:
            followed.hurried = True
            self._asking[task] = followed

    def forget(self, task: str) -> None:
        if (followed := self.tasks.pop(task, None)) is not None:
            self._asking.pop(task, None)
            self._unlist(followed.ref)
            self._end_question(followed)
            self._absences.forget(task)
            self._health.hold(self._absences.holding)

    def list_all(self) -> None:
        """The view is new: everything is to be listed."""
        self.to_remove.clear()
        self.to_add = dict.fromkeys([one.ref for one in self.tasks.values()])
        self._list_vms()

    def poll_questions_separately(self) -> None:
        """A VM holds up what it is listed or asked about with: tasks are to go on without the questions."""
        if not self.apart:
            self.apart = True
            log.info("questions_asked_apart", vcenter=self._vcenter)

    def poll_questions_with_tasks(self) -> None:
        if self.apart:
            self.apart = False
            self._list_vms()
            log.info("questions_asked_together", vcenter=self._vcenter)

    def relist(self, add: list[Ref], remove: list[Ref]) -> None:
        """Whether the view was changed isn't known: once more, but for what came to be otherwise meanwhile."""
        self.to_add |= {ref: None for ref in add if ref not in self.to_remove}
        self.to_remove |= {ref: None for ref in remove if ref not in self.to_add}

    def unresolved(self, refs: Iterable[Ref]) -> None:
        """vCenter has no such objects to list."""
        for ref in refs:
            if ref.type == "Task" and (followed := self.tasks.get(ref.id)):
                self._ask_later(followed, self._clock())

    def due(self, now: float) -> list[TrackedVimTask]:
        """Those that are to be asked about alone, or at once."""
        return [one for one in self._asking.values() if _ask_at(one) <= now]

    def in_turn(self, most: int | None) -> list[TrackedVimTask]:
        """All, or so many: those whose turn was the longest ago."""
        turn = list(islice(self.tasks.values(), most))
        if len(turn) < len(self.tasks):
            for followed in turn:
                self.tasks[followed.id] = self.tasks.pop(followed.id)
        return turn

    @property
    def next_at(self) -> float:
        """When the first of them is due."""
        return min(map(_ask_at, self._asking.values()), default=math.inf)

    def answer_hurried(self) -> None:
        """Nobody answers: so much is told of the tasks whose standing is wanted soon."""
        for followed in [one for one in self._asking.values() if one.hurried and not one.parked]:
            self._give(followed, Unanswered())

    async def birth(self, task: str) -> TaskIdentity | None:
        """What the task of this id is by its birth, None where vCenter shows none. Raises VCenterUnavailable."""
        shown = await methods.pull(self._session, [task])
        return next((parse_identity(one.info) for one in shown if one.ref.id == task and one.info.get("state")), None)

    # What is told

    def updates(self, shown: list[ObjectState]) -> None:
        """An update set: what it doesn't tell of is as it was."""
        now = self._clock()
        self._answered(now)
        self._counted.inc(len(shown))
        for one in shown:
            if (followed := self.tasks.get(one.ref.id)) is not None:
                followed.told_at = now
            if (trouble := self._taken(one)) is not None:
                self._ask_later(trouble.followed, now)  # an answer about it alone decides
        self._tell_taken()
        if now - self._all_good_at >= self._policy.poll_max_s:
            self._all_good_at = now
            as_before = (one for one in self.tasks.values() if one.task is not None and not one.parked)
            self._finds.waiting += [(one.id, UNCHANGED) for one in as_before if one.ask_at is None]
            self._finds.notify()

    def answers(self, shown: list[ObjectState]) -> None:
        """What VMs that were asked about apart have to say."""
        for one in shown:
            self._question(one)
        self._tell_taken()

    async def ask(self, those: list[TrackedVimTask]) -> None:
        """Asks about these. Raises VCenterUnavailable."""
        for followed in those:
            # Whatever comes, they are asked about again, unless the answer shows them.
            self._ask_later(followed, self._clock() + self._policy.poll_min_s)
        gone = {one.id: _Gone(one, _NOT_FOUND) for one in those}
        asked_at, seen = self._clock(), []
        with_vm = [one for one in those if one.vm]
        for one in await self._pulled([one.id for one in those], gone, failures=[]):
            if (told := self.tasks.get(one.ref.id)) is not None and told.told_at > asked_at:
                gone.pop(told.id, None)  # an update that came meanwhile is newer
                continue
            trouble = self._taken(one)
            if one.ref.type == "Task" and one.ref.id in gone:
                del gone[one.ref.id]
                if trouble is not None:
                    gone[one.ref.id] = trouble
                elif (shown := self.tasks.get(one.ref.id)) is not None:
                    seen.append(shown)
        for followed in with_vm:
            followed.resumed = False
        self._tell_taken()
        for shown in seen:
            self._is_shown(shown)
        await self._absent([one for one in gone.values() if self.tasks.get(one.followed.id) is one.followed])

    async def _pulled(self, tasks: list[str], gone: dict[str, _Gone], failures: list[Exception]) -> list[ObjectState]:
        """Halves where an answer is refused or can't be read, until the task that it is about is alone: that isn't
        `gone`."""
        vms = {vm for task in tasks if (one := self.tasks.get(task)) and (vm := one.vm) and not self.apart}
        try:
            shown = await methods.pull(self._session, tasks, vms, self._patience.held_s)
        except HeldUp:
            self.poll_questions_separately()
            return await self._pulled(tasks, gone, failures)
        except (UnreadableXml, AnswerTooLarge, SoapFault) as error:
            failures.append(error)
            if len(failures) > 4 + 2 * len(gone).bit_length():
                raise
            if len(tasks) == 1:
                gone.pop(tasks[0], None)
                self._unreadable(tasks[0], str(error))
                return []
        else:
            self._counted.inc(len(tasks))
            self._answered(self._clock())
            return shown
        middle = len(tasks) // 2
        halves = tasks[:middle], tasks[middle:]
        return [one for half in halves for one in await self._pulled(half, gone, failures)]

    def _is_shown(self, followed: TrackedVimTask) -> None:
        """An answer about it showed the task; where it couldn't be read it stays to be asked about."""
        if not (followed.failures or followed.resumed):
            self._ask_later(followed, None)
            if not followed.parked:
                self._give(followed, UNCHANGED)

    def _taken(self, shown: ObjectState) -> _Gone | None:
        """Takes in what was told of an object; what is the trouble where it doesn't show a followed task."""
        if shown.ref.type == "VirtualMachine":
            self._question(shown)
            return None
        followed = self.tasks.get(shown.ref.id)
        if followed is None:
            return None
        if shown.gone or not (shown.info or shown.denied):
            return _Gone(followed, _NOT_FOUND)
        if shown.denied:
            return _Gone(followed, TaskError(shown.denied, "vCenter refuses to show this task."), denied=True)
        if not followed.take(shown.info, whole=shown.whole):
            return _Gone(followed, _OTHER)
        self._seen(followed)
        self._absences.shown(followed.id, self._clock())
        self._to_tell[followed.id] = followed
        return None

    def _question(self, shown: ObjectState) -> None:
        if shown.asked:
            self.questions.tell(shown.ref.id, shown.question)
            self._to_tell |= {one.id: one for one in self.questions.blocks(shown.ref.id)}

    def _tell_taken(self) -> None:
        """Tells of what was taken in, once all was: a VM's question and its task change in one moment."""
        those, self._to_tell = self._to_tell, {}
        for followed in those.values():
            if not followed.parked:
                self._tell(followed)

    def _tell(self, followed: TrackedVimTask) -> None:
        """Gives the task if it stands otherwise than it was given last."""
        task = build_task(followed.info, self.questions.of(followed), self.labels)
        if task is None:
            self._unreadable(followed.id, "it has no state")
            return
        followed.failures = 0
        if task.ended:
            self._end_question(followed)
        elif (vm := self.questions.begin(followed)) is not None and not self.apart:
            self._list(Ref("VirtualMachine", vm), followed)
        followed.resumed = followed.resumed and followed.vm is not None and not self.apart
        if followed.resumed:
            self._ask_later(followed, self._clock())  # its VM with it, or BLOCKED would be told as RUNNING
        elif task != followed.task:
            followed.task = task
            self._give(followed, task)

    def _give(self, followed: TrackedVimTask, standing: PollResult) -> None:
        followed.hurried = False
        followed.parked = standing is not UNCHANGED
        if followed.ask_at is None:
            self._asking.pop(followed.id, None)
        self._finds.put(followed.id, standing)

    def _seen(self, followed: TrackedVimTask) -> None:
        followed.seen = True
        if followed.id in self._absences:
            self._absences.forget(followed.id)
            self._health.hold(self._absences.holding)
            self._list(followed.ref, followed)

    def _unreadable(self, task: str, why: str) -> None:
        """It concerns this task alone: told once, tried less and less often."""
        if (followed := self.tasks.get(task)) is None:
            return
        self._health.poll_failed(f"vCenter {self._vcenter} shows {task} as what can't be read: {why}")
        if not followed.failures:
            log.warning("task_not_readable", vcenter=self._vcenter, task=task, reason=why)
        followed.failures += 1
        self._ask_later(followed, self._clock() + backoff_s(followed.failures, self._policy, self._rng.random()))
        if followed.hurried:
            self._give(followed, Unanswered())

    # Absent tasks

    async def _absent(self, gone: list[_Gone]) -> None:
        """Those that an answer didn't show: the rules of `link.absence`, and before the end vCenter's history."""
        now, over, unsure = self._clock(), [], []
        for one in gone:
            followed = one.followed
            self._absences.missed(followed.id, followed.seen, now)
            if self._absences.told(followed.id, one.denied, now):
                over.append(one)
            else:
                unsure.append(one)
        self._health.hold(self._absences.holding)
        wanted = [one for one in gone if not one.denied and (one in over or not one.followed.history_asked)]
        is_proven = await self._in_history([one.followed for one in wanted]) if wanted else False
        for one in unsure:
            self._wait_on(one)
        for one in over:
            await self._end(one, is_proven=is_proven)

    def _wait_on(self, gone: _Gone) -> None:
        followed, now = gone.followed, self._clock()
        if followed.id in self._absences:
            at = max(self._absences.ask_at(followed.id, now), now + self._policy.poll_min_s)
            self._ask_later(followed, at if followed.seen else now + self._policy.poll_min_s)
            if followed.hurried:
                self._give(followed, Unanswered(gone.answer))

    async def _end(self, gone: _Gone, *, is_proven: bool) -> None:
        followed = gone.followed
        if followed.id not in self._absences:
            return  # the history had it
        if not (is_proven or self._absences.is_another_shown(followed.id, self._clock())):
            await self._session.check()
        followed.task = None
        self._give(followed, Absence("denied" if gone.denied else "lost", gone.answer))

    async def _in_history(self, those: list[TrackedVimTask]) -> bool:
        """Takes in what vCenter's history has of these; whether it answered."""
        for followed in those:
            followed.history_asked = True
        born = [one.birth.queued_at if one.birth else None for one in those]
        began = [at or one.since - self._patience.history_s for at, one in zip(born, those, strict=True)]
        end = self._wall_clock() + _SKEW_S if None in born else max(at for at in born if at) + 60.0
        try:
            found = await methods.history(self._session, [one.id for one in those], min(began) - 60.0, end)
        except SoapFault as fault:
            self._no_history.report_failure(vcenter=self._vcenter, reason=str(fault))
            return False
        self._no_history.report_recovery(vcenter=self._vcenter)
        for followed in those:
            self._of_history(followed, found.get(followed.id))
        return True

    def _of_history(self, followed: TrackedVimTask, info: Info | None) -> None:
        """A task that is only in the history any more has ended, and no look will show it again."""
        if info is None or self.tasks.get(followed.id) is not followed:
            return
        known = build_task(info, None, self.labels)
        if known is not None and known.ended and followed.take(info, whole=True):
            self._absences.forget(followed.id)
            followed.seen = True
            self._ask_later(followed, None)
            if not followed.parked:
                self._tell(followed)

    # What an answer tells of vCenter

    def _answered(self, now: float) -> None:
        self._absences.answered(now)
        self._health.poll_of_provider_succeeded(self._wall_clock(), "vim")

    def _ask_later(self, followed: TrackedVimTask, at: float | None) -> None:
        followed.ask_at = at
        if at is not None and self.tasks.get(followed.id) is followed:
            self._asking[followed.id] = followed
        elif not followed.hurried:
            self._asking.pop(followed.id, None)

    def _list(self, ref: Ref, followed: TrackedVimTask) -> None:
        if ref in self.to_remove:
            # The view may list it still, and then tells of it only when it changes.
            del self.to_remove[ref]
            self._ask_later(followed, self._clock())
        self.to_add[ref] = None

    def _unlist(self, ref: Ref) -> None:
        if ref in self.to_add:
            del self.to_add[ref]
        self.to_remove[ref] = None

    def _list_vms(self) -> None:
        for ref in [] if self.apart else [Ref("VirtualMachine", vm) for vm in self.questions.vms]:
            self.to_remove.pop(ref, None)
            self.to_add[ref] = None

    def _end_question(self, followed: TrackedVimTask) -> None:
        if (vm := self.questions.end(followed)) is not None and not self.apart:
            self._unlist(Ref("VirtualMachine", vm))


def _ask_at(followed: TrackedVimTask) -> float:
    if followed.parked:
        return math.inf
    return -math.inf if followed.hurried else math.inf if followed.ask_at is None else followed.ask_at
