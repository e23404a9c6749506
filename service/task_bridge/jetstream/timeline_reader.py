"""Reads everything that the streams hold about one task."""

from __future__ import annotations

from ..domain.events import from_cloudevent
from ..domain.subjects import SubjectNames
from ..domain.timeline import TaskTimeline, TimelineBuilder
from .streams import Streams
from .watch_store import decode_watch

_PAGE_MESSAGES = 200


async def read_timeline(streams: Streams, names: SubjectNames, vcenter: str, task: str) -> TaskTimeline:
    """Return the watch of a task and its newest events. Raises NatsUnavailable."""
    # The watch first: it is there before its first event, and goes after its last one.
    stored_watch = await streams.read_last(names.watches_stream, names.watch_subject(vcenter, task))
    watch = decode_watch(stored_watch) if stored_watch is not None else None
    builder = TimelineBuilder()
    after, remaining = 0, 1
    while remaining:
        page, remaining = await streams.read_page(
            names.events_stream, names.event_filter(vcenter, task), after, _PAGE_MESSAGES
        )
        for stored in page:
            event = from_cloudevent(stored.body, stalled_reported="Bridge-Stalled" in stored.headers)
            builder.add(event, stored.body, stored.headers.get("Bridge-Instance", ""))
        after, remaining = (page[-1].sequence, remaining) if page else (after, 0)
    return builder.build(watch.watch if watch is not None else None)
