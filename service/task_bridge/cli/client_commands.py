"""The commands that talk to a bridge over NATS: `watch`, `events`, `list`, `get`, `unwatch`, `cancel`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.text import Text

from ..client import ErrorAnswer, TaskBridge
from ..domain.durations import parse_duration
from ..domain.errors import BridgeError, CannotStart, NatsUnavailable, Refused
from ..domain.events import from_cloudevent
from ..domain.replies import CancelReply, GetReply, ListedWatch, UnwatchReply, WatchReply
from . import output
from .exit_codes import ABANDONED, FAILED, INTERRUPTED, OUT_OF_REACH, REFUSED, exit_with_error

_CONCURRENT_REQUESTS = 64

Task = Annotated[str, typer.Argument(metavar="TASK", help="The task id that vCenter returns for ?vmw-task=true.")]
Tasks = Annotated[
    list[str] | None,
    typer.Argument(metavar="TASK...", help="Task ids. Without any, they are read from standard input, one per line."),
]
VCenter = Annotated[
    str | None, typer.Option(metavar="NAME", help="The task's vCenter. Default: the bridge's default vCenter.")
]
FilterVCenter = Annotated[
    str | None, typer.Option("--vcenter", metavar="NAME", help="Only watches of tasks on this vCenter.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and everything else on standard error.")
]


def parse_label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{text!r} isn't like key=value")
    return key, value


FilterLabels = Annotated[
    list[Any] | None,
    typer.Option("--label", parser=parse_label, metavar="KEY=VALUE", help="Only watches with this label; repeatable."),
]


def _parse_duration_option(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def watch(
    tasks: Tasks = None,
    vcenter: VCenter = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=_parse_duration_option,
            metavar="DURATION",
            help="End the watch (never the task) after this time: 90s, 15m, 2h.",
        ),
    ] = None,
    label: Annotated[
        list[Any] | None,
        typer.Option(
            parser=parse_label, metavar="KEY=VALUE", help="A label that every event of the watch carries; repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Watch tasks and follow them until all have ended.

    Exit code: 0 all succeeded, 1 any failed or canceled, 2 refused, 3 any abandoned, 4 out of reach.
    """
    ids = list(dict.fromkeys(tasks or _read_ids_from_stdin()))
    request = {"vcenter": vcenter, "timeout": timeout, "labels": dict(label) if label else None}
    run(_watch_and_follow(ids, request, as_json))


def _read_ids_from_stdin() -> list[str]:
    """Return the task ids on standard input: plain text or JSON strings."""
    if sys.stdin.isatty():
        raise typer.BadParameter("name a task, or send ids to standard input, one per line", param_hint="TASK")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")  # some editors and shells write a byte order mark
    except UnicodeDecodeError as error:
        raise typer.BadParameter("standard input isn't UTF-8", param_hint="TASK") from error

    def parse(line: str) -> str:
        with contextlib.suppress(ValueError):
            value = json.loads(line) if line.startswith('"') else line
            return value if isinstance(value, str) else line
        return line

    ids = [parse(line) for line in map(str.strip, text.splitlines()) if line]
    if not ids:
        raise typer.BadParameter("there is no task id on standard input", param_hint="TASK")
    return ids


async def _watch_and_follow(tasks: list[str], request: dict[str, Any], as_json: bool) -> int:
    async with TaskBridge(on_connection=output.print_error) as bridge:
        slots = asyncio.Semaphore(_CONCURRENT_REQUESTS)

        async def request_watch(task: str) -> WatchReply | Refused:
            async with slots:
                try:
                    reply = await bridge.watch(task, **request)
                except Refused as refusal:
                    output.print_error(f"{output.shorten(task, 40)}: {refusal.message}")
                    return refusal
            if reply.outcome == "already_watching" and (request["timeout"] or request["labels"]):
                output.print_error(f"{output.shorten(task, 40)}: {output.describe_existing_watch(reply.watch)}")
            return reply

        answers = await asyncio.gather(*map(request_watch, tasks))
        replies = [answer for answer in answers if isinstance(answer, WatchReply)]
        refusals = [answer for answer in answers if isinstance(answer, Refused)]
        try:
            return _choose_exit_code(await _follow(bridge, replies, as_json), refusals)
        except asyncio.CancelledError:
            subject = "watch goes" if len(replies) == 1 else "watches go"
            output.print_error(f"The {subject} on; task-bridge unwatch ends one.")
            raise


async def _follow(bridge: TaskBridge, replies: list[WatchReply], as_json: bool) -> Counter[str]:
    """Print the events of the watches until all have ended. Return how many ended with each outcome."""
    outcomes: Counter[str] = Counter()
    printer_class = output.JsonLines if as_json else output.Bars if output.is_terminal() else output.Lines
    with printer_class(replies) as printer:
        async with contextlib.aclosing(bridge.follow(*replies)) as events_of_watches:
            async for stored in events_of_watches:
                printer.print_event(stored)
                data = stored.event.data
                if data.final:
                    outcomes[data.kind if data.kind == "abandoned" else data.outcome or ""] += 1
    return outcomes


def _choose_exit_code(outcomes: Counter[str], refusals: list[Refused]) -> int:
    if outcomes.total() > outcomes["succeeded"] + outcomes["abandoned"]:
        return FAILED
    if refusals:
        return OUT_OF_REACH if all(refusal.status == 503 for refusal in refusals) else REFUSED
    return ABANDONED if outcomes["abandoned"] else 0


