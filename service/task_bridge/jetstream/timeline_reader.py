"""Reads everything that the streams hold about one task."""

from __future__ import annotations

from ..domain.events import from_cloudevent
from ..domain.subjects import SubjectNames
from ..domain.timeline import MAX_EVENTS, TaskTimeline, TimelineBuilder
from .newest import count_messages, find_newest
from .streams import Streams
from .watch_store import decode_watch

_PAGE_MESSAGES = 200


async def read_timeline(streams: Streams, names: SubjectNames, vcenter: str, task: str) -> TaskTimeline:
    """Return the watch of a task and its newest events. Raises NatsUnavailable."""
    # The watch first: it is there before its first event, and goes after its last one.
    stored_watch = await streams.read_last(names.watches_stream, names.watch_subject(vcenter, task))
    watch = decode_watch(stored_watch) if stored_watch is not None else None
    stream, subjects = names.events_stream, names.event_filter(vcenter, task)
    count = await count_messages(streams, stream, subjects)
    after, remaining = 0, count
    if count > MAX_EVENTS:
        state = (await streams.read_report(stream)).state
        after = await find_newest(streams, stream, subjects, MAX_EVENTS, state.first_seq, state.last_seq)
        remaining = await count_messages(streams, stream, subjects, after)
    builder = TimelineBuilder(skipped=max(0, count - remaining))
    while remaining:
        page, remaining = await streams.read_page(stream, subjects, after, _PAGE_MESSAGES)
        for stored in page:
            event = from_cloudevent(stored.body, stalled_reported="Bridge-Stalled" in stored.headers)
            builder.add(event, stored.body, stored.headers.get("Bridge-Instance", ""))
        after, remaining = (page[-1].sequence, remaining) if page else (after, 0)
    return builder.build(watch.watch if watch is not None else None)
