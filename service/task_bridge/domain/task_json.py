"""JSON of vCenter's tasks: lists, single tasks, and anything else, within bounds. Pure.

Whatever vCenter sends within the size limit of an answer, parsing it takes little memory. The result of a task may be
large: where `/api` sends it, it is passed on as bytes. Converting that of `/rest` takes decoding, so it is bounded, and
a result beyond the bounds is unavailable. What else exceeds them is left out, and the event says how large it is.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from .json_size import describe_cut, encode_compact
from .task import (
    NO_RESULT,
    NotATask,
    Rendering,
    Result,
    Task,
    convert_rest_rendering,
    parse_task,
)

DECODED_MAX_BYTES = 8 * 1024 * 1024
"""vCenter itself limits its answers to 7 MB. A string takes up to four times its bytes once it is decoded."""
ELEMENTS_MAX = 200_000
"""Values that are decoded at once. Each takes 50 to 250 bytes."""
LISTED_MAX = 200_000
"""Colons in a list, so at most as many tasks. Each takes 200 bytes, its JSON aside."""
_KEY_MIN_BYTES = 5  # "":1,
DECODED_AT_ONCE_BYTES = 16 * 1024
"""Up to this size a task is decoded as a whole, its result too."""
UNWRAPPED_MAX_BYTES = 512 * 1024
"""A longer answer of `/rest` must hold `value` alone, as vCenter's do."""
DEPTH_MAX = 250
"""Levels that are kept of a task that is nested too deeply to be decoded. An event keeps fewer (`json_size`)."""
_TOKENS_MAX = 2_000_000
"""Strings and runs of brackets that are searched for what is nested too deeply. A million takes half a second."""
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]+|[\]}]+', re.DOTALL)
_BLANK = re.compile(rb"\s")
_WRAPPED = b'{"value":'
_CHUNK_BYTES = 1024 * 1024


class UnreadableBody(ValueError):  # noqa: N818 - reads as what the body is
    """The body isn't what was requested."""


class BodyOutOfBounds(UnreadableBody):
    """The body is what was requested, but exceeds what the bridge decodes. The next one will, too."""


_TOO_DEEP = Result(available=False, reason="the result is nested too deeply")


class _Entry(msgspec.Struct):
    key: str
    value: msgspec.Raw


class _RestList(msgspec.Struct):
    value: list[_Entry] | dict[str, msgspec.Raw]


class _RestTask(msgspec.Struct):
    value: msgspec.Raw


class _Outline(msgspec.Struct):
    """The documented keys of a task. What is missing is empty."""

    status: msgspec.Raw = msgspec.Raw()
    description: msgspec.Raw = msgspec.Raw()
    operation: msgspec.Raw = msgspec.Raw()
    service: msgspec.Raw = msgspec.Raw()
    parent: msgspec.Raw = msgspec.Raw()
    target: msgspec.Raw = msgspec.Raw()
    user: msgspec.Raw = msgspec.Raw()
    cancelable: msgspec.Raw = msgspec.Raw()
    progress: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    start_time: msgspec.Raw = msgspec.Raw()
    end_time: msgspec.Raw = msgspec.Raw()
    result: msgspec.Raw = msgspec.Raw()


_api_list = msgspec.json.Decoder(dict[str, msgspec.Raw])
_rest_list = msgspec.json.Decoder(_RestList)
_rest_task = msgspec.json.Decoder(_RestTask)
_outline = msgspec.json.Decoder(_Outline)
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw])

TaskBodies = dict[str, msgspec.Raw]


def size_of(body: bytes | bytearray | msgspec.Raw) -> int:
    return memoryview(body).nbytes


def parse_list(rendering: Rendering, body: bytes) -> TaskBodies:
    """Return the tasks of a list, each still as JSON. Raises UnreadableBody; a shorter list may be readable."""
    if len(body) > LISTED_MAX * _KEY_MIN_BYTES and body.count(b":") > LISTED_MAX:
        raise BodyOutOfBounds(f"a list with more than {LISTED_MAX} keys")
    try:
        if rendering == "api":
            return _api_list.decode(body)
        value = _rest_list.decode(body).value
    except (ValueError, RecursionError) as error:
        raise UnreadableBody(f"not a list of tasks: {error}") from error
    return value if isinstance(value, dict) else {entry.key: entry.value for entry in value}


