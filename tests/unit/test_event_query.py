"""Which stored events a reader over HTTP gets. How parameters are refused is in tests/integration/test_http_api.py."""

from __future__ import annotations

import pytest

from task_bridge.domain.errors import Refused
from task_bridge.domain.event_query import EventQuery, parse_event_query, parse_last_event_id

NOW = 1_800_000_000.0
BEGAN = 1_764_024_055.123
WATCH = "1764024055123-42"


@pytest.mark.parametrize(
    ("query", "begins"),
    [
        ({}, None),
        ({"since": "now"}, NOW),
        ({"since": "1h"}, NOW - 3600),
        ({"since": "0"}, NOW),
        ({"since": "2026-11-24T22:40:55.123Z"}, 1_795_560_055.123),
        ({"watch": WATCH}, BEGAN - 60),
        ({"watch": WATCH, "since": "1h"}, NOW - 3600),
        ({"watch": WATCH, "since": "2000-01-01T00:00:00Z"}, BEGAN - 60),
        ({"watch": "of-another-form"}, None),
    ],
)
def test_reading_begins_where_something_can_match(query: dict[str, str], begins: float | None) -> None:
    assert EventQuery(**query).begins_at(NOW) == pytest.approx(begins)


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ({}, True),
        ({"vcenter": "lab"}, True),
        ({"vcenter": "other"}, False),
        ({"kind": "completed"}, True),
        ({"kind": "completed.failed"}, True),
        ({"kind": "completed.succeeded"}, False),
        ({"kind": "status"}, False),
        ({"watch": "w"}, True),
        ({"watch": "v"}, False),
        ({"vcenter": "lab", "kind": "completed", "watch": "v"}, False),
    ],
)
def test_an_event_matches_if_all_that_is_given_matches(query: dict[str, str], matches: bool) -> None:
    assert EventQuery(**query).matches("lab", "completed.failed", "w") is matches


@pytest.mark.parametrize(
    ("query", "kind", "watch", "ends"),
    [
        ({"watch": "w"}, "completed.failed", "w", True),
        ({"watch": "w", "kind": "progress"}, "abandoned.lost", "w", True),
        ({"watch": "w"}, "status", "w", False),
        ({"watch": "w"}, "completed.failed", "v", False),
        ({"watch": "w"}, "completed.failed", None, False),
        ({"task": "a:b"}, "completed.failed", "w", False),
        ({}, "completed.failed", None, False),
    ],
)
def test_only_the_final_event_of_the_one_watch_is_the_end(
    query: dict[str, str], kind: str, watch: str | None, ends: bool
) -> None:
    assert EventQuery(**query).is_ended_by(kind, watch) is ends


def test_a_parameter_without_a_value_is_not_given_and_ids_are_as_in_requests() -> None:
    pairs = [("vcenter", ""), ("task", "Task:task-12"), ("kind", ""), ("watch", ""), ("since", "")]
    assert parse_event_query(pairs) == EventQuery(task="task-12")


@pytest.mark.parametrize(
    "pairs", [[("limit", "")], [("task", ""), ("task", "")], [("watch", "ä")], [("watch", "w" * 257)]]
)
def test_what_is_no_parameter_or_given_twice_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(Refused) as refused:
        parse_event_query(pairs)
    assert refused.value.status == 400


def test_the_last_event_id_is_a_sequence() -> None:
    assert [parse_last_event_id(text) for text in (None, "", "0", "42", "9" * 18)] == [None, None, 0, 42, 10**18 - 1]
    for text in ("-1", "1.5", "x", "1 ", "\u0661", "9" * 19):
        with pytest.raises(Refused):
            parse_last_event_id(text)
