"""The tasks that a simulated vCenter holds, and its Tasks service: get, list, cancel."""

import itertools
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice, takewhile

import msgspec
from msgspec import Raw, Struct

from . import errors
from .bodies import About, BodyView, SimulatedTarget, body, unchanging
from .clock import Clock
from .options import Options, Timestamps
from .scenarios import CANCELED
from .script import ENDED, Fields, Flavour, Frame, Script, frames, is_due


class FilterSpec(Struct):
    """Which tasks to list; all that is given must match, any one inside each."""

    tasks: list[str] | None = None
    services: list[str] | None = None
    operations: list[str] | None = None
    status: list[str] | None = None
    targets: list[SimulatedTarget] | None = None
    users: list[str] | None = None


class TaskState(Struct):
    """One state that a task really went through, `at` seconds since 1970."""

    at: float
    status: str
    fields: Fields


class SimulatedTask:
    """A script that began at a time. `frame` goes along with the clock, so that a look costs little."""

    __slots__ = (
        "_passed",
        "_written",
        "about",
        "canceling",
        "created_at",
        "fixed",
        "frame",
        "gone_at",
        "id",
        "retired",
        "script",
    )

    def __init__(self, task_id: str, about: About, script: Script, created_at: float) -> None:
        self.id = task_id
        self.about = about
        self.script = script
        self.created_at = created_at
        self.gone_at: float | None = None
        self.canceling = False
        self.retired = False
        self._written: tuple[Frame, BodyView, Timestamps, Raw] | None = None
        self.fixed = unchanging(about)
        self.frame = Frame()
        self._passed = 0

    @property
    def is_vim(self) -> bool:
        return self.about.flavour == "vim"

    def at(self, now: float) -> Frame:
        steps = self.script.steps
        while self._passed < len(steps) and is_due(steps[self._passed].after_s, now - self.created_at):
            self.frame = self.frame.then(steps[self._passed])
            self._passed += 1
        return self.frame

    def info(self, now: float, view: BodyView, timestamps: Timestamps) -> Fields:
        return body(self.about.flavour, self.fixed, self.created_at, self.at(now), view, timestamps)

    def json(self, now: float, view: BodyView, timestamps: Timestamps) -> Raw:
        """The info in `/api` rendering, kept until the task's next step: most looks see nothing new."""
        frame, kept = self.at(now), self._written
        if kept and kept[0] is frame and kept[1] == view and kept[2] == timestamps:
            return kept[3]
        written = Raw(msgspec.json.encode(self.info(now, view, timestamps)))
        self._written = (frame, view, timestamps, written) if view.exclude_result else None
        return written

    def is_purged(self, now: float, retention_s: float | None) -> bool:
        ended_s = self.at(now).ended_s
        if ended_s is None or retention_s is None:
            return False
        return is_due(ended_s + retention_s, now - self.created_at)

    def history(self, now: float) -> Iterator[TaskState]:
        """Every state up to now, or up to when the task was forgotten."""
        age_s = (now if self.gone_at is None else self.gone_at) - self.created_at
        steps = self.script.steps
        seen = islice(frames(self.script), 1 if steps and steps[0].after_s == 0 else 0, None)
        for frame in takewhile(lambda frame: is_due(frame.since_s, age_s), seen):
            yield TaskState(self.created_at + frame.since_s, frame.status, frame.fields)