def unwrap_task(rendering: Rendering, body: bytes) -> bytes | msgspec.Raw:
    """Return one task, still as JSON. Raises UnreadableBody."""
    if rendering == "api":
        return body
    if len(body) > UNWRAPPED_MAX_BYTES and body.startswith(_WRAPPED) and body.endswith(b"}"):
        return body[len(_WRAPPED) : -1]  # finding the end of 31 MB takes up to half a second in one call
    try:
        return _rest_task.decode(body).value
    except RecursionError as error:
        if body.startswith(_WRAPPED) and body.endswith(b"}"):
            return body[len(_WRAPPED) : -1]
        raise BodyOutOfBounds("nested too deeply") from error
    except ValueError as error:
        raise UnreadableBody(f"not a task: {error}") from error


def parse_json(body: bytes | bytearray | msgspec.Raw) -> Any:
    """Parse any JSON, even what msgspec refuses: lone surrogates, NaN, bytes that aren't UTF-8.

    Raises UnreadableBody. The caller has checked that the body is within the bounds.
    """
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(bytes(body).decode("utf-8", "replace"))
    except RecursionError as error:
        raise BodyOutOfBounds("nested too deeply") from error
    except ValueError as error:
        raise UnreadableBody(f"not JSON: {error}") from error


def parse_raw_task(
    body: bytes | msgspec.Raw, rendering: Rendering, *, with_result: bool, with_extra: bool = False
) -> Task:
    """Return the task that a body shows. Raises UnreadableBody. This is the bridge's hottest path.

    Without `with_result` the request excluded the result. If vCenter sends it nevertheless, an ended task keeps it.
    An ended task always keeps `extra`, any other only if `with_extra`.
    """
    try:
        if size_of(body) > DECODED_AT_ONCE_BYTES:
            raise RecursionError  # noqa: TRY301 - the same way as for what is nested too deeply
        task = _parse_info(parse_json(body), rendering, with_result=with_result)
    except (RecursionError, BodyOutOfBounds):
        task = _parse_large(bytes(body), rendering, with_result=with_result)
    if task.ended:
        return task
    # Nothing else reads these, and other events don't report them.
    extra, result = task.extra if with_extra else None, task.result if with_result else None
    return msgspec.structs.replace(task, extra=extra, result=result)


def _parse_info(info: object, rendering: Rendering, *, with_result: bool) -> Task:
    has_result = isinstance(info, dict) and info.get("result") is not None
    try:
        return parse_task(info, rendering, with_result=with_result or has_result)
    except NotATask as error:
        raise UnreadableBody(str(error)) from error


# Large tasks


def _parse_large(body: bytes, rendering: Rendering, *, with_result: bool) -> Task:
    try:
        return _parse_info(_parse_in_parts(body, rendering), rendering, with_result=with_result)
    except (RecursionError, BodyOutOfBounds):
        info = _parse_in_parts(_blank_depth(body, DEPTH_MAX), rendering, is_blanked=True)
        return _parse_info(info, rendering, with_result=with_result)


def _blank_depth(body: bytes, levels: int) -> bytearray:
    """Return the JSON with strings of the same length instead of what is nested deeper. Raises BodyOutOfBounds."""
    blanked = bytearray(body)
    for start, end in _find_deep(body, levels):
        for chunk in range(start, end, _CHUNK_BYTES):  # in little memory
            chunk_end = min(end, chunk + _CHUNK_BYTES)
            blanked[chunk:chunk_end] = b"x" * (chunk_end - chunk)
        blanked[start] = blanked[end - 1] = ord('"')
    return blanked


