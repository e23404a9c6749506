"""The questions of VMs, which block tasks, and how they are polled separately while a VM is locked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from ...domain.errors import VCenterUnavailable
from ..policy import VimTimeouts
from . import api
from .answers import ObjectState
from .poll_loop import PollLoop
from .session import VimSession
from .taskinfo import Question

log = structlog.get_logger(__name__)

_SLOTS_TAKEN = 2
"""The wait for updates and the polls of tasks take a request each."""


class VmQuestions:
    """The VMs that running tasks work on, and the question that each VM waits for an answer to."""

    def __init__(self) -> None:
        self._tasks: dict[str, set[str]] = {}
        self._questions: dict[str, Question] = {}

    @property
    def vms(self) -> list[str]:
        return list(self._tasks)

    def get(self, vm: str | None) -> Question | None:
        return self._questions.get(vm or "")

    def put(self, vm: str, question: Question | None) -> None:
        if question is None:
            self._questions.pop(vm, None)
        elif vm in self._tasks:
            self._questions[vm] = question

    def has_tasks(self, vm: str) -> bool:
        return vm in self._tasks

    def tasks_on(self, vm: str) -> list[str]:
        """Return the tasks that a question of this VM blocks."""
        return list(self._tasks.get(vm, ()))

    def add_task(self, vm: str, task: str) -> bool:
        """Record that the task works on this VM. Return True if it is the only one."""
        tasks = self._tasks.setdefault(vm, set())
        tasks.add(task)
        return len(tasks) == 1

    def remove_task(self, vm: str, task: str) -> bool:
        """Record that the task no longer works on this VM. Return True if no other task does."""
        if vm not in self._tasks:
            return False
        self._tasks[vm].discard(task)
        if self._tasks[vm]:
            return False
        del self._tasks[vm]
        self._questions.pop(vm, None)
        return True


class QuestionPoller:
    """Polls of questions alone: a VM that is kept locked then holds up other questions, but no task.

    `may_poll` returns True while vCenter answers at all. `apply` takes what vCenter shows. `rejoin` is called when
    questions can be polled together with tasks again. `wake_up` wakes the source's loop.
    """

    def __init__(
        self,
        vcenter: str,
        session: VimSession,
        questions: VmQuestions,
        timeouts: VimTimeouts,
        slots: int,
        *,
        may_poll: Callable[[], bool],
        apply: Callable[[list[ObjectState]], None],
        rejoin: Callable[[], None],
        wake_up: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._vcenter = vcenter
        self._clock = clock
        self._session = session
        self._questions = questions
        self._timeouts = timeouts
        self._may_poll = may_poll
        self._apply = apply
        self._rejoin = rejoin
        self._wake_up = wake_up
        # Without a slot of its own a long poll would hold up the tasks again.
        is_tight = slots <= _SLOTS_TAKEN
        interval_s, timeout_s = timeouts.pull_interval_s, timeouts.vm_timeout_s
        self._read_timeout_s = timeout_s if is_tight else None
        self._pause_s = max(interval_s, 5 * timeout_s) if is_tight else interval_s
        self.loop = PollLoop(self._run)

    async def _run(self) -> None:
        until = self._clock() + self._timeouts.separate_questions_s
        while True:
            await asyncio.sleep(self._pause_s)
            vms, all_prompt = self._questions.vms, True
            for first in range(0, len(vms), api.OBJECTS_MAX):
                all_prompt = await self._poll(vms[first : first + api.OBJECTS_MAX]) and all_prompt
            if all_prompt and self._clock() >= until:
                break
        self._rejoin()
        self._wake_up()

    async def _poll(self, vms: list[str]) -> bool:
        """Poll the questions once. Return True if the answer came as soon as it must when tasks wait for it."""
        if not self._may_poll():
            return False
        started_at = self._clock()
        try:
            self._apply(await api.fetch_objects(self._session, (), vms, self._read_timeout_s))
        except VCenterUnavailable as error:
            log.debug("questions_not_answered", vcenter=self._vcenter, reason=str(error))
            self._wake_up()  # the session may have ended
            return False
        return self._clock() - started_at <= self._timeouts.vm_timeout_s
