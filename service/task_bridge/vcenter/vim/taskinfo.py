"""Build a `Task` from the properties of a vim task. Pure. Unreadable values become None; only the state is required.

Sources: `TaskInfo` of the vSphere Web Services API, and vcsim's variant of it (omits values, has nanoseconds in times).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import Any, NamedTuple

from ...domain.durations import parse_time, rfc3339
from ...domain.json_size import cut_large, encode_compact
from ...domain.task import (
    ENDED,
    NO_RESULT,
    Initiator,
    Progress,
    Result,
    Target,
    Task,
    TaskError,
    TaskIdentity,
    calculate_percent,
)
from .faults import NO_REASON, NO_REASON_BUT_RESULT, parse_fault
from .soap import CHILDREN_MAX, Element, Ref, child, local_name, ref_of, text_of, type_of
from .values import ValueOutOfBounds, convert_value

DYNAMIC = (
    "state",
    "progress",
    "description",
    "cancelable",
    "cancelled",
    "error",
    "result",
    "startTime",
    "completeTime",
)
STATIC = (
    "descriptionId",
    "entity",
    "entityName",
    "reason",
    "queueTime",
    "parentTaskKey",
    "rootTaskKey",
    "eventChainId",
    "activationId",
)
VALUES = ("result", "error")
"""Fields of any size."""
LIVE = ("state", "progress", "description", "cancelable", "cancelled", "queueTime")
"""What changes while a task stays in its state, and what tells it from another one with its id."""
NOT_LIVE = tuple(field for field in (*DYNAMIC, *STATIC) if field not in LIVE)
PATHS = tuple(f"info.{field}" for field in (*DYNAMIC, *STATIC))
QUESTION = "runtime.question"

_STATUS = {"queued": "PENDING", "running": "RUNNING", "success": "SUCCEEDED", "error": "FAILED"}
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
"""At most 18 digits, which fit into 64 bits."""
_TEXT_MAX = 8_192
"""Characters of a text in `extra`, whose size in an event is limited."""
_EMPTY_RESULTS = (b"", b'""', b"[]", b"{}")
_RESULT_MAX_BYTES = 32 * 1024 * 1024
_INITIATORS = {
    "TaskReasonUser": "user",
    "TaskReasonSchedule": "schedule",
    "TaskReasonAlarm": "alarm",
    "TaskReasonSystem": "system",
}
_NAMES = {"userName": "user", "name": "schedule", "alarmName": "alarm"}
"""The property that names what started a task, by the kind of it."""

Info = dict[str, Any]
"""Parsed fields of TaskInfo by name. Those that vCenter doesn't send are missing or None."""


class Question(NamedTuple):
    """A question that a VM waits for an answer to."""

    id: str | None
    text: str | None


def parse_field(field: str, element: Element | None) -> Any:
    """Return one field of TaskInfo."""
    return None if element is None else _PARSERS.get(field, text_of)(element)


def parse_info(element: Element) -> Info:
    """Return a whole TaskInfo, as vCenter's history has it."""
    fields = {local_name(one): one for one in islice(element, CHILDREN_MAX)}
    return {name: parse_field(name, one) for name, one in fields.items() if name in _KNOWN}


def parse_question(element: Element | None) -> Question | None:
    if element is None or not len(element):
        return None
    return Question(_parse_text(child(element, "id")), _parse_text(child(element, "text")))


def parse_identity(info: Info) -> TaskIdentity:
    return TaskIdentity(parse_time(info.get("queueTime")), info.get("descriptionId"))


def has_ended(info: Info) -> bool:
    """True if these properties show the end of a task."""
    return info.get("state") in ("success", "error")


