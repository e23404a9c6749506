"""Events, watches and replies as text: short on a terminal, whole elsewhere, without control characters."""

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

_STYLES = {"completed.succeeded": "green", "completed.failed": "red", "completed.canceled": "yellow"}
_SHORT, _WIDE = 24, 10_000
_BESIDES = _SHORT + 16 + 4 + 7 + 4  # what stands beside the words of a bar


def clean(text: object) -> str:
    """The text on one line: what isn't printable (control characters, reversed writing) is a space or is seen."""
    spaced = " ".join(str(text).split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in spaced)


def short(task: str, width: int = _SHORT) -> str:
    """A task id whose middle may be missing: its beginning tells tasks apart, its end what they do."""
    task = clean(task)
    return task if len(task) <= width else f"{task[:9]}…{task[-(width - 10) :]}"


def cut(text: str, width: int) -> str:
    """The text's beginning, as much as fits."""
    text = clean(text)
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def on_terminal() -> bool:
    """Whether people watch standard output; FORCE_COLOR alone doesn't make it one."""
    return sys.stdout.isatty()


def console() -> Console:
    """Standard output, as wide as a line gets where it isn't a terminal."""
    return Console(highlight=False, markup=False, emoji=False, width=None if on_terminal() else _WIDE)


def tell(text: str) -> None:
    """A line on stderr."""
    width = None if sys.stderr.isatty() else _WIDE
    Console(stderr=True, highlight=False, markup=False, emoji=False, width=width).print(Text(clean(text)))


def in_force(watch: WatchRef) -> str:
    """What is told who asked for a timeout or labels of a watch that has its own."""
    until = f"timeout at {watch.timeout_at}" if watch.timeout_at else "no timeout"
    labels = "labels " + " ".join(f"{key}={value}" for key, value in watch.labels.items())
    return f"watched already, with what was asked for first: {until}, {labels if watch.labels else 'no labels'}."


def style(event: Event) -> str:
    return _STYLES.get(event.kind, "magenta" if event.data.final else "default")


def percent(progress: Percentage | None) -> str:
    return "" if progress is None or progress.percent is None else f"{progress.percent:.0f} %"


def said(event: Event) -> str:
    """The event in a few words: how the task stands, and why it ended so."""
    data = event.data
    parts = [data.status or "", percent(data.progress)]
    if data.final and data.duration_seconds is not None:
        parts.append(f"{data.duration_seconds:.1f} s")
    if data.error is not None:
        parts.append(data.error.message)
    elif not data.final and data.progress is not None and data.progress.message:
        parts.append(data.progress.message)
    return clean(" ".join(part for part in parts if part))


def line(event: Event) -> Text:
    """The event as one line; on a terminal with its time to the second and a short id."""
    time = rfc3339(event.time)
    if not on_terminal():
        return Text(f"{time} {clean(event.data.vcenter)} {clean(event.data.task)} {event.kind} {said(event)}".rstrip())
    shown = Text(f"{time[5:10]} {time[11:19]} ")
    shown.append(f"{clean(event.kind):<19} ", style(event))
    return shown.append(f"{short(event.data.task)} {said(event)}")


class Lines:
    """A line an event."""

    def __init__(self, replies: Sequence[WatchReply] = ()) -> None:
        self._console = console()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is kept."""

    def show(self, stored: StoredCloudEvent) -> None:
        self._console.print(line(stored.event), no_wrap=True, overflow="ellipsis")
        self._console.file.flush()


class JsonLines:
    """A CloudEvent a line, as it is stored."""

    def __init__(self, replies: Sequence[WatchReply] = ()) -> None:
        """Knows nothing of what is watched."""

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is kept."""

    def show(self, stored: StoredCloudEvent) -> None:
        sys.stdout.buffer.write(stored.body + b"\n")
        sys.stdout.buffer.flush()


class Bars:
    """A bar for each task that goes on, as many as there is room for, and above them how the others ended."""

    def __init__(self, replies: Sequence[WatchReply]) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}", markup=False),
        )
        self._progress = Progress(*columns)
        self._console = console()
        self._live = Live(get_renderable=self._shown, console=self._console, refresh_per_second=10)
        self._bars: dict[str, TaskID] = {
            reply.watch.id: self._progress.add_task(short(reply.task), total=None, said="asked for")
            for reply in replies
        }

    def __enter__(self) -> Bars:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _shown(self) -> Group:
        going_on, room = self._progress.tasks, max(self._console.height - 2, 1)
        more = [Text(f"… and {len(going_on) - room} more")] if len(going_on) > room else []
        return Group(self._progress.make_tasks_table(going_on[:room]), *more)

    def show(self, stored: StoredCloudEvent) -> None:
        data, bar = stored.event.data, self._bars[stored.event.data.watch.id]
        if data.final:
            self._progress.remove_task(bar)
            self._console.print(_ending(stored.event))
            return
        known = data.progress is not None and data.progress.percent is not None
        message = (data.progress.message if data.progress else None) or ""
        word = "stalled" if data.kind == "stalled" else data.status or data.kind
        self._progress.update(
            bar,
            total=100 if known else None,
            completed=data.progress.percent if data.progress and known else 0,
            said=cut(f"{word} {message}", self._console.width - _BESIDES),
        )


def _ending(event: Event) -> Text:
    shown = Text(f"{short(event.data.task)}  ")
    return shown.append(event.kind, style(event)).append(f"  {said(event)}")


def _span(watch: WatchRef) -> str:
    until = f", until {watch.timeout_at[:19]}Z" if watch.timeout_at else ""
    return f"since {watch.since[:19]}Z{until}"


def watches(listed: Iterable[ListedWatch], total: int) -> Iterable[Text]:
    """Two lines a watch, the id alone on the first: it is what is copied."""
    for watch in listed:
        labels = " ".join(f"{key}={value}" for key, value in watch.watch.labels.items())
        parts = [watch.vcenter, watch.status or "not seen yet", percent(watch.progress), _span(watch.watch), labels]
        if watch.unconfigured:
            parts.insert(1, "unconfigured")
        yield Text(clean(watch.task), "bold")
        yield Text("  " + "  ".join(clean(part) for part in parts if part))
    yield Text(f"{total} {'watch' if total == 1 else 'watches'}" if total else "Nothing is watched.")


def state(reply: GetReply, event: Event | None) -> Table:
    """How a task stands, a field a line, below its id."""
    fields: dict[str, Any] = {"vcenter": reply.vcenter}
    fields["watch"] = f"{'active' if reply.watching else 'over'}, {_span(reply.watch)}"
    fields["labels"] = " ".join(f"{key}={value}" for key, value in reply.watch.labels.items())
    if event is not None:
        data = event.data
        fields |= {"last event": f"{event.kind} at {rfc3339(event.time)}", "status": said(event)}
        fields["operation"] = " ".join(filter(None, (data.service, data.operation)))
        fields["target"] = " ".join(filter(None, (data.target.type, data.target.id))) if data.target else ""
        fields["user"] = data.user
        fields["messages"] = " / ".join(message.text for message in data.error.messages) if data.error else ""
    shown = Table.grid(padding=(0, 2), pad_edge=False)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in fields.items():
        if value:
            shown.add_row(name, Text(clean(value)))
    return shown
