"""What may be asked, what is refused and in which words; requests come from strangers in any language."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_bridge.domain.errors import Problem, Refused, invalid_request
from task_bridge.domain.replies import error_body
from task_bridge.domain.requests import (
    REQUEST_MAX_KEPT_BYTES,
    ListRequest,
    TaskRequest,
    VCenterRouting,
    WatchRequest,
    decode_strict_json,
    describe_rejected_request,
    parse_request,
    parse_trace_context,
    unknown_vcenter,
)

TASK = "52f9f1b0-160a:com.vmware.esx"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HALF = "\\ud800"  # half a character, as JSON can escape it


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def asked(**fields: Any) -> WatchRequest:
    return parse_request(WatchRequest, body(task=TASK, **fields))


def refused(model: type[WatchRequest | TaskRequest | ListRequest], request: bytes) -> Refused:
    with pytest.raises(Refused) as told:
        parse_request(model, request)
    assert (told.value.status, told.value.code) == (400, "invalid_request")
    msgspec.json.encode(error_body(told.value))  # can be answered
    return told.value


def problems(model: type[WatchRequest | TaskRequest | ListRequest], request: bytes) -> dict[str, str]:
    return dict(refused(model, request).details)


def read_or_refused(request: bytes) -> WatchRequest | Refused:
    try:
        return parse_request(WatchRequest, request)
    except Refused as told:
        return told


# The forms of a request


@pytest.mark.parametrize("model", [WatchRequest, TaskRequest])
@pytest.mark.parametrize("request_", [body(task=TASK), json.dumps(TASK).encode(), f' "{TASK}"\n'.encode()])
def test_a_task_is_asked_for_by_an_object_or_by_its_bare_id(model: type[TaskRequest], request_: bytes) -> None:
    request = parse_request(model, request_)

    assert (request.task, request.vcenter) == (TASK, None)


def test_a_request_that_says_no_more_has_the_defaults() -> None:
    assert asked().model_dump() == {
        "task": TASK,
        "vcenter": None,
        "timeout": None,
        "stalled_after": None,
        "partial_results": False,
        "details": False,
        "labels": {},
    }


def test_a_request_can_say_everything() -> None:
    request = asked(
        vcenter="lab", timeout="2h", stalled_after="15m", partial_results=True, details=True, labels={"a": "b"}
    )

    assert request.model_dump() == {
        "task": TASK,
        "vcenter": "lab",
        "timeout": 7200.0,
        "stalled_after": 900.0,
        "partial_results": True,
        "details": True,
        "labels": {"a": "b"},
    }


@pytest.mark.parametrize("request_", [b"", b" \n", b"{}"])
def test_an_empty_body_is_an_object_without_fields(request_: bytes) -> None:
    assert problems(WatchRequest, request_) == {"task": "is required"}
    assert parse_request(ListRequest, request_) == ListRequest()


@pytest.mark.parametrize("request_", [b"[]", b"1", b"null", b"true", b'["a"]', b"1.5"])
def test_any_other_form_is_refused_with_the_one_wanted(request_: bytes) -> None:
    wanted = {"": "must be a JSON object or a JSON string that is the task id"}
    assert problems(WatchRequest, request_) == wanted
    assert problems(TaskRequest, request_) == wanted


@pytest.mark.parametrize("request_", [b"[]", b"1", b"null", b'"lab"'])
def test_a_list_request_is_an_object(request_: bytes) -> None:
    assert problems(ListRequest, request_) == {"": "must be an object"}


@pytest.mark.parametrize("model", [WatchRequest, TaskRequest, ListRequest])
@pytest.mark.parametrize("field", ["tiemout", "Task", "", "a.b", "class"])
def test_an_unknown_field_is_refused_by_name(model: type[TaskRequest | ListRequest], field: str) -> None:
    fields = {} if model is ListRequest else {"task": TASK}

    assert problems(model, body(**fields, **{field: 1})) == {field: "is not a field of this request"}


@pytest.mark.parametrize(
    "field", ["timeout", "stalled_after", "partial_results", "details", "labels", "limit", "cursor"]
)
def test_get_unwatch_and_cancel_take_a_task_and_a_vcenter_only(field: str) -> None:
    assert field in problems(TaskRequest, body(task=TASK, **{field: None}))


def test_every_mistake_is_told() -> None:
    told = refused(WatchRequest, body(task="", timeout=-1, labels=[], more=1))

    assert [problem.field for problem in told.details] == ["task", "timeout", "labels", "more"]
    assert told.message.startswith("The request is refused: task: ")


# Strict JSON


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (b"{", "is not JSON"),
        (b"{'task': 'a'}", "is not JSON"),
        (b"[52f9]", "is not JSON"),
        (b"52f9 com.vmware", "is not JSON"),
        (b'{"task": "a",}', "is not JSON"),
        (b'{"task": "a"} x', "is not JSON"),
        (b'"a\nb"', "is not JSON"),
        (b"\xff", "is not JSON"),
        (b'"\xed\xa0\x80"', "is not JSON"),
        ('\ufeff{"task"'.encode(), "is not JSON"),
        ('"a"'.encode("utf-16"), "is not JSON"),
        (b'{"task": "a", "timeout": NaN}', "NaN is not JSON"),
        (b'{"task": "a", "timeout": -Infinity}', "-Infinity is not JSON"),
        (b'{"task": "a", "task": "b"}', "a key stands twice"),
        (b'{"task": "a", "labels": {"x": "1", "x": "1"}}', "a key stands twice"),
        (b'{"task": "a", "timeout": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b"[" * 60_000, "nested too deeply"),
        (b"[" * 100_000, "at most 65,536 bytes"),
        (b'{"a":' * 10_000, "nested too deeply"),
    ],
)
def test_what_is_not_strict_json_is_refused(request_: bytes, problem: str) -> None:
    told = problems(WatchRequest, request_)

    assert problem in told[""]
    assert len(told[""]) <= 300


def test_json_is_read_as_it_is() -> None:
    assert decode_strict_json(b'{"a": [1, 1.5, null, "\\u00e4"]}') == {"a": [1, 1.5, None, "ä"]}
    assert decode_strict_json(b"") == {}


# The fields


@pytest.mark.parametrize(
    "task",
    ["a", "x" * 256, "ä" * 128, "a.b", "...", "%2E", "*", ">", "task-", "task-1x", "Task-1", "日"],
)
def test_a_task_id_is_opaque(task: str) -> None:
    assert parse_request(WatchRequest, json.dumps(task).encode()).task == task


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("", "must be 1 to 256 bytes of UTF-8"),
        ("x" * 257, "must be 1 to 256 bytes of UTF-8"),
        ("ä" * 129, "must be 1 to 256 bytes of UTF-8"),
        ("a\ud800", "must be 1 to 256 bytes of UTF-8"),
        *(
            (task, "must not contain control characters, '/', '?' or '#', nor be '.' or '..'")
            for task in [".", "..", "a/b", "a?b", "a#b", "a\nb", "a\x00", "\x7f", "a\x85b"]
        ),
    ],
)
def test_a_task_id_that_could_not_be_asked_for_is_refused(task: str, problem: str) -> None:
    for request in (body(task=task), json.dumps(task).encode()):
        assert problems(WatchRequest, request) == {"task": problem}


@pytest.mark.parametrize(
    ("task", "read"),
    [
        ("task-1", "task-1"),
        ("Task:task-123456", "task-123456"),
        ("Task:task-", "Task:task-"),
        ("Task:task-1x", "Task:task-1x"),
        ("Task:task-1\u0662", "Task:task-1\u0662"),
    ],
)
def test_a_classic_task_is_read_as_tools_print_it(task: str, read: str) -> None:
    assert parse_request(WatchRequest, body(task=task)).task == read


def test_a_classic_task_is_refused_where_its_kind_is_switched_off() -> None:
    routes = VCenterRouting({"lab": "https://lab", "prod": "https://prod"}, "lab", frozenset(["lab"]))

    with pytest.raises(Refused) as told:
        routes.resolve_watchable(None, "task-1")
    assert (told.value.status, told.value.code, told.value.details[0].field) == (400, "invalid_request", "task")
    assert "BRIDGE_VCENTERS__LAB__VIM" in told.value.details[0].problem
    assert (routes.resolve_watchable("prod", "task-1"), routes.resolve_watchable("lab", "a:b")) == ("prod", "lab")


@pytest.mark.parametrize("task", [None, 5, True, ["a"], {"id": "a"}])
def test_a_task_id_is_a_string(task: object) -> None:
    assert problems(WatchRequest, body(task=task)) == {"task": "input should be a valid string"}


@pytest.mark.parametrize("vcenter", [5, True, ["lab"]])
@pytest.mark.parametrize("model", [WatchRequest, TaskRequest, ListRequest])
def test_a_vcenter_is_named_by_a_string(model: type[TaskRequest | ListRequest], vcenter: object) -> None:
    fields = {} if model is ListRequest else {"task": TASK}

    assert problems(model, body(**fields, vcenter=vcenter)) == {"vcenter": "input should be a valid string"}


@pytest.mark.parametrize("field", ["timeout", "stalled_after"])
@pytest.mark.parametrize(
    ("written", "seconds"), [(90, 90.0), (0.5, 0.5), ("90", 90.0), ("250ms", 0.25), ("PT2H", 7200.0), (None, None)]
)
def test_a_duration_is_read_into_seconds(field: str, written: object, seconds: float | None) -> None:
    assert getattr(asked(**{field: written}), field) == seconds


@pytest.mark.parametrize("field", ["timeout", "stalled_after"])
@pytest.mark.parametrize("written", [True, False, [], {}, "", "soon", "1h30m", "5w"])
def test_what_is_no_duration_is_refused_with_examples(field: str, written: object) -> None:
    told = problems(WatchRequest, body(task=TASK, **{field: written}))

    assert list(told) == [field]
    assert told[field].startswith('must be a duration: seconds, or like "90s"')


@pytest.mark.parametrize("field", ["timeout", "stalled_after"])
@pytest.mark.parametrize("written", ["-1", "366", "31536001", "1e999", "1" * 400, '"366d"'])
def test_a_duration_out_of_bounds_is_refused(field: str, written: str) -> None:
    request = f'{{"task": "a", "{field}": {written}}}'.encode()
    if written == "366":
        assert getattr(parse_request(WatchRequest, request), field) == 366.0
        return

    assert problems(WatchRequest, request) == {field: "must be between 0 and 365 days"}


@pytest.mark.parametrize("written", [0, 0.0, "0", "0s", "PT0S"])
def test_zero_is_no_timeout_and_never_for_stalled_after(written: object) -> None:
    assert problems(WatchRequest, body(task=TASK, timeout=written)) == {"timeout": "must be above 0"}
    assert asked(stalled_after=written).stalled_after == 0.0


@pytest.mark.parametrize("written", [0, 1, "true", None, []])
@pytest.mark.parametrize("field", ["partial_results", "details"])
def test_a_switch_is_a_boolean(field: str, written: object) -> None:
    assert problems(WatchRequest, body(task=TASK, **{field: written})) == {field: "input should be a valid boolean"}


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"a": ""},
        {"k" * 64: "v" * 256},
        {"ä" * 64: "日" * 256},
        {" ": "\n"},
        {str(number): "v" for number in range(16)},
    ],
)
def test_labels_are_kept_as_they_are(labels: dict[str, str]) -> None:
    assert asked(labels=labels).labels == labels


@pytest.mark.parametrize(
    ("labels", "field", "problem"),
    [
        (None, "labels", "input should be a valid dictionary"),
        ([], "labels", "input should be a valid dictionary"),
        ("a=b", "labels", "input should be a valid dictionary"),
        ({"a": 1}, "labels.a", "input should be a valid string"),
        ({"a": None}, "labels.a", "input should be a valid string"),
        ({"a": {}}, "labels.a", "input should be a valid string"),
        ({"": "v"}, "labels.", "string should have at least 1 character"),
        ({"k" * 65: "v"}, f"labels.{'k' * 65}", "string should have at most 64 characters"),
        ({"a": "v" * 257}, "labels.a", "string should have at most 256 characters"),
    ],
)
def test_labels_that_events_could_not_carry_are_refused(labels: object, field: str, problem: str) -> None:
    assert problems(WatchRequest, body(task=TASK, labels=labels)) == {field: problem}


def test_the_largest_request_fits_however_it_is_escaped() -> None:
    labels = {f"{number:02}" + "\U0001f600" * 62: "\U0001f600" * 256 for number in range(16)}
    written = json.dumps({"task": "é" * 128, "labels": labels}, ensure_ascii=True).encode()
    assert len(written) > 60_000
    assert parse_request(WatchRequest, written).labels == labels


def test_there_are_at_most_16_labels() -> None:
    told = problems(WatchRequest, body(task=TASK, labels={str(number): "v" for number in range(17)}))

    assert list(told) == ["labels"]
    assert "at most 16" in told["labels"]


def test_a_request_with_a_thousand_mistakes_is_refused_in_few_words() -> None:
    told = refused(WatchRequest, body(**{f"field{number}" * 5: 1 for number in range(1000)}))

    assert len(told.details) == 20
    assert all(len(problem.field) <= 128 for problem in told.details)
    assert len(told.message) < 1_000


@pytest.mark.parametrize(
    "request_",
    [
        f'{{"task": "{HALF}"}}',
        f'"{HALF}"',
        f'{{"task": "a", "{HALF}": 1}}',
        f'{{"task": "a", "labels": {{"{HALF}": "v"}}}}',
        f'{{"task": "a", "labels": {{"k": "{HALF}"}}}}',
        f'{{"task": "a", "timeout": "{HALF}"}}',
    ],
)
def test_half_a_character_is_refused_and_can_be_answered(request_: str) -> None:
    assert refused(WatchRequest, request_.encode()).details
    msgspec.json.encode(describe_rejected_request(request_.encode()))


# list


@pytest.mark.parametrize(
    ("fields", "limit", "after"),
    [
        ({}, 100, 0),
        ({"limit": 1}, 1, 0),
        ({"limit": 1000, "cursor": "4711"}, 1000, 4711),
        ({"cursor": None}, 100, 0),
    ],
)
def test_a_list_is_asked_for_by_the_page(fields: dict[str, Any], limit: int, after: int) -> None:
    request = parse_request(ListRequest, body(**fields))

    assert (request.limit, request.after) == (limit, after)


@pytest.mark.parametrize("limit", [0, -1, 1001, "5", True, 1.5, None])
def test_a_page_has_1_to_1000_watches(limit: object) -> None:
    assert list(problems(ListRequest, body(limit=limit))) == ["limit"]


@pytest.mark.parametrize("cursor", ["", "abc", "-1", "1.0", " 1", "1\n", "\u0661", "9" * 19, 5])
def test_a_cursor_is_one_that_a_reply_gave(cursor: object) -> None:
    told = problems(ListRequest, body(cursor=cursor))

    assert list(told) == ["cursor"]
    assert told["cursor"] in ("is not one that a reply gave", "input should be a valid string")


# Which vCenter


ONE = VCenterRouting({"lab": "https://lab"}, "lab")
TWO = VCenterRouting({"prod": "https://prod", "lab": "https://lab"}, None)


@pytest.mark.parametrize(("routes", "named", "meant"), [(ONE, None, "lab"), (ONE, "lab", "lab"), (TWO, "prod", "prod")])
def test_a_request_means_the_vcenter_it_names_else_the_default(
    routes: VCenterRouting, named: str | None, meant: str
) -> None:
    assert routes.resolve_configured(named) == meant


def test_without_a_default_a_vcenter_must_be_named() -> None:
    for choose in (TWO.resolve, TWO.resolve_configured):
        with pytest.raises(Refused) as told:
            choose(None)
        assert (told.value.status, told.value.code) == (400, "invalid_request")
        assert told.value.details == (Problem("vcenter", "name one of lab, prod"),)


@pytest.mark.parametrize("name", ["", "other", "LAB", "x" * 1_000, "a\nb", "\ud800"])
def test_a_vcenter_that_is_not_configured_is_unknown(name: str) -> None:
    with pytest.raises(Refused) as told:
        TWO.resolve_configured(name)

    assert (told.value.status, told.value.code) == (404, "unknown_vcenter")
    assert told.value.details == (Problem("vcenter", "must be one of lab, prod"),)
    assert len(told.value.message) < 200
    assert told.value.message.isprintable()


def test_a_watch_of_a_vcenter_no_longer_configured_can_still_be_named() -> None:
    assert TWO.resolve("gone") == "gone"


@pytest.mark.parametrize("name", ["", "*", ">", "lab.*", "a b", "LAB", "a\r\nPUB x 0\r\n"])
def test_what_can_not_name_a_vcenter_names_none_and_never_gets_into_a_subject(name: str) -> None:
    with pytest.raises(Refused) as told:
        TWO.resolve(name)
    assert (told.value.status, told.value.code) == (404, "unknown_vcenter")


# Errors


def test_an_error_tells_status_code_message_and_details() -> None:
    told = msgspec.to_builtins(error_body(invalid_request("No.", Problem("task", "is required"))))

    assert told == {
        "status": 400,
        "code": "invalid_request",
        "message": "No.",
        "details": [{"field": "task", "problem": "is required"}],
    }
    assert msgspec.to_builtins(error_body(unknown_vcenter("x", {"lab": "https://lab"})))["code"] == "unknown_vcenter"


# What a rejection repeats


@pytest.mark.parametrize(
    ("request_", "vcenter", "task", "labels"),
    [
        (body(task="a", vcenter="lab", labels={"x": "y"}, more=1), "lab", "a", {"x": "y"}),
        (b'"task-1"', None, "task-1", None),
        (b"{}", None, None, None),
        (b"", None, None, None),
        (b"[]", None, None, None),
        (b"not json", None, None, None),
        (b"\xff", None, None, None),
        (body(task=5, vcenter=["lab"], labels=[]), None, None, None),
        (body(task="a", labels={"x": 1, "y": "z"}), None, "a", None),
        (body(task="a", labels={}), None, "a", None),
        (f'{{"task": "{HALF}", "labels": {{"{HALF}": "{HALF}"}}}}'.encode(), None, "?", {"?": "?"}),
    ],
)
def test_a_rejection_repeats_what_could_be_made_out(
    request_: bytes, vcenter: str | None, task: str | None, labels: object
) -> None:
    assert describe_rejected_request(request_) == {
        "request": request_.decode("utf-8", "replace"),
        "vcenter": vcenter,
        "task": task,
        "labels": labels,
    }


@pytest.mark.parametrize(
    "request_", [b"x" * 100_000, "ä".encode() * 100_000, b"x" + "日".encode() * 100_000, b"\xff" * 100_000]
)
def test_a_rejection_repeats_8_kib_of_text_without_half_a_character(request_: bytes) -> None:
    told = describe_rejected_request(request_)["request"]

    assert REQUEST_MAX_KEPT_BYTES - 3 < len(told.encode()) <= REQUEST_MAX_KEPT_BYTES
    assert request_.decode("utf-8", "replace").startswith(told)


@settings(max_examples=200)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=30).map(lambda text: json.dumps(text).encode()),
        st.dictionaries(
            st.sampled_from(
                ["task", "vcenter", "timeout", "stalled_after", "partial_results", "details", "labels", "x"]
            ),
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(st.characters(), max_size=5)
            | st.dictionaries(st.text(st.characters(), max_size=3), st.text(st.characters(), max_size=3), max_size=3),
        ).map(lambda fields: json.dumps(fields).encode()),
    )
)
def test_every_request_is_read_or_refused_in_words_that_can_be_sent(request_: bytes) -> None:
    msgspec.json.encode(describe_rejected_request(request_))

    outcome = read_or_refused(request_)

    if isinstance(outcome, Refused):
        assert outcome.details
        msgspec.json.encode(error_body(outcome))
    else:
        assert 1 <= len(outcome.task.encode()) <= 256
        msgspec.json.encode([outcome.labels, outcome.timeout, outcome.stalled_after])


# The requester's trace


@pytest.mark.parametrize(
    ("headers", "trace"),
    [
        (None, (None, None)),
        ({}, (None, None)),
        ({"traceparent": TRACE}, (TRACE, None)),
        ({"Traceparent": f" {TRACE} ", "TraceState": " a=1,b=2 "}, (TRACE, "a=1,b=2")),
        ({"traceparent": TRACE, "tracestate": ""}, (TRACE, None)),
        ({"traceparent": TRACE, "tracestate": "a=ü"}, (TRACE, None)),
        ({"traceparent": TRACE, "tracestate": "a=1\x1b[2J"}, (TRACE, None)),
        ({"tracestate": "a=1"}, (None, None)),
        ({"traceparent": "nonsense", "tracestate": "a=1"}, (None, None)),
        ({"traceparent": ""}, (None, None)),
        ({"traceparent": TRACE.upper()}, (None, None)),
        ({"traceparent": TRACE[:-1]}, (None, None)),
        ({"traceparent": f"{TRACE}-more"}, (None, None)),  # version 00 has four parts
        ({"traceparent": f"01{TRACE[2:]}-more"}, (f"01{TRACE[2:]}-more", None)),
        ({"traceparent": f"01{TRACE[2:]}-" + "x" * 10_000}, (None, None)),
        ({"traceparent": f"ff{TRACE[2:]}"}, (None, None)),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, (None, None)),
        ({"traceparent": f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01"}, (None, None)),
        ({"traceparent": f"{TRACE}\nx"}, (None, None)),
    ],
)
def test_only_a_w3c_trace_context_is_passed_on(
    headers: dict[str, str] | None, trace: tuple[str | None, str | None]
) -> None:
    assert parse_trace_context(headers) == trace


def test_a_tracestate_is_carried_up_to_512_characters() -> None:
    assert parse_trace_context({"traceparent": TRACE, "tracestate": "x" * 600}) == (TRACE, "x" * 512)
