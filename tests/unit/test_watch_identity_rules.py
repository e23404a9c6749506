"""Whether the last event of a classic task, whose id vCenter reuses, answers a request for that id."""

from __future__ import annotations

import pytest

from task_bridge.domain.events import EventData
from task_bridge.domain.task import TaskIdentity
from task_bridge.domain.watch import answers_request, identity_from_event, needs_current_identity
from unit.builders import NOW, a_watch, an_event

QUEUED = "2025-11-24T22:40:00.000Z"
CLASSIC = {"api": "vim", "service": "VirtualMachine", "operation": "clone", "extra": {"queueTime": QUEUED}}
NEXT_WATCH = a_watch(id="next", since=NOW + 60)
SAME, ANOTHER = TaskIdentity(NOW, "VirtualMachine.clone"), TaskIdentity(NOW + 3_600, "VirtualMachine.clone")


def completed(**fields: object) -> EventData:
    return an_event("completed", "succeeded", **{**CLASSIC, **fields}).data


@pytest.mark.parametrize(
    ("fields", "identity"),
    [
        ({}, SAME),
        ({"service": None}, TaskIdentity(NOW, "clone")),
        ({"api": "cis"}, None),
        ({"extra": {}}, None),
        ({"extra": None}, None),
        ({"extra": {"truncated": True, "bytes": 70_000}, "queued_at": QUEUED}, SAME),
    ],
)
def test_only_a_classic_event_that_says_when_its_task_was_queued_has_an_identity(
    fields: dict[str, object], identity: TaskIdentity | None
) -> None:
    assert identity_from_event(completed(**fields)) == identity


@pytest.mark.parametrize(("current", "answers"), [(None, True), (SAME, True), (ANOTHER, False)])
def test_a_completed_task_answers_unless_its_id_is_another_task_s_now(
    current: TaskIdentity | None, answers: bool
) -> None:
    event = an_event("completed", "succeeded", **CLASSIC)
    assert answers_request(event, NOW, NEXT_WATCH, current) is answers


def test_only_a_completed_classic_event_of_another_watch_needs_vcenter_s_word() -> None:
    assert needs_current_identity(an_event("completed", "succeeded", **CLASSIC), NOW, NEXT_WATCH)
    assert not needs_current_identity(an_event("completed", "succeeded"), NOW, NEXT_WATCH)
    assert not needs_current_identity(an_event("abandoned", "lost", **CLASSIC), NOW, NEXT_WATCH)
    assert not needs_current_identity(an_event("completed", "succeeded", **CLASSIC), NOW, a_watch())


def test_the_log_names_a_watch_s_trace_if_it_has_one() -> None:
    traced = a_watch(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert traced.log_keys["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert "trace_id" not in a_watch().log_keys
