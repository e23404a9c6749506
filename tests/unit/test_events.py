"""An event as a CloudEvent: its shape to the letter, and what older and newer releases make of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_bridge.domain.events import (
    NULL,
    Event,
    EventData,
    ResultRef,
    WatchRef,
    attach_result,
    from_cloudevent,
    shrink_to_fit,
    to_cloudevent,
)
from task_bridge.domain.task import NO_RESULT, UNAVAILABLE, Initiator, Message, Progress, Result, Target, TaskError
from unit.builders import NOW, an_event, stored

REF = ResultRef("VCENTER_TASKS_RESULTS", "1764024055123-42/7", 300_000, "ab" * 32)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

COMPLETED = Event(
    source="https://vcenter.example.com",
    time=1_764_024_055.123,
    traceparent=TRACE,
    tracestate="vendor=1",
    data=EventData(
        vcenter="lab",
        api="cis",
        task="52f9:com.vmware",
        watch=WatchRef("1764024055123-42", "2025-11-24T22:40:55.000Z", None, {"workflow": "patch-42"}),
        kind="completed",
        outcome="failed",
        final=True,
        sequence=7,
        status="FAILED",
        previous_status="RUNNING",
        service="com.vmware.esx.settings.clusters.software",
        operation="apply$task",
        description="Apply software",
        target=Target("ClusterComputeResource", "domain-c9"),
        parent=None,
        user="Administrator@VSPHERE.LOCAL",
        initiator=Initiator("user", "Administrator@VSPHERE.LOCAL"),
        cancelable=False,
        progress=Progress(40, 100, 40.0, "Remediating host 2 of 5"),
        error=TaskError("INTERNAL_SERVER_ERROR", "It broke.", (Message("com.vmware.a", "It broke.", ("1",)),)),
        result=msgspec.Raw(b'{"hosts":["ok"]}'),
        result_state="inline",
        result_ref=None,
        extra={"notifications": {}},
        started_at="2025-11-24T22:40:42.778Z",
        ended_at="2025-11-24T22:40:55.123Z",
        duration_seconds=12.345,
        unchanged_since="2025-11-24T22:40:55.123Z",
    ),
)

AS_TOLD: dict[str, Any] = {
    "specversion": "1.0",
    "datacontenttype": "application/json",
    "id": "1764024055123-42/7",
    "source": "https://vcenter.example.com",
    "type": "io.vcenter-task-bridge.task.completed.v1",
    "subject": "52f9:com.vmware",
    "time": "2025-11-24T22:40:55.123Z",
    "outcome": "failed",
    "traceparent": TRACE,
    "tracestate": "vendor=1",
    "data": {
        "vcenter": "lab",
        "api": "cis",
        "task": "52f9:com.vmware",
        "watch": {
            "id": "1764024055123-42",
            "since": "2025-11-24T22:40:55.000Z",
            "timeout_at": None,
            "labels": {"workflow": "patch-42"},
            "follow": None,
        },
        "kind": "completed",
        "outcome": "failed",
        "final": True,
        "sequence": 7,
        "status": "FAILED",
        "previous_status": "RUNNING",
        "service": "com.vmware.esx.settings.clusters.software",
        "operation": "apply$task",
        "description": "Apply software",
        "target": {"type": "ClusterComputeResource", "id": "domain-c9", "name": None, "path": None},
        "parent": None,
        "root": None,
        "user": "Administrator@VSPHERE.LOCAL",
        "initiator": {"type": "user", "name": "Administrator@VSPHERE.LOCAL"},
        "cancelable": False,
        "cancel_requested": None,
        "progress": {"completed": 40, "total": 100, "percent": 40.0, "message": "Remediating host 2 of 5"},
        "error": {
            "type": "INTERNAL_SERVER_ERROR",
            "message": "It broke.",
            "messages": [{"id": "com.vmware.a", "text": "It broke.", "args": ["1"]}],
            "transient": None,
            "data": None,
        },
        "result": {"hosts": ["ok"]},
        "result_state": "inline",
        "result_ref": None,
        "extra": {"notifications": {}},
        "queued_at": None,
        "started_at": "2025-11-24T22:40:42.778Z",
        "ended_at": "2025-11-24T22:40:55.123Z",
        "duration_seconds": 12.345,
        "unchanged_since": "2025-11-24T22:40:55.123Z",
    },
}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
maybe_text = st.none() | text
numbers = st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
errors = st.builds(
    TaskError,
    type=maybe_text,
    message=text,
    messages=st.lists(st.builds(Message, maybe_text, text, st.tuples(text)), max_size=2).map(tuple),
    transient=st.none() | st.booleans(),
    data=json_values,
)
data_of_events = st.builds(
    EventData,
    vcenter=text,
    api=text,
    task=text,
    watch=st.builds(WatchRef, text, text, maybe_text, st.dictionaries(text, text, max_size=2)),
    kind=text,
    outcome=maybe_text,
    final=st.booleans(),
    sequence=st.integers(1, 2**53),
    status=maybe_text,
    previous_status=maybe_text,
    target=st.none() | st.builds(Target, maybe_text, maybe_text, maybe_text, maybe_text),
    initiator=st.none() | st.builds(Initiator, text, maybe_text),
    cancel_requested=st.none() | st.booleans(),
    cancelable=st.none() | st.booleans(),
    progress=st.none() | st.builds(Progress, numbers, numbers, st.none() | st.floats(0, 100), maybe_text),
    error=st.none() | errors,
    result=st.sampled_from([NULL, msgspec.Raw(b'{"a":[1]}'), msgspec.Raw(b'"x"')]),
    result_ref=st.none() | st.just(REF),
    extra=json_values,
    duration_seconds=st.none() | st.floats(-1e9, 1e9),
)


def told(event: Event) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(to_cloudevent(event))
    return body


def read(body: object) -> Event:
    event = from_cloudevent(msgspec.json.encode(body), stalled_reported=False)
    assert event is not None
    return event


def without(body: dict[str, Any], *path: str) -> dict[str, Any]:
    """The body with the key at `path` gone."""
    name, *rest = path
    if rest:
        return {**body, name: without(body[name], *rest)}
    return {key: value for key, value in body.items() if key != name}


def test_an_event_is_told_to_the_letter() -> None:
    assert told(COMPLETED) == AS_TOLD


def test_the_keys_of_data_are_all_there_when_nothing_is_known() -> None:
    data = told(an_event("watching"))["data"]

    assert list(data) == list(AS_TOLD["data"])
    assert set(data["watch"]) == {"id", "since", "timeout_at", "labels", "follow"}
    assert data["watch"]["labels"] == {}
    unknown = {"vcenter", "api", "task", "watch", "kind", "final", "sequence", "result_state"}
    assert all(value is None for key, value in data.items() if key not in unknown)
    assert data["result_state"] == "none"


def test_the_keys_of_every_part_are_always_there() -> None:
    event = an_event(target=Target(), progress=Progress(), error=TaskError(None, "x", (Message(None, "x"),)))
    data = told(event)["data"]

    assert set(data["target"]) == {"type", "id", "name", "path"}
    assert set(data["progress"]) == {"completed", "total", "percent", "message"}
    assert set(data["error"]) == {"type", "message", "messages", "transient", "data"}
    assert set(data["error"]["messages"][0]) == {"id", "text", "args"}


@pytest.mark.parametrize("attribute", ["outcome", "traceparent", "tracestate"])
def test_an_extension_attribute_without_a_value_is_absent(attribute: str) -> None:
    assert attribute not in told(an_event("watching"))


@pytest.mark.parametrize(
    ("kind", "outcome", "type_", "token"),
    [
        ("watching", None, "io.vcenter-task-bridge.task.watching.v1", "watching"),
        ("progress", None, "io.vcenter-task-bridge.task.progress.v1", "progress"),
        ("completed", "canceled", "io.vcenter-task-bridge.task.completed.v1", "completed.canceled"),
        ("abandoned", "watch_timed_out", "io.vcenter-task-bridge.task.abandoned.v1", "abandoned.watch_timed_out"),
    ],
)
def test_the_type_names_the_kind_and_the_subject_the_outcome_too(
    kind: str, outcome: str | None, type_: str, token: str
) -> None:
    event = an_event(kind, outcome)

    assert told(event)["type"] == type_
    assert told(event).get("outcome") == outcome
    assert event.kind == token


def test_the_id_is_the_watch_and_the_number() -> None:
    assert an_event(sequence=12).id == "1764024000000-42/12"


def test_the_body_is_compact_utf8() -> None:
    body = to_cloudevent(an_event(description="Größe 日"))

    assert "Größe 日".encode() in body
    assert b'": ' not in body


@pytest.mark.parametrize(
    "fields",
    [
        {"description": "a\ud800"},
        {"status": "\udfff"},
        {"extra": {"\ud800": ["\ud800"]}},
        {"error": TaskError("E\ud800", "b\ud800", (Message(None, "c\ud800", ("\ud800",)),), data={"a": "\ud800"})},
        {"progress": Progress(1, 2, 50.0, "\ud800"), "result": msgspec.Raw(b'{"a":1}'), "result_state": "inline"},
    ],
)
def test_an_event_is_told_whatever_half_characters_vcenter_escaped(fields: dict[str, Any]) -> None:
    event = an_event(**fields)
    again = stored(event)

    assert (again.id, again.kind, again.data.result) == (event.id, event.kind, event.data.result)
    assert "?" in to_cloudevent(event).decode()


def test_an_event_comes_back_as_it_was_stored() -> None:
    assert stored(COMPLETED) == COMPLETED


@settings(max_examples=150)
@given(data_of_events, st.integers(0, 4_000_000_000_000), st.booleans(), maybe_text)
def test_every_event_comes_back_as_it_was_stored(
    data: EventData, time_ms: int, stalled_reported: bool, tracestate: str | None
) -> None:
    event = Event("https://x", time_ms / 1000, data, tracestate=tracestate, stalled_reported=stalled_reported)

    again = from_cloudevent(to_cloudevent(event), stalled_reported=stalled_reported)

    assert again is not None
    assert again.time == pytest.approx(event.time, abs=0.0005)
    assert msgspec.structs.replace(again, time=event.time) == event


@pytest.mark.parametrize("path", [(), ("data",), ("data", "watch"), ("data", "progress"), ("data", "error")])
def test_keys_that_a_later_release_adds_are_ignored(path: tuple[str, ...]) -> None:
    body = json.loads(json.dumps(AS_TOLD))
    part = body
    for name in path:
        part = part[name]
    part["added_later"] = {"a": [1, None]}

    assert read(body) == COMPLETED


@pytest.mark.parametrize(
    "fields", [{"kind": "paused"}, {"status": "ARCHIVED"}, {"result_state": "elsewhere"}, {"outcome": "x"}]
)
def test_words_that_a_later_release_adds_are_read(fields: dict[str, str]) -> None:
    event = read({**AS_TOLD, "data": {**AS_TOLD["data"], **fields}})

    assert all(getattr(event.data, name) == value for name, value in fields.items())


IDENTITY = {"vcenter", "api", "task", "watch", "kind", "outcome", "final", "sequence"}


@pytest.mark.parametrize("name", sorted(AS_TOLD["data"].keys() - IDENTITY - {"result", "result_state"}))
def test_a_key_that_an_earlier_release_did_not_write_is_none(name: str) -> None:
    assert getattr(read(without(AS_TOLD, "data", name)).data, name) is None


@pytest.mark.parametrize(
    "path",
    [
        ("progress", "completed"),
        ("progress", "percent"),
        ("progress", "message"),
        ("target", "type"),
        ("target", "id"),
        ("target", "name"),
        ("error", "transient"),
        ("error", "data"),
        ("watch", "timeout_at"),
    ],
)
def test_a_key_missing_in_a_part_is_none(path: tuple[str, str]) -> None:
    part = getattr(read(without(AS_TOLD, "data", *path)).data, path[0])

    assert getattr(part, path[1]) is None


def test_missing_results_and_labels_are_empty() -> None:
    body = without(without(without(AS_TOLD, "data", "result"), "data", "result_state"), "data", "watch", "labels")
    data = read(body).data

    assert (data.result, data.result_state, data.watch.labels) == (NULL, "none", {})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"\xff\xfe",
        b"not json",
        json.dumps(AS_TOLD).encode()[:-1],
        json.dumps(without(AS_TOLD, "data", "sequence")).encode(),
        json.dumps({**AS_TOLD, "data": None}).encode(),
        json.dumps({**AS_TOLD, "id": "\ud800"}).encode(),
    ],
)
def test_a_body_that_cannot_be_read_is_none(body: bytes) -> None:
    assert from_cloudevent(body, stalled_reported=False) is None


@given(st.binary(max_size=40))
def test_no_bytes_are_too_odd_to_be_refused(body: bytes) -> None:
    assert from_cloudevent(body, stalled_reported=False) is None


@pytest.mark.parametrize(
    ("unchanged_since", "timestamp"),
    [("2025-11-24T22:40:55.123Z", 1_764_024_055.123), (None, NOW), ("whenever", NOW)],
)
def test_unchanged_since_is_the_events_time_where_it_is_not_told(unchanged_since: str | None, timestamp: float) -> None:
    assert an_event(unchanged_since=unchanged_since).unchanged_since == pytest.approx(timestamp, abs=0.0005)


@pytest.mark.parametrize(
    ("result", "ref", "state", "value"),
    [
        (Result(b'{"a":1}'), None, "inline", {"a": 1}),
        (Result(b"false"), None, "inline", False),
        (NO_RESULT, None, "none", None),
        (UNAVAILABLE, None, "unavailable", None),
        (Result(b"[]"), REF, "stored", None),
    ],
)
def test_a_result_finds_its_place(result: Result, ref: ResultRef | None, state: str, value: object) -> None:
    data = told(attach_result(an_event("completed", "succeeded"), result, ref))["data"]

    assert (data["result_state"], data["result"]) == (state, value)
    assert (data["result_ref"] is not None) == (state == "stored")


LONG = "ä" * 100_000
BLOATED = an_event(
    "completed",
    "failed",
    status="FAILED",
    result_state="stored",
    result_ref=REF,
    extra={"notes": "x" * 10_000},
    description=LONG,
    user=LONG,
    service=LONG,
    operation=LONG,
    parent=LONG,
    root=LONG,
    initiator=Initiator(LONG, LONG),
    target=Target(LONG, LONG, LONG, LONG),
    progress=Progress(40, 100, 40.0, LONG),
    error=TaskError("ERROR", LONG, tuple(Message("id", LONG) for _ in range(3)), data={"a": LONG}),
)


def test_the_most_bloated_event_fits_and_can_still_be_understood() -> None:
    event = shrink_to_fit(BLOATED, 60_000)
    data = event.data

    assert len(to_cloudevent(event)) <= 60_000
    assert (event.id, event.kind, data.status, data.result_ref) == (BLOATED.id, BLOATED.kind, "FAILED", REF)
    assert data.error is not None
    assert (data.error.type, data.error.message[:10]) == ("ERROR", LONG[:10])
    assert data.progress is not None
    assert data.progress.percent == 40.0


def test_what_goes_first_is_extra_then_the_errors_data_and_stack() -> None:
    error = TaskError("ERROR", "It broke.", (Message("a", "It broke."), Message("b", "y" * 5_000)), data=["z" * 5_000])
    event = an_event("completed", "failed", extra={"notes": "x" * 5_000}, error=error, description="d" * 3_000)

    first, then = shrink_to_fit(event, 16_000).data, shrink_to_fit(event, 6_000).data

    assert (first.extra, first.error, first.description) == (None, error, event.data.description)
    assert then.error == TaskError("ERROR", "It broke.", (Message("a", "It broke."),))
    assert then.description == event.data.description


def test_an_event_without_error_or_progress_shrinks_too() -> None:
    event = shrink_to_fit(an_event(description=LONG), 10_000)

    assert len(to_cloudevent(event)) <= 10_000
    assert (event.data.error, event.data.progress) == (None, None)
