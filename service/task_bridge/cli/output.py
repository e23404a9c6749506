"""Output of the client commands: text without control characters, shortened on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..client import StoredCloudEvent
from ..domain.durations import rfc3339
from ..domain.errors import Refused
from ..domain.events import Event, WatchRef
from ..domain.replies import GetReply, WatchReply
from ..domain.task import Progress as Percentage
from ..domain.task import Target

_STYLES = {"completed.succeeded": "green", "completed.failed": "red", "completed.canceled": "yellow"}
_SHORT_ID_WIDTH, _UNLIMITED_WIDTH = 24, 10_000


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


def print_trouble(vcenter: str, trouble: str | None) -> None:
    print_error(trouble if trouble is not None else f"vCenter {vcenter} is ok again.")


def describe_refusal(refusal: Refused) -> str:
    """Return the refusal's message with the details that it doesn't contain."""
    details = [f"{detail.field or 'request'}: {detail.problem}" for detail in refusal.details]
    more = [detail for detail, one in zip(details, refusal.details, strict=True) if one.problem not in refusal.message]
    return f"{refusal.message} ({'; '.join(more)})" if more else refusal.message


def describe_existing_watch(watch: WatchRef) -> str:
    """Explain to a user who gave a timeout or labels that the existing watch keeps its own."""
    until = f"timeout at {watch.timeout_at}" if watch.timeout_at else "no timeout"
    labels = "labels " + " ".join(f"{key}={value}" for key, value in watch.labels.items())
    return f"already watched, with what was asked for first: {until}, {labels if watch.labels else 'no labels'}."


def choose_style(event: Event) -> str:
    return _STYLES.get(event.kind, "magenta" if event.data.final else "default")


def format_percent(progress: Percentage | None) -> str:
    return "" if progress is None or progress.percent is None else f"{progress.percent:.0f} %"


def describe(event: Event, *, with_target: bool = False) -> str:
    """Return the event in a few words: the status of the task, the name of its target if known, and its error."""
    data = event.data
    parts = [data.status or "", format_percent(data.progress)]
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
    text = Text(f"{time[:10]} {time[11:19]}Z ")
    text.append(f"{clean(event.kind):<19} ", choose_style(event))
    task = clean(event.data.task) if event.data.final else shorten(event.data.task)
    return text.append(f"{task} {describe(event, with_target=True)}")


def print_json(body: bytes) -> None:
    """Print one JSON document on a line of standard output, byte for byte."""
    sys.stdout.buffer.write(body + b"\n")
    sys.stdout.buffer.flush()


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on standard output. A terminal wraps what is too long for it, so that ids can be copied whole."""
    for line in lines:
        sys.stdout.write(line + "\n")


class Lines:
    """Prints a line per event."""

    def __init__(self, replies: Sequence[WatchReply] = ()) -> None:
        self._console = console()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: every line is flushed."""

    def print_event(self, stored: StoredCloudEvent) -> None:
        if stored.event.data.final:  # with the whole id, which users copy
            self._console.print(format_event(stored.event), soft_wrap=True)
        else:
            self._console.print(format_event(stored.event), no_wrap=True, overflow="ellipsis")
        self._console.file.flush()

    def show_trouble(self, vcenter: str, trouble: str | None) -> None:
        """Say why nothing comes from a vCenter; None: it is well again."""
        print_trouble(vcenter, trouble)


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

    def show_trouble(self, vcenter: str, trouble: str | None) -> None:
        """Say why nothing comes from a vCenter; None: it is well again."""
        print_trouble(vcenter, trouble)


def _format_span(watch: WatchRef) -> str:
    until = f", until {watch.timeout_at[:19]}Z" if watch.timeout_at else ""
    return f"since {watch.since[:19]}Z{until}"


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
