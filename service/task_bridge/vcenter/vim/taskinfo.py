"""Build a `Task` from the properties of a vim task. Pure. Unreadable values become None; only the state is required.

Sources: `TaskInfo` of the vSphere Web Services API, and vcsim's variant of it (omits values, has nanoseconds in times).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from ...domain.durations import parse_time, rfc3339
from ...domain.json_size import cut_large, encode_compact
from ...domain.task import (
    NO_RESULT,
    Message,
    Progress,
    Result,
    Target,
    Task,
    TaskError,
    TaskIdentity,
    calculate_percent,
)
from .soap import CHILDREN_MAX, Element, Ref, child, children, local_name, ref_of, text_of, type_of

DYNAMIC = ("state", "progress", "description", "cancelable", "error", "result", "startTime", "completeTime")
STATIC = (
    "descriptionId",
    "entity",
    "entityName",
    "reason",
    "queueTime",
    "parentTaskKey",
    "eventChainId",
    "activationId",
)
PATHS = tuple(f"info.{field}" for field in (*DYNAMIC, *STATIC))
QUESTION = "runtime.question"

_STATUS = {"queued": "PENDING", "running": "RUNNING", "success": "SUCCEEDED", "error": "FAILED"}
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
"""At most 18 digits, which fit into 64 bits."""
_TEXT_MAX = 8_192
"""Characters of a text in `extra`, which is cut as a whole if it is too large."""
_FRACTION = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_FRACTIONS = {"double", "float", "decimal"}
_INTEGERS = {"int", "long", "short", "byte", "unsignedInt", "unsignedShort", "unsignedLong", "integer"}
_NO_REASON = TaskError(None, "vCenter reports that the task failed and gives no reason.")

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
    started, ended = parse_time(info.get("startTime")), parse_time(info.get("completeTime"))
    return Task(
        status="BLOCKED" if blocking else status,
        service=service or None,
        operation=operation or None,
        description=labels.get(description_id),
        target=entity and Target(entity.type, entity.id, info.get("entityName") or None),
        parent=info.get("parentTaskKey"),
        user=info.get("reason"),
        cancelable=info.get("cancelable"),
        progress=_build_progress(info, status, blocking),
        error=(info.get("error") or _NO_REASON) if status == "FAILED" else None,
        result=(info.get("result") or NO_RESULT) if status == "SUCCEEDED" else NO_RESULT,
        extra=_build_extra(info, blocking),
        started_at=None if started is None else rfc3339(started),
        ended_at=None if ended is None else rfc3339(ended),
        duration_seconds=None if started is None or ended is None else round(ended - started, 3),
    )


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


def _parse_user(element: Element) -> str | None:
    """Return the user who started the task, or the name of the schedule or alarm; None for vCenter itself."""
    fields = ("userName", "name", "alarmName")
    return next((name for name in (text_of(child(element, field)) for field in fields) if name), None)


def _parse_fault(element: Element) -> TaskError:
    """Return a LocalizedMethodFault as an error of the fault's type."""
    fault = child(element, "fault")
    kind = None if fault is None else type_of(fault)
    details = [] if fault is None else children(fault, "faultMessage")
    messages = [Message(text_of(child(one, "key")), text) for one in details if (text := _parse_message(one))]
    if localized := text_of(child(element, "localizedMessage")):
        messages.insert(0, Message(None, localized))
    message = messages[0].text if messages else f"vCenter reports {kind or 'a failure'} and nothing more."
    return TaskError(kind, message, tuple(messages))


def _parse_result(element: Element) -> Result:
    """Return a reference or a scalar; of anything larger only its type."""
    value = _parse_value(element)
    return NO_RESULT if value is None else Result(encode_compact(value))


def _parse_value(element: Element) -> Any:
    kind = type_of(element) or ""
    if ref := ref_of(element):
        return {"type": ref.type, "id": ref.id}
    if len(element):
        return {"type": kind or None}
    text = text_of(element)
    if text is None or kind.startswith("ArrayOf"):
        return {"type": kind} if kind.startswith("ArrayOf") else None
    if kind == "boolean":
        return _parse_boolean(element)
    if kind in _INTEGERS:
        return _parse_integer(element)
    return float(text) if kind in _FRACTIONS and _FRACTION.fullmatch(text) else text


_PARSERS: dict[str, Callable[[Element], Any]] = {
    "activationId": _parse_text,
    "cancelable": _parse_boolean,
    "description": _parse_message,
    "entity": ref_of,
    "error": _parse_fault,
    "eventChainId": _parse_integer,
    "progress": _parse_integer,
    "reason": _parse_user,
    "result": _parse_result,
}
_KNOWN = frozenset({"key", *DYNAMIC, *STATIC})