def _find_deep(body: bytes | msgspec.Raw, levels: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of what is nested deeper. Raises BodyOutOfBounds."""
    depth, deep_from = 0, -1
    view = memoryview(body)
    for number, token in enumerate(_TOKEN.finditer(view)):
        if number == _TOKENS_MAX:
            raise BodyOutOfBounds("nested too deeply")
        start, end = token.span()
        if view[start] in b"[{":
            if depth <= levels < depth + end - start:
                deep_from = start + levels - depth
            depth += end - start
        elif view[start] in b"]}":
            if deep_from >= 0 and depth - (end - start) <= levels:
                yield deep_from, start + depth - levels
                deep_from = -1
            depth -= end - start


def find_excess(body: bytes | bytearray) -> str:
    """Return how the JSON exceeds what the bridge decodes; empty if it doesn't. Counts text as if it were JSON."""
    if len(body) > DECODED_MAX_BYTES:
        return f"has {len(body)} bytes, more than the {DECODED_MAX_BYTES} that the bridge decodes"
    if _count_elements(body) > ELEMENTS_MAX:
        return f"has more than the {ELEMENTS_MAX} values that the bridge decodes"
    return ""


def _count_elements(body: bytes | bytearray) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _parse_in_parts(body: bytes | bytearray, rendering: Rendering, *, is_blanked: bool = False) -> dict[str, Any]:
    """Return the task with its result as a `Result`, and without what exceeds the bounds. Raises UnreadableBody."""
    try:
        outline = _outline.decode(body)
    except RecursionError as error:
        raise BodyOutOfBounds("nested too deeply") from error
    except ValueError as error:
        if excess := find_excess(body):
            raise UnreadableBody(f"not a task: {error} (it {excess})") from error
        info = parse_json(body)
        return info if isinstance(info, dict) else {}
    is_too_deep = is_blanked and next(_find_deep(outline.result, DEPTH_MAX - 2), None) is not None
    result = b"" if is_too_deep else bytes(outline.result)
    try:
        info = _parse_all_but_result(body, result, outline)
        if is_too_deep:
            info["result"] = _TOO_DEEP
        elif result and result != b"null":
            info["result"] = _read_result(result, rendering, info)
    except RecursionError as error:
        raise BodyOutOfBounds("nested too deeply") from error
    return info


def _parse_all_but_result(body: bytes | bytearray, result: bytes, outline: _Outline) -> dict[str, Any]:
    """Return the keys of a task, or, where they exceed the bounds, the documented ones that don't."""
    rest_bytes = len(body) - size_of(outline.result)
    rest_elements = _count_elements(body) - _count_elements(result)
    if rest_bytes <= DECODED_MAX_BYTES and rest_elements <= ELEMENTS_MAX:
        return {key: parse_json(raw) for key, raw in _keys.decode(body).items() if key != "result"}
    documented = {key: getattr(outline, key) for key in _Outline.__struct_fields__ if key != "result"}
    info = {key: parse_json(raw) for key, raw in documented.items() if 0 < size_of(raw) <= DECODED_AT_ONCE_BYTES}
    if info.get("status") == "FAILED" and "error" not in info and size_of(outline.error):
        info["error"] = _read_large_error(outline.error)
    extra_bytes = _count_extra_bytes(body, {**documented, "result": outline.result})
    # Keys that aren't documented become `extra`, so these two say there that it was cut.
    return {**info, **(describe_cut(extra_bytes) if extra_bytes > len(b"{}") else {})}


def _read_large_error(error: msgspec.Raw) -> Any:
    if size_of(error) <= DECODED_MAX_BYTES and not find_excess(bytes(error)):
        return parse_json(error)
    said = {"default_message": "The error is too large for the bridge to read why the task failed."}
    return {"messages": [said], "data": describe_cut(_count_compact_bytes(error))}


def _count_extra_bytes(body: bytes | bytearray, documented: dict[str, msgspec.Raw]) -> int:
    """Return the size of what the body has beyond the documented keys, as a JSON object by itself."""
    known = (len(key) + len(b'"":,') + _count_compact_bytes(raw) for key, raw in documented.items() if size_of(raw))
    return _count_compact_bytes(body) - sum(known)


def _count_compact_bytes(body: bytes | bytearray | msgspec.Raw) -> int:
    if _BLANK.search(memoryview(body)) is None:
        return size_of(body)  # formatting it would take as much memory again
    return len(msgspec.json.format(body, indent=-1))


def _read_result(result: bytes, rendering: Rendering, info: dict[str, Any]) -> Any:
    """Return the result as a `Result`; that of a failed task decoded if possible, since it may have the reason."""
    excess = find_excess(result)
    is_container = result[:1] in (b"{", b"[")
    try:
        if info.get("status") == "FAILED" and not excess:
            return parse_json(result)
        if rendering == "api" or not is_container:
            return _pass_on(result, excess)
        if excess:
            return Result(available=False, reason=f"the result {excess}")
        value = convert_rest_rendering(parse_json(result))
        return NO_RESULT if value is None else Result(encode_compact(value))
    except (RecursionError, BodyOutOfBounds):
        return _TOO_DEEP


def _pass_on(result: bytes, excess: str) -> Result:
    """Return the result without decoding it, unless it isn't UTF-8."""
    if is_utf8(result):
        return Result(msgspec.json.format(result, indent=-1))
    if excess:
        return Result(available=False, reason=f"the result isn't UTF-8 and {excess}")
    return Result(encode_compact(parse_json(result)))


def is_utf8(body: bytes) -> bool:
    """Return whether the bytes are UTF-8, in little memory."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(body), _CHUNK_BYTES):
            decoder.decode(body[start : start + _CHUNK_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
