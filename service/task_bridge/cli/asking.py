"""The commands that ask a bridge: `watch`, `events`, `list`, `get`, `unwatch`, `cancel`."""

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
from ..domain.requests import CancelReply, GetReply, ListedWatch, UnwatchReply, WatchReply
from . import rendering
from .ending import give_up

FAILED, REFUSED, ABANDONED, AWAY, INTERRUPTED = 1, 2, 3, 4, 130
_AT_ONCE = 64

Task = Annotated[str, typer.Argument(metavar="TASK", help="The task's id, as ?vmw-task=true answers it.")]
Tasks = Annotated[
    list[str] | None,
    typer.Argument(metavar="TASK...", help="Task ids; without any they are read from standard input, one a line."),
]
VCenter = Annotated[str | None, typer.Option(metavar="NAME", help="Which vCenter; without, the bridge's default.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for machines on standard output, all else on stderr.")]


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{text!r} isn't like key=value")
    return key, value


Labels = Annotated[
    list[Any] | None,
    typer.Option("--label", parser=_label, metavar="KEY=VALUE", help="Only watches that have it; may be repeated."),
]


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def watch(
    tasks: Tasks = None,
    vcenter: VCenter = None,
    timeout: Annotated[
        float | None,
        typer.Option(parser=_duration, metavar="DURATION", help="Ends the watch, never the task: 90s, 15m, 2h."),
    ] = None,
    label: Annotated[
        list[Any] | None,
        typer.Option(parser=_label, metavar="KEY=VALUE", help="Comes back in every event; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask for a watch of tasks and follow it to their end.

    Exit code: 0 all succeeded, 1 any failed or was canceled, 2 refused, 3 any watch was abandoned, 4 out of reach.
    """
    ids = list(dict.fromkeys(tasks or _from_stdin()))
    request = {"vcenter": vcenter, "timeout": timeout, "labels": dict(label) if label else None}
    _run(_watched(ids, request, as_json))


def _from_stdin() -> list[str]:
    """Ids of standard input, JSON strings or bare."""
    if sys.stdin.isatty():
        raise typer.BadParameter("name a task, or send ids to standard input, one a line", param_hint="TASK")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")  # as some editors and shells write it
    except UnicodeDecodeError as error:
        raise typer.BadParameter("standard input isn't UTF-8", param_hint="TASK") from error
    ids = [_id_of(line) for line in map(str.strip, text.splitlines()) if line]
    if not ids:
        raise typer.BadParameter("there is no task id on standard input", param_hint="TASK")
    return ids


def _id_of(line: str) -> str:
    with contextlib.suppress(ValueError):
        value = json.loads(line) if line.startswith('"') else line
        return value if isinstance(value, str) else line
    return line


async def _watched(tasks: list[str], request: dict[str, Any], as_json: bool) -> int:
    async with _bridge() as bridge:
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def ask(task: str) -> WatchReply | Refused:
            async with at_once:
                try:
                    reply = await bridge.watch(task, **request)
                except Refused as refused:
                    rendering.tell(f"{rendering.short(task, 40)}: {refused.message}")
                    return refused
            if reply.outcome == "already_watching" and (request["timeout"] or request["labels"]):
                rendering.tell(f"{rendering.short(task, 40)}: {rendering.in_force(reply.watch)}")
            return reply

        answers = await asyncio.gather(*map(ask, tasks))
        replies = [answer for answer in answers if isinstance(answer, WatchReply)]
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        try:
            return _exit_code(await _followed(bridge, replies, as_json), refused)
        except asyncio.CancelledError:
            go_on = "watch goes" if len(replies) == 1 else "watches go"
            rendering.tell(f"The {go_on} on; task-bridge unwatch ends one.")
            raise


async def _followed(bridge: TaskBridge, replies: list[WatchReply], as_json: bool) -> Counter[str]:
    """Shows the events of the watches until all have ended; how many ended in which way."""
    ends: Counter[str] = Counter()
    bars = not as_json and rendering.on_terminal()
    shown = (rendering.JsonLines if as_json else rendering.Bars if bars else rendering.Lines)(replies)
    with shown:
        async with contextlib.aclosing(bridge.follow(*replies)) as followed:
            async for stored in followed:
                shown.show(stored)
                data = stored.event.data
                if data.final:
                    ends[data.kind if data.kind == "abandoned" else data.outcome or ""] += 1
    return ends


def _exit_code(ends: Counter[str], refused: list[Refused]) -> int:
    if ends.total() > ends["succeeded"] + ends["abandoned"]:
        return FAILED
    if refused:
        return AWAY if all(one.status == 503 for one in refused) else REFUSED
    return ABANDONED if ends["abandoned"] else 0


def events(
    kind: Annotated[str | None, typer.Option(help="Like progress, completed, completed.failed.")] = None,
    vcenter: Annotated[str | None, typer.Option(metavar="NAME", help="Of this vCenter only.")] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Of this task only.")] = None,
    since: Annotated[
        float | None, typer.Option(parser=_duration, metavar="DURATION", help="Not older than this: 90s, 15m, 1h.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with live events until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Print stored events, oldest first."""
    moment = None if since is None else datetime.now(UTC) - timedelta(seconds=since)
    wanted = {"kind": kind, "vcenter": vcenter, "task": task, "since": moment, "follow": follow}
    _run(_printed(wanted, as_json), interrupted=0 if follow else INTERRUPTED)


async def _printed(wanted: dict[str, Any], as_json: bool) -> int:
    shown = rendering.JsonLines() if as_json else rendering.Lines()
    async with _bridge() as bridge, contextlib.aclosing(bridge.stored_events(**wanted)) as stored_events:
        try:
            async for stored in stored_events:
                shown.show(stored)
        except Refused as refused:
            raise typer.BadParameter(refused.message) from refused
    return 0


def list_(vcenter: VCenter = None, label: Labels = None, as_json: Json = False) -> None:
    """List the watches that are active, oldest request first."""
    _run(_listed(vcenter, dict(label or ()), as_json))


async def _listed(vcenter: str | None, labels: dict[str, str], as_json: bool) -> int:
    """All pages as one, of the watches that have these labels."""
    request: dict[str, Any] = {"vcenter": vcenter, "limit": 1000}
    async with _bridge() as bridge:
        page = json.loads(await _asked(bridge, "list", request, as_json))
        while page["cursor"]:
            following = json.loads(await bridge.request("list", {**request, "cursor": page["cursor"]}))
            page = {**following, "watches": page["watches"] + following["watches"]}
    if labels:
        page["watches"] = [one for one in page["watches"] if labels.items() <= one["watch"]["labels"].items()]
        page["total"] = len(page["watches"])
    if as_json:
        typer.echo(json.dumps(page, ensure_ascii=False, separators=(",", ":")))
        return 0
    for line in rendering.watches(msgspec.convert(page["watches"], list[ListedWatch]), page["total"]):
        rendering.console().print(line)
    return 0


def get(task: Task, vcenter: VCenter = None, as_json: Json = False) -> None:
    """Show how a task stands, watched or ended."""
    _run(_answered("get", task, vcenter, as_json, _show_state))


def _show_state(answer: bytes) -> None:
    reply = msgspec.json.decode(answer, type=GetReply)
    event = from_cloudevent(reply.last_event, stalled_reported=False)
    console = rendering.console()
    console.print(Text(rendering.clean(reply.task), "bold"))
    console.print(rendering.state(reply, event))


def unwatch(task: Task, vcenter: VCenter = None, as_json: Json = False) -> None:
    """End a watch; the task itself goes on."""
    _run(_answered("unwatch", task, vcenter, as_json, _show_unwatched))


def _show_unwatched(answer: bytes) -> None:
    reply = msgspec.json.decode(answer, type=UnwatchReply)
    typer.echo(f"{rendering.clean(reply.task)} on {reply.vcenter} isn't watched any more; the task goes on.")


def cancel(task: Task, vcenter: VCenter = None, as_json: Json = False) -> None:
    """Ask vCenter to cancel a task (the bridge must allow it)."""
    _run(_answered("cancel", task, vcenter, as_json, _show_canceled))


def _show_canceled(answer: bytes) -> None:
    reply = msgspec.json.decode(answer, type=CancelReply)
    typer.echo(f"{reply.vcenter} was asked to cancel {rendering.clean(reply.task)}; its end tells whether it was.")


async def _answered(verb: str, task: str, vcenter: str | None, as_json: bool, show: Callable[[bytes], None]) -> int:
    async with _bridge() as bridge:
        answer = await _asked(bridge, verb, {"task": task, "vcenter": vcenter}, as_json)
    if as_json:
        _echo_line(answer)
    else:
        show(answer)
    return 0


async def _asked(bridge: TaskBridge, verb: str, request: dict[str, Any], as_json: bool) -> bytes:
    try:
        return await bridge.request(verb, request)
    except ErrorAnswer as refused:
        if as_json:
            _echo_line(refused.body)
        raise


def _echo_line(answer: bytes) -> None:
    sys.stdout.buffer.write(answer + b"\n")
    sys.stdout.buffer.flush()


def _bridge() -> TaskBridge:
    return TaskBridge(on_connection=rendering.tell)


def _run(main: Coroutine[Any, Any, int], *, interrupted: int = INTERRUPTED) -> NoReturn:
    """Runs a command and leaves with its exit code, at Ctrl-C with `interrupted`."""
    try:
        code = asyncio.run(main)
    except CannotStart as error:
        give_up(error)
    except KeyboardInterrupt:
        code = interrupted
    except BridgeError as error:
        rendering.tell(str(error))
        code = AWAY if isinstance(error, NatsUnavailable) else FAILED
    raise SystemExit(code)
