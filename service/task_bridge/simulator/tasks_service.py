"""The tasks of a simulated vCenter, and the operations of its Tasks service: get, list, cancel."""

import itertools
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Unpack

from msgspec import Raw, Struct

from . import errors
from .bodies import BodyView
from .options import Clock, Options
from .scenarios import CANCELED
from .script import ENDED, Fields, Flavour, Script
from .simulated_task import SimulatedTask, TaskState
from .task_attributes import (
    FAMILIES,
    SERVICES,
    SimulatedTarget,
    TaskAttributes,
    TaskDetails,
    build_attributes,
    provider_of,
)

FIRST_NUMBER = 101
"""The number of the first classic task after a start of vCenter."""


class FilterSpec(Struct):
    """Filter of a list. A task must match every filter that is set, by any of its values."""

    tasks: list[str] | None = None
    services: list[str] | None = None
    operations: list[str] | None = None
    status: list[str] | None = None
    targets: list[SimulatedTarget] | None = None
    users: list[str] | None = None


class TasksService:
    """Tasks by id. Iteration yields those that aren't forgotten.

    `on_classic_change` is called with each classic task that was created, changed, hidden or forgotten.
    """

    def __init__(self, options: Options, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._tasks: dict[str, SimulatedTask] = {}
        self._hidden: set[str] = set()
        self._denied: set[str] = set()
        self._forgotten: deque[SimulatedTask] = deque(maxlen=options.remembered_tasks)
        self._classic: deque[SimulatedTask] = deque(maxlen=options.remembered_tasks)
        self._created_count = 0
        self._purged_at = clock()
        self._numbers = itertools.count(FIRST_NUMBER)
        self._services = set(SERVICES.values())
        self.on_classic_change: Callable[[SimulatedTask], None] = lambda _task: None

    # What tests and the control API do

    def create(self, script: Script, **details: Unpack[TaskDetails]) -> str:
        """Start a task now and return its id. A task that has the id already is forgotten."""
        self._purge_now_and_then()
        flavour = details.get("flavour") or script.flavour
        service = details.get("service") or provider_of(details.get("id") or "") or SERVICES[flavour]
        task_id = details.get("id") or self._generate_id(flavour, service)
        self._services |= {service, provider_of(task_id)}
        attributes = build_attributes(task_id, flavour, service, script, details)
        if task_id in self._tasks:
            self.forget(task_id)
        self._created_count += 1
        self._tasks[task_id] = task = SimulatedTask(task_id, attributes, script, self._clock(), self._created_count)
        if task.is_classic:
            self._classic.append(task)
        self._notify(task)
        return task_id

    def reuse_ids(self) -> None:
        """Number classic tasks from the beginning again, as after a restart of vCenter."""
        self._numbers = itertools.count(FIRST_NUMBER)

    def set(self, task_id: str, changes: Fields, removes: tuple[str, ...] = ()) -> None:
        """Change fields of a task's body now and remove others."""
        task = self._tasks[task_id]
        now = self._clock()
        task.frame_at(now)
        task.script = task.script.amend(now - task.created_at, changes, removes)
        self._notify(task)

    def forget(self, task_id: str, *, retired: bool = False) -> None:
        """Remove a task. With `retired`, the history of a classic task remains."""
        task = self._tasks.pop(task_id)
        task.forgotten_at = self._clock()
        task.retired = retired
        self._forgotten.append(task)
        self._notify(task)

    def forget_all(self) -> None:
        for task_id in list(self._tasks):
            self.forget(task_id)

    def hide(self, task_id: str, hidden: bool = True) -> None:
        """Answer 404 for the task and leave it out of lists; False ends that."""
        (self._hidden.add if hidden else self._hidden.discard)(task_id)
        self._notify(self._tasks.get(task_id))

    def deny(self, task_id: str, denied: bool = True) -> None:
        """Answer 403 for the task and leave it out of lists; False ends that."""
        (self._denied.add if denied else self._denied.discard)(task_id)
        self._notify(self._tasks.get(task_id))

    @property
    def denied(self) -> Collection[str]:
        return self._denied

    def iterate_all(self) -> Iterator[SimulatedTask]:
        """Yield all tasks, forgotten ones first."""
        yield from self._forgotten
        yield from self._tasks.values()

    def list_classic_created_after(self, number: int) -> list[SimulatedTask]:
        """Return the classic tasks that were created after the one with this number, oldest first."""
        newer = itertools.takewhile(lambda task: task.number > number, reversed(self._classic))
        return list(newer)[::-1]

    def history(self, task_id: str) -> list[TaskState]:
        """Return the states that a task really had, even if it is forgotten."""
        task = self._tasks.get(task_id) or next((one for one in reversed(self._forgotten) if one.id == task_id), None)
        return list((task or self._tasks[task_id]).list_states(self._clock()))

    def histories(self) -> dict[str, list[TaskState]]:
        now = self._clock()
        return {task.id: list(task.list_states(now)) for task in self.iterate_all()}

    def __iter__(self) -> Iterator[SimulatedTask]:
        return iter(self._tasks.values())

    def __getitem__(self, task_id: str) -> SimulatedTask:
        return self._tasks[task_id]

    # What vCenter answers

    def get(self, task_id: str, *, classic: bool = False) -> SimulatedTask:
        """Return a CIS task or a classic one: neither API knows the other's tasks. Raises StandardError."""
        task = self._find_visible(task_id)
        if task_id in self._denied:
            raise errors.unauthorized_error(task_id)
        if task is None or task.is_classic is not classic:
            self._check_service(provider_of(task_id))
            raise errors.task_not_found_error(task_id)
        return task

    def find_classic(self, task_id: str) -> SimulatedTask | None:
        """Return the classic task with this id, denied or not."""
        task = self._find_visible(task_id)
        return task if task and task.is_classic else None

    def list(self, spec: FilterSpec) -> Sequence[SimulatedTask]:
        """Return the CIS tasks that match. Unknown, hidden and denied ones are left out, as vCenter documents it."""
        _check_filter(spec)
        for service in {*map(provider_of, spec.tasks or ()), *(spec.services or ())}:
            self._check_service(service)
        candidates = dict.fromkeys(spec.tasks) if spec.tasks else list(self._tasks)
        tasks = [task for task_id in candidates if (task := self._find_match(task_id, spec))]
        if len(tasks) > self._options.max_listed:
            raise errors.too_many_tasks_error(self._options.max_listed)
        return tasks

    def cancel(self, task_id: str, *, classic: bool = False) -> None:
        """Request a cancel; the script says how long it takes. Raises StandardError."""
        task = self.get(task_id, classic=classic)
        now = self._clock()
        frame = task.frame_at(now)
        if frame.status in ENDED:
            raise errors.already_ended_error(task_id)
        if not frame.fields.get("cancelable", task.attributes.cancelable):
            raise errors.unsupported_error(task_id)
        if not task.cancel_requested:
            task.cancel_requested = True
            task.script = task.script.cancel(now - task.created_at, CANCELED)
            self._notify(task)

    def build_infos(self, tasks: Iterable[SimulatedTask], view: BodyView) -> dict[str, Fields]:
        now, timestamps = self._clock(), self._options.timestamps
        return {task.id: task.build_info(now, view, timestamps) for task in tasks}

    def encode_infos(self, tasks: Iterable[SimulatedTask], view: BodyView) -> dict[str, Raw]:
        now, timestamps = self._clock(), self._options.timestamps
        return {task.id: task.encode_info(now, view, timestamps) for task in tasks}

    def _notify(self, task: SimulatedTask | None) -> None:
        if task is not None and task.is_classic:
            self.on_classic_change(task)

    def _find_visible(self, task_id: str) -> SimulatedTask | None:
        task = self._tasks.get(task_id)
        if task and task.is_past_retention(self._clock(), self._options.retention_s):
            self.forget(task_id, retired=True)
            return None
        return None if task_id in self._hidden else task

    def _check_service(self, service: str) -> None:
        """Raise StandardError if vCenter doesn't know the service. A suffix of an id without dots names none."""
        if "." in service and service not in self._services and not service.startswith(FAMILIES):
            raise errors.provider_not_found_error(service)

    def _find_match(self, task_id: str, spec: FilterSpec) -> SimulatedTask | None:
        task = self._tasks.get(task_id)
        if task is None or task.is_classic or task_id in self._denied or not _matches_filter(task.attributes, spec):
            return None
        if spec.status and task.frame_at(self._clock()).status not in spec.status:
            return None
        return self._find_visible(task_id)

    def _purge_now_and_then(self) -> None:
        """Forget tasks past their retention, at most every tenth of it. A poll of one doesn't wait for this."""
        now, retention_s = self._clock(), self._options.retention_s
        if retention_s is None or now < self._purged_at + max(1.0, retention_s / 10):
            return
        self._purged_at = now
        for task in list(self._tasks.values()):
            if task.is_past_retention(now, retention_s):
                self.forget(task.id, retired=True)

    def _generate_id(self, flavour: Flavour, service: str) -> str:
        if flavour == "vim":
            return f"task-{next(self._numbers)}"
        # Like vCenter's: the shape of a UUID, but seldom a valid one of any version.
        digits = "52" + secrets.token_hex(15)
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], f"{digits[20:]}:{service}"))


def _check_filter(spec: FilterSpec) -> None:
    if not spec.tasks and not spec.services:
        raise errors.invalid_argument_error("One of tasks and services must not be empty.")
    if len({provider_of(task_id) for task_id in spec.tasks or ()}) > 1:
        raise errors.invalid_argument_error("All tasks must be from the same provider.")
    if len(set(spec.services or ())) > 1:
        raise errors.invalid_argument_error("All services must be from the same provider.")


def _matches_filter(attributes: TaskAttributes, spec: FilterSpec) -> bool:
    return (
        (not spec.services or attributes.service in spec.services)
        and (not spec.operations or attributes.operation in spec.operations)
        and (not spec.targets or attributes.target in spec.targets)
        and (not spec.users or attributes.user in spec.users)
    )
