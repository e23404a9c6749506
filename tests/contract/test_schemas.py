"""The schemas: what the files hold, that requests are read as they say, and events made as they say."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator

from task_bridge import schemas
from task_bridge.domain.errors import Refused
from task_bridge.domain.ports import PollResult
from task_bridge.domain.requests import ListRequest, TaskRequest, WatchRequest, parse_request
from task_bridge.domain.task import NotATask, parse_task
from task_bridge.domain.watch import Watch
from task_bridge.schemas.models import build_schema_files
from unit.builders import TASK, Replica, a_watch, denied, lost, running, succeeded
from validity import check_event, validator

CASES = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
FILES = pytest.mark.parametrize("name", schemas.NAMES)


@FILES
def test_the_files_are_what_the_models_say(name: str) -> None:
    assert schemas.read_text(name) == schemas.format_document(build_schema_files()[name]), (
        "make schemas writes them anew"
    )


@FILES
def test_the_files_are_good_schemas_for_new_validators_and_for_old_ones(name: str) -> None:
    schema = schemas.load_schema(name)
    Draft202012Validator.check_schema(schema)
    Draft7Validator.check_schema(schema)
    assert [one for one in _objects(schema) if "$ref" in one and len(one) > 1] == []


def _objects(value: Any) -> list[dict[str, Any]]:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [one for item in below for one in _objects(item)]
    return [value, *found] if isinstance(value, dict) else found


# Requests: what the schema accepts is what is accepted

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 400)
amounts = st.builds(
    "{}{}".format, st.sampled_from(["0", "1", "0.5", "12", "007", "1.", ".5", "-1", "٣"]), st.text(max_size=1)
)
durations = st.one_of(
    st.builds("".join, st.lists(st.sampled_from(["P", "T", "1D", "2H", "3M", "0S", "1.5S", "1", " "]), max_size=5)),
    st.builds("{}{}".format, amounts, st.sampled_from(["", "ms", "s", "m", "h", "d", "w", "\n", "S"])),
    st.sampled_from(["366d", "P366D", "0", "0s", "PT0S", "1" * 65, "90\n", "PT2H\n"]),
)
scalars = st.none() | st.booleans() | numbers | durations | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
tasks = st.one_of(
    st.just(TASK),
    st.text(max_size=4),
    st.sampled_from([".", "..", "...", "task-1", "task-1x", "task-\u0661", "a\n", "task-1\n", "x" * 256, "x" * 257]),
    st.text(alphabet="aä日😀", min_size=60, max_size=260),
)
labels = st.one_of(
    st.dictionaries(st.text(max_size=66), st.text(max_size=3) | scalars, max_size=3),
    st.dictionaries(st.sampled_from(["", "k" * 64, "k" * 65, "日" * 64]), st.sampled_from(["v" * 256, "v" * 257])),
    st.dictionaries(st.text(max_size=9), st.just("v"), min_size=14, max_size=18),
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "task": tasks,
    "vcenter": st.sampled_from(["lab", None, ""]),
    "timeout": numbers | durations | scalars,
    "stalled_after": numbers | durations | scalars,
    "partial_results": st.booleans() | scalars,
    "details": st.booleans() | scalars,
    "labels": labels,
    "limit": st.integers(-1, 1002) | scalars,
    "cursor": st.sampled_from(["1", "", "1\n", "9" * 18, "9" * 19, "٣"]) | scalars,
    "tiemout": values,
}


def _bodies(*fields: str) -> st.SearchStrategy[Any]:
    wanted = {name: FIELDS[name] | values if name != "task" else FIELDS[name] for name in fields}
    good = st.fixed_dictionaries({}, optional={name: FIELDS[name] for name in fields})
    return good | st.fixed_dictionaries({}, optional={**wanted, "tiemout": values}) | tasks | values


def _refusal(model: type[WatchRequest | TaskRequest | ListRequest], body: Any) -> Refused | None:
    try:
        parse_request(model, json.dumps(body).encode())
    except Refused as refused:
        return refused
    return None


def _beyond_schemas(refused: Refused) -> bool:
    """Whether JSON Schema has no words for any of the reasons: bytes, values of written durations, 5.0 for 5."""
    reasons = ("must be 1 to 256 bytes", "must be between 0 and 365 days", "input should be a valid integer")
    return all(problem.problem.startswith(reasons) for problem in refused.details)


def _agree(model: type[WatchRequest | TaskRequest | ListRequest], body: Any) -> None:
    refused = _refusal(model, body)
    said = validator("request", model.__name__).is_valid(body)
    if refused is None:
        assert said, f"the bridge takes {body!r}, the schema doesn't"
    else:
        assert not said or _beyond_schemas(refused), f"the schema takes {body!r}, the bridge: {refused.message}"


@CASES
@given(_bodies("task", "vcenter", "timeout", "stalled_after", "partial_results", "details", "labels"))
def test_a_watch_request_is_taken_where_the_schema_takes_it(body: Any) -> None:
    _agree(WatchRequest, body)
    assert validator("request").is_valid(body) == validator("request", "WatchRequest").is_valid(body)


@CASES
@given(_bodies("task", "vcenter"))
def test_a_task_request_is_taken_where_the_schema_takes_it(body: Any) -> None:
    _agree(TaskRequest, body)


@CASES
@given(_bodies("vcenter", "limit", "cursor"))
def test_a_list_request_is_taken_where_the_schema_takes_it(body: Any) -> None:
    _agree(ListRequest, body)


@pytest.mark.parametrize("written", ["", " ", "soon", "1h30m", "1w", "-1", "1e3", "P", "PT", "P1DT", "PT1", "1 s", "0"])
def test_a_timeout_that_is_refused_is_refused_by_the_schema(written: str) -> None:
    body = {"task": TASK, "timeout": written}
    assert _refusal(WatchRequest, body) is not None
    assert not validator("request").is_valid(body)


# Events

infos = st.fixed_dictionaries(
    {"status": st.sampled_from(["PENDING", "RUNNING", "BLOCKED", "SUCCEEDED", "FAILED", "ARCHIVED"])},
    optional={
        name: values | st.fixed_dictionaries({}, optional=dict.fromkeys(keys, values))
        for name, keys in {
            "description": ("default_message", "id", "localized"),
            "service": (),
            "operation": (),
            "parent": (),
            "user": (),
            "cancelable": (),
            "target": ("type", "id"),
            "progress": ("completed", "total", "message"),
            "error": ("error_type", "messages", "data", "@class"),
            "result": ("notifications", "messages"),
            "start_time": (),
            "end_time": (),
            "notifications": ("errors", "info"),
        }.items()
    },
)


@settings(CASES, max_examples=40)
@given(infos, st.sampled_from(["api", "rest"]), st.booleans())
def test_whatever_vcenter_says_the_events_are_what_the_schema_says(info: Any, rendering: Any, partial: bool) -> None:
    try:
        task = parse_task(info, rendering, with_result=partial or info["status"] in ("SUCCEEDED", "FAILED"))
    except NotATask:
        return
    for body in _events(a_watch(partial_results=partial, timeout_at=None), task):
        check_event(body)


def _events(watch: Watch, *standings: PollResult, unwatched: bool = False) -> list[bytes]:
    replica = Replica(watch, inline_max=100)
    for standing in standings:
        replica.look(standing)
    if unwatched:
        replica.view.unwatched = True
        replica.settle()
    return [stored.body for stored in replica.stream]


@pytest.mark.parametrize(
    "standings", [[], [lost()], [denied()], [running(10), running(20), lost()], [running(1)]], ids=len
)
def test_events_of_watches_that_end_otherwise_are_what_the_schema_says(standings: list[PollResult]) -> None:
    bodies = _events(a_watch(labels={"a": "b"}), *standings, unwatched=True)
    assert json.loads(bodies[-1])["data"]["final"]
    for body in bodies:
        check_event(body)


def _completed() -> dict[str, Any]:
    return json.loads(_events(a_watch(), running(10), succeeded())[-1])  # type: ignore[no-any-return]


def test_a_consumer_of_events_meets_keys_and_words_that_it_does_not_know() -> None:
    event = _completed()
    event["region"] = "eu"
    event["data"] |= {"phase": {"name": "new"}, "status": "SUCCEEDED"}
    event["data"]["watch"]["priority"] = 3
    assert validator("event").is_valid(event)

    event["type"] = "io.vcenter-task-bridge.task.paused.v1"
    event["data"] |= {"kind": "paused", "outcome": None, "final": False, "status": "ARCHIVED"}
    del event["outcome"]
    assert validator("event").is_valid(event)


def _without(*path: str) -> dict[str, Any]:
    event = _completed()
    inner = event
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return event


def _keys_since_1_1() -> set[str]:
    """The keys that events of 1.0 lack, so that a reader can't require them."""
    fields = schemas.load_schema("event")["$defs"]["EventData"]["properties"]
    return {key for key, field in fields.items() if "x-since" in field}


