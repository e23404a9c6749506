"""The commands about follows: `follow`, `follows`, `unfollow`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from ..client import TaskBridge
from ..domain.follows.event import FollowReply, FollowsReply, FollowView, ListedFollow, UnfollowReply
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


def follows(vcenter: FilterVCenter = None, as_json: Json = False) -> None:
    """List the follows, what they have found, and whether each is complete."""
    run(_list_follows(vcenter, as_json))


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
    output.console().print(_build_table(listed))
    for one in listed:
        if one.reason:
            output.console().print(Text(output.clean(f"{one.name} on {one.vcenter}: {one.reason}")))
    return 0


def _build_table(listed: list[ListedFollow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("NAME", "VCENTER", "STATE", "WATCHES", "GAPS", "LAST TASK", "FOLLOWS"):
        table.add_column(heading, no_wrap=heading != "FOLLOWS", overflow="fold")
    for one in listed:
        last = f"{one.last_task_at[:19]}Z" if one.last_task_at else "none yet"
        cells = (one.name, one.vcenter, one.state, str(one.started_watches), str(one.gaps), last, _describe(one.follow))
        table.add_row(*(Text(output.clean(cell)) for cell in cells))
    return table


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
