"""Tasks of many megabytes, or nested too deeply to be decoded: the state is read in bounded time, the rest is cut."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_bridge.domain import task_json
from task_bridge.domain.task import Rendering, Result, Task
from task_bridge.domain.task_json import parse_raw_task, unwrap_task

SIZE = 31 * 1024 * 1024
TOO_LARGE = "The error is too large for the bridge to read why the task failed."
RENDERINGS: list[Rendering] = ["api", "rest"]


def lists(size: int) -> bytes:
    return b"[" + b"[]," * (size // 3) + b"1]"


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def read(rendering: Rendering = "api", *, within_s: float = 10.0, **fields: bytes) -> Task:
    """The task as either rendering shows it, with these fields in JSON."""
    info = b"{" + b",".join(b'"%b":%b' % (key.encode(), value) for key, value in fields.items()) + b"}"
    body = unwrap_task(rendering, info if rendering == "api" else b'{"value":' + info + b"}")
    began = time.process_time()
    task = parse_raw_task(body, rendering, with_result=True)
    assert time.process_time() - began < within_s
    return task


def cut(value: bytes) -> dict[str, Any]:
    return {"truncated": True, "bytes": len(value)}


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_an_extra_of_31_mb_is_cut_and_the_rest_of_the_task_is_kept(rendering: Rendering) -> None:
    notes = lists(SIZE)
    task = read(
        rendering,
        status=b'"FAILED"',
        subtasks=notes,
        error=b'[{"reason":"The disk is full."}]',
        user=b'"deploy"',
        result=b'{"a":1}',
        more=b" [ 1 ]",
    )

    assert task.extra == cut(b'{"subtasks":' + notes + b',"more":[1]}')
    assert (task.user, task.error and task.error.message) == ("deploy", "The disk is full.")
    assert task.result == Result(b'{"a":1}')


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_an_error_of_31_mb_is_cut(rendering: Rendering) -> None:
    error = lists(SIZE)
    task = read(rendering, status=b'"FAILED"', error=error)

    assert task.error is not None
    assert (task.error.message, task.error.data) == (TOO_LARGE, cut(error))
    assert task.extra is None


def test_an_error_within_the_bounds_is_read_beside_an_extra_beyond_them() -> None:
    messages = b",".join([b'{"reason":"The disk is full."}', *[b'{"host":"esx1"}'] * 5_000])
    task = read(status=b'"FAILED"', subtasks=lists(SIZE), error=b"[" + messages + b"]")

    assert task.error is not None
    assert (task.error.message, task.error.data) == ("The disk is full.", cut(b"[" + messages + b"]"))


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("levels", [260, 480, 600, 990, 1_100, 100_000, SIZE // 2])
def test_a_deep_error_is_cut_and_the_task_has_ended(rendering: Rendering, levels: int) -> None:
    task = read(rendering, status=b'"FAILED"', error=b'{"reason":"The disk is full.","in":' + deep(levels) + b"}")

    assert task.ended
    assert task.error is not None
    wanted = "The disk is full." if levels < SIZE // 2 else TOO_LARGE
    assert (task.error.message, task.error.data) == (
        wanted,
        cut(b'{"reason":"The disk is full.","in":' + deep(levels) + b"}"),
    )


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("levels", [260, 600, 1_100, 100_000])
def test_a_deep_extra_is_cut_and_a_deep_result_is_unavailable(rendering: Rendering, levels: int) -> None:
    task = read(rendering, status=b'"SUCCEEDED"', subtasks=deep(levels), result=b'["a"]')
    assert (task.extra, task.result) == (cut(b'{"subtasks":' + deep(levels) + b"}"), Result(b'["a"]'))

    task = read(rendering, status=b'"SUCCEEDED"', subtasks=b"{}", result=deep(levels))
    assert task.extra == {"subtasks": {}}
    assert task.result is not None
    assert task.result == Result(deep(levels)) or not task.result.available
    if not 260 < levels < 100_000:  # how deep JSON in between is decoded depends on the Python
        assert task.result.available == (levels == 260)


def test_what_is_deep_and_has_too_many_pieces_is_refused_in_bounded_time() -> None:
    with pytest.raises(task_json.BodyOutOfBounds):
        read(status=b'"RUNNING"', a=deep(200_000), b=lists(SIZE - 400_000), within_s=10.0)


nested = st.recursive(
    st.none() | st.text(st.sampled_from('[]{}"\\,x'), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.sampled_from('[{"\\'), max_size=2), inner, max_size=3)
    ),
    max_leaves=30,
)


@given(nested, st.integers(1, 6))
def test_blanking_cuts_exactly_what_is_deeper_and_keeps_the_size(value: Any, levels: int) -> None:
    body = json.dumps(value).encode()
    blanked = task_json._blank_depth(body, levels)

    assert len(blanked) == len(body)
    assert _equal_down_to(value, json.loads(blanked), levels)


def _equal_down_to(value: Any, blanked: Any, levels: int) -> bool:
    if levels == 0 and isinstance(value, list | dict):
        return isinstance(blanked, str) and set(blanked) <= {"x"}
    if isinstance(value, dict) and isinstance(blanked, dict):
        return value.keys() == blanked.keys() and all(
            _equal_down_to(value[key], blanked[key], levels - 1) for key in value
        )
    if isinstance(value, list) and isinstance(blanked, list):
        return len(value) == len(blanked) and all(map(_equal_down_to, value, blanked, [levels - 1] * len(value)))
    return bool(value == blanked)
