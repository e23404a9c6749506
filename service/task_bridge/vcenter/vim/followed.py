"""The followed tasks, what is known of each, and whose questions matter."""

from __future__ import annotations

import math

import msgspec

from ...domain.task import Task, TaskIdentity, may_be_same_task
from .soap import Ref
from .taskinfo import Info, Question, parse_identity


class TrackedVimTask(msgspec.Struct, eq=False):
    """One followed task. Times are those of a clock that never goes back, but `since`, which is Unix seconds.

    `info`: all that was told so far. `task`: how it was given last. `parked`: what was given is being dealt with.
    `vm`: the VM whose question would block it. `ask_at`: when to ask about it alone. `failures`: of such looks.
    `told_at`: when an update told of it last. `is_other`: what is shown under its id is another task. `resumed`: an
    event told of it before, and its VM's question hasn't been asked for since.
    """

    id: str
    since: float
    seen: bool
    birth: TaskIdentity | None
    info: Info = msgspec.field(default_factory=dict)
    task: Task | None = None
    parked: bool = False
    hurried: bool = False
    vm: str | None = None
    ask_at: float | None = None
    failures: int = 0
    history_asked: bool = False
    told_at: float = -math.inf
    is_other: bool = False
    resumed: bool = False

    @property
    def ref(self) -> Ref:
        return Ref("Task", self.id)

    def take(self, info: Info, *, whole: bool) -> bool:
        """Takes in what was told. False when it is about another task, to which vCenter gave the same id."""
        told = info if whole else {**self.info, **info}
        birth = parse_identity(told)
        if whole:
            # Changes alone don't tell whose they are.
            self.is_other = self.birth is not None and not may_be_same_task(self.birth, birth)
        if self.is_other:
            return False
        self.info = told
        if birth.queued_at is not None:
            self.birth = birth
        return True


class Questions:
    """Which VMs are listed for their questions, by how many tasks, and what each asks."""

    def __init__(self) -> None:
        self._tasks: dict[str, set[TrackedVimTask]] = {}
        self._asked: dict[str, Question] = {}

    def of(self, followed: TrackedVimTask) -> Question | None:
        return self._asked.get(followed.vm or "")

    def blocks(self, vm: str) -> list[TrackedVimTask]:
        """The tasks that a question of this VM blocks."""
        return list(self._tasks.get(vm, ()))

    def tell(self, vm: str, question: Question | None) -> None:
        if question is None:
            self._asked.pop(vm, None)
        elif vm in self._tasks:
            self._asked[vm] = question

    def is_of_interest(self, vm: str) -> bool:
        return vm in self._tasks

    def begin(self, followed: TrackedVimTask) -> str | None:
        """The VM that is to be listed from now on, because this running task works on it."""
        entity: Ref | None = followed.info.get("entity")
        if followed.vm is not None or entity is None or entity.type != "VirtualMachine":
            return None
        followed.vm = entity.id
        users = self._tasks.setdefault(entity.id, set())
        users.add(followed)
        return entity.id if len(users) == 1 else None

    def end(self, followed: TrackedVimTask) -> str | None:
        """The VM that needn't be listed any more."""
        vm, followed.vm = followed.vm, None
        if vm is None or vm not in self._tasks:
            return None
        self._tasks[vm].discard(followed)
        if self._tasks[vm]:
            return None
        del self._tasks[vm]
        self._asked.pop(vm, None)
        return vm

    @property
    def vms(self) -> list[str]:
        return list(self._tasks)
