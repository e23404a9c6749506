"""The commands about deliveries over HTTP: `deliver`, `deliveries`, `redeliver`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from .. import logs
from ..domain.durations import parse_duration, parse_time
from ..domain.errors import CannotStart, NatsUnavailable
from ..domain.subjects import SubjectNames
from ..settings import Settings, load, read_log_format
from .exit_codes import FAILED, OUT_OF_REACH, exit_with_error

if TYPE_CHECKING:
    from ..domain.deliveries import DeliveryReport
    from ..jetstream.delivery_consumer import ConsumerReport
    from ..jetstream.streams import Streams

# Functions import what the other commands don't need.

_ANSWERS_S = 1.0
"""How long the replicas have to answer how their deliveries are."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
Trial = Annotated[
    str | None, typer.Option("--test", metavar="NAME", help="Send one sample event to this target; print its answer.")
]
Prune = Annotated[
    bool, typer.Option("--prune", help="Remove what NATS keeps for deliveries that are no longer configured.")
]


def deliver(test: Trial = None) -> None:
    """Send events to HTTP targets (BRIDGE_DELIVERIES__…, see .env.example). Needs NATS, and no vCenter."""
    log_format = read_log_format()
    if logs.is_json(log_format, sys.stderr):
        logs.configure(log_format)  # mistakes in the settings are reported as JSON too
    try:
        settings = _load_deliveries()
        if test is not None:
            raise typer.Exit(0 if asyncio.run(_send_sample(settings, test)) else FAILED)
        logs.configure(settings.log_format, settings.log_level)
        _run_process(settings)
    except CannotStart as error:
        exit_with_error(error, in_json=logs.is_json(log_format, sys.stderr))


def _load_deliveries() -> Settings:
    settings = load(need_vcenters=False, need_deliveries=True)
    if not settings.deliveries:
        raise CannotStart("BRIDGE_DELIVERIES__<NAME>__URL: no delivery is configured", exit_code=2)
    return settings


def _run_process(settings: Settings) -> None:
    import uvloop  # noqa: PLC0415 - missing on Windows, where the other commands run

    from ..delivery.process import deliver as run  # noqa: PLC0415

    uvloop.run(run(settings))


async def _send_sample(settings: Settings, name: str) -> bool:
    """Send a sample event and print the answer. Return whether the target took it."""
    from ..delivery.rendering import RenderingFailed  # noqa: PLC0415
    from ..delivery.report import build_sample  # noqa: PLC0415
    from ..delivery.sender import Sender  # noqa: PLC0415

    delivery = settings.deliveries.get(name.lower())
    if delivery is None:
        configured = ", ".join(settings.deliveries)
        raise CannotStart(f"No delivery is named {name!r}; configured: {configured}.", exit_code=2)
    try:
        sender = Sender(delivery)
    except (ValueError, RenderingFailed, OSError) as error:
        raise CannotStart(f"BRIDGE_DELIVERIES__{name.upper()}: {error}", exit_code=2) from error
    try:
        answer = await sender.send(*build_sample(delivery.name, time.time()))
    finally:
        await sender.close()
    typer.echo(f"{delivery.origin}: {answer.verdict.reason}")
    if answer.body:
        typer.echo(answer.body.decode("utf-8", "backslashreplace"))
    return answer.verdict.outcome == "delivered"


def deliveries(prune: Prune = False, as_json: Json = False) -> None:
    """Show each delivery: how many events wait, how old the oldest is, the last answer, what wasn't delivered."""
    logs.configure("auto", "error")
    _run(_show(load(need_vcenters=False, need_deliveries=True), prune=prune, as_json=as_json))


def redeliver(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The delivery.")],
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only events that were given up since then: a time, or 1h ago."),
    ] = None,
) -> None:
    """Send the events again that couldn't be delivered."""
    logs.configure("auto", "error")
    _run(_redeliver(load(need_vcenters=False), name.lower(), _parse_since(since)))


def _parse_since(text: str | None) -> datetime | None:
    if text is None:
        return None
    if (at := parse_time(text)) is not None:
        return datetime.fromtimestamp(at, UTC)
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except ValueError as error:
        raise typer.BadParameter('must be a time like "2026-11-24T22:40:55Z", or a duration ago like "1h"') from error