def build_task(info: Info, question: Question | None, labels: Mapping[str, str]) -> Task | None:
    """Return the task, None if it has no state. `labels`: the descriptions of operations by description id."""
    state = info.get("state")
    if not state:
        return None
    status = _STATUS.get(state, state.upper())
    blocking = question if status == "RUNNING" else None
    description_id = info.get("descriptionId") or ""
    service, _, operation = description_id.rpartition(".")
    entity: Ref | None = info.get("entity")
    initiator: Initiator | None = info.get("reason")
    has_ended = status in ENDED
    queued = parse_time(info.get("queueTime"))
    started, ended = parse_time(info.get("startTime")), parse_time(info.get("completeTime"))
    return Task(
        status="BLOCKED" if blocking else status,
        service=service or None,
        operation=operation or None,
        description=labels.get(description_id),
        target=entity and Target(entity.type, entity.id, info.get("entityName") or None),
        parent=info.get("parentTaskKey"),
        root=info.get("rootTaskKey"),
        user=initiator.name if initiator else None,
        initiator=initiator,
        cancelable=info.get("cancelable"),
        cancel_requested=info.get("cancelled"),
        progress=_build_progress(info, status, blocking),
        error=(info.get("error") or (NO_REASON_BUT_RESULT if _has_result(info) else NO_REASON))
        if status == "FAILED"
        else None,
        result=(info.get("result") or NO_RESULT) if has_ended else NO_RESULT,
        extra=_build_extra(info, blocking),
        queued_at=None if queued is None else rfc3339(queued),
        started_at=None if started is None else rfc3339(started),
        ended_at=None if ended is None else rfc3339(ended),
        duration_seconds=None if started is None or ended is None else round(ended - started, 3),
    )


def _has_result(info: Info) -> bool:
    result: Result | None = info.get("result")
    return result is not None and (not result.available or result.json not in _EMPTY_RESULTS)


def _build_progress(info: Info, status: str, question: Question | None) -> Progress | None:
    """Return the percentage while the task is running. The text of a question replaces the phase."""
    message = question.text if question else info.get("description")
    done = info.get("progress") if status == "RUNNING" else None
    if done is None:
        return Progress(message=message) if message and status in ("PENDING", "RUNNING") else None
    return Progress(done, 100, calculate_percent(done, 100), message)


def _build_extra(info: Info, question: Question | None) -> dict[str, Any] | None:
    extra = {field: info[field] for field in ("queueTime", "eventChainId", "activationId") if info.get(field)}
    if question:
        extra["question"] = {"id": question.id, "text": question.text}
    return cut_large(extra) if extra else None


def build_substitutes(without: Collection[str], reason: str) -> Info:
    """Return what stands for those of `VALUES` that make vCenter's answer too large to read."""
    error = TaskError(None, "The task's error is too large for the bridge to read.")
    substitutes: Info = {"error": error, "result": Result(available=False, reason=reason)}
    return {name: substitutes[name] for name in without}


# Fields


def _parse_boolean(element: Element) -> bool | None:
    return {"true": True, "1": True, "false": False, "0": False}.get(text_of(element) or "")


def _parse_text(element: Element | None) -> str | None:
    text = text_of(element)
    return text and text[:_TEXT_MAX]


def _parse_integer(element: Element) -> int | None:
    text = text_of(element)
    return int(text) if text is not None and _INTEGER.fullmatch(text) else None


def _parse_message(element: Element) -> str | None:
    """Return the text of a LocalizableMessage, in the language that the login requested."""
    return text_of(child(element, "message"))


def _parse_initiator(element: Element) -> Initiator | None:
    """Return what started the task, by the type that vCenter sends or else by the property that it has."""
    pairs = ((kind, text_of(child(element, field))) for field, kind in _NAMES.items())
    kind, name = next((pair for pair in pairs if pair[1]), (None, None))
    if sent := type_of(element):
        kind = _INITIATORS.get(sent, sent)
    return Initiator(kind, name) if kind else None


def _parse_result(element: Element) -> Result:
    try:
        value = convert_value(element)
    except ValueOutOfBounds as error:
        return Result(available=False, reason=f"the result {error}")
    if value is None:
        return NO_RESULT
    json = encode_compact(value)
    if len(json) > _RESULT_MAX_BYTES:
        return Result(available=False, reason=f"the result has {len(json)} bytes, more than {_RESULT_MAX_BYTES}")
    return Result(json)


_PARSERS: dict[str, Callable[[Element], Any]] = {
    "activationId": _parse_text,
    "cancelable": _parse_boolean,
    "cancelled": _parse_boolean,
    "description": _parse_message,
    "entity": ref_of,
    "error": parse_fault,
    "eventChainId": _parse_integer,
    "progress": _parse_integer,
    "reason": _parse_initiator,
    "result": _parse_result,
}
_KNOWN = frozenset({"key", *DYNAMIC, *STATIC})
