"""The commands that ask a bridge over NATS: `events`, `list`, `get`, `unwatch`, `cancel`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.text import Text

from ..client import ErrorAnswer, StoredCloudEvent, TaskBridge
from ..domain.durations import parse_duration, parse_time
from ..domain.errors import BridgeError, CannotStart, NatsUnavailable, Refused
from ..domain.events import from_cloudevent
from ..domain.replies import CancelReply, GetReply, ListedWatch, UnwatchReply
from . import output, tables
from .exit_codes import BROKEN_PIPE, FAILED, INTERRUPTED, OUT_OF_REACH, exit_with_error

_PAGE = 1000
_UNKNOWN_VCENTER_S = 3.0
"""For the bridge's answer whether it knows a vCenter: who reads events may not be allowed to ask."""
_CLOCKS_DIFFER = timedelta(minutes=5)
"""A moment that another host calls now is accepted."""

Tasks = Annotated[list[str], typer.Argument(metavar="TASK", help="Task ids, as vCenter and its tools print them.")]
VCenter = Annotated[
    str | None, typer.Option(metavar="NAME", help="The task's vCenter. Default: the bridge's default vCenter.")
]
FilterVCenter = Annotated[
    str | None, typer.Option("--vcenter", metavar="NAME", help="Only watches of tasks on this vCenter.")
]
Output = Annotated[
    tables.Form | None, typer.Option("--output", "-o", help="Another form than a line each with a header.")
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


def parse_duration_option(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def parse_moment(text: str) -> datetime:
    """Return the moment that is a time (RFC 3339), or a duration ago."""
    now = datetime.now(UTC)
    if (moment := parse_time(text)) is not None:
        since = datetime.fromtimestamp(moment, UTC)
        if since > now + _CLOCKS_DIFFER:
            raise typer.BadParameter(f"{text!r} is in the future; it is {now:%Y-%m-%dT%H:%M:%SZ}")
        return since
    try:
        return now - timedelta(seconds=parse_duration(text))
    except ValueError as error:
        problem = f'{text!r} is neither a time like "2026-11-24T22:40:55Z" nor a duration'
        raise typer.BadParameter(f"{problem}: it {error}") from error


def events(
    kind: Annotated[
        str | None, typer.Option(help="Only this kind, like progress, completed or completed.failed.")
    ] = None,
    vcenter: Annotated[str | None, typer.Option(metavar="NAME", help="Only tasks on this vCenter.")] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Only this task.")] = None,
    since: Annotated[
        Any,
        typer.Option(
            parser=parse_moment,
            metavar="TIME",
            help="Only events since then: a time (UTC without a zone), or 1h ago.",
        ),
    ] = None,
    tail: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the newest N of the stored events.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Continue with live events until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Print the stored events, oldest first."""
    selection = {"kind": kind, "vcenter": vcenter, "task": task, "since": since}
    run(_print_events(selection, tail, follow, as_json), on_interrupt=0 if follow else INTERRUPTED)


async def _print_events(selection: dict[str, Any], tail: int | None, follow: bool, as_json: bool) -> int:
    printer = output.JsonLines() if as_json else output.Lines()
    count = 0
    async with TaskBridge(on_connection=output.print_error) as bridge:
        unknown = asyncio.create_task(_describe_unknown_vcenter(bridge, selection["vcenter"]))
        if follow:
            unknown.add_done_callback(_print_problem)
        try:
            async with contextlib.aclosing(_select_events(bridge, selection, tail, follow)) as selected:
                async for stored in selected:
                    printer.print_event(stored)
                    count += 1
        except Refused as refusal:
            raise typer.BadParameter(output.describe_refusal(refusal)) from refusal
        if not count:
            problem = await unknown
            output.print_error(problem or "No stored event matches.")
            return FAILED if problem else 0
        unknown.cancel()
    return 0


def _print_problem(found: asyncio.Task[str | None]) -> None:
    if not found.cancelled() and (problem := found.result()):
        output.print_error(problem)


async def _select_events(
    bridge: TaskBridge, selection: dict[str, Any], tail: int | None, follow: bool
) -> AsyncGenerator[StoredCloudEvent, None]:
    """Yield the stored events, of them the newest `tail`, and with `follow` those that come."""
    if tail is not None:
        newest: deque[StoredCloudEvent] = deque(maxlen=tail)
        began = time.time()
        async with contextlib.aclosing(bridge.stored_events(**selection)) as stored_events:
            async for stored in stored_events:
                newest.append(stored)
        for stored in newest:
            yield stored
        if not follow:
            return
        last = newest[-1].event.time if newest else began
        selection = selection | {"since": datetime.fromtimestamp(last, UTC)}
    shown = {stored.event.id for stored in newest} if tail is not None else set()
    async with contextlib.aclosing(bridge.stored_events(**selection, follow=follow)) as stored_events:
        async for stored in stored_events:
            if stored.event.id not in shown:
                yield stored


async def _describe_unknown_vcenter(bridge: TaskBridge, vcenter: str | None) -> str | None:
    """Return what the bridge says of a vCenter that it doesn't know, None if it does or doesn't answer."""
    if vcenter is None:
        return None
    try:
        async with asyncio.timeout(_UNKNOWN_VCENTER_S):
            await bridge.request("list", {"vcenter": vcenter, "limit": 1})
    except ErrorAnswer as error:
        return error.message if error.code == "unknown_vcenter" else None
    except (BridgeError, TimeoutError):
        return None
    return None


def list_(
    vcenter: FilterVCenter = None,
    label: FilterLabels = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many, the oldest first.")] = None,
    form: Output = None,
    as_json: Json = False,
) -> None:
    """List the active watches, oldest first."""
    run(_list_watches(vcenter, dict(label or ()), limit, tables.Form.json if as_json else form))


async def _list_watches(
    vcenter: str | None, labels: dict[str, str], limit: int | None, form: tables.Form | None
) -> int:
    """Print the watches that have these labels. All pages are printed as one."""
    async with TaskBridge(on_connection=output.print_error) as bridge:
        page = await _read_watches(bridge, vcenter, None if labels else limit, is_json=form is tables.Form.json)
    if labels:
        page["watches"] = [one for one in page["watches"] if labels.items() <= one["watch"]["labels"].items()]
        page["total"] = len(page["watches"])
    page["watches"] = page["watches"][:limit]
    watches = msgspec.convert(page["watches"], list[ListedWatch])
    _print_watches(page, [tables.row_of_listed(watch, tables.now()) for watch in watches], form)
    return 0


async def _read_watches(bridge: TaskBridge, vcenter: str | None, limit: int | None, *, is_json: bool) -> dict[str, Any]:
    """Return the replies of `list` as one, up to `limit` watches."""
    request: dict[str, Any] = {"vcenter": vcenter, "limit": min(limit or _PAGE, _PAGE)}
    page: dict[str, Any] = json.loads(await send(bridge, "list", request, is_json))
    while page["cursor"] and (limit is None or len(page["watches"]) < limit):
        following = json.loads(await bridge.request("list", {**request, "cursor": page["cursor"]}))
        page = {**following, "watches": page["watches"] + following["watches"]}
    return page


def _print_watches(page: dict[str, Any], rows: list[tables.Row], form: tables.Form | None) -> None:
    if form is tables.Form.json:
        output.print_json(json.dumps(page, ensure_ascii=False, separators=(",", ":")).encode())
    elif form is tables.Form.yaml:
        output.print_lines(tables.format_yaml(page))
    elif form is tables.Form.name:
        output.print_lines(output.clean(row.task) for row in rows)
    elif not page["watches"]:
        typer.echo("Nothing is watched.")
    else:
        output.print_lines(tables.format_rows(rows, wide=form is tables.Form.wide))
        for line in tables.describe_states(rows):
            output.print_error(line)
        if (more := page["total"] - len(rows)) > 0:
            output.print_error(f"… and {more:,} more; --limit shows more of them.")


def get(tasks: Tasks, vcenter: VCenter = None, form: Output = None, as_json: Json = False) -> None:
    """Show the state of tasks that are watched or were watched."""
    form = tables.Form.json if as_json else form

    def show(answers: list[bytes]) -> None:
        if form is tables.Form.yaml:
            output.print_lines(line for answer in answers for line in ("---", *tables.format_yaml(json.loads(answer))))
            return
        replies = [msgspec.json.decode(answer, type=GetReply) for answer in answers]
        if form is tables.Form.name:
            output.print_lines(output.clean(reply.task) for reply in replies)
        elif form is tables.Form.wide:
            _print_details(replies)
        else:
            _print_states(replies)

    run(_send_about_tasks("get", tasks, vcenter, form is tables.Form.json, show))


def _print_details(replies: list[GetReply]) -> None:
    console = output.console()
    for reply in replies:
        console.print(Text(output.clean(reply.task), "bold"), soft_wrap=True)
        console.print(output.format_state(reply, from_cloudevent(reply.last_event, stalled_reported=False)))


def _print_states(replies: list[GetReply]) -> None:
    """Print a line each, and below them what went wrong and what a blocked task asks."""
    events = [from_cloudevent(reply.last_event, stalled_reported=False) for reply in replies]
    rows = [tables.row_of_reply(reply, event, tables.now()) for reply, event in zip(replies, events, strict=True)]
    output.print_lines(tables.format_rows(rows, wide=False))
    for event in filter(None, events):
        question = event.data.progress.message if event.data.status == "BLOCKED" and event.data.progress else None
        if reasons := output.describe_error(event.data.error) or ([output.clean(question)] if question else []):
            output.print_lines([f"{output.clean(event.data.task)}: {' / '.join(reasons)}"])
    active = [row for row, reply in zip(rows, replies, strict=True) if reply.watching]
    for line in tables.describe_states(active):
        output.print_error(line)


def unwatch(tasks: Tasks, vcenter: VCenter = None, as_json: Json = False) -> None:
    """End watches. The tasks themselves go on."""

    def show(answers: list[bytes]) -> None:
        for reply in (msgspec.json.decode(answer, type=UnwatchReply) for answer in answers):
            typer.echo(f"{output.clean(reply.task)} on {reply.vcenter} isn't watched anymore; the task goes on.")

    run(_send_about_tasks("unwatch", tasks, vcenter, as_json, show))


def cancel(tasks: Tasks, vcenter: VCenter = None, as_json: Json = False) -> None:
    """Cancel tasks in vCenter, if the bridge allows it (BRIDGE_ALLOW_CANCEL)."""

    def show(answers: list[bytes]) -> None:
        for reply in (msgspec.json.decode(answer, type=CancelReply) for answer in answers):
            task = output.clean(reply.task)
            typer.echo(f"Asked {reply.vcenter} to cancel {task}; its final event shows the outcome.")

    run(_send_about_tasks("cancel", tasks, vcenter, as_json, show))


async def _send_about_tasks(
    verb: str, tasks: Iterable[str], vcenter: str | None, as_json: bool, show: Callable[[list[bytes]], None]
) -> int:
    """Ask about each task, and print the answers. A refusal of one keeps none of the others back."""
    answers: list[bytes] = []
    code = 0
    async with TaskBridge(on_connection=output.print_error) as bridge:
        for task in dict.fromkeys(tasks):
            try:
                answers.append(await send(bridge, verb, {"task": task, "vcenter": vcenter}, as_json))
            except Refused as refusal:
                text = output.describe_refusal(refusal)
                output.print_error(text if repr(task) in text else f"{output.shorten(task, 40)}: {text}")
                code = FAILED
            else:
                if as_json:
                    output.print_json(answers[-1])
    if answers and not as_json:
        show(answers)
    return code


async def send(bridge: TaskBridge, verb: str, request: dict[str, Any], as_json: bool) -> bytes:
    """Return the answer of the bridge. Raises ErrorAnswer; with `as_json` its body is printed first."""
    try:
        return await bridge.request(verb, request)
    except ErrorAnswer as error:
        if as_json:
            output.print_json(error.body)
        raise


def run(main: Coroutine[Any, Any, int], *, on_interrupt: int = INTERRUPTED) -> NoReturn:
    """Run a command and exit with its code; after Ctrl-C with `on_interrupt`.

    If nobody reads its output anymore (`| head`), the code is that of such an end, and says nothing of any task.
    """
    try:
        code = asyncio.run(main)
        sys.stdout.flush()
    except BrokenPipeError:
        output.drop_output()
        code = BROKEN_PIPE
    except CannotStart as error:
        exit_with_error(error)
    except KeyboardInterrupt:
        code = on_interrupt
    except BridgeError as error:
        output.print_error(output.describe_refusal(error) if isinstance(error, Refused) else str(error))
        code = OUT_OF_REACH if isinstance(error, NatsUnavailable) else FAILED
    raise SystemExit(code)