def events(
    kind: Annotated[
        str | None, typer.Option(help="Only this kind, like progress, completed or completed.failed.")
    ] = None,
    vcenter: Annotated[str | None, typer.Option(metavar="NAME", help="Only tasks on this vCenter.")] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Only this task.")] = None,
    since: Annotated[
        float | None,
        typer.Option(
            parser=_parse_duration_option, metavar="DURATION", help="Only events younger than this: 90s, 15m, 1h."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Continue with live events until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Print the stored events, oldest first."""
    moment = None if since is None else datetime.now(UTC) - timedelta(seconds=since)
    selection = {"kind": kind, "vcenter": vcenter, "task": task, "since": moment, "follow": follow}
    run(_print_events(selection, as_json), on_interrupt=0 if follow else INTERRUPTED)


async def _print_events(selection: dict[str, Any], as_json: bool) -> int:
    printer = output.JsonLines() if as_json else output.Lines()
    async with (
        TaskBridge(on_connection=output.print_error) as bridge,
        contextlib.aclosing(bridge.stored_events(**selection)) as stored_events,
    ):
        try:
            async for stored in stored_events:
                printer.print_event(stored)
        except Refused as refusal:
            raise typer.BadParameter(refusal.message) from refusal
    return 0


def list_(vcenter: FilterVCenter = None, label: FilterLabels = None, as_json: Json = False) -> None:
    """List the active watches, oldest first."""
    run(_list_watches(vcenter, dict(label or ()), as_json))


async def _list_watches(vcenter: str | None, labels: dict[str, str], as_json: bool) -> int:
    """Print the watches that have these labels. All pages are printed as one."""
    request: dict[str, Any] = {"vcenter": vcenter, "limit": 1000}
    async with TaskBridge(on_connection=output.print_error) as bridge:
        page = json.loads(await send(bridge, "list", request, as_json))
        while page["cursor"]:
            next_page = json.loads(await bridge.request("list", {**request, "cursor": page["cursor"]}))
            page = {**next_page, "watches": page["watches"] + next_page["watches"]}
    if labels:
        page["watches"] = [one for one in page["watches"] if labels.items() <= one["watch"]["labels"].items()]
        page["total"] = len(page["watches"])
    if as_json:
        typer.echo(json.dumps(page, ensure_ascii=False, separators=(",", ":")))
        return 0
    for line in output.format_watches(msgspec.convert(page["watches"], list[ListedWatch]), page["total"]):
        output.console().print(line)
    return 0


def get(task: Task, vcenter: VCenter = None, as_json: Json = False) -> None:
    """Show the state of a task that is watched or was watched."""

    def show(answer: bytes) -> None:
        reply = msgspec.json.decode(answer, type=GetReply)
        event = from_cloudevent(reply.last_event, stalled_reported=False)
        console = output.console()
        console.print(Text(output.clean(reply.task), "bold"))
        console.print(output.format_state(reply, event))

    run(_send_about_task("get", task, vcenter, as_json, show))


def unwatch(task: Task, vcenter: VCenter = None, as_json: Json = False) -> None:
    """End a watch. The task itself goes on."""

    def show(answer: bytes) -> None:
        reply = msgspec.json.decode(answer, type=UnwatchReply)
        typer.echo(f"{output.clean(reply.task)} on {reply.vcenter} isn't watched anymore; the task goes on.")

    run(_send_about_task("unwatch", task, vcenter, as_json, show))


def cancel(task: Task, vcenter: VCenter = None, as_json: Json = False) -> None:
    """Cancel a task in vCenter, if the bridge allows it (BRIDGE_ALLOW_CANCEL)."""

    def show(answer: bytes) -> None:
        reply = msgspec.json.decode(answer, type=CancelReply)
        typer.echo(f"Asked {reply.vcenter} to cancel {output.clean(reply.task)}; its final event shows the outcome.")

    run(_send_about_task("cancel", task, vcenter, as_json, show))


async def _send_about_task(
    verb: str, task: str, vcenter: str | None, as_json: bool, show: Callable[[bytes], None]
) -> int:
    async with TaskBridge(on_connection=output.print_error) as bridge:
        answer = await send(bridge, verb, {"task": task, "vcenter": vcenter}, as_json)
    if as_json:
        output.print_json(answer)
    else:
        show(answer)
    return 0


async def send(bridge: TaskBridge, verb: str, request: dict[str, Any], as_json: bool) -> bytes:
    """Return the answer of the bridge. Raises ErrorAnswer; with `as_json` its body is printed first."""
    try:
        return await bridge.request(verb, request)
    except ErrorAnswer as error:
        if as_json:
            output.print_json(error.body)
        raise


def run(main: Coroutine[Any, Any, int], *, on_interrupt: int = INTERRUPTED) -> NoReturn:
    """Run a command and exit with its code; after Ctrl-C with `on_interrupt`."""
    try:
        code = asyncio.run(main)
    except CannotStart as error:
        exit_with_error(error)
    except KeyboardInterrupt:
        code = on_interrupt
    except BridgeError as error:
        output.print_error(str(error))
        code = OUT_OF_REACH if isinstance(error, NatsUnavailable) else FAILED
    raise SystemExit(code)
