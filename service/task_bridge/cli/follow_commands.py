"""The commands about follows: `follow`, `follows`, `unfollow`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from ..client import TaskBridge
from ..domain.errors import Refused
from ..domain.follows.event import (
    FollowCloudEvent,
    FollowReply,
    FollowsReply,
    FollowView,
    ListedFollow,
    UnfollowReply,
    describe_gaps,
    from_follow_cloudevent,
)
from . import output
from .client_commands import FilterVCenter, Json, VCenter, parse_label, run, send

Name = Annotated[str, typer.Argument(metavar="NAME", help="The follow's name: words of a-z and 0-9, with hyphens.")]


def follow(
    name: Name,
    vcenter: VCenter = None,
    service: Annotated[
        list[str] | None,
        typer.Option(metavar="SERVICE", help="Only tasks of this service (VirtualMachine); repeatable."),
    ] = None,
    operation: Annotated[
        list[str] | None,
        typer.Option(metavar="OPERATION", help="Only these operations; * is any text, !name excludes; repeatable."),
    ] = None,
    user: Annotated[list[str] | None, typer.Option(metavar="USER", help="Only tasks of this user; repeatable.")] = None,
    entity: Annotated[str | None, typer.Option(metavar="ID", help="Only tasks on this object, like group-v3.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="And on everything below the object.")] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Tasks queued since then: a time, or 1h ago. Default: now."),
    ] = None,
    endings: Annotated[bool, typer.Option("--endings", help="Publish only the final event of each task.")] = False,
    label: Annotated[
        list[Any] | None,
        typer.Option(parser=parse_label, metavar="KEY=VALUE", help="A label for every watch it starts; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Watch every task of a vCenter that matches, whoever starts it. The same name again changes the follow."""
    if recursive and entity is None:
        raise typer.BadParameter("needs --entity", param_hint="--recursive")
    request = {
        "name": name,
        "vcenter": vcenter,
        "services": service or None,
        "operations": operation or None,
        "users": user or None,
        "entity": {"id": entity, "recursive": recursive} if entity else None,
        "since": since,
        "events": "endings" if endings else None,
        "labels": dict(label) if label else None,
    }
    run(_request_follow(request, as_json))


async def _request_follow(request: dict[str, Any], as_json: bool) -> int:
    async with TaskBridge(on_connection=output.print_error) as bridge:
        answer = await send(bridge, "follow", request, as_json)
    if as_json:
        output.print_json(answer)
        return 0
    reply = msgspec.json.decode(answer, type=FollowReply)
    what = {"accepted": "follows", "updated": "now follows", "already_following": "already follows"}.get(reply.outcome)
    typer.echo(f"{reply.name} {what or reply.outcome} {_describe(reply.follow)} on {reply.vcenter}.")
    typer.echo("See them with `task-bridge events --follow`, and how complete it is with `task-bridge follows`.")
    return 0


def unfollow(name: Name, vcenter: VCenter = None, as_json: Json = False) -> None:
    """End a follow. The watches that it has started go on."""
    run(_request_unfollow(name, vcenter, as_json))


async def _request_unfollow(name: str, vcenter: str | None, as_json: bool) -> int:
    async with TaskBridge(on_connection=output.print_error) as bridge:
        answer = await send(bridge, "unfollow", {"name": name, "vcenter": vcenter}, as_json)
    if as_json:
        output.print_json(answer)
    else:
        reply = msgspec.json.decode(answer, type=UnfollowReply)
        typer.echo(f"{reply.name} on {reply.vcenter} starts no more watches; those that run go on.")
    return 0


Events = Annotated[
    bool, typer.Option("--events", help="Print what happened to them instead: begun, changed, ended, and each gap.")
]


def follows(vcenter: FilterVCenter = None, events: Events = False, as_json: Json = False) -> None:
    """List the follows, what they have found, and whether each is complete."""
    run(_print_follow_events(vcenter, as_json) if events else _list_follows(vcenter, as_json))


async def _list_follows(vcenter: str | None, as_json: bool) -> int:
    async with TaskBridge(on_connection=output.print_error) as bridge:
        answer = await send(bridge, "follows", {"vcenter": vcenter}, as_json)
    if as_json:
        output.print_json(answer)
        return 0
    listed = msgspec.json.decode(answer, type=FollowsReply).follows
    if not listed:
        typer.echo("Nothing is followed.")
        return 0
    for one in listed:
        for line in _format_follow(one):
            output.console().print(line)
    return 0


def _format_follow(one: ListedFollow) -> Iterator[Text]:
    """Yield the lines of a follow: its state and whether it is complete, then what it is about and has found."""
    is_good = one.state == "following" and not one.gaps
    yield Text(output.clean(f"{one.name} on {one.vcenter}: ")).append(
        f"{one.state}, {_describe_completeness(one)}", "green" if is_good else "red"
    )
    if one.reason:
        yield Text(output.clean(f"  {one.reason}"))
    watches = f"{one.started_watches:,} {'watch' if one.started_watches == 1 else 'watches'} started"
    last = f", last task {one.last_task_at[:19]}Z" if one.last_task_at else ""
    labels = " ".join(f"{key}={value}" for key, value in one.follow.labels.items())
    yield Text("  " + output.clean(f"{_describe(one.follow)}; {watches}{last}{labels and '; '}{labels}"))


def _describe_completeness(one: ListedFollow) -> str:
    since = f" since {one.since[:19]}Z" if one.since else ""
    return describe_gaps(one.gaps) or (f"complete{since}" if since else "nothing read yet")


async def _print_follow_events(vcenter: str | None, as_json: bool) -> int:
    async with (
        TaskBridge(on_connection=output.print_error) as bridge,
        contextlib.aclosing(bridge.follow_events(vcenter=vcenter)) as bodies,
    ):
        try:
            async for body in bodies:
                event = from_follow_cloudevent(body)
                if as_json:
                    output.print_json(body)
                elif event is not None and event.data.reason != "progressed":
                    output.console().print(_format_follow_event(event))
        except Refused as refusal:
            raise typer.BadParameter(refusal.message) from refusal
    return 0


def _format_follow_event(event: FollowCloudEvent) -> Text:
    data = event.data
    text = Text(f"{event.time[:19]}Z {output.clean(f'{data.name} on {data.vcenter}')}: ")
    if data.kind == "gap":
        return text.append("gap", "red").append(output.clean(f" from {data.begin} to {data.end}: {data.reason}"))
    place = f", complete from {data.place.begins_at} until {data.place.complete_until}" if data.place else ""
    reason = f" ({data.reason})" if data.reason else ""
    return text.append(output.clean(f"{data.kind}{reason}, {data.started_watches:,} watches started{place}"))


def _describe(follow: FollowView) -> str:
    """Return what a follow is about, in a few words."""
    kinds = " and ".join({"vim": "classic tasks", "cis": "CIS tasks"}.get(api, api) for api in follow.apis)
    entity = follow.entity and f"on {follow.entity.id}{' and below' if follow.entity.recursive else ''}"
    parts = [
        kinds,
        follow.services and f"of {', '.join(follow.services)}",
        follow.operations and f"with operation {', '.join(follow.operations)}",
        follow.users and f"by {', '.join(follow.users)}",
        entity,
        "endings only" if follow.events == "endings" else "",
    ]
    return " ".join(part for part in parts if part)
