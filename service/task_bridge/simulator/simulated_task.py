"""One simulated task: its attributes, and a script that began at a time."""

from collections.abc import Iterator
from itertools import islice, takewhile

import msgspec
from msgspec import Raw, Struct

from .bodies import BodyView, build_body, build_fixed_fields
from .options import Timestamps
from .script import Fields, Frame, Script, frames, is_due
from .task_attributes import TaskAttributes


class TaskState(Struct):
    """One state that a task really had, from `at` on (seconds since 1970)."""

    at: float
    status: str
    fields: Fields


class SimulatedTask:
    """A script that began at a time.

    `frame` follows the clock step by step, so that a poll costs little. `retired` says that the task's object is gone
    and its history remains, as with classic tasks some time after their end. `number` counts all tasks of a vCenter in
    the order of their creation.
    """

    __slots__ = (
        "_encoded",
        "_next_step",
        "attributes",
        "cancel_requested",
        "created_at",
        "fixed_fields",
        "forgotten_at",
        "frame",
        "id",
        "number",
        "retired",
        "script",
    )

    def __init__(
        self, task_id: str, attributes: TaskAttributes, script: Script, created_at: float, number: int = 0
    ) -> None:
        self.id = task_id
        self.number = number
        self.attributes = attributes
        self.script = script
        self.created_at = created_at
        self.forgotten_at: float | None = None
        self.cancel_requested = False
        self.retired = False
        self._encoded: tuple[Frame, BodyView, Timestamps, Raw] | None = None
        self.fixed_fields = build_fixed_fields(attributes)
        self.frame = Frame()
        self._next_step = 0

    @property
    def is_classic(self) -> bool:
        return self.attributes.flavour == "vim"

    def frame_at(self, now: float) -> Frame:
        """Apply the steps that are due and return the task's state."""
        steps = self.script.steps
        while self._next_step < len(steps) and is_due(steps[self._next_step].after_s, now - self.created_at):
            self.frame = self.frame.apply(steps[self._next_step])
            self._next_step += 1
        return self.frame

    def build_info(self, now: float, view: BodyView, timestamps: Timestamps) -> Fields:
        frame = self.frame_at(now)
        return build_body(self.attributes.flavour, self.fixed_fields, self.created_at, frame, view, timestamps)

    def encode_info(self, now: float, view: BodyView, timestamps: Timestamps) -> Raw:
        """Return the Info as JSON of `/api`, cached until the task's next step: most polls find no change."""
        frame, cached = self.frame_at(now), self._encoded
        if cached and cached[0] is frame and cached[1] == view and cached[2] == timestamps:
            return cached[3]
        encoded = Raw(msgspec.json.encode(self.build_info(now, view, timestamps)))
        self._encoded = (frame, view, timestamps, encoded) if view.exclude_result else None
        return encoded

    def is_past_retention(self, now: float, retention_s: float | None) -> bool:
        ended_s = self.frame_at(now).ended_s
        if ended_s is None or retention_s is None:
            return False
        return is_due(ended_s + retention_s, now - self.created_at)

    def list_states(self, now: float) -> Iterator[TaskState]:
        """Yield every state until now, or until the task was forgotten."""
        age_s = (now if self.forgotten_at is None else self.forgotten_at) - self.created_at
        steps = self.script.steps
        # A step at 0 hides the PENDING before it.
        visible = islice(frames(self.script), 1 if steps and steps[0].after_s == 0 else 0, None)
        for frame in takewhile(lambda frame: is_due(frame.since_s, age_s), visible):
            yield TaskState(self.created_at + frame.since_s, frame.status, frame.fields)
