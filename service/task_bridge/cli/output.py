"""Output of the client commands: text without control characters, shortened on a terminal only."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..client import StoredCloudEvent
from ..domain.durations import rfc3339
from ..domain.errors import Refused
from ..domain.events import Event, WatchRef
from ..domain.replies import GetReply, WatchReply
from ..domain.task import Progress as Percentage
from ..domain.task import Target, TaskError

_STYLES = {"completed.succeeded": "green", "completed.failed": "red", "completed.canceled": "yellow"}
_SHORT_ID_WIDTH, _UNLIMITED_WIDTH = 24, 10_000
WIDE, _WIDE_ENOUGH_FOR_IDS = 120, 160
"""Columns of a terminal on which names, and on which also task ids, need not be short."""


def clean(text: object) -> str:
    """Return the text on one line, with visible marks for control and direction-changing characters.

    What the encoding of standard output lacks is escaped here, and not when it is written: columns line up by it.
    """
    one_line = " ".join(str(text).split())
    visible = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in one_line)
    encoding = _find_encoding()
    return visible.encode(encoding, "backslashreplace").decode(encoding)


def _find_encoding() -> str:
    stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # what rich.live puts there has no encoding
    return getattr(stream, "encoding", None) or "utf-8"


def _choose_ellipsis() -> str:
    return "…" if clean("…") == "…" else "..."


def shorten(task: str, width: int = _SHORT_ID_WIDTH) -> str:
    """Return the task id, without its middle if it is long: the start identifies a task, the end names its kind."""
    return cut_middle(task, width, start=9)


def cut_middle(text: str, width: int, start: int) -> str:
    """Return the text, without its middle if it is wider than that; of its beginning `start` columns are kept."""
    text, ellipsis = clean(text), _choose_ellipsis()
    if cell_len(text) <= width:
        return text
    beginning = set_cell_size(text, start).rstrip()
    room = width - cell_len(beginning) - len(ellipsis)
    end = text[-room:]
    while cell_len(end) > room:
        end = end[1:]
    return f"{beginning}{ellipsis}{end}"


def truncate(text: str, width: int) -> str:
    """Return as much of the text, which is clean, as fits."""
    ellipsis = _choose_ellipsis()
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - len(ellipsis), 0)).rstrip() + ellipsis[: max(width, 0)]


def pad(text: str, width: int) -> str:
    """Return the text with blanks up to this width; the characters of some scripts are two columns wide."""
    return text + " " * (width - cell_len(text))


def is_terminal() -> bool:
    """Return True if standard output is a terminal. FORCE_COLOR alone doesn't make it one."""
    return sys.stdout.isatty()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the end to the command, which knows the exit code."""
        raise BrokenPipeError


def console() -> Console:
    """Return a console on standard output. Without a terminal it doesn't wrap lines."""
    return _Console(highlight=False, markup=False, emoji=False, width=None if is_terminal() else _UNLIMITED_WIDTH)


def print_error(text: str) -> None:
    """Print a line on standard error, above what is live on a terminal."""
    width = Console(stderr=True).width if sys.stderr.isatty() else _UNLIMITED_WIDTH
    lines = io.StringIO()
    Console(file=lines, highlight=False, markup=False, emoji=False, width=width).print(Text(clean(text)))
    # A console on standard error would write below the back of rich.live, which replaces sys.stderr.
    sys.stderr.write(lines.getvalue())
    sys.stderr.flush()


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


def describe_error(error: TaskError | None) -> list[str]:
    """Return what went wrong, a text each: the cause of what the first one says may be in the last one."""
    texts = [] if error is None else [error.message, *(message.text for message in error.messages)]
    return list(dict.fromkeys(filter(None, map(clean, texts))))


def describe_status(event: Event) -> str:
    """Return the status of the task, its progress, and for an ending how long it ran."""
    data = event.data
    parts = [data.status or "", format_percent(data.progress)]
    if data.final and data.duration_seconds is not None:
        parts.append(f"{data.duration_seconds:.1f} s")
    return clean(" ".join(filter(None, parts)))


def describe(event: Event) -> str:
    """Return the event in a few words: the task's status, its operation and target as far as known, its messages."""
    data = event.data
    operation = (data.operation or "").removesuffix("$task")
    target = f"on {data.target.name}" if data.target is not None and data.target.name else ""
    name = " ".join(filter(None, (operation, target)))
    progress = "" if data.final or data.progress is None else data.progress.message or ""
    message = " / ".join(describe_error(data.error)) or progress
    return clean(" ".join(filter(None, (describe_status(event), f"{name}:" if name and message else name, message))))


def describe_target(target: Target | None) -> str:
    """Return what users call the target: its path, or else its name, or else its type and id."""
    if target is None:
        return ""
    return clean(target.path or target.name or " ".join(filter(None, (target.type, target.id))))


def format_event(event: Event) -> Text:
    """Return the event as one line, on a terminal with a short time, and on a narrow one with a short task id."""
    time, vcenter = rfc3339(event.time), clean(event.data.vcenter)
    if not is_terminal():
        words = (time, vcenter, clean(event.data.task), event.kind, describe(event))
        return Text(" ".join(words).rstrip())
    text = Text(f"{time[:10]} {time[11:19]}Z ")
    text.append(f"{clean(event.kind):<19} ", choose_style(event))
    width = console().width
    is_whole = event.data.final or width >= _WIDE_ENOUGH_FOR_IDS
    task = clean(event.data.task) if is_whole else shorten(event.data.task, _SHORT_ID_WIDTH if width >= WIDE else 16)
    return text.append(f"{vcenter} {task} {describe(event)}".rstrip())


def print_json(body: bytes) -> None:
    """Print one JSON document on a line of standard output, byte for byte."""
    sys.stdout.buffer.write(body + b"\n")
    sys.stdout.buffer.flush()


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on standard output. A terminal wraps what is too long for it, so that ids can be copied whole."""
    for line in lines:
        sys.stdout.write(line + "\n")


def drop_output() -> None:
    """Drop what is still to be written to standard output, because nobody reads it anymore."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Lines:
    """Prints a line per event."""

    def __init__(self, replies: Sequence[WatchReply] = ()) -> None:
        self._console = console()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: every line is flushed."""

    def print_event(self, stored: StoredCloudEvent) -> None:
        data = stored.event.data
        line = format_event(stored.event)
        if data.kind in ("progress", "watching") and is_terminal():  # of which there are many
            line.plain = truncate(line.plain, self._console.width)
        self._console.print(line, soft_wrap=True)
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
        message = "" if data.final or data.progress is None else data.progress.message or ""
        status = " ".join(filter(None, (describe_status(event), message)))
        fields |= {"last event": f"{event.kind} at {rfc3339(event.time)}", "status": status}
        fields["operation"] = " ".join(filter(None, (data.service, data.operation)))
        target = data.target or Target()
        fields["target"] = " ".join(filter(None, (target.type, target.id, target.name)))
        fields["path"] = target.path
        fields["user"] = data.user
        fields["messages"] = " / ".join(describe_error(data.error))
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value:
            table.add_row(name, Text(clean(value)))
    return table