def _run(command: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(command)
    except CannotStart as error:
        exit_with_error(error)
    except NatsUnavailable as error:
        exit_with_error(CannotStart(str(error), exit_code=OUT_OF_REACH))


async def _redeliver(settings: Settings, name: str, since: datetime | None) -> None:
    from ..checks import connect_or_explain  # noqa: PLC0415
    from ..delivery.redelivery import redeliver as order  # noqa: PLC0415
    from ..jetstream.delivery_consumer import DeliveryConsumers  # noqa: PLC0415
    from ..jetstream.streams import Streams  # noqa: PLC0415

    names = SubjectNames(settings.subject_prefix)
    async with connect_or_explain(settings) as client:
        streams = Streams(client, settings.nats.js_domain)
        if await DeliveryConsumers(streams, names).read(name) is None:
            raise CannotStart(f"There is no delivery named {name!r}; `task-bridge deliveries` lists them.")
        ordered = await order(streams, names, name, since)
    for event_id in ordered:
        typer.echo(event_id)
    typer.echo(f"{len(ordered)} events are sent again" if ordered else "Nothing is undelivered.", err=True)


async def _show(settings: Settings, *, prune: bool, as_json: bool) -> None:
    from ..checks import connect_or_explain  # noqa: PLC0415
    from ..delivery.redelivery import find_undelivered  # noqa: PLC0415
    from ..jetstream.delivery_consumer import DeliveryConsumers  # noqa: PLC0415
    from ..jetstream.streams import Streams  # noqa: PLC0415

    names = SubjectNames(settings.subject_prefix)
    async with connect_or_explain(settings) as client:
        streams = Streams(client, settings.nats.js_domain)
        consumers = DeliveryConsumers(streams, names)
        found = await consumers.list_all()
        undelivered = {
            name: len(await find_undelivered(streams, names, name)) for name in {*found, *settings.deliveries}
        }
        reports = await _collect_reports(streams, names)
        if prune:
            for name in found.keys() - settings.deliveries.keys():
                await consumers.delete(name)
                typer.echo(f"{name}: removed", err=True)
            found = {name: found[name] for name in found if name in settings.deliveries}
    for name in sorted({*found, *settings.deliveries}):
        row = _build_row(name, settings, found.get(name), reports.get(name), undelivered.get(name, 0))
        typer.echo(json.dumps(row) if as_json else _format_row(row))
    if not found and not settings.deliveries:
        typer.echo("No delivery is configured, and NATS keeps nothing for any.", err=True)


async def _collect_reports(streams: Streams, names: SubjectNames) -> dict[str, DeliveryReport]:
    """Ask all replicas how their deliveries are; of each delivery, what the replica says that sends counts."""
    from ..domain.deliveries import DeliveryReport  # noqa: PLC0415

    reports: dict[str, DeliveryReport] = {}
    inbox = streams.connection.new_inbox()
    subscription = await streams.connection.subscribe(inbox)
    await streams.connection.publish(names.deliveries, b"", reply=inbox)
    deadline = time.monotonic() + _ANSWERS_S
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            message = await subscription.next_msg(timeout=left_s)
            for report in msgspec.json.decode(message.data or b"[]", type=list[DeliveryReport]):
                if reports.get(report.delivery) is None or report.state != "waiting":
                    reports[report.delivery] = report
    except TimeoutError:
        pass
    await subscription.unsubscribe()
    return reports


def _build_row(
    name: str,
    settings: Settings,
    consumer: ConsumerReport | None,
    report: DeliveryReport | None,
    undelivered: int,
) -> dict[str, Any]:
    configured = settings.deliveries.get(name)
    state = report.state if report else "not configured" if configured is None else "not running"
    return {
        "delivery": name,
        "target": configured.origin if configured else report.target if report else None,
        "state": state,
        "reason": report.reason if report else None,
        "pending": consumer.pending + consumer.ack_pending if consumer else 0,
        "oldest_seconds": report.oldest_s if report else None,
        "last_answer": report.last_answer if report else None,
        "last_answer_at": report.last_answer_at if report else None,
        "undelivered": undelivered,
    }


def _format_row(row: dict[str, Any]) -> str:
    oldest = "" if row["oldest_seconds"] is None else f", the oldest {row['oldest_seconds']:.0f} s old"
    lines = [
        f"{row['delivery']}  {row['state']}  {row['target'] or ''}".rstrip(),
        f"  {row['pending']} events wait{oldest}; {row['undelivered']} undelivered",
    ]
    if row["last_answer"]:
        lines.append(f"  {row['last_answer']} at {row['last_answer_at']}")
    if row["reason"]:
        lines.append(f"  {row['reason']}")
    return "\n".join(lines)
