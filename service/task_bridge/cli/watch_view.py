"""What `watch` shows on a terminal: a line for each running task and what became of those that ended."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..client import StoredCloudEvent
from ..domain.durations import parse_time
from ..domain.events import Event
from ..domain.replies import WatchReply
from . import output
from .tables import format_seconds

_BAR_WIDTH = 12
_LABEL_WIDTH, _WIDE_LABEL_WIDTH = 24, 48
"""On a terminal below 120 columns, and on a wider one or where the terminal may wrap the line."""
_KIND_WIDTH = 25
_NUMBERS_WIDTH = 5 + 6 + 5
"""The percentage, the age, and a blank after each column."""
_STATUS_WORDS = {"PENDING": "pending", "BLOCKED": "blocked", "requested": "requested", "stalled": "stalled"}
_SPACE = 5
"""Lines of the terminal that aren't tasks: the counts, a reason, what is above."""


@dataclass
class _Running:
    """A task that hasn't ended. `label`: what users call it, as far as that is known."""

    label: str
    since: float
    percent: float | None = None
    status: str = "requested"
    message: str = ""


def describe_task(event: Event, width: int) -> str:
    """Return what users call the task: its operation and the name of its target, or else its description or its id."""
    data = event.data
    target = (data.target.name or data.target.id or "") if data.target is not None else ""
    operation = (data.operation or "").removesuffix("$task")
    name = " ".join(filter(None, (operation, target))) if target else operation or data.description or ""
    # Names of machines differ at their end.
    return output.cut_middle(name, width, start=width // 3) if name else output.shorten(data.task, min(width, 24))


class TaskTable:
    """The running tasks, as many as fit, and above them a line for each that ended. `troubles`: why nothing comes."""

    def __init__(self, replies: Sequence[WatchReply]) -> None:
        self._console = output.console()
        self._label_width = _WIDE_LABEL_WIDTH if self._console.width >= output.WIDE else _LABEL_WIDTH
        self._running = {
            reply.watch.id: _Running(output.shorten(reply.task), parse_time(reply.watch.since) or time.time())
            for reply in replies
        }
        self._ended: Counter[str] = Counter()
        self.troubles: dict[str, str] = {}
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # else errors would not go where they were redirected to
        )

    def __enter__(self) -> TaskTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show_trouble(self, vcenter: str, trouble: str | None) -> None:
        """Show why nothing comes from a vCenter; None: it is well."""
        self.troubles.pop(vcenter, None)
        if trouble is not None:
            self.troubles[vcenter] = trouble

    def print_event(self, stored: StoredCloudEvent) -> None:
        event, data = stored.event, stored.event.data
        if data.final:
            self._running.pop(data.watch.id, None)
            self._ended[data.outcome or data.kind] += 1
            for line in format_ending(event):
                self._console.print(line, soft_wrap=True)
            return
        running = self._running[data.watch.id]
        running.label = describe_task(event, self._label_width)
        running.since = parse_time(data.started_at) or running.since
        running.percent = data.progress.percent if data.progress else None
        running.status = "stalled" if data.kind == "stalled" else data.status or data.kind
        running.message = (data.progress.message if data.progress else None) or ""

    def _render(self) -> Group:
        room = max(self._console.height - _SPACE, 1)
        # Those that need somebody come first: not all may fit.
        running = sorted(self._running.values(), key=lambda one: one.status not in ("BLOCKED", "stalled"))
        table = Table.grid(padding=(0, 1))
        table.add_column(width=self._label_width, no_wrap=True, overflow="crop")
        table.add_column(width=_BAR_WIDTH)
        table.add_column(width=5, justify="right", no_wrap=True)
        table.add_column(width=6, justify="right", no_wrap=True)
        message_width = max(self._console.width - self._label_width - _BAR_WIDTH - _NUMBERS_WIDTH, 1)
        table.add_column(width=message_width, no_wrap=True, overflow="crop")
        for one in running[:room]:
            percent = "" if one.percent is None else f"{one.percent:.0f} %"
            bar = ProgressBar(total=100, completed=one.percent or 0, width=_BAR_WIDTH)
            age = format_seconds(time.time() - one.since)
            message = output.truncate(output.clean(f"{one.status} {one.message}"), message_width)
            table.add_row(Text(one.label), bar, percent, age, Text(message))
        hidden = [Text(output.clean(f"… and {len(running) - room} more"))] if len(running) > room else []
        troubles = [Text(output.clean(trouble), "yellow") for trouble in self.troubles.values()]
        return Group(table, *hidden, *troubles, Text(self.counts(), "bold"))

    def counts(self) -> str:
        """Return how many tasks run and how the others ended, like `40 running, 7 failed`."""
        statuses = Counter(_STATUS_WORDS.get(one.status, "running") for one in self._running.values())
        parts = [*statuses.most_common(), *self._ended.most_common()]
        return ", ".join(f"{count:,} {describe_outcome(word)}" for word, count in parts)


def describe_outcome(word: str) -> str:
    return {"watch_timed_out": "timed out"}.get(word, word)


def format_ending(event: Event) -> list[Text]:
    """Return how a task ended: a line with its whole id, and if it didn't succeed one for each of the reasons."""
    data = event.data
    took = "" if data.duration_seconds is None else format_seconds(data.duration_seconds)
    label = describe_task(event, _WIDE_LABEL_WIDTH)
    is_named = label != output.shorten(data.task)
    kind = f"{output.clean(event.kind):<{_KIND_WIDTH}}"
    line = Text(kind, output.choose_style(event)).append(f" {took:>6}  ", "default")
    line.append(f"{label}  " if is_named else "", "default").append(output.clean(data.task), "default")
    return [line, *(Text(f"    {reason}") for reason in output.describe_error(data.error))]


def summarize(outcomes: Counter[str], refused: int) -> str:
    """Return how all tasks ended, in one line."""
    total = outcomes.total() + refused
    parts = [f"{count:,} {describe_outcome(outcome)}" for outcome, count in outcomes.most_common()]
    parts += [f"{refused:,} refused"] if refused else []
    return f"{total:,} {'task' if total == 1 else 'tasks'}: {', '.join(parts)}."
