"""Sends events again that couldn't be delivered: an order for each is stored, and the delivery's durable takes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from ..domain.events import CONTENT_TYPE
from ..domain.subjects import SubjectNames
from ..jetstream.streams import StoredMessage, Streams
from .report import UndeliveredData, read_undelivered

_PAGE = 100


async def redeliver(streams: Streams, names: SubjectNames, delivery: str, since: datetime | None) -> list[str]:
    """Order every event that is undelivered, by its newest report since a time, and return the ids of the events.

    An event that has been ordered since its report is left out. Raises NatsUnavailable.
    """
    orders = {
        message.headers.get("Bridge-Event", ""): message.sequence
        for message in await _read_all(streams, names.events_stream, f"{names.redeliveries}.{delivery}", None)
    }
    ordered: list[str] = []
    reports = await _read_all(streams, names.events_stream, f"{names.undelivered}.{delivery}", since)
    for report in _keep_newest(reports):
        event_id = report.headers.get("Bridge-Event", "")
        data = read_undelivered(report.body)
        if data is None or orders.get(event_id, 0) > report.sequence:
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


async def _read_event(streams: Streams, stream: str, data: UndeliveredData) -> bytes | None:
    """Return the event of a report; one that is too large for it is in the stream, until it expires there."""
    if bytes(data.event) != b"null":
        return bytes(data.event)
    page, _ = await streams.read_page(stream, ">", data.sequence - 1, 1)
    return page[0].body if page and page[0].sequence == data.sequence else None


def _keep_newest(reports: Sequence[StoredMessage]) -> Iterator[StoredMessage]:
    """Yield the newest report of each event, in the order in which the events were stored first."""
    yield from {report.headers.get("Bridge-Event", ""): report for report in reports}.values()


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
