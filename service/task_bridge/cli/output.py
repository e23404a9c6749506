"""Output of the client commands: text without control characters, shortened on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..client import StoredCloudEvent
from ..domain.durations import rfc3339
from ..domain.events import Event, WatchRef
from ..domain.requests import GetReply, ListedWatch, WatchReply
from ..domain.task import Progress as Percentage
from ..domain.task import Target

_STYLES = {"completed.succeeded": "green", "completed.failed": "red", "completed.canceled": "yellow"}
_SHORT_ID_WIDTH, _UNLIMITED_WIDTH = 24, 10_000
_BAR_WIDTH = _SHORT_ID_WIDTH + 16 + 4 + 7 + 4  # the columns beside the message of a bar


def clean(text: object) -> str:
    """Return the text on one line, with visible marks for control and direction-changing characters."""
    one_line = " ".join(str(text).split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in one_line)


def shorten(task: str, width: int = _SHORT_ID_WIDTH) -> str:
    """Return the task id, without its middle if it is long: the start identifies a task, the end names its kind."""
    task = clean(task)
    return task if len(task) <= width else f"{task[:9]}…{task[-(width - 10) :]}"


def truncate(text: str, width: int) -> str:
    """Return as much of the text as fits."""
    text = clean(text)
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def is_terminal() -> bool:
    """Return True if standard output is a terminal. FORCE_COLOR alone doesn't make it one."""
    return sys.stdout.isatty()


def console() -> Console:
    """Return a console on standard output. Without a terminal it doesn't wrap lines."""
    return Console(highlight=False, markup=False, emoji=False, width=None if is_terminal() else _UNLIMITED_WIDTH)


def print_error(text: str) -> None:
    """Print a line on standard error."""
    width = None if sys.stderr.isatty() else _UNLIMITED_WIDTH
    Console(stderr=True, highlight=False, markup=False, emoji=False, width=width).print(Text(clean(text)))


def describe_existing_watch(watch: WatchRef) -> str:
    """Explain to a user who gave a timeout or labels that the existing watch keeps its own."""
    until = f"timeout at {watch.timeout_at}" if watch.timeout_at else "no timeout"
    labels = "labels " + " ".join(f"{key}={value}" for key, value in watch.labels.items())
    return f"already watched, with what was asked for first: {until}, {labels if watch.labels else 'no labels'}."


def _choose_style(event: Event) -> str:
    return _STYLES.get(event.kind, "magenta" if event.data.final else "default")


def _format_percent(progress: Percentage | None) -> str:
    return "" if progress is None or progress.percent is None else f"{progress.percent:.0f} %"


def describe(event: Event, *, with_target: bool = False) -> str:
    """Return the event in a few words: the status of the task, the name of its target if known, and its error."""
    data = event.data
    parts = [data.status or "", _format_percent(data.progress)]
    if data.final and data.duration_seconds is not None:
        parts.append(f"{data.duration_seconds:.1f} s")
    message = "" if data.final or data.progress is None else data.progress.message or ""
    message = data.error.message if data.error is not None else message
    if with_target and data.target is not None and data.target.name:
        parts.append(f"on {data.target.name}{':' if message else ''}")
    return clean(" ".join(part for part in (*parts, message) if part))


def describe_target(target: Target | None) -> str:
    """Return what users call the target: its path, or else its name, or else its type and id."""
    if target is None:
        return ""
    return clean(target.path or target.name or " ".join(filter(None, (target.type, target.id))))


def format_event(event: Event) -> Text:
    """Return the event as one line, on a terminal with a short time and task id."""
    time = rfc3339(event.time)
    if not is_terminal():
        words = (time, clean(event.data.vcenter), clean(event.data.task), event.kind, describe(event, with_target=True))
        return Text(" ".join(words).rstrip())
    text = Text(f"{time[5:10]} {time[11:19]} ")
    text.append(f"{clean(event.kind):<19} ", _choose_style(event))
    return text.append(f"{shorten(event.data.task)} {describe(event, with_target=True)}")


def print_json(body: bytes) -> None:
    """Print one JSON document on a line of standard output, byte for byte."""
    sys.stdout.buffer.write(body + b"\n")
    sys.stdout.buffer.flush()


