"""Times of the polls of single classic tasks, and the objects of which vCenter pushes updates."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import structlog

from ...domain.task import TaskIdentity, may_be_same_task
from ..policy import PollPolicy
from ..tracked_task import FORGOTTEN, PARKED, PollTransport, TrackedTask
from .api import OBJECTS_MAX
from .push import ViewChanges
from .questions import VmQuestions
from .soap import Ref
from .taskinfo import Info, has_ended, parse_identity

log = structlog.get_logger(__name__)


class TrackedVimTask(TrackedTask, kw_only=True, gc=True):
    """A tracked classic task. Times are those of a clock that never goes back, but `since`, which is Unix seconds.

    `identity`: tells it from another task with the same id. `info`: what vCenter has shown of it so far. `is_other`:
    vCenter shows another task under its id. `due`: when to poll it by itself; None leaves it to push and to the
    regular pulls. `updated_at`: when an update set showed it last. `shown_at`: its state isn't older than that, or it
    wasn't tracked before. `vm`: the VM whose question would block it.
    `awaits_question`: an earlier watch reported it, and its VM's question hasn't been polled since. `history_read`:
    vCenter's history was searched for it, or never can be. `history_refused_at`: since when it can't.
    """

    since: float
    identity: TaskIdentity | None
    info: Info = msgspec.field(default_factory=dict)
    is_other: bool = False
    due: float | None = None
    updated_at: float = -math.inf
    shown_at: float = -math.inf
    vm: str | None = None
    awaits_question: bool = False
    history_read: bool = False
    history_refused_at: float | None = None

    @property
    def ref(self) -> Ref:
        return Ref("Task", self.id)

    @property
    def is_shown_ended(self) -> bool:
        """True if vCenter has shown its end, which may not have been reported yet."""
        return has_ended(self.info)

    def apply_info(self, info: Info, *, is_complete: bool) -> bool:
        """Merge what vCenter shows. Return False if it shows another task, to which it gave the same id."""
        merged = info if is_complete else {**self.info, **info}
        identity = parse_identity(merged)
        is_same = self.identity is None or may_be_same_task(self.identity, identity)
        # Changes alone don't say which task they belong to.
        self.is_other = not is_same or (self.is_other and not is_complete)
        if self.is_other:
            return False
        self.info = merged
        if identity.queued_at is not None:
            self.identity = identity
        return True

    def due_at(self) -> float:
        """Return when to poll it by itself, infinity for never and minus infinity for at once."""
        if self.phase == PARKED:
            return math.inf
        if self.is_urgent:
            return -math.inf
        return math.inf if self.due is None else self.due


class VimTransport:
    """The port `PollTransport` over a view, whose objects vCenter pushes, and pulls of single tasks.

    `separate_questions`: VMs are neither listed nor polled together with tasks.
    """

    def __init__(self, vcenter: str, policy: PollPolicy, clock: Callable[[], float]) -> None:
        self.policy = policy
        self.clock = clock
        self.view = ViewChanges()
        self.questions = VmQuestions()
        self.separate_questions = False
        self._vcenter = vcenter
        self._scheduled: dict[str, TrackedVimTask] = {}

    # The port

    def start(self, tracked: TrackedVimTask) -> None:
        self.list_in_view(tracked.ref, tracked)

    def stop(self, tracked: TrackedVimTask) -> None:
        self._scheduled.pop(tracked.id, None)
        self.view.remove(tracked.ref)
        self.end_question(tracked)

    def pause(self, tracked: TrackedVimTask) -> None:
        if tracked.due is None:
            self._scheduled.pop(tracked.id, None)

    def resume(self, tracked: TrackedVimTask) -> None:
        """Leave the task to push, but poll one whose state isn't known: it may be missing from the view."""
        if tracked.task is None:
            self.poll_at(tracked, self.clock() + self.policy.poll_min_s)

    def poll_now(self, tracked: TrackedVimTask) -> bool:
        self._scheduled[tracked.id] = tracked
        return True

    def poll_at(self, tracked: TrackedVimTask, due: float) -> None:
        tracked.due = due
        if tracked.phase != FORGOTTEN:
            self._scheduled[tracked.id] = tracked

    def absence_poll_at(self, tracked: TrackedVimTask, confirm_at: float) -> float:
        """Poll as often as possible, at most one full request a second: it may appear, or another task with its id."""
        return self.clock() + max(self.policy.poll_min_s, len(self._scheduled) / OBJECTS_MAX)

    # Polls of single tasks

    def cancel_poll(self, tracked: TrackedVimTask) -> None:
        """Leave the task to push and to the regular pulls."""
        tracked.due = None
        if not tracked.is_urgent:
            self._scheduled.pop(tracked.id, None)

    def find_due(self, now: float) -> list[TrackedVimTask]:
        return [tracked for tracked in self._scheduled.values() if tracked.due_at() <= now]

    @property
    def next_at(self) -> float:
        """The time of the first poll of a single task, infinity when there is none."""
        return min((tracked.due_at() for tracked in self._scheduled.values()), default=math.inf)

    # The view and the questions of VMs

    def list_in_view(self, ref: Ref, tracked: TrackedVimTask) -> None:
        if self.view.add(ref):
            # The view may list it still, and then shows it only when it changes.
            self.poll_at(tracked, self.clock())

    def list_all(self, refs: list[Ref]) -> None:
        """Fill a new view."""
        self.view.reset(refs)
        self._list_vms()

    def start_question(self, tracked: TrackedVimTask) -> None:
        """List the VM that this running task works on, so that its question is seen."""
        entity: Ref | None = tracked.info.get("entity")
        if tracked.vm is not None or entity is None or entity.type != "VirtualMachine":
            return
        tracked.vm = entity.id
        if self.questions.add_task(entity.id, tracked.id) and not self.separate_questions:
            self.list_in_view(Ref("VirtualMachine", entity.id), tracked)

    def end_question(self, tracked: TrackedVimTask) -> None:
        """Stop listing the VM of a task that has ended or is forgotten, unless another task works on it."""
        vm, tracked.vm = tracked.vm, None
        if vm is not None and self.questions.remove_task(vm, tracked.id) and not self.separate_questions:
            self.view.remove(Ref("VirtualMachine", vm))

    def poll_questions_separately(self) -> None:
        """Let tasks go on without the questions: a locked VM holds up what it is listed or polled with."""
        if not self.separate_questions:
            self.separate_questions = True
            log.info("questions_asked_apart", vcenter=self._vcenter)

    def poll_questions_with_tasks(self) -> None:
        if self.separate_questions:
            self.separate_questions = False
            self._list_vms()
            log.info("questions_asked_together", vcenter=self._vcenter)

    def _list_vms(self) -> None:
        if not self.separate_questions:
            for vm in self.questions.vms:
                self.view.add(Ref("VirtualMachine", vm))


_VIM_TRANSPORT_IS_A_POLL_TRANSPORT: type[PollTransport[TrackedVimTask]] = VimTransport