@pytest.mark.parametrize(
    "path",
    [
        *((key,) for key in _completed() if key != "tracestate"),
        *(("data", key) for key in _completed()["data"] if key not in _keys_since_1_1()),
    ],
)
def test_an_event_that_lacks_a_key_is_refused(path: tuple[str, ...]) -> None:
    assert not validator("event").is_valid(_without(*path))


@pytest.mark.parametrize(
    "wrong",
    [
        {"final": False},
        {"outcome": None},
        {"sequence": 0},
        {"sequence": "3"},
        {"status": None},
        {"status": "FAILED"},
        {"kind": "status"},
        {"result_state": "inline"},
        {"result_state": "stored"},
        {"result_state": "gone"},
        {"result": {"a": 1}},
        {"error": {"type": None, "message": "no"}},
        {"unchanged_since": "2026-11-24 22:40:55"},
        {"started_at": "2026-11-24T22:40:55Z"},
        {"progress": {"completed": 1, "total": 2, "percent": 101, "message": None}},
    ],
    ids=str,
)
def test_an_event_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    event = _completed()
    event["data"] |= wrong
    assert not validator("event").is_valid(event)


@pytest.mark.parametrize("wrong", [{"id": "no-number"}, {"specversion": "0.3"}, {"type": "other"}, {"outcome": None}])
def test_an_envelope_that_is_wrong_is_refused(wrong: dict[str, Any]) -> None:
    assert not validator("event").is_valid(_completed() | wrong)


def test_checking_an_event_fails_where_it_must() -> None:
    with pytest.raises(AssertionError, match="sequence"):
        check_event(msgspec.json.encode(_completed() | {"data": _completed()["data"] | {"sequence": -1}}))
