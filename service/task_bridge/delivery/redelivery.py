"""Sends events again that couldn't be delivered: an order for each is stored, and the delivery's durable takes it."""

from __future__ import annotations

from datetime import datetime

from ..domain.events import CONTENT_TYPE
from ..domain.subjects import SubjectNames
from ..jetstream.streams import StoredMessage, Streams
from .report import UndeliveredData, read_undelivered

_PAGE = 100


async def redeliver(streams: Streams, names: SubjectNames, delivery: str, since: datetime | None) -> list[str]:
    """Order every event that is undelivered, and return the ids of the events. Raises NatsUnavailable."""
    ordered: list[str] = []
    for report in await find_undelivered(streams, names, delivery, since):
        event_id = report.headers.get("Bridge-Event", "")
        data = read_undelivered(report.body)
        if data is None:
            continue
        headers = {
            "Content-Type": CONTENT_TYPE,
            "Nats-Msg-Id": f"redeliver-{delivery}-{report.sequence}",
            "Bridge-Event": event_id,
            "Bridge-Task": report.headers.get("Bridge-Task", ""),
        }
        body = await _read_event(streams, names.events_stream, data)
        if body is not None:
            await streams.publish(names.events_stream, f"{names.redeliveries}.{delivery}", body, headers)
            ordered.append(event_id)
    return ordered


async def find_undelivered(
    streams: Streams, names: SubjectNames, delivery: str, since: datetime | None = None
) -> list[StoredMessage]:
    """Return the newest report since a time of each event that hasn't been ordered since. Raises NatsUnavailable."""
    orders = {
        message.headers.get("Bridge-Event", ""): message.sequence
        for message in await _read_all(streams, names.events_stream, f"{names.redeliveries}.{delivery}", None)
    }
    reports = await _read_all(streams, names.events_stream, f"{names.undelivered}.{delivery}", since)
    newest = {report.headers.get("Bridge-Event", ""): report for report in reports}
    return [report for event_id, report in newest.items() if orders.get(event_id, 0) < report.sequence]


async def _read_event(streams: Streams, stream: str, data: UndeliveredData) -> bytes | None:
    """Return the event of a report; one that is too large for it is in the stream, until it expires there."""
    if bytes(data.event) != b"null":
        return bytes(data.event)
    page, _ = await streams.read_page(stream, ">", data.sequence - 1, 1)
    return page[0].body if page and page[0].sequence == data.sequence else None


async def _read_all(streams: Streams, stream: str, subject: str, since: datetime | None) -> list[StoredMessage]:
    messages: list[StoredMessage] = []
    following, after = 1, 0
    while following:
        page, following = await streams.read_page(stream, subject, after, _PAGE, since=since)
        messages += page
        if not page:
            break
        after, since = page[-1].sequence, None
    return messages
