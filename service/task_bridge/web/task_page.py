"""The page of one task: how it stands, what it is about, its error, its result and its events."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from markupsafe import Markup, escape

from ..domain.durations import rfc3339
from ..domain.events import EventData, WatchRef
from ..domain.text import to_printable_lines
from ..domain.timeline import TaskTimeline
from .board import LINKS, REFRESH_S, build_environment, fill_ages
from .health import BridgeHealth

_MAX_SHOWN = 20_000
"""Characters of a result."""
_MAX_INDENT = 40
_JSON_PART = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|\[\s*\]|\{\s*\}|[\[\]{},:]|[^\s\[\]{},:"]+')


class ShownText(NamedTuple):
    """JSON as HTML with its line breaks, which the environment would take away."""

    html: Markup
    is_cut: bool


class TaskView(NamedTuple):
    """A task at the moment `now` (Unix seconds). `timeline` is None if it couldn't be read; `trouble` says why."""

    health: BridgeHealth
    vcenter: str
    task: str
    timeline: TaskTimeline | None
    trouble: str | None
    now: float

    @property
    def watch(self) -> WatchRef | None:
        """The active watch, else that of the last event."""
        if self.timeline is None:
            return None
        if self.timeline.watch is not None:
            return self.timeline.watch.ref
        return self.timeline.last.watch if self.timeline.last is not None else None

    @property
    def is_known(self) -> bool:
        """Whether anything is stored about the task, or that isn't known."""
        return self.timeline is None or bool(self.timeline.events or self.timeline.watch or self.timeline.unreadable)

    @property
    def vcenter_reason(self) -> str | None:
        """Why the task may be another than shown. None if its vCenter is well, or nothing watches the task."""
        if self.timeline is None or not self.timeline.is_active:
            return None
        names = {vcenter.name: vcenter for vcenter in self.health.vcenters}
        if self.vcenter not in names:
            return f"{self.vcenter} isn't in this replica's settings: another replica may watch the task, or none does."
        vcenter = names[self.vcenter]
        return f"vCenter {vcenter.name} is {vcenter.state}: {vcenter.reason}." if vcenter.state == "degraded" else None


class TaskPageRenderer:
    """Renders the pages of tasks."""

    def __init__(self) -> None:
        self._template = build_environment().get_template("task.html")

    def render(self, view: TaskView) -> str:
        """Return the whole page."""
        last = view.timeline.last if view.timeline is not None else None
        html = self._template.render(
            view=view,
            result=format_json(last.result) if last is not None else None,
            error_data=_format_error_data(last),
            now=rfc3339(view.now),
            refresh_s=REFRESH_S,
            links=LINKS,
        )
        return fill_ages(html, view.now)


def build_json(view: TaskView) -> bytes:
    """Return the page's content as JSON, with the events as they are stored."""
    timeline = view.timeline
    events = [msgspec.Raw(stored.body) for stored in timeline.events] if timeline is not None else None
    content: dict[str, Any] = {
        "vcenter": view.vcenter,
        "task": view.task,
        "as_of": rfc3339(view.now),
        "trouble": view.trouble,
        "active": timeline.is_active if timeline is not None else None,
        "watch": view.watch,
        "dropped_events": timeline.dropped if timeline is not None else None,
        "events": events,
    }
    return msgspec.json.encode(content)


def format_json(value: msgspec.Raw) -> ShownText:
    """Return JSON on indented lines, cut to what a page can show."""
    shown: list[str] = []
    size = 0
    for part in _indent_parts(bytes(value).decode("utf-8", "replace")):
        shown.append(part[: _MAX_SHOWN + 1])
        size += len(part)
        if size > _MAX_SHOWN:
            break
    text = to_printable_lines("".join(shown)[:_MAX_SHOWN])
    return ShownText(escape(text), size > _MAX_SHOWN)


def _indent_parts(text: str) -> Iterator[str]:
    """Yield JSON on indented lines, part by part.

    Indented as a whole, 256 KiB in 250 levels are 60 MB of blanks, which held up the event loop for seconds.
    """
    level = 0
    for found in _JSON_PART.finditer(text):
        part = found[0]
        if part in "[{":
            level += 1
            yield part + _break_line(level)
        elif part in "]}":
            level -= 1
            yield _break_line(level) + part
        elif part == ",":
            yield part + _break_line(level)
        else:
            yield ": " if part == ":" else part


def _break_line(level: int) -> str:
    return "\n" + " " * min(2 * level, _MAX_INDENT)


def _format_error_data(last: EventData | None) -> ShownText | None:
    if last is None or last.error is None or last.error.data is None:
        return None
    return format_json(msgspec.Raw(msgspec.json.encode(last.error.data)))
