"""Watches in the forms of `list` and `get`: a line each with a header, YAML, ids."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from rich.cells import cell_len

from ..domain.durations import parse_time
from ..domain.events import Event, WatchRef
from ..domain.replies import GetReply, ListedWatch
from ..domain.vcenter_state import VCenterState
from . import output


class Form(StrEnum):
    """The forms of `--output`."""

    wide = "wide"
    json = "json"
    yaml = "yaml"
    name = "name"


class Row(NamedTuple):
    """A watch as a line shows it. The task's id comes last, whole: users copy it."""

    vcenter: str
    status: str
    progress: str
    age: str
    target: str
    task: str
    watch: WatchRef
    state: VCenterState | None = None

    @property
    def labels(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.watch.labels.items())


_YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
_COLUMNS = ("VCENTER", "STATUS", "PROGRESS", "AGE", "TARGET", "TASK")


def row_of_listed(watch: ListedWatch, now: float) -> Row:
    status = "unconfigured" if watch.unconfigured else watch.status or "not seen yet"
    progress, target = output.format_percent(watch.progress), output.describe_target(watch.target)
    age = format_age(now, watch.watch.since)
    return Row(watch.vcenter, status, progress, age, target, watch.task, watch.watch, watch.vcenter_state)


def row_of_reply(reply: GetReply, event: Event | None, now: float) -> Row:
    data = event.data if event is not None else None
    status = "not seen yet" if event is None else event.kind if event.data.final else event.data.status or event.kind
    progress = output.format_percent(data.progress if data else None)
    ended_at = event.time if event is not None and event.data.final else now
    age, target = format_age(ended_at, reply.watch.since), output.describe_target(data.target if data else None)
    return Row(reply.vcenter, status, progress, age, target, reply.task, reply.watch, reply.vcenter_state)


def format_age(now: float, since: str | None) -> str:
    """Return the time from `since` (RFC 3339) to `now`, in the two units that matter."""
    began = parse_time(since)
    return "" if began is None else format_seconds(now - began)


def format_seconds(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"


def format_rows(rows: Iterable[Row], *, wide: bool) -> Iterator[str]:
    """Yield a header and a line per watch, whose columns line up."""
    header = (*_COLUMNS[:-1], *(("SINCE", "UNTIL", "WATCH", "FOLLOW", "LABELS") if wide else ()), _COLUMNS[-1])
    table = [header, *(_list_cells(row, wide=wide) for row in rows)]
    cells = [[output.clean(cell) or "-" for cell in line] for line in table]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (output.pad(cell, width) for cell, width in zip(line[:-1], widths[:-1], strict=True))
        yield "  ".join((*padded, line[-1]))


def _list_cells(row: Row, *, wide: bool) -> tuple[str, ...]:
    cells: tuple[str, ...] = (row.vcenter, row.status, row.progress, row.age, row.target)
    if wide:
        until = f"{row.watch.timeout_at[:19]}Z" if row.watch.timeout_at else ""
        cells += (f"{row.watch.since[:19]}Z", until, row.watch.id, row.watch.follow or "", row.labels)
    return (*cells, row.task)


def describe_states(rows: Iterable[Row]) -> Iterator[str]:
    """Yield a line for each vCenter that isn't well."""
    states = {row.vcenter: row.state for row in rows if row.state is not None and row.state.state != "ok"}
    for vcenter, state in states.items():
        yield describe_state(vcenter, state)


def describe_state(vcenter: str, state: VCenterState) -> str:
    since = f" since {state.since[:19]}Z" if state.since else ""
    reason = f": {state.reason}" if state.reason else ""
    return f"vCenter {vcenter} is {state.state}{since}{reason}"


def format_yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Yield the lines of a JSON value as block-style YAML. Scalars are written as in JSON, which YAML includes."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _format_entry(f"{indent}{_format_scalar(key)}:", item, indent + "  ")
    elif isinstance(value, list) and value:
        for item in value:
            yield from _format_entry(f"{indent}-", item, indent + "  ")
    else:
        yield indent + _format_scalar(value)


def _format_entry(start: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield start
        yield from format_yaml(value, indent)
    else:
        yield f"{start} {_format_scalar(value)}"


def _format_scalar(value: Any) -> str:
    if isinstance(value, str) and value.isascii() and value.isidentifier() and value.lower() not in _YAML_WORDS:
        return value
    is_printable = isinstance(value, str) and value.isprintable()
    return json.dumps(value, ensure_ascii=not is_printable)


def now() -> float:
    return time.time()
