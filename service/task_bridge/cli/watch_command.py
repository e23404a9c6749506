"""The command `watch`: requests watches, follows them until all have ended, and says why nothing comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

from ..client import TaskBridge
from ..domain.errors import BridgeError, NatsUnavailable, Refused
from ..domain.replies import WatchReply
from ..domain.task_ids import parse_task_id
from ..domain.vcenter_state import VCenterState
from . import output
from .client_commands import Json, VCenter, parse_duration_option, parse_label, run
from .exit_codes import ABANDONED, FAILED, OUT_OF_REACH, REFUSED
from .tables import describe_state
from .watch_view import TaskTable, summarize

_CONCURRENT_REQUESTS = 64
_CHECK_S = (1.0, 2.0, 5.0)
"""Until the state of the vCenters is read, and until it is read again; the last one repeats."""

Tasks = Annotated[
    list[str] | None,
    typer.Argument(metavar="TASK", help="Task ids. Without any, they are read from standard input, one per line."),
]


def watch(
    tasks: Tasks = None,
    vcenter: VCenter = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration_option,
            metavar="DURATION",
            help="End the watch (never the task) after this time: 90s, 15m, 2h.",
        ),
    ] = None,
    stalled_after: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration_option,
            metavar="DURATION",
            help="Report the task once as stalled if nothing changes for this time; 0 never does.",
        ),
    ] = None,
    partial_results: Annotated[
        bool, typer.Option("--partial-results", help="Follow results that change before the end.")
    ] = False,
    label: Annotated[
        list[Any] | None,
        typer.Option(
            parser=parse_label, metavar="KEY=VALUE", help="A label that every event of the watch carries; repeatable."
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Request the watches and don't wait for the tasks.")] = False,
    as_json: Json = False,
) -> None:
    """Watch tasks and follow them until all have ended.

    Exit code: 0 all succeeded, 1 any failed or canceled, 2 refused, 3 any abandoned, 4 out of reach.
    """
    ids = list(dict.fromkeys(map(_read_id, tasks or _read_ids_from_stdin())))
    request = {
        "vcenter": vcenter,
        "timeout": timeout,
        "stalled_after": stalled_after,
        "partial_results": partial_results,
        "labels": dict(label) if label else None,
    }
    run(_request_and_detach(ids, request, as_json) if detach else _watch_and_follow(ids, request, as_json))


def _read_id(text: str) -> str:
    """Return the id that `text` means; the bridge says what is wrong with one that can't be one."""
    try:
        return parse_task_id(text)
    except ValueError:
        return text


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


class _Answers(NamedTuple):
    replies: list[WatchReply]
    refusals: list[Refused]


async def _request_watches(bridge: TaskBridge, tasks: list[str], request: dict[str, Any]) -> _Answers:
    """Request the watches. Refusals are printed, and so is what an existing watch keeps of another request."""
    slots = asyncio.Semaphore(_CONCURRENT_REQUESTS)
    is_own = request["timeout"] or request["labels"]

    async def request_watch(task: str) -> WatchReply | Refused:
        async with slots:
            try:
                reply = await bridge.watch(task, **request)
            except Refused as refusal:
                output.print_error(f"{output.shorten(task, 40)}: {output.describe_refusal(refusal)}")
                return refusal
        if reply.outcome == "already_watching" and is_own:
            output.print_error(f"{output.shorten(task, 40)}: {output.describe_existing_watch(reply.watch)}")
        return reply

    answers = await asyncio.gather(*map(request_watch, tasks))
    replies = [answer for answer in answers if isinstance(answer, WatchReply)]
    return _Answers(replies, [answer for answer in answers if isinstance(answer, Refused)])


async def _request_and_detach(tasks: list[str], request: dict[str, Any], as_json: bool) -> int:
    async with TaskBridge(on_connection=output.print_error) as bridge:
        answers = await _request_watches(bridge, tasks, request)
    for reply in answers.replies:
        if as_json:
            output.print_json(msgspec.json.encode(reply))
        else:
            text = f"{reply.task} on {reply.vcenter}: {reply.outcome.replace('_', ' ')}, watch {reply.watch.id}"
            typer.echo(output.clean(text))
    for trouble in {_describe_trouble(reply.vcenter, reply.vcenter_state) for reply in answers.replies} - {None}:
        output.print_error(str(trouble))
    return _choose_exit_code(Counter(), answers.refusals)


