"""The commands that look whether the bridge can work: `provision` makes its streams, `check` asks all it needs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from .. import logs
from ..domain.errors import CannotStart, NatsUnavailable
from ..settings import Settings, load
from .ending import give_up

if TYPE_CHECKING:
    from ..jetstream.provision import Difference, JetStreamConfig
    from ..jetstream.streams import Streams

# Imports inside the functions are of rooms that the other commands don't need.

OnlyCheck = Annotated[bool, typer.Option("--check", help="Change nothing; 1 when something is missing or unsafe.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for machines, a line each.")]
OnlyPrint = Annotated[bool, typer.Option("--print", help="Print the commands of the nats CLI that would do it.")]


def provision(check: OnlyCheck = False, only_print: OnlyPrint = False, as_json: Json = False) -> None:
    """Create the streams, consumers and bucket; tell what differs, then make it as the settings say.

    Needs the settings of NATS only. What an operator tuned is printed before it is changed, and by nothing else.
    """
    logs.configure("auto", "error")
    try:
        settings = load(need_vcenters=False)
        good = _print(settings) if only_print else asyncio.run(_provisioned(settings, check, as_json))
    except CannotStart as error:
        give_up(error)
    raise typer.Exit(0 if good else 1)


def _print(settings: Settings) -> bool:
    from ..checks import expected_jetstream  # noqa: PLC0415
    from ..jetstream.nats_cli import nats_commands  # noqa: PLC0415

    for command in nats_commands(expected_jetstream(settings), settings.nats.js_domain):
        typer.echo(command)
    return True


async def _provisioned(settings: Settings, only_check: bool, as_json: bool) -> bool:
    """Whether the bridge can work with what is there now. With JSON all but the differences goes to stderr."""
    from .. import checks  # noqa: PLC0415
    from ..jetstream.connection import server_version  # noqa: PLC0415
    from ..jetstream.provision import check_version  # noqa: PLC0415
    from ..jetstream.provision import provision as provisioned  # noqa: PLC0415
    from ..jetstream.streams import Streams  # noqa: PLC0415

    what, refused = checks.expected_jetstream(settings), False
    try:
        async with checks.connect_or_explain(settings) as client:
            check_version(server_version(client))
            streams = Streams(client, settings.nats.js_domain)
            found = await provisioned(streams, what, create=False)
            for difference in found:
                typer.echo(_json(difference) if as_json else f"{difference}.")
            if not only_check:
                found, refused = await _changed(streams, what, found, to_stderr=as_json)
    except NatsUnavailable as error:
        raise CannotStart(str(error), exit_code=checks.OUT_OF_REACH) from error
    good = not refused and not any(difference.unsafe for difference in found)
    if good:
        said = "The bridge can work with it." if found else "Everything is as the bridge would make it."
        typer.echo(said, err=as_json)
    return good


def _json(difference: Difference) -> str:
    return json.dumps(difference._asdict(), ensure_ascii=False, default=str)


async def _changed(
    streams: Streams, what: JetStreamConfig, told: list[Difference], *, to_stderr: bool
) -> tuple[list[Difference], bool]:
    """Makes and changes what can be: what still differs then, and whether nats-server refused something."""
    from ..jetstream.provision import apply_differences, explain_replacement, is_immutable  # noqa: PLC0415
    from ..jetstream.provision import provision as provisioned  # noqa: PLC0415

    problems = await apply_differences(streams, what, await provisioned(streams, what, create=True))
    for line in problems:
        typer.echo(line, err=True)
    left = await provisioned(streams, what, create=False)
    for difference in filter(is_immutable, left):
        typer.echo(f"{difference.where}: {difference.field}. {explain_replacement(difference)}", err=True)
    if done := len(told) - len(left):
        typer.echo(f"{done} of {len(told)} made or changed.", err=to_stderr)
    return left, bool(problems)


def check(as_json: Json = False) -> None:
    """Ask everything that the bridge depends on, a line each, with the cure where something is wrong."""
    logs.configure("auto", "error")
    try:
        settings = load()
    except CannotStart as error:
        give_up(error)
    raise typer.Exit(0 if asyncio.run(_checked(settings, _tell_json if as_json else _tell)) else 1)


async def _checked(settings: Settings, tell: Callable[[str, str, str], None]) -> bool:
    from ..checks import run_checks  # noqa: PLC0415

    tell("ok", "settings", "can be read")
    for warning in settings.warnings:
        tell("note", "settings", warning)
    good = True
    async for about, said, ok, needed in run_checks(settings):
        tell("ok" if ok else "FAIL" if needed else "note", about, said)
        good = good and (ok or not needed)
    return good


def _tell(how: str, about: str, said: str) -> None:
    typer.echo(f"{how:<4}  {about}: {said}")


def _tell_json(how: str, about: str, said: str) -> None:
    typer.echo(json.dumps({"about": about, "result": how.lower(), "said": said}, ensure_ascii=False))
