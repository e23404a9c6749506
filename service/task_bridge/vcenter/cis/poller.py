"""Asking vCenter for tasks, and what follows from its answers: shown, missing, gone, or nothing that helps.

Each `ask` is about tasks that are ASKED, and afterwards none of them is: whatever happens, every task is somewhere
that it comes back from.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import msgspec
import structlog

from ...domain.errors import VCenterUnavailable
from ...domain.ports import Unanswered
from ...domain.task import Rendering, Task
from ...domain.watch import Absence
from ...metrics import Metrics
from ..backoff import Outage
from ..health import VCenterHealthTracker
from ..http import AmbiguousFailure
from .api import BadAnswer, CisTasksApi, Listing, MissingTask, TaskAnswerTooLarge, TaskLister
from .followed import ASKED, Group, TrackedCisTask
from .renderings import UnreadableBody, parse_raw_task
from .session import CisSession
from .tracker import CisTaskTracker

log = structlog.get_logger(__name__)

_DOUBTS_TOLD = 3
_PARTIAL_RESULTS_TRIED = 3
_MANY = 20
_LOOK_AROUND = {"list": 200, "get": 5}


class CisPoller:
    """Looks at the tasks of one vCenter."""

    def __init__(
        self,
        register: CisTaskTracker,
        tasks: CisTasksApi,
        session: CisSession,
        health: VCenterHealthTracker,
        outage: Outage,
        metrics: Metrics,
        wall_clock: Callable[[], float],
    ) -> None:
        self._register = register
        self._absences = register.absences
        self._tasks = tasks
        self._lists = TaskLister(tasks)
        self._session = session
        self._health = health
        self._outage = outage
        self._counted = metrics.looks.labels(register.vcenter)
        self._wall_clock = wall_clock
        self._list_missed = False
        self._failing: set[str] = set()
        self._good_looks_then = 0

    def at_most(self, group: Group) -> int:
        """How many tasks of the group are asked for together."""
        return 1 if group.way == "get" else self._lists.max_tasks(group)

    async def ask(self, group: Group, batch: list[TrackedCisTask]) -> None:
        """Asks for tasks of one group. Raises VCenterUnavailable: vCenter as a whole doesn't answer."""
        try:
            if group.way == "get":
                await self._get_safely(batch[0])
            else:
                await self._list(group, batch)
        except VCenterUnavailable as error:
            self._register.said = error.answer or self._register.said
            if not isinstance(error, AmbiguousFailure) or self._outage.count_ambiguous_failure(self._register.clock()):
                raise
            self._doubtful(group, batch, error)
        finally:
            group.in_flight -= 1
            now = self._register.clock()
            for followed in batch:
                if followed.place == ASKED:
                    self._register.failed(followed, now, now + self._register.policy.poll_min_s)
            self._health.set_vanished_reason(self._absences.vanished_reason)

    # By list

    async def _list(self, group: Group, batch: list[TrackedCisTask]) -> None:
        showed, error = False, None
        refused: list[TrackedCisTask] = []
        async for part in self._lists.list_in_parts(group, batch):
            if part.listing is not None:
                showed, group.failures = True, 0
                self._take_listing(group, part.tasks, part.listing)
            elif part.error is None:
                self._list_missed = True
                self._get_instead(part.tasks)
            else:
                error = part.error
                refused += part.tasks[:1] if len(part.tasks) == 1 else []
        if showed or len(batch) == 1:
            self._unlistable(refused)
        elif error is not None:
            self._list_failed(group, batch, error)

    def _take_listing(self, group: Group, asked: list[TrackedCisTask], listing: Listing) -> None:
        now = self._register.clock()
        self._list_missed = False
        self._answered(now, group.provider)
        found, rendering = listing
        for task in islice(found, 2):
            self._absences.record_shown(task, now)
        same: list[TrackedCisTask] = []
        none_absent = not self._absences
        for followed in asked:
            body = found.get(followed.id)
            if body is None:
                self._missing(followed, now)
            elif followed.mark == hash(bytes(body)) and none_absent and _is_plain(followed):
                same.append(followed)
            else:
                self._shown_safely(followed, body, rendering, now)
        self._register.unchanged(same, now)
        if not group.results:
            self._counted.inc(len(asked))

    def _unlistable(self, those: list[TrackedCisTask]) -> None:
        """Lists work, but not with these."""
        for followed in those:
            followed.listed_from = self._register.clock() + self._register.patience.relist_s
        self._get_instead(those)

    def _list_failed(self, group: Group, batch: list[TrackedCisTask], error: BadAnswer) -> None:
        """No list works, so it isn't about single tasks: all wait, but one that shows whether a get works."""
        self._reached()
        self._register.said = error.answer
        group.failures += 1
        self._health.record_failure(str(error), group.provider)
        self._get_instead(batch[:1])
        self._try_together_later(batch, group.failures)

    def _doubtful(self, group: Group, batch: list[TrackedCisTask], error: AmbiguousFailure) -> None:
        """It may be about these tasks or their provider alone: they wait. The log tells when it persists."""
        if group.way == "get":
            self._failed_look(batch[0], str(error))
            self._failed_alone(batch[0], error, _DOUBTS_TOLD)
            return
        self._health.record_failed_poll(str(error))
        group.failures += 1
        if group.failures >= _DOUBTS_TOLD:
            self._health.record_failure(str(error), group.provider)
        self._try_together_later(batch, group.failures)

    def _get_instead(self, those: list[TrackedCisTask]) -> None:
        now = self._register.clock()
        for followed in those:
            if followed.place == ASKED:
                followed.alone = True
                self._register.agenda.queue(followed, now, before_others=followed.hurried)

    def _missing(self, followed: TrackedCisTask, now: float) -> None:
        """A list doesn't show the task, which is weaker than an answer about it alone."""
        if followed.place != ASKED:
            return
        if followed.ended:
            self._get_instead([followed])
            return
        if self._absences.record_absent(followed.id, followed.seen, now):
            self._register.look_around(followed.provider, _LOOK_AROUND["list"])
        if followed.hurried or self._absences.confirm_at(followed.id, now) <= now:
            self._get_instead([followed])
        else:
            self._register.failed(followed, now, self._next_question(followed, now))

    # By get

    async def _get_safely(self, followed: TrackedCisTask) -> None:
        try:
            await self._get(followed)
        except VCenterUnavailable:
            raise
        except Exception as error:
            self._unexpected(followed, error)

    async def _get(self, followed: TrackedCisTask) -> None:
        followed.alone = False
        with_result = followed.with_result or followed.ended
        try:
            got = await self._tasks.get_task(followed.id, with_result=with_result)
        except BadAnswer as error:
            self._bad_answer(followed, error)
            return
        now = self._register.clock()
        if not followed.ended:
            self._counted.inc()
        if isinstance(got, MissingTask):
            await self._gone(followed, got)
            return
        if self._list_missed:
            self._list_missed = False
            self._register.agenda.lists_from = now + self._register.patience.relist_s
        self._answered(now, followed.provider)
        self._absences.record_shown(followed.id, now)
        if self._absences.is_only_unlisted(followed.id):
            followed.listed_from = now + self._register.patience.relist_s
        if followed.home is not None and followed.home.failures:
            followed.home.failures = 0
            followed.home.listed_from = now + self._register.patience.relist_s
        self._shown(followed, got.body, got.rendering, now)

    async def _gone(self, followed: TrackedCisTask, gone: MissingTask) -> None:
        now = self._register.clock()
        if gone.well_formed:
            self._answered(now, followed.provider)
        else:
            self._reached()
            self._failed_look(followed, f"vCenter doesn't offer its tasks: {gone.answer.message}")
        if followed.place != ASKED:
            return
        if followed.ended:
            self._result_gone(followed, gone, now)
            return
        if self._absences.record_absent(followed.id, followed.seen, now):
            self._register.look_around(followed.provider, _LOOK_AROUND["get"])
        enough = self._absences.confirm_absent(followed.id, gone.denied, now)
        if enough and await self._is_proven(followed, gone, now):
            if followed.place == ASKED:
                absence = Absence("denied" if gone.denied else "lost", gone.answer)
                self._register.give(followed, absence, now)
        elif followed.place == ASKED:
            due = self._next_question(followed, now)
            self._register.failed(followed, now, due, Unanswered(gone.answer))

    async def _is_proven(self, followed: TrackedCisTask, gone: MissingTask, now: float) -> bool:
        """Whether something else proves that the tasks service answers. A router's 404 may come from a restart of
        the service, so it takes another task that was shown since."""
        since = float("-inf") if gone.well_formed else self._absences.absent_since(followed.id)
        if self._absences.is_another_shown(followed.id, now, since):
            return True
        return gone.well_formed and await self._session.check()

    def _next_question(self, followed: TrackedCisTask, now: float) -> float:
        """When to look again at an absent task: by get once that counts, by list before."""
        look_at = now + max(self._register.interval_s(followed, now), self._register.policy.poll_min_s)
        ask_at = max(self._absences.confirm_at(followed.id, now), now + self._register.policy.poll_min_s)
        ask_at += self._register.agenda.ahead_s(now, ask_at)
        followed.alone = ask_at <= look_at
        return min(ask_at, look_at)

    # What an answer tells

    def _answered(self, now: float, provider: str) -> None:
        self._absences.record_answer(now)
        self._reached()
        self._health.record_good_poll(self._wall_clock(), provider)

    def _reached(self) -> None:
        """Whatever it is that vCenter answered, it did."""
        self._register.said = None
        self._outage.record_answer(self._register.clock())
        self._health.record_answer()

    def _shown(self, followed: TrackedCisTask, body: msgspec.Raw, rendering: Rendering, now: float) -> None:
        if followed.place != ASKED:
            return
        if followed.ended:
            self._result_shown(followed, body, rendering, now)
            return
        followed.seen = True
        self._absences.forget(followed.id)
        task, mark = followed.task, hash(bytes(body))
        if task is None or mark != followed.mark:
            try:
                task = parse_raw_task(body, rendering, with_result=followed.with_result)
            except UnreadableBody as error:
                self._bad_answer(followed, BadAnswer(f"vCenter shows what can't be read: {error}."))
                return
        if task == followed.task:
            self._register.unchanged([followed], now)
        else:
            self._register.changed(followed, task, now)
        followed.mark = mark
        self._readable(followed)

    def _shown_safely(self, followed: TrackedCisTask, body: msgspec.Raw, rendering: Rendering, now: float) -> None:
        try:
            self._shown(followed, body, rendering, now)
        except Exception as error:
            self._unexpected(followed, error)

    def _readable(self, followed: TrackedCisTask) -> None:
        followed.failures = 0
        if followed.told:
            followed.told = False
            log.info("task_readable_again", vcenter=self._register.vcenter, task=followed.id)

    def _bad_answer(self, followed: TrackedCisTask, error: BadAnswer) -> None:
        """It concerns this task alone: told once, tried less and less often."""
        self._reached()
        self._register.said = error.answer
        self._failed_look(followed, str(error))
        if followed.ended and isinstance(error, TaskAnswerTooLarge):
            self._register.give_up_result(followed)
            return
        self._failed_alone(followed, error, told_after=1)
        if followed.with_result and (
            isinstance(error, TaskAnswerTooLarge) or followed.failures >= _PARTIAL_RESULTS_TRIED
        ):
            # Better to see how the task does without its partial result than not at all.
            followed.with_result, followed.home = False, None

    def _failed_look(self, followed: TrackedCisTask, reason: str) -> None:
        """It is about vCenter only when most tasks, or many, failed one after another without a good look: one bad
        task among others must not make a vCenter's health flap.
        """
        if self._good_looks_then != self._health.good_polls:
            self._good_looks_then = self._health.good_polls
            self._failing.clear()
        self._failing.add(followed.id)
        if len(self._failing) > min(len(self._register.tasks) / 2, _MANY):
            self._health.record_failed_poll(reason)

    def _failed_alone(self, followed: TrackedCisTask, error: Exception, told_after: int) -> None:
        followed.failures += 1
        told_of_all = followed.home is not None and followed.home.failures > 0
        if followed.failures >= told_after and not followed.told and not told_of_all:
            followed.told = True
            log.warning("task_not_readable", vcenter=self._register.vcenter, task=followed.id, reason=str(error))
        self._try_later(followed, self._register.clock(), followed.failures)

    def _unexpected(self, followed: TrackedCisTask, error: Exception) -> None:
        """A fault of the bridge's own over one task: it mustn't keep the others from being looked at."""
        if not followed.failures:
            log.error("look_failed", vcenter=self._register.vcenter, task=followed.id, exc_info=error)
        followed.failures += 1
        self._try_later(followed, self._register.clock(), followed.failures)

    def _try_later(self, followed: TrackedCisTask, now: float, failures: int) -> None:
        if followed.place == ASKED:
            self._register.failed(followed, now, now + self._register.backoff_s(failures))

    def _try_together_later(self, batch: list[TrackedCisTask], failures: int) -> None:
        now = self._register.clock()
        due = now + self._register.backoff_s(failures)
        for followed in batch:
            if followed.place == ASKED:
                self._register.failed(followed, now, due)

    # Results of tasks that ended

    def _result_shown(self, followed: TrackedCisTask, body: msgspec.Raw, rendering: Rendering, now: float) -> None:
        task = _ended_with_result(body, rendering)
        if task is not None:
            self._register.give(followed, task, now)
        else:
            self._bad_answer(followed, BadAnswer("vCenter shows the task that ended as if it hadn't."))

    def _result_gone(self, followed: TrackedCisTask, gone: MissingTask, now: float) -> None:
        if gone.well_formed:
            self._register.give_up_result(followed)
        else:
            self._try_later(followed, now, 1)


def _is_plain(followed: TrackedCisTask) -> bool:
    """Still asked for, for a look, and seen without trouble before: if its mark is the same, all is."""
    return followed.place == ASKED and not followed.ended and not followed.failures


def _ended_with_result(body: msgspec.Raw, rendering: Rendering) -> Task | None:
    try:
        task = parse_raw_task(body, rendering, with_result=True)
    except UnreadableBody:
        return None
    return task if task.ended else None
