"""Deliveries: which events each sends over HTTP, and its names in NATS. Pure."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import msgspec

from .events import FINAL_KINDS, SUBJECT_KINDS, EventData
from .follows.order import is_operation_selected
from .subjects import SubjectNames

_ALL_KINDS = (*SUBJECT_KINDS, *FINAL_KINDS)


DeliveryState = Literal["delivering", "failing", "paused", "blocked", "waiting"]


class DeliveryReport(msgspec.Struct, frozen=True):
    """How a delivery is at one replica.

    `state`: `delivering`; `failing` (the last try failed); `paused` (the target answered 410); `blocked` (NATS doesn't
    let the replica take events); `waiting` (another replica sends, or no event has come yet). `reason` says why.
    `held`: events that are being sent or wait for their next try; `oldest_s`: the age of the oldest.
    """

    delivery: str
    target: str
    state: DeliveryState
    reason: str | None = None
    held: int = 0
    oldest_s: float | None = None
    last_answer: str | None = None
    last_answer_at: str | None = None
    delivered: int = 0

    @property
    def is_troubled(self) -> bool:
        """Whether somebody must do something."""
        return self.state in ("failing", "paused", "blocked")


class Selection(NamedTuple):
    """Filters of a delivery. An empty one selects everything.

    `kinds`: like `completed` or `completed.failed`. `operations`: names with `*`; `!` excludes.
    """

    kinds: tuple[str, ...] = ("completed", "abandoned")
    vcenters: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    operations: tuple[str, ...] = ()

    def selects(self, data: EventData) -> bool:
        """Return whether the delivery sends this event."""
        kind = f"{data.kind}.{data.outcome}" if data.outcome else data.kind
        return (
            (data.kind in self.kinds or kind in self.kinds)
            and (not self.vcenters or data.vcenter in self.vcenters)
            and all(data.watch.labels.get(key) == value for key, value in self.labels)
            and is_operation_selected(self.operations, data.operation or "")
        )

    def to_filters(self, names: SubjectNames) -> list[str]:
        """Return filters of subjects, for nats-server, that no selected event misses. No two of them overlap."""
        kinds = [kind for kind in self.kinds if kind.partition(".")[0] not in self.kinds or "." not in kind]
        suffixes = [f"{kind}.*" if kind in FINAL_KINDS else kind for kind in kinds]
        return sorted({f"{names.events}.{vcenter}.*.{end}" for vcenter in self.vcenters or ("*",) for end in suffixes})


def parse_kinds(text: str) -> tuple[str, ...]:
    """Return kinds of events, which are comma-separated. Raises ValueError."""
    kinds = split_list(text)
    for kind in kinds:
        if kind not in _ALL_KINDS:
            raise ValueError(f"{kind!r} isn't a kind of event; there are {', '.join(_ALL_KINDS)}")
    if not kinds:
        raise ValueError("must name at least one kind of event, like completed.failed")
    return kinds


def parse_labels(text: str) -> tuple[tuple[str, str], ...]:
    """Return labels, which are written `key=value,key2=value2`. Raises ValueError."""
    pairs = [re.fullmatch(r"([^=]+)=(.*)", part) for part in split_list(text)]
    if not all(pairs):
        raise ValueError("must be key=value, more of them after commas")
    return tuple((pair[1].strip(), pair[2].strip()) for pair in pairs if pair)


def split_list(text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated text, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def read_task_key(names: SubjectNames, subject: str) -> str:
    """Return what the subject of an event says of its task: `<vcenter>.<task token>`."""
    return ".".join(subject.removeprefix(f"{names.events}.").split(".")[:2])