class TasksService:
    def __init__(self, options: Options, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._tasks: dict[str, SimulatedTask] = {}
        self._hidden: set[str] = set()
        self._denied: set[str] = set()
        self._gone: deque[SimulatedTask] = deque(maxlen=options.remembered_tasks)
        self._swept_at = clock()
        self._numbers = itertools.count(101)
        self.on_vim_change: Callable[[SimulatedTask], None] = _nobody
        """Hears of each classic task that was created, changed, hidden or forgotten."""

    # Driving

    def create(self, script: Script, about: About, task_id: str | None = None) -> str:
        """The id of the new task; an id that was there before is taken over."""
        self._sweep()
        task = SimulatedTask(task_id or self.new_id(about.flavour, about.service), about, script, self._clock())
        if task.id in self._tasks:
            self.forget(task.id)
        self._tasks[task.id] = task
        self._tell(task)
        return task.id

    def new_id(self, flavour: Flavour, service: str) -> str:
        return f"task-{next(self._numbers)}" if flavour == "vim" else f"{_base_id()}:{service}"

    def reuse_ids(self) -> None:
        """Classic tasks are numbered from the beginning again, as after a restart of vCenter."""
        self._numbers = itertools.count(101)

    def set(self, task_id: str, changes: Fields, removes: tuple[str, ...] = ()) -> None:
        task = self._tasks[task_id]
        now = self._clock()
        task.at(now)
        task.script = task.script.amended(now - task.created_at, changes, removes)
        self._tell(task)

    def forget(self, task_id: str, *, retired: bool = False) -> None:
        """`retired`: of a classic task the history stays."""
        task = self._tasks.pop(task_id)
        task.gone_at = self._clock()
        task.retired = retired
        self._gone.append(task)
        self._tell(task)

    def forget_all(self) -> None:
        for task_id in list(self._tasks):
            self.forget(task_id)

    def hide(self, task_id: str, hidden: bool = True) -> None:
        _put(self._hidden, task_id, hidden)
        self._tell(self._tasks.get(task_id))

    def deny(self, task_id: str, denied: bool = True) -> None:
        _put(self._denied, task_id, denied)
        self._tell(self._tasks.get(task_id))

    def _tell(self, task: SimulatedTask | None) -> None:
        if task is not None and task.is_vim:
            self.on_vim_change(task)

    def everything(self) -> Iterator[SimulatedTask]:
        """All tasks, those forgotten first."""
        yield from self._gone
        yield from self._tasks.values()

    def known(self, task_id: str) -> SimulatedTask:
        """The task of this id, forgotten or not."""
        forgotten = (task for task in reversed(self._gone) if task.id == task_id)
        return self._tasks.get(task_id) or next(forgotten, None) or self._tasks[task_id]

    def __iter__(self) -> Iterator[SimulatedTask]:
        return iter(self._tasks.values())

    def __getitem__(self, task_id: str) -> SimulatedTask:
        return self._tasks[task_id]

    # What vCenter answers

    def get(self, task_id: str, *, vim: bool = False) -> SimulatedTask:
        """A CIS task, or a classic one: neither API knows the other's."""
        task = self._visible(task_id)
        if task_id in self._denied:
            raise errors.unauthorized(task_id)
        if task is None or task.is_vim is not vim:
            raise errors.task_not_found(task_id)
        return task

    def list(self, wanted: FilterSpec) -> Sequence[SimulatedTask]:
        """Unknown, hidden and denied tasks are missing, silently, as vCenter's documentation has it."""
        _check(wanted)
        candidates = dict.fromkeys(wanted.tasks) if wanted.tasks else list(self._tasks)
        found = [task for task_id in candidates if (task := self._listed(task_id, wanted))]
        if len(found) > self._options.max_listed:
            raise errors.too_many_tasks(self._options.max_listed)
        return found

    def cancel(self, task_id: str, *, vim: bool = False) -> None:
        task = self.get(task_id, vim=vim)
        now = self._clock()
        frame = task.at(now)
        if frame.status in ENDED:
            raise errors.already_ended(task_id)
        if not frame.fields.get("cancelable", task.about.cancelable):
            raise errors.unsupported(task_id)
        if not task.canceling:
            task.canceling = True
            task.script = task.script.canceled(now - task.created_at, CANCELED)
            self._tell(task)

    def infos(self, found: Iterable[SimulatedTask], view: BodyView) -> dict[str, Fields]:
        now, timestamps = self._clock(), self._options.timestamps
        return {task.id: task.info(now, view, timestamps) for task in found}

    def jsons(self, found: Iterable[SimulatedTask], view: BodyView) -> dict[str, Raw]:
        now, timestamps = self._clock(), self._options.timestamps
        return {task.id: task.json(now, view, timestamps) for task in found}

    def _visible(self, task_id: str) -> SimulatedTask | None:
        task = self._tasks.get(task_id)
        if task and task.is_purged(self._clock(), self._options.retention_s):
            self.forget(task_id, retired=True)
            return None
        return None if task_id in self._hidden else task

    def visible_vim(self, task_id: str) -> SimulatedTask | None:
        """The classic task of this id, denied or not."""
        task = self._visible(task_id)
        return task if task and task.is_vim else None

    @property
    def denied(self) -> Collection[str]:
        return self._denied

    def _listed(self, task_id: str, wanted: FilterSpec) -> SimulatedTask | None:
        task = self._tasks.get(task_id)
        if task is None or task.is_vim or task_id in self._denied or not _is_about(task.about, wanted):
            return None
        if wanted.status and task.at(self._clock()).status not in wanted.status:
            return None
        return self._visible(task_id)

    def _sweep(self) -> None:
        """Purges now and then, as tasks are created; a look at a purged task doesn't wait for it."""
        now, retention_s = self._clock(), self._options.retention_s
        if retention_s is None or now < self._swept_at + max(1.0, retention_s / 10):
            return
        self._swept_at = now
        for task in list(self._tasks.values()):
            if task.is_purged(now, retention_s):
                self.forget(task.id, retired=True)


def _nobody(_task: SimulatedTask) -> None:
    """There is no `/sdk`."""


def provider_of(task_id: str) -> str:
    """The part after the first colon; ids without one are of one nameless provider."""
    return task_id.partition(":")[2]


def _check(wanted: FilterSpec) -> None:
    if not wanted.tasks and not wanted.services:
        raise errors.invalid_argument("One of tasks and services must not be empty.")
    if len({provider_of(task_id) for task_id in wanted.tasks or ()}) > 1:
        raise errors.invalid_argument("All tasks must be from the same provider.")
    if len(set(wanted.services or ())) > 1:
        raise errors.invalid_argument("All services must be from the same provider.")


def _is_about(about: About, wanted: FilterSpec) -> bool:
    return (
        (not wanted.services or about.service in wanted.services)
        and (not wanted.operations or about.operation in wanted.operations)
        and (not wanted.targets or about.target in wanted.targets)
        and (not wanted.users or about.user in wanted.users)
    )


def _base_id() -> str:
    # Like vCenter's: the shape of a UUID, but seldom a valid one of any version.
    digits = "52" + secrets.token_hex(15)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _put(names: set[str], name: str, there: bool) -> None:
    if there:
        names.add(name)
    else:
        names.discard(name)
