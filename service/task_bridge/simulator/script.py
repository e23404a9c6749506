"""A task's life as a script. Pure: functions receive the time, in seconds since the task's creation.

A `Script` is a list of `Step`s. A step says after how many seconds which fields of the task's body change. The values
in a step are served unchanged; all other fields come from the task's flavour (`bodies.py`). A task without steps is
PENDING.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

Fields = dict[str, Any]
Flavour = Literal["vlcm", "appliance", "minimal", "vim"]

ENDED = frozenset({"SUCCEEDED", "FAILED"})

# A clock of seconds since 1970 resolves some 0.2 µs: a step is due when it is this near.
_DUE_WITHIN_S = 1e-6


class Step(Struct, frozen=True, forbid_unknown_fields=True):
    """From `after_s` on, the body contains these `changes` and none of the fields in `removes`."""

    after_s: float
    changes: Fields = {}
    removes: tuple[str, ...] = ()


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that will happen to a task unless a client cancels it or a test changes it.

    `cancelable` None leaves the choice to the flavour: vLCM's tasks can be canceled, the appliance's can't.
    """

    steps: tuple[Step, ...] = ()
    flavour: Flavour = "vlcm"
    cancelable: bool | None = None
    cancel_takes_s: float = 0.5

    def __post_init__(self) -> None:
        times = [step.after_s for step in self.steps]
        if times != sorted(times):
            raise ValueError("a script's steps must be in the order of their after_s")

    def amend(self, age_s: float, changes: Fields, removes: tuple[str, ...] = ()) -> "Script":
        """Return the script with one more change now. Later steps still happen, unless the change ends the task."""
        past, future = self._split(age_s)
        remaining = () if changes.get("status") in ENDED else future
        at_s = max([age_s, *(step.after_s for step in past)])  # what is due may be 1 µs later
        return replace(self, steps=(*past, Step(at_s, changes, removes), *remaining))

    def cancel(self, age_s: float, ending: Fields) -> "Script":
        """Return the script without its later steps, and with `ending` after the time that a cancel takes."""
        past, _ = self._split(age_s)
        return replace(self, steps=(*past, Step(age_s + self.cancel_takes_s, ending)))

    def _split(self, age_s: float) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        past = sum(is_due(step.after_s, age_s) for step in self.steps)
        return self.steps[:past], self.steps[past:]


class Frame(Struct, frozen=True):
    """A task's state between two steps. Times are seconds since its creation."""

    since_s: float = 0.0
    status: str = "PENDING"
    fields: Fields = msgspec.field(default_factory=lambda: {"status": "PENDING"})
    removed_fields: frozenset[str] = frozenset()
    started_s: float | None = None
    ended_s: float | None = None

    def apply(self, step: Step) -> "Frame":
        """Return the state after the step."""
        status = step.changes.get("status", self.status)
        ended_s = step.after_s if self.ended_s is None else self.ended_s
        started_s = step.after_s if self.started_s is None else self.started_s
        fields = {**self.fields, **step.changes}
        for name in step.removes:
            fields.pop(name, None)
        return Frame(
            since_s=step.after_s,
            status=status,
            fields=fields,
            removed_fields=self.removed_fields.difference(step.changes).union(step.removes),
            started_s=None if status == "PENDING" else started_s,
            ended_s=ended_s if status in ENDED else None,
        )


def is_due(after_s: float, age_s: float) -> bool:
    return after_s <= age_s + _DUE_WITHIN_S


def frames(script: Script) -> Iterator[Frame]:
    """Yield every state of the script in order, including PENDING before its first step."""
    return accumulate(script.steps, Frame.apply, initial=Frame())


def frame_at(script: Script, age_s: float) -> Frame:
    """Return the task's state at this age."""
    return [frame for frame in frames(script) if is_due(frame.since_s, age_s)][-1]


def message(text: str, *args: str, id: str = "simulator.task", **params: Any) -> Fields:  # noqa: A002 - vSphere's word
    """Build a LocalizableMessage; `params` are LocalizationParams by name, e.g. `host={"s": "esx1"}`."""
    return {"id": id, "default_message": text, "args": list(args)} | ({"params": params} if params else {})


@lru_cache(maxsize=4096)
def progress(completed: int, total: int = 100, text: str = "Working through the task's steps.") -> Fields:
    """Build a Progress. Scripts share it, so don't change it."""
    return {"total": total, "completed": completed, "message": message(text, id="simulator.task.progress")}


def std_error(error_type: str, *messages: Fields, **more: Any) -> Fields:
    """Build a standard error of vSphere in the form of `/api`; `more` holds `data` or `challenge`."""
    return {"error_type": error_type, "messages": list(messages), **more}
