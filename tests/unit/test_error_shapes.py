"""Errors of CIS tasks in shapes that the API description doesn't name: the text is found, and the raw value is kept."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_bridge.domain.error_text import DEPTH_MAX, TEXTS_MAX, VALUES_MAX, find_texts, find_type
from task_bridge.domain.json_size import CUT_ABOVE_BYTES, cut_large, encode_compact
from task_bridge.domain.json_size import DEPTH_MAX as KEPT_DEPTH_MAX
from task_bridge.domain.task import Message, Rendering, TaskError, parse_task

SAID_NOTHING = "vCenter reports that the task failed and gives no reason, neither as an error nor in the result."


def failure(rendering: Rendering = "api", *, with_result: bool = True, **fields: Any) -> TaskError:
    error = parse_task({"status": "FAILED", **fields}, rendering, with_result=with_result).error
    assert error is not None
    return error


DISK = {"id": "com.example.disk", "default_message": "The disk of esx9 is full.", "args": ["esx9", 5]}
FAULT = {
    "_typeName": "FileLocked",
    "file": "[ds1] a.vmdk",
    "faultMessage": [{"key": "lock", "arg": [], "message": "C"}],
}
CHAIN = {
    "_typeName": "LocalizedMethodFault",
    "fault": {
        "_typeName": "GenericVmConfigFault",
        "reason": "B",
        "faultCause": {"_typeName": "LocalizedMethodFault", "fault": FAULT, "localizedMessage": "D"},
    },
    "localizedMessage": "A",
}


@pytest.mark.parametrize(
    ("error", "kind", "texts"),
    [
        ([{"error_type": "NOT_FOUND", "messages": [DISK]}], "NOT_FOUND", ["The disk of esx9 is full."]),
        ([{"error_type": "BUSY", "messages": [DISK]}, {"message": "Also esx8."}], "BUSY", [DISK, "Also esx8."]),
        (
            {"_typeName": "InvalidArgument", "faultstring": "Bad spec.", "invalidProperty": "spec"},
            "InvalidArgument",
            ["Bad spec."],
        ),
        ({"_typeName": "string", "_value": "Out of memory."}, "string", ["Out of memory."]),
        (17, None, []),
        (0, None, []),
        (-2.5, None, []),
        (True, None, []),
        (False, None, []),
        ("Out of memory.", None, ["Out of memory."]),
        ("  ", None, []),
        (["esx1 is away.", "esx2 is away."], None, ["esx1 is away.", "esx2 is away."]),
        ([[["esx1 is away."]], [[]]], None, ["esx1 is away."]),
        ([None, 5, {}], None, []),
        ({"type": "com.example.errors.disk_full", "value": "Full."}, "DISK_FULL", ["Full."]),
        ({"type": "DiskFull", "value": {"reason": "Full."}}, "DiskFull", ["Full."]),
        ({"type": "com.vmware.vapi.std.errors.not_found", "value": {"messages": [DISK]}}, "NOT_FOUND", [DISK]),
        ({"error": {"error_type": "TIMED_OUT", "messages": [DISK]}}, "TIMED_OUT", [DISK]),
        ({"error": {"@class": "com.example.busy", "error": "Busy."}}, "BUSY", ["Busy."]),
        ({"errors": [{"msg": "One."}, {"msg": "Two."}]}, None, ["One.", "Two."]),
        (CHAIN, "GenericVmConfigFault", ["A", "B", "D", "C"]),
        ({"fault": {"_typeName": "InvalidState"}, "localizedMessage": "Stopped."}, "InvalidState", ["Stopped."]),
        ({"error_type": "ERROR", "messages": [], "faultstring": "Broken."}, "ERROR", ["Broken."]),
        ({"error_type": "ERROR", "messages": [DISK], "hint": "Clean up."}, "ERROR", [DISK]),
        ({"message": "Summary.", "detail": "More.", "description": "Summary."}, None, ["Summary.", "More."]),
        ({"code": 5, "title": "Refused", "hosts": ["esx1"]}, None, ["Refused"]),
        ({"name": "esx1", "reason": "It is away."}, None, ["It is away."]),
        ({"data": {"hosts": {"esx1": {"message": "It is away."}}}, "code": "x"}, None, ["It is away."]),
        ({"code": "x", "hosts": ["esx1"]}, None, []),
    ],
)  # fmt: skip
def test_an_unforeseen_error_gives_its_texts_and_its_type_and_is_kept_raw(
    error: object, kind: str | None, texts: list[Any]
) -> None:
    read = failure(error=error, result=None)

    wanted = [text if isinstance(text, str) else text["default_message"] for text in texts]
    assert (read.type, [message.text for message in read.messages]) == (kind, wanted)
    assert read.data == error
    if wanted:
        assert read.message == wanted[0]
    else:
        assert read.message.startswith("vCenter reports the failure")
        assert "data" in read.message


def test_a_message_in_an_unforeseen_error_keeps_its_id_and_arguments() -> None:
    assert failure(error=[{"messages": [DISK]}]).messages == (
        Message("com.example.disk", "The disk of esx9 is full.", ("esx9", "5")),
    )


def test_an_error_in_the_documented_shape_keeps_only_its_own_data() -> None:
    read = failure(error={"error_type": "ERROR", "messages": [DISK], "data": {"is_transient": True}, "challenge": None})

    assert (read.data, read.transient) == ({"is_transient": True}, True)
    assert failure(error={"error_type": "ERROR", "messages": [DISK]}).data is None


def test_a_rest_error_is_kept_in_api_rendering_without_its_class() -> None:
    error = [{"@class": "com.example.errors.busy", "hosts": [{"key": "esx1", "value": {"reason": "It is away."}}]}]
    read = failure("rest", error=error)

    assert (read.type, read.message) == ("BUSY", "It is away.")
    assert read.data == [{"hosts": {"esx1": {"reason": "It is away."}}}]


@pytest.mark.parametrize("error", [None, "", [], {}])
@pytest.mark.parametrize("result", [None, "", [], {}])
def test_only_without_error_and_result_vcenter_gives_no_reason(error: object, result: object) -> None:
    assert failure(error=error, result=result) == TaskError(type=None, message=SAID_NOTHING)
    assert failure() == TaskError(type=None, message=SAID_NOTHING)


@pytest.mark.parametrize("result", [0, 5, False, {"status": "ERROR"}, {"errors": []}, [None], {"message": None}])
def test_a_result_without_a_text_is_not_denied(result: object) -> None:
    assert failure(result=result).message == (
        "vCenter reports that the task failed, without an error. Its result doesn't say why in words."
    )


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"reason": "The disk is full."}, "The disk is full."),
        ([{"host": "esx1", "fault": {"localizedMessage": "It is away."}}], "It is away."),
        ({"hosts": {"esx1": {"error": "It is away."}}}, "It is away."),
    ],
)
def test_a_reason_anywhere_in_the_result_is_the_message(result: object, text: str) -> None:
    assert failure(result=result).message == text
    read = failure(error=17, result=result)
    assert (read.message, read.data) == (text, 17)


def test_a_description_in_the_result_is_no_reason() -> None:
    assert "doesn't say why" in failure(result={"hosts": {"esx1": {"description": "A host", "title": "esx1"}}}).message


def test_a_type_without_messages_is_explained_by_the_result() -> None:
    read = failure(error={"error_type": "ERROR", "messages": []}, result={"message": "The disk is full."})

    assert (read.type, read.message) == ("ERROR", "The disk is full.")


def test_nothing_is_claimed_about_a_result_that_was_not_read() -> None:
    assert failure(with_result=False).message.endswith("Its result, which may say why, wasn't searched.")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6)
words = st.sampled_from(
    [
        "error_type",
        "messages",
        "data",
        "@class",
        "type",
        "value",
        "_typeName",
        "fault",
        "message",
        "args",
        "id",
        "error",
    ]
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


def meaning(value: object) -> object:
    """The value as it comes back from an event: without NaN, and without what UTF-8 can't carry."""
    return msgspec.json.decode(encode_compact(value))


