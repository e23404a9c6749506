"""From the properties of a vim task to how it stands. Pure: what can't be read is None, and only the state must be.

Sources: `TaskInfo` of the vSphere Web Services API, and what vcsim makes of it (values left out, times with
nanoseconds).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from ...domain.durations import parse_time, rfc3339
from ...domain.task import (
    NO_RESULT,
    Message,
    Progress,
    Result,
    Target,
    Task,
    TaskError,
    TaskIdentity,
    encode_compact,
)
from .soap import Element, Ref, child, children, kind_of, name, ref_of, value

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
"""What JSON can carry."""
_LONGEST = 8_192
"""Characters of what goes into `extra`, of which an event holds a limited amount."""
_FRACTION = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_FRACTIONS = {"double", "float", "decimal"}
_INTEGERS = {"int", "long", "short", "byte", "unsignedInt", "unsignedShort", "unsignedLong", "integer"}

Info = dict[str, Any]
"""Fields of TaskInfo by name, read; those that vCenter doesn't say are missing or None."""


class Question(NamedTuple):
    """What a VM waits for an answer to."""

    id: str | None
    text: str | None


def read_field(field: str, element: Element | None) -> Any:
    """One field of TaskInfo."""
    if element is None:
        return None
    return _READERS.get(field, value)(element)


def read_info(element: Element) -> Info:
    """A whole TaskInfo, as the history has it."""
    return {name(one): read_field(name(one), one) for one in element if name(one) in _KNOWN}


def read_question(element: Element | None) -> Question | None:
    if element is None or not len(element):
        return None
    return Question(_short(child(element, "id")), _short(child(element, "text")))


def parse_identity(info: Info) -> TaskIdentity:
    return TaskIdentity(parse_time(info.get("queueTime")), info.get("descriptionId"))


def build_task(info: Info, question: Question | None, labels: Mapping[str, str]) -> Task | None:
    """How the task stands, None where there is no state. `labels`: what each description id means."""
    state = info.get("state")
    if not state:
        return None
    status = _STATUS.get(state, state.upper())
    asked = question if status == "RUNNING" else None
    described = info.get("descriptionId")
    service, _, operation = (described or "").rpartition(".")
    started, ended = parse_time(info.get("startTime")), parse_time(info.get("completeTime"))
    return Task(
        status="BLOCKED" if asked else status,
        service=service or None,
        operation=operation or None,
        description=labels.get(described or ""),
        target=_target(info),
        parent=info.get("parentTaskKey"),
        user=info.get("reason"),
        cancelable=info.get("cancelable"),
        progress=_progress(info, status, asked),
        error=_error(info) if status == "FAILED" else None,
        result=(info.get("result") or NO_RESULT) if status == "SUCCEEDED" else NO_RESULT,
        extra=_extra(info, asked),
        started_at=None if started is None else rfc3339(started),
        ended_at=None if ended is None else rfc3339(ended),
        duration_seconds=None if started is None or ended is None else round(ended - started, 3),
    )


def _target(info: Info) -> Target | None:
    entity: Ref | None = info.get("entity")
    if entity is None:
        return None
    named = info.get("entityName")
    return Target(entity.type, entity.id, named or msgspec.UNSET)


def _progress(info: Info, status: str, question: Question | None) -> Progress | None:
    """vCenter counts to 100 while the task is running; what it waits for goes before its phase."""
    said = question.text if question else info.get("description")
    done = info.get("progress") if status == "RUNNING" else None
    if done is None:
        return Progress(message=said) if said and status in ("PENDING", "RUNNING") else None
    return Progress(done, 100, float(min(100, max(0, done))), said)


def _error(info: Info) -> TaskError:
    return info.get("error") or TaskError(None, "vCenter reports that the task failed and gives no reason.")


def _extra(info: Info, question: Question | None) -> dict[str, Any] | None:
    extra = {field: info[field] for field in ("queueTime", "eventChainId", "activationId") if info.get(field)}
    if question:
        extra["question"] = {"id": question.id, "text": question.text}
    return extra or None


# One field


def _boolean(element: Element) -> bool | None:
    return {"true": True, "1": True, "false": False, "0": False}.get(value(element) or "")


def _short(element: Element | None) -> str | None:
    said = value(element)
    return said and said[:_LONGEST]


def _integer(element: Element) -> int | None:
    said = value(element)
    return int(said) if said is not None and _INTEGER.fullmatch(said) else None


def _phase(element: Element) -> str | None:
    """A LocalizableMessage, in the language that was asked for at the login."""
    return value(child(element, "message"))


def _user(element: Element) -> str | None:
    """Who caused the task: a user, or the schedule or alarm by its name; vCenter itself is nobody."""
    named = ("userName", "name", "alarmName")
    return next((said for said in (value(child(element, field)) for field in named) if said), None)


def _fault(element: Element) -> TaskError:
    """A LocalizedMethodFault; the fault's type is the error's."""
    fault = child(element, "fault")
    kind = None if fault is None else kind_of(fault)
    said = value(child(element, "localizedMessage"))
    told = [] if fault is None else children(fault, "faultMessage")
    messages = [Message(value(child(one, "key")), text) for one in told if (text := _phase(one))]
    if said:
        messages.insert(0, Message(None, said))
    message = messages[0].text if messages else f"vCenter reports {kind or 'a failure'} and nothing more."
    return TaskError(kind, message, tuple(messages))


def _result(element: Element) -> Result:
    """A reference or a scalar; of anything larger only its type."""
    return NO_RESULT if (made := _plain(element)) is None else Result(encode_compact(made))


def _plain(element: Element) -> Any:
    kind = kind_of(element) or ""
    if to := ref_of(element):
        return {"type": to.type, "id": to.id}
    if len(element):
        return {"type": kind or None}
    said = value(element)
    if said is None or kind.startswith("ArrayOf"):
        return {"type": kind} if kind.startswith("ArrayOf") else None
    if kind == "boolean":
        return _boolean(element)
    if kind in _INTEGERS:
        return _integer(element)
    return float(said) if kind in _FRACTIONS and _FRACTION.fullmatch(said) else said


_READERS: dict[str, Callable[[Element], Any]] = {
    "activationId": _short,
    "cancelable": _boolean,
    "description": _phase,
    "entity": ref_of,
    "error": _fault,
    "eventChainId": _integer,
    "progress": _integer,
    "reason": _user,
    "result": _result,
}
_KNOWN = frozenset({"key", *DYNAMIC, *STATIC})