class Lines:
    """Prints a line per event."""

    def __init__(self, replies: Sequence[WatchReply] = ()) -> None:
        self._console = console()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: every line is flushed."""

    def print_event(self, stored: StoredCloudEvent) -> None:
        self._console.print(format_event(stored.event), no_wrap=True, overflow="ellipsis")
        self._console.file.flush()


class JsonLines:
    """Prints each CloudEvent on a line, as it is stored."""

    def __init__(self, replies: Sequence[WatchReply] = ()) -> None:
        """Ignore the replies: JSON lines are events only."""

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: every line is flushed."""

    def print_event(self, stored: StoredCloudEvent) -> None:
        print_json(stored.body)


class Bars:
    """Shows a bar for each running task, as many as fit, and above them a line for each that ended."""

    def __init__(self, replies: Sequence[WatchReply]) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}", markup=False),
        )
        self._progress = Progress(*columns)
        self._console = console()
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=10)
        self._bars: dict[str, TaskID] = {
            reply.watch.id: self._progress.add_task(shorten(reply.task), total=None, message="requested")
            for reply in replies
        }

    def __enter__(self) -> Bars:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _render(self) -> Group:
        running, room = self._progress.tasks, max(self._console.height - 2, 1)
        more = [Text(f"… and {len(running) - room} more")] if len(running) > room else []
        return Group(self._progress.make_tasks_table(running[:room]), *more)

    def print_event(self, stored: StoredCloudEvent) -> None:
        data, bar = stored.event.data, self._bars[stored.event.data.watch.id]
        if data.final:
            self._progress.remove_task(bar)
            end = Text(f"{shorten(data.task)}  ").append(stored.event.kind, _choose_style(stored.event))
            self._console.print(end.append(f"  {describe(stored.event, with_target=True)}"))
            return
        known = data.progress is not None and data.progress.percent is not None
        message = (data.progress.message if data.progress else None) or ""
        name = f"on {data.target.name}: " if data.target is not None and data.target.name else ""
        status = "stalled" if data.kind == "stalled" else data.status or data.kind
        self._progress.update(
            bar,
            total=100 if known else None,
            completed=data.progress.percent if data.progress and known else 0,
            message=truncate(f"{status} {name}{message}", self._console.width - _BAR_WIDTH),
        )


def _format_span(watch: WatchRef) -> str:
    until = f", until {watch.timeout_at[:19]}Z" if watch.timeout_at else ""
    return f"since {watch.since[:19]}Z{until}"


def format_watches(watches: Iterable[ListedWatch], total: int) -> Iterable[Text]:
    """Return two lines per watch. The first is the task id alone, because users copy it."""
    for watch in watches:
        labels = " ".join(f"{key}={value}" for key, value in watch.watch.labels.items())
        parts = [
            watch.vcenter,
            watch.status or "not seen yet",
            _format_percent(watch.progress),
            describe_target(watch.target),
            _format_span(watch.watch),
            f"follow {watch.watch.follow}" if watch.watch.follow else "",
            labels,
        ]
        if watch.unconfigured:
            parts.insert(1, "unconfigured")
        yield Text(clean(watch.task), "bold")
        yield Text("  " + "  ".join(clean(part) for part in parts if part))
    yield Text(f"{total} {'watch' if total == 1 else 'watches'}" if total else "Nothing is watched.")


def format_state(reply: GetReply, event: Event | None) -> Table:
    """Return the state of a task as a table, one field per row."""
    fields: dict[str, Any] = {"vcenter": reply.vcenter}
    fields["watch"] = f"{'active' if reply.watching else 'over'}, {_format_span(reply.watch)}"
    fields["follow"] = reply.watch.follow
    fields["labels"] = " ".join(f"{key}={value}" for key, value in reply.watch.labels.items())
    if event is not None:
        data = event.data
        fields |= {"last event": f"{event.kind} at {rfc3339(event.time)}", "status": describe(event)}
        fields["operation"] = " ".join(filter(None, (data.service, data.operation)))
        target = data.target or Target()
        fields["target"] = " ".join(filter(None, (target.type, target.id, target.name)))
        fields["path"] = target.path
        fields["user"] = data.user
        fields["messages"] = " / ".join(message.text for message in data.error.messages) if data.error else ""
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value:
            table.add_row(name, Text(clean(value)))
    return table
