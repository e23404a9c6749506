"""What a stream's state says about events that may have gone from it."""

from __future__ import annotations

import pytest

from task_bridge.domain.durations import rfc3339
from task_bridge.domain.events import renumber
from task_bridge.jetstream.infos import StreamReport, StreamState
from unit.builders import NOW, an_event

BEFORE, AFTER, NEVER = rfc3339(NOW - 60), rfc3339(NOW + 60), "0001-01-01T00:00:00Z"


def holding(first: int, last: int, first_ts: str, deleted: int = 0) -> StreamState:
    return StreamState(last - first + 1 - deleted, first, first_ts, last, AFTER, deleted)


def empty(last: int, last_ts: str) -> StreamState:
    return StreamState(0, last + 1, NEVER, last, last_ts)


@pytest.mark.parametrize(
    ("state", "created", "expected"),
    [
        (empty(0, NEVER), BEFORE, False),  # a new stream
        (empty(0, NEVER), AFTER, True),  # recreated since
        (holding(1, 9, AFTER), BEFORE, False),  # complete
        (holding(5, 9, BEFORE), BEFORE, False),  # what went was older than the watch
        (holding(5, 9, AFTER), BEFORE, True),
        (holding(1, 9, BEFORE, deleted=2), BEFORE, True),  # a task's events were purged
        (empty(9, AFTER), BEFORE, True),
        (empty(9, BEFORE), BEFORE, False),  # all had aged out before the watch began
        (empty(9, NEVER), BEFORE, True),  # unknown
    ],
)
def test_an_event_may_have_gone_if_the_stream_was_cut_since(state: StreamState, created: str, expected: bool) -> None:
    assert StreamReport(state, created, AFTER).may_have_lost(NOW) is expected


def test_a_new_number_is_above_all_that_were_used() -> None:
    event = an_event()
    later = renumber(event, NOW)
    assert later.data.sequence == int(NOW * 1000)
    assert renumber(later, NOW - 3600).data.sequence == later.data.sequence + 1, "although the clock was set back"
    assert later.id == f"{event.data.watch.id}/{later.data.sequence}"
