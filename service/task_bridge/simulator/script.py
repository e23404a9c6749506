"""A task's life as a script. Pure: the time is handed in as seconds since the task's creation.

A `Script` is a list of `Step`s; each says after how many seconds which fields of the task's body change.
What a step names is served to the letter; what it doesn't name comes from the task's flavour (`bodies.py`).
A task without any step is PENDING.
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
    """From `after_s` on the body has these `changes`, and none of the fields in `removes`."""

    after_s: float
    changes: Fields = {}
    removes: tuple[str, ...] = ()


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    """All that will happen to a task, unless somebody cancels or sets it.

    `cancelable` None leaves it to the flavour: vLCM's tasks can be canceled, the appliance's can't.
    """

    steps: tuple[Step, ...] = ()
    flavour: Flavour = "vlcm"
    cancelable: bool | None = None
    cancel_takes_s: float = 0.5

    def __post_init__(self) -> None:
        times = [step.after_s for step in self.steps]
        if times != sorted(times):
            raise ValueError("a script's steps must be in the order of their after_s")

    def amended(self, age_s: float, changes: Fields, removes: tuple[str, ...] = ()) -> "Script":
        """The script with one more change now; what was to come still comes, unless this is the end."""
        past, coming = self._parted(age_s)
        still = () if changes.get("status") in ENDED else coming
        return replace(self, steps=(*past, Step(age_s, changes, removes), *still))

    def canceled(self, age_s: float, ending: Fields) -> "Script":
        """The script without what was to come, and with `ending` after the time a cancel takes."""
        past, _ = self._parted(age_s)
        return replace(self, steps=(*past, Step(age_s + self.cancel_takes_s, ending)))

    def _parted(self, age_s: float) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        passed = sum(is_due(step.after_s, age_s) for step in self.steps)
        return self.steps[:passed], self.steps[passed:]


class Frame(Struct, frozen=True):
    """How a task stands between two steps. Times are seconds since its creation."""

    since_s: float = 0.0
    status: str = "PENDING"
    fields: Fields = msgspec.field(default_factory=lambda: {"status": "PENDING"})
    removed: frozenset[str] = frozenset()
    started_s: float | None = None
    ended_s: float | None = None

    def then(self, step: Step) -> "Frame":
        status = step.changes.get("status", self.status)
        ended_s = step.after_s if self.ended_s is None else self.ended_s
        started_s = step.after_s if self.started_s is None else self.started_s
        return Frame(
            since_s=step.after_s,
            status=status,
            fields=_changed(self.fields, step),
            removed=self.removed.difference(step.changes).union(step.removes),
            started_s=None if status == "PENDING" else started_s,
            ended_s=ended_s if status in ENDED else None,
        )


def is_due(after_s: float, age_s: float) -> bool:
    return after_s <= age_s + _DUE_WITHIN_S


def frames(script: Script) -> Iterator[Frame]:
    """Every state of the script in order, the PENDING before its first step included."""
    return accumulate(script.steps, Frame.then, initial=Frame())


def frame_at(script: Script, age_s: float) -> Frame:
    """How the task stands at this age."""
    return [frame for frame in frames(script) if is_due(frame.since_s, age_s)][-1]


def message(text: str, *args: str, id: str = "simulator.task", **params: Any) -> Fields:  # noqa: A002 - vSphere's word
    """A LocalizableMessage; `params` are LocalizationParams by their names, e.g. `host={"s": "esx1"}`."""
    return {"id": id, "default_message": text, "args": list(args)} | ({"params": params} if params else {})


@lru_cache(maxsize=4096)
def progress(completed: int, total: int = 100, text: str = "Working through the task's steps.") -> Fields:
    """A Progress; scripts share it, so it isn't to be changed."""
    return {"total": total, "completed": completed, "message": message(text, id="simulator.task.progress")}


def std_error(error_type: str, *messages: Fields, **more: Any) -> Fields:
    """A standard error of vSphere, in the form `/api` has it; `more` are `data` or `challenge`."""
    return {"error_type": error_type, "messages": list(messages), **more}


def _changed(fields: Fields, step: Step) -> Fields:
    changed = {**fields, **step.changes}
    for name in step.removes:
        changed.pop(name, None)
    return changed
