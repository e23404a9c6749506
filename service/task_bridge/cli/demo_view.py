"""Output of `demo`: a line per event, on a terminal with progress bars below."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from ..domain.events import Event
from ..lab.demo import DemoAddresses, DemoRun, DemoView

_COLORS = {"watching": "cyan", "status": "yellow", "completed.succeeded": "green", "completed.failed": "red"}


_WHERE = """\
Board: {http}
NATS: {nats}
Simulated vCenter: {vcenter}
Log: {log}
Try, in another terminal:
  task-bridge events --follow --nats-url {nats}
Ctrl-C ends it."""


class LineView:
    """Prints a line per event, with the seconds since the start."""

    def __init__(self, console: Console, *, keep: bool) -> None:
        self._console = console
        self._keep = keep
        self._started_at = time.monotonic()
        self._where = ""

    def show_addresses(self, addresses: DemoAddresses) -> None:
        self._print("nats-server, a simulated vCenter and the bridge are up. Starting the tasks.")
        self._print("Some are requested; a follow finds the others, which vCenter runs by itself.")
        if self._keep:
            self._where = _WHERE.format(**addresses._asdict())
            self._print_where()

    def show_start(self, run: DemoRun) -> None:
        """Print nothing: the first event shows the start."""

    def show_event(self, run: DemoRun, event: Event) -> None:
        color = _COLORS.get(event.kind, "magenta" if event.data.final else "dim")
        seconds = f"{time.monotonic() - self._started_at:5.1f}s"
        message = f"[{color}]{event.kind:<25}[/] {escape(_describe(event))}"
        self._print(f"{seconds} {run.case.title:<20} {message}")

    def show_results(self, runs: Sequence[DemoRun]) -> None:
        self._console.print(build_table(runs))
        if self._where:  # the first lines are out of sight by now
            self._print_where()

    def _print_where(self) -> None:
        self._console.print(self._where, highlight=False, soft_wrap=True, markup=False)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, no_wrap=True, overflow="ellipsis", crop=True)


class BarView(LineView):
    """Shows a bar per task, and above them a line for each event except progress."""

    def __init__(self, console: Console, bars: Progress, *, keep: bool) -> None:
        super().__init__(console, keep=keep)
        self._bars = bars
        self._bar_of: dict[str, TaskID] = {}
        self._finished = False

    def show_start(self, run: DemoRun) -> None:
        self._bar_of[run.task] = self._bars.add_task(run.case.title, total=100, message="requested")

    def show_event(self, run: DemoRun, event: Event) -> None:
        bar, progress = self._bar_of.get(run.task), event.data.progress
        color = _COLORS.get(event.kind, "magenta" if event.data.final else "default")
        message = f"[{color}]{event.data.status if not event.data.final else event.kind}[/]"
        if bar is not None:
            self._bars.update(bar, completed=(progress.percent if progress else None), message=message)
        if event.data.kind != "progress":
            super().show_event(run, event)
        if event.data.final and self._finished and bar is not None:
            self._bars.remove_task(self._bar_of.pop(run.task))

    def show_results(self, runs: Sequence[DemoRun]) -> None:
        for bar in self._bar_of.values():
            self._bars.remove_task(bar)
        self._bar_of.clear()
        self._finished = True
        super().show_results(runs)


_LINE_VIEW_IS_A_DEMO_VIEW: type[DemoView] = LineView


def create_bars(console: Console) -> Progress:
    """Return the progress bars. Enter them for the time of the demo."""
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[message]}"),
    )
    return Progress(*columns, console=console)


def build_table(runs: Sequence[DemoRun]) -> Table:
    """Return a table of the results of all tasks."""
    table = Table("Task", "Outcome", title_justify="left")
    table.add_column("Duration", justify="right")
    table.add_column("Events", justify="right")
    for run in runs:
        end = run.final_event
        duration_s = end.data.duration_seconds if end else None
        duration = "" if duration_s is None else f"{duration_s:.1f} s"
        outcome = end.kind if end else "no end"
        table.add_row(run.case.title, outcome, duration, str(len(run.events)))
    return table


def _describe(event: Event) -> str:
    """Return the event in a few words."""
    data = event.data
    if data.error is not None:
        return data.error.message
    if data.result_ref is not None:
        return f"result of {data.result_ref.size:,} bytes in {data.result_ref.bucket}"
    percent = "" if data.progress is None or data.progress.percent is None else f"{data.progress.percent:.0f} %"
    found = f"{data.operation} on {data.target.name}" if data.watch.follow and data.target and data.target.name else ""
    return " ".join(filter(None, (data.status, percent, found)))