def is_empty(value: object) -> bool:
    """Whether the value says nothing: a structure that names no class among them."""
    if isinstance(value, dict) and value.keys() == {"@class"}:
        return not isinstance(value["@class"], str) or not value["@class"]
    return value is None or value in ("", [], {})


@settings(max_examples=500, deadline=None)
@given(anything, anything, st.sampled_from(["api", "rest"]), st.booleans())
def test_any_json_as_error_and_result_gives_a_message_and_keeps_the_error(
    error: Any, result: Any, rendering: Rendering, with_result: bool
) -> None:
    read = failure(rendering, with_result=with_result, error=error, result=result)

    assert read.message
    assert read.type is None or read.type
    assert all(message.text for message in read.messages)
    assert not read.messages or read.message == read.messages[0].text
    assert (read.message == SAID_NOTHING) <= (is_empty(error) and is_empty(result))
    named = isinstance(error, dict) and error.keys() <= {"error_type", "messages", "data", "challenge", "@class"}
    if rendering == "api" and not named and error not in (None, "") and read.data is not None:
        assert meaning(read.data) in (meaning(error), meaning(_own_data(error)))
    json.loads(msgspec.json.encode(meaning(read.data)))


def _own_data(error: Any) -> Any:
    if not isinstance(error, dict):
        return None
    inner = error["value"] if isinstance(error.get("value"), dict) else error
    return inner.get("data")


@settings(max_examples=300, deadline=None)
@given(anything)
def test_the_search_of_texts_and_types_ends_with_any_json(value: Any) -> None:
    texts = find_texts(value)

    assert all(one.text.strip() for one in texts)
    assert len({one.text for one in texts}) == len(texts) <= TEXTS_MAX
    assert find_type(value) is None or find_type(value)


@pytest.mark.parametrize("depth", [1, DEPTH_MAX - 1, KEPT_DEPTH_MAX - 1, KEPT_DEPTH_MAX, 400])
def test_a_deep_error_is_kept_as_long_as_consumers_can_read_it(depth: int) -> None:
    error: Any = "deep inside"
    for _ in range(depth):
        error = [error]
    read = failure(error=error)

    assert (read.message == "deep inside") == (depth <= DEPTH_MAX)
    whole = depth <= KEPT_DEPTH_MAX
    assert read.data == (error if whole else {"truncated": True, "bytes": len('"deep inside"') + 2 * depth})


def test_the_search_is_over_soon_in_a_wide_error() -> None:
    wide = [{"a": [{"b": "x"}] * 20, "message": str(number)} for number in range(20_000)]
    began = time.process_time()

    assert len(find_texts(wide)) == TEXTS_MAX
    assert find_texts([[] for _ in range(VALUES_MAX)] + ["too far"]) == []
    assert find_type(wide) is None
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(("over", "kept"), [(0, True), (1, False)])
def test_data_is_kept_up_to_64_kib_of_compact_json(over: int, kept: bool) -> None:
    value = {"error_type": "ERROR", "data": ["ä" * (CUT_ABOVE_BYTES // 2 - 4), "x" * (over + 1)]}
    size = len(encode_compact(value["data"]))

    assert size == CUT_ABOVE_BYTES + over
    assert failure(error=value).data == (value["data"] if kept else {"truncated": True, "bytes": size})
    assert cut_large(value["data"]) == (value["data"] if kept else {"truncated": True, "bytes": size})
