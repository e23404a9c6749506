"""The commands that check or prepare what the bridge needs: `provision` and `check`."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from ..domain.errors import CannotStart, NatsUnavailable
from .exit_codes import FAILED, OUT_OF_REACH, exit_with_error

if TYPE_CHECKING:
    from ..jetstream.provision import Difference, JetStreamConfig
    from ..jetstream.streams import Streams
    from ..settings import Settings

# Functions import what the other commands don't need, and what is missing where only a client is installed.

CheckOnly = Annotated[
    bool, typer.Option("--check", help="Change nothing; exit with 1 if something is missing or unsafe.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
PrintOnly = Annotated[bool, typer.Option("--print", help="Print commands of the nats CLI that do the same.")]
Consumer = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Also create a durable consumer of events, which workers pull from."),
]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", metavar="SUBJECT", help="The events of the consumer; repeatable. Needs --consumer."),
]


def provision(
    check: CheckOnly = False,
    only_print: PrintOnly = False,
    as_json: Json = False,
    consumer: Consumer = None,
    filters: Filters = None,
) -> None:
    """Create the streams, consumers and bucket; list any difference from the settings, then apply it.

    Needs only the settings of NATS. No other command changes what an operator has tuned.
    """
    from .. import logs  # noqa: PLC0415
    from ..settings import load  # noqa: PLC0415

    logs.configure("auto", "error")
    try:
        settings = load(need_vcenters=False, need_deliveries=True)
        expected = _expected_jetstream(settings, consumer, filters or [])
        if only_print:
            is_good = _print_nats_commands(settings, expected)
        else:
            is_good = asyncio.run(_provision(settings, expected, check, as_json))
    except CannotStart as error:
        exit_with_error(error)
    raise typer.Exit(0 if is_good else FAILED)


def _expected_jetstream(settings: Settings, consumer: str | None, filters: list[str]) -> JetStreamConfig:
    """Return what to create. Raises BadParameter if the consumer or its filters can't be."""
    from ..checks import expected_jetstream  # noqa: PLC0415
    from ..domain.subjects import SubjectNames, is_consumer_name  # noqa: PLC0415
    from ..jetstream.provision import worker_consumer  # noqa: PLC0415

    expected, names = expected_jetstream(settings), SubjectNames(settings.subject_prefix)
    if consumer is None and not filters:
        return expected
    if consumer is None or not filters:
        raise typer.BadParameter(f"--consumer and --filter need each other, like --filter {names.events}.>")
    if not is_consumer_name(consumer):
        raise typer.BadParameter(f"{consumer!r} can't be a consumer's name: use letters, digits, - and _")
    for subject in filters:
        if not names.is_filter_of_stored(subject):
            raise typer.BadParameter(
                f"{subject!r} matches no event: filters begin with {names.events}. or {names.follows}., "
                f"or are {names.rejected}"
            )
    return expected.with_events_consumer(worker_consumer(consumer, list(dict.fromkeys(filters))))


def _print_nats_commands(settings: Settings, expected: JetStreamConfig) -> bool:
    from ..jetstream.nats_cli import nats_commands  # noqa: PLC0415

    for command in nats_commands(expected, settings.nats.js_domain):
        typer.echo(command)
    return True


async def _provision(settings: Settings, expected: JetStreamConfig, check_only: bool, as_json: bool) -> bool:
    """Return True if the bridge can work with the streams. With JSON only differences are on standard output."""
    from .. import checks  # noqa: PLC0415
    from ..jetstream.connection import server_version  # noqa: PLC0415
    from ..jetstream.provision import check_version  # noqa: PLC0415
    from ..jetstream.provision import provision as compare  # noqa: PLC0415
    from ..jetstream.streams import Streams  # noqa: PLC0415

    all_applied = True
    try:
        async with checks.connect_or_explain(settings) as client:
            check_version(server_version(client))
            streams = Streams(client, settings.nats.js_domain)
            differences = (await compare(streams, expected, create=False)).differences
            for difference in differences:
                line = json.dumps(difference._asdict(), ensure_ascii=False, default=str)
                typer.echo(line if as_json else f"{difference}.")
            if not check_only:
                differences, all_applied = await _apply(streams, expected, differences, to_stderr=as_json)
                await _prepare_deliveries(settings, streams)
    except NatsUnavailable as error:
        raise CannotStart(str(error), exit_code=OUT_OF_REACH) from error
    is_good = all_applied and not any(difference.unsafe for difference in differences)
    if is_good:
        message = "The bridge can work with this." if differences else "Everything matches the settings."
        typer.echo(message, err=as_json)
    return is_good


async def _prepare_deliveries(settings: Settings, streams: Streams) -> None:
    from ..delivery.deliverer import prepare_consumer  # noqa: PLC0415
    from ..domain.subjects import SubjectNames  # noqa: PLC0415
    from ..jetstream.delivery_consumer import DeliveryConsumers  # noqa: PLC0415

    names = SubjectNames(settings.subject_prefix)
    for delivery in settings.deliveries.values():
        await prepare_consumer(DeliveryConsumers(streams, names), delivery, names, time.time(), create=True)


async def _apply(
    streams: Streams, expected: JetStreamConfig, before: list[Difference], *, to_stderr: bool
) -> tuple[list[Difference], bool]:
    """Apply the differences. Return those that are left, and False if nats-server refused a change."""
    from ..jetstream.provision import apply_differences, explain_replacement, is_immutable  # noqa: PLC0415
    from ..jetstream.provision import provision as compare  # noqa: PLC0415

    created = await compare(streams, expected, create=True)
    problems = await apply_differences(streams, expected, created.differences)
    for line in problems:
        typer.echo(line, err=True)
    left = (await compare(streams, expected, create=False)).differences
    for difference in filter(is_immutable, left):
        typer.echo(f"{difference.where}: {difference.field}. {explain_replacement(difference)}", err=True)
    if applied := len(before) - len(left):
        typer.echo(f"Created or changed {applied} of {len(before)}.", err=to_stderr)
    return left, not problems


def check(as_json: Json = False) -> None:
    """Check everything that the bridge depends on: one line each, with the fix if it fails."""
    from .. import logs  # noqa: PLC0415
    from ..settings import load  # noqa: PLC0415

    logs.configure("auto", "error")
    try:
        settings = load()
    except CannotStart as error:
        exit_with_error(error)
    raise typer.Exit(0 if asyncio.run(_check(settings, as_json)) else FAILED)


async def _check(settings: Settings, as_json: bool) -> bool:
    """Print all results. Return False if something that the bridge needs fails."""
    from ..checks import run_checks  # noqa: PLC0415

    def print_result(result: str, about: str, message: str) -> None:
        if as_json:
            line = {"about": about, "result": result.lower(), "said": message}
            typer.echo(json.dumps(line, ensure_ascii=False))
        else:
            typer.echo(f"{result:<4}  {about}: {message}")

    print_result("ok", "settings", "are valid")
    for warning in settings.warnings:
        print_result("note", "settings", warning)
    is_good = True
    async for about, message, ok, needed in run_checks(settings):
        print_result("ok" if ok else "FAIL" if needed else "note", about, message)
        is_good = is_good and (ok or not needed)
    return is_good