async def _watch_and_follow(tasks: list[str], request: dict[str, Any], as_json: bool) -> int:
    async with TaskBridge(on_connection=output.print_error) as bridge:
        replies, refusals = await _request_watches(bridge, tasks, request)
        try:
            outcomes = await _follow(bridge, replies, as_json)
        except asyncio.CancelledError:
            subject = "watch goes" if len(replies) == 1 else "watches go"
            output.print_error(f"The {subject} on; task-bridge unwatch ends one.")
            raise
    if len(tasks) > 1 and not as_json and output.is_terminal():
        output.console().print(summarize(outcomes, len(refusals)), style="bold")
    return _choose_exit_code(outcomes, refusals)


async def _follow(bridge: TaskBridge, replies: list[WatchReply], as_json: bool) -> Counter[str]:
    """Print the events of the watches until all have ended. Return how many ended with each outcome."""
    outcomes: Counter[str] = Counter()
    printer_class = output.JsonLines if as_json else TaskTable if output.is_terminal() else output.Lines
    unfinished = {reply.watch.id: reply for reply in replies}
    with printer_class(replies) as printer:
        states = asyncio.create_task(_show_states(bridge, replies, unfinished, printer))
        try:
            async with contextlib.aclosing(bridge.follow(*replies)) as events_of_watches:
                async for stored in events_of_watches:
                    printer.print_event(stored)
                    data = stored.event.data
                    if data.final:
                        unfinished.pop(data.watch.id, None)
                        outcomes[data.outcome or ""] += 1
        finally:
            states.cancel()
    return outcomes


Printer = output.JsonLines | output.Lines | TaskTable


async def _show_states(
    bridge: TaskBridge, replies: list[WatchReply], unfinished: dict[str, WatchReply], printer: Printer
) -> None:
    """Show why nothing comes: the state of each vCenter that isn't well, as often as it changes. Runs without end."""
    shown: dict[str, str | None] = {}
    troubles = {reply.vcenter: _describe_trouble(reply.vcenter, reply.vcenter_state) for reply in replies}
    pauses, pause_s = iter(_CHECK_S), 0.0
    while True:
        for vcenter, trouble in troubles.items():
            if shown.get(vcenter) != trouble:
                shown[vcenter] = trouble
                printer.show_trouble(vcenter, trouble)
        pause_s = next(pauses, pause_s)
        await asyncio.sleep(pause_s)
        troubles = await _read_troubles(bridge, list(unfinished.values()))


async def _read_troubles(bridge: TaskBridge, replies: list[WatchReply]) -> dict[str, str | None]:
    """Ask the bridge for the state of the vCenters of these watches. Return why each isn't well, None if it is."""
    troubles: dict[str, str | None] = {}
    for vcenter, reply in {reply.vcenter: reply for reply in replies}.items():
        try:
            answer = await bridge.get(reply.task, vcenter=vcenter)
        except NatsUnavailable as error:
            troubles[vcenter] = f"{error} The watch goes on when one is back."
        except BridgeError:
            continue  # the watch is ending
        else:
            troubles[vcenter] = _describe_trouble(vcenter, answer.vcenter_state)
    return troubles


def _describe_trouble(vcenter: str, state: VCenterState | None) -> str | None:
    return describe_state(vcenter, state) if state is not None and state.state != "ok" else None


_ABANDONED = ("lost", "denied", "watch_timed_out", "unwatched")


def _choose_exit_code(outcomes: Counter[str], refusals: list[Refused]) -> int:
    abandoned = sum(outcomes[outcome] for outcome in _ABANDONED)
    if outcomes.total() > outcomes["succeeded"] + abandoned:
        return FAILED
    if refusals:
        return OUT_OF_REACH if all(refusal.status == 503 for refusal in refusals) else REFUSED
    return ABANDONED if abandoned else 0
