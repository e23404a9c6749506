"""A vCenter task as the bridge sees it. Pure: decode JSON of either rendering into a frozen `Task`.

No other module sees vCenter's JSON. Any field may be missing or of an unexpected type: what can't be read is None,
and only a body without a status isn't a task.

Sources: the `Info` structure of `com.vmware.cis.tasks` as real vCenters answer it (vLCM sends `"parent": ""`,
the appliance leaves out parent, target and user; `/rest` renders maps as key/value lists and adds `@class`).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, ValuesView
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import msgspec

from .durations import parse_time, rfc3339
from .error_text import REASON_KEYS, FoundText, find_texts, find_type
from .json_size import cut_large, encode_compact

Rendering = Literal["api", "rest"]
Api = Literal["cis", "vim"]
"""The APIs of a vCenter that know tasks: the tasks service, and that of classic tasks at `/sdk`."""

CANCELED = frozenset({"CANCELED", "RequestCanceled"})
"""Error types of canceled tasks: of the CIS tasks service, of classic tasks."""

ENDED = frozenset({"SUCCEEDED", "FAILED"})
"""Statuses of ended tasks. BLOCKED is not an end, nor is any status of a later vCenter."""

_INFO = frozenset(
    [
        "description",
        "service",
        "operation",
        "status",
        "cancelable",
        "parent",
        "target",
        "error",
        "start_time",
        "end_time",
        "user",
        "progress",
        "result",
        "@class",
    ]
)


_VIM_TASK = re.compile(r"task-[0-9]+", re.ASCII)
_SAME_TIME_S = 1.0
"""vCenter's task history may keep times with fewer digits than the task itself."""


def is_vim_task(task: str) -> bool:
    """Return whether the id is a classic task's (a managed object); all others belong to the CIS tasks service."""
    return _VIM_TASK.fullmatch(task) is not None


class TaskIdentity(NamedTuple):
    """Tells a task from another one that gets the same id later: when it was queued (Unix s), and what it does."""

    queued_at: float | None
    description_id: str | None


def may_be_same_task(one: TaskIdentity, other: TaskIdentity) -> bool:
    """Return whether both can be the same task: nothing known of both differs."""
    if one.description_id and other.description_id and one.description_id != other.description_id:
        return False
    if one.queued_at is None or other.queued_at is None:
        return True
    return abs(one.queued_at - other.queued_at) <= _SAME_TIME_S


class NotATask(ValueError):  # noqa: N818 - named after what the body is
    """The body has no status, so it didn't come from the tasks service."""


class Target(msgspec.Struct, frozen=True, gc=False):
    """The object that the task works on: `ClusterComputeResource` `domain-c9`.

    `name` and `path` (`/DC/host/cluster`) are None while they aren't known.
    """

    type: str | None = None
    id: str | None = None
    name: str | None = None
    path: str | None = None


def add_names(target: Target, known: Target | None) -> Target:
    """Return the target with the name and path that it lacks, if `known` is the same object and has them."""
    if known is None or (target.type, target.id) != (known.type, known.id):
        return target
    name, path = target.name or known.name, target.path or known.path
    if (name, path) == (target.name, target.path):
        return target
    return Target(target.type, target.id, name, path)


class Initiator(msgspec.Struct, frozen=True, gc=False):
    """What started the task: `type` is `user`, `schedule`, `alarm`, `system` or vCenter's name of another reason."""

    type: str
    name: str | None = None


class Progress(msgspec.Struct, frozen=True, gc=False):
    """`completed` and `total` as vCenter sent them; `percent` within 0 to 100, None without a total to count up to."""

    completed: int | float | None = None
    total: int | float | None = None
    percent: float | None = None
    message: str | None = None


class Message(msgspec.Struct, frozen=True, gc=False):
    """One of vCenter's localizable messages, `text` in English."""

    id: str | None
    text: str
    args: tuple[str, ...] = ()


class TaskError(msgspec.Struct, frozen=True, gc=False):
    """Reason of a failure: `type` as in `com.vmware.vapi.std.errors` (`NOT_FOUND`), `messages` with the cause last."""

    type: str | None
    message: str
    messages: tuple[Message, ...] = ()
    transient: bool | None = None
    data: Any = None


class Result(msgspec.Struct, frozen=True, gc=False):
    """A task's result as compact UTF-8 JSON; `available` is False if there is one that couldn't be had.

    `reason`: why vCenter's answer doesn't give it, for the log.
    """

    json: bytes = b""
    available: bool = True
    reason: str = ""


NO_RESULT = Result()
UNAVAILABLE = Result(available=False)


class Task(msgspec.Struct, frozen=True, gc=False):
    """The state of a task by one poll. Times are RFC 3339 in UTC; `result` is None if it wasn't requested."""

    status: str
    service: str | None = None
    operation: str | None = None
    description: str | None = None
    target: Target | None = None
    parent: str | None = None
    root: str | None = None
    user: str | None = None
    initiator: Initiator | None = None
    cancelable: bool | None = None
    cancel_requested: bool | None = None
    progress: Progress | None = None
    error: TaskError | None = None
    result: Result | None = None
    extra: Any = None
    queued_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    duration_seconds: float | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED


def parse_task(body: object, rendering: Rendering, *, with_result: bool) -> Task:
    """Parse a decoded `Info` (for `/rest`, what is inside `value`) into a Task. Raises NotATask.

    `with_result`: the poll requested the result. Only then does a missing result mean that there is none. `result` may
    be a Result already.
    """
    if not isinstance(body, dict) or not isinstance(body.get("status"), str) or not body["status"]:
        raise NotATask("the answer has no task status")
    info: dict[str, Any] = convert_rest_rendering(body) if rendering == "rest" else body
    started, ended = parse_time(info.get("start_time")), parse_time(info.get("end_time"))
    return Task(
        status=sys.intern(info["status"]),
        service=_text(info.get("service")),
        operation=_text(info.get("operation")),
        description=_message_text(info.get("description")),
        target=_target(info.get("target")),
        parent=_text(info.get("parent")),
        user=_text(info.get("user")),
        initiator=Initiator("user", user) if (user := _text(info.get("user"))) else None,
        cancelable=info["cancelable"] if isinstance(info.get("cancelable"), bool) else None,
        progress=_progress(info.get("progress")),
        error=_parse_failure(body.get("error"), info, with_result=with_result) if info["status"] == "FAILED" else None,
        result=_result(info) if with_result else None,
        extra=_extra(info),
        started_at=None if started is None else rfc3339(started),
        ended_at=None if ended is None else rfc3339(ended),
        duration_seconds=None if started is None or ended is None else round(ended - started, 3),
    )


def convert_rest_rendering(value: Any) -> Any:
    """Convert a value of the `/rest` rendering to the `/api` rendering.

    A non-empty list whose elements all have exactly `key` and `value`, with distinct string keys, is an object;
    `@class` is dropped.
    """
    if isinstance(value, dict):
        return {key: convert_rest_rendering(item) for key, item in value.items() if key != "@class"}
    if not isinstance(value, list):
        return value
    if value and all(isinstance(item, dict) and item.keys() == {"key", "value"} for item in value):
        keys = [item["key"] for item in value]
        if all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys):
            return {item["key"]: convert_rest_rendering(item["value"]) for item in value}
    return [convert_rest_rendering(item) for item in value]


def parse_error(body: object) -> TaskError | None:
    """Parse a vCenter error of any form; None if the body isn't one.

    The forms: `{"error_type", "messages", "data"}` (`/api`, and in a task), the same with `@class` (a task in
    `/rest`), `{"type": "com.vmware.vapi.std.errors.not_found", "value": {…}}` (`/rest`), and the old router's
    `{"name", "localizableMessages"}`.
    """
    if not isinstance(body, dict):
        return None
    inner = body["value"] if isinstance(body.get("value"), dict) and "type" in body else body
    messages = tuple(_messages(inner.get("messages", inner.get("localizableMessages"))))
    kind = _error_type(inner) or _error_type({"@class": body.get("type")}) or _router_type(body)
    if kind is None and not messages:
        return None
    is_rest = inner is not body or "@class" in inner
    data = convert_rest_rendering(inner.get("data")) if is_rest else inner.get("data")
    transient = data.get("is_transient") if isinstance(data, dict) else None
    return TaskError(
        type=kind,
        message=messages[0].text if messages else f"vCenter said {kind} and nothing more.",
        messages=messages,
        transient=transient if isinstance(transient, bool) else None,
        data=cut_large(data),
    )


def _error_type(error: dict[str, Any]) -> str | None:
    """Return `error_type`, else the last part of the class name: `…std.errors.not_found` gives `NOT_FOUND`."""
    if kind := _text(error.get("error_type")):
        return kind
    name = _text(error.get("@class"))
    return name.rsplit(".", 1)[-1].upper() if name else None


def _router_type(error: dict[str, Any]) -> str | None:
    """Return the name of the old router's error, whose other keys tell it from anything else that has a name."""
    return _text(error.get("name")) if {"localizableMessages", "majorErrorCode"} & error.keys() else None


def _parse_failure(error: object, info: dict[str, Any], *, with_result: bool) -> TaskError:
    """Return the error of a FAILED task, never empty: vCenter's own, else built from its result, else a sentence."""
    own = _parse_task_error(error, info.get("error")) if _holds_something(error) else None
    if own is not None and own.messages:
        return own
    messages = _find_reasons(info)
    if messages:
        own = own or TaskError(type=None, message="")
        return msgspec.structs.replace(own, message=messages[0].text, messages=messages)
    return own or TaskError(type=None, message=_describe_silence(info.get("result"), with_result=with_result))


def _holds_something(value: object) -> bool:
    return value is not None and value not in ("", [], {})


_NAMED_KEYS = {"error_type", "messages", "data", "challenge", "@class"}
"""Keys that the API description names of an error."""


def _parse_task_error(error: object, raw: object) -> TaskError:
    """Parse the error of a task. `raw`: the same in `/api` rendering, kept in `data` if its shape is unforeseen."""
    standard = parse_error(error)
    if standard is not None and isinstance(error, dict) and error.keys() <= _NAMED_KEYS:
        return standard
    kind = find_type(error)
    messages = standard.messages if standard else ()
    messages = messages or tuple(map(_to_message, find_texts(error)))
    named = f" as {kind}" if kind else ""
    silence = f"vCenter reports the failure{named}, without a message. What it sent instead is in `data`."
    return TaskError(
        type=(standard.type if standard and standard.messages else None) or kind,
        message=messages[0].text if messages else silence,
        messages=messages,
        transient=standard.transient if standard else None,
        data=cut_large(raw) if standard is None or standard.data is None else standard.data,
    )


def _find_reasons(info: dict[str, Any]) -> tuple[Message, ...]:
    """Return the messages outside of `error` that say why the task failed."""
    result = info.get("result")
    return (
        tuple(_failure_messages(result))
        or tuple(_notifications(result, "errors"))
        or tuple(_failure_messages({key: value for key, value in info.items() if key != "error"}))
        or tuple(_notifications(result, "warnings"))
        or tuple(map(_to_message, find_texts(result, REASON_KEYS) if isinstance(result, dict | list) else ()))
    )


def _to_message(found: FoundText) -> Message:
    return Message(found.id, found.text, _to_args(list(found.args)))


def _describe_silence(result: object, *, with_result: bool) -> str:
    """Say what vCenter gave instead of a reason, without claiming anything about a result that wasn't read."""
    if isinstance(result, Result) or not with_result:
        return "vCenter reports that the task failed, without an error. Its result, which may say why, wasn't searched."
    if _holds_something(result):
        return "vCenter reports that the task failed, without an error. Its result doesn't say why in words."
    return "vCenter reports that the task failed and gives no reason, neither as an error nor in the result."


def _failure_messages(value: object) -> Iterator[Message]:
    """Yield the messages in which the result (or the body) of a failed task gives the reason."""
    if isinstance(value, str | list):
        yield from _messages(value)
    if not isinstance(value, dict):
        return
    notifications = value.get("notifications")
    for holder in (notifications, value):
        if isinstance(holder, dict):
            yield from _messages(holder.get("errors"))
    for key in ("error", "messages", "message"):
        nested = value.get(key)
        yield from parsed.messages if (parsed := parse_error(nested)) else _messages(nested)


def _notifications(value: object, severity: str) -> Iterator[Message]:
    """Yield the notifications nested in a result, as vLCM has them by status and by host; outermost first."""
    level = [value]
    while level:
        for item in level:
            notifications = item.get("notifications") if isinstance(item, dict) else None
            if isinstance(notifications, dict):
                yield from _messages(notifications.get(severity))
        containers = [item.values() if isinstance(item, dict) else item for item in level]
        level = [child for items in containers if isinstance(items, list | ValuesView) for child in items]


def _messages(value: object) -> Iterator[Message]:
    """Yield the localizable messages of a message, a notification around one, a string, or a list of those."""
    for item in value if isinstance(value, list) else [value]:
        holder = item
        if isinstance(item, dict) and isinstance(item.get("message"), dict | str):
            holder = item["message"]
        if text := _message_text(holder):
            fields = holder if isinstance(holder, dict) else {}
            yield Message(
                id=_text(fields.get("id")),
                text=text,
                args=_to_args(fields.get("args")),
            )


def _to_args(args: object) -> tuple[str, ...]:
    if not isinstance(args, list):
        return ()
    return tuple(arg if isinstance(arg, str) else encode_compact(arg).decode() for arg in args)


def _message_text(value: object) -> str | None:
    """Return the English text of a localizable message; in `default_message` the arguments are filled in."""
    if not isinstance(value, dict):
        return _text(value)
    for key in ("default_message", "defaultMessage", "localized", "id"):
        if text := _text(value.get(key)):
            return text
    return None


def _text(value: object) -> str | None:
    """Return a non-empty string or None: vLCM sends `""` for "none". Interned, since most tasks share most values."""
    return sys.intern(value) if isinstance(value, str) and value else None


def _target(value: object) -> Target | None:
    if not isinstance(value, dict):
        return None
    target = Target(type=_text(value.get("type")), id=_text(value.get("id")))
    return target if target.type or target.id else None


def _number(value: object) -> int | float | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # NaN isn't JSON: it would come back from the stream as something else, a change at each poll.
    return value if isinstance(value, float) and math.isfinite(value) else None


def _progress(value: object) -> Progress | None:
    if not isinstance(value, dict):
        return None
    completed, total = _number(value.get("completed")), _number(value.get("total"))
    return Progress(completed, total, calculate_percent(completed, total), _message_text(value.get("message")))


def calculate_percent(completed: int | float | None, total: int | float | None) -> float | None:
    """Return the percentage within 0 to 100; None if vCenter counts up to nothing, or below it."""
    if completed is None or total is None or completed < 0 or total <= 0:
        return None
    try:
        share = completed / total
    except OverflowError:  # integers of any length are JSON
        share = float(min(Fraction(1), Fraction(completed) / Fraction(total)))
    return round(min(100.0, share * 100), 1)


def _result(info: dict[str, Any]) -> Result:
    value = info.get("result")
    if isinstance(value, Result):
        return value
    return NO_RESULT if value is None else Result(encode_compact(value))


def _extra(info: dict[str, Any]) -> Any:
    """Return what the body carries beyond Info: `notifications`, `subtasks`, …"""
    extra = {key: value for key, value in info.items() if key not in _INFO}
    return cut_large(extra) if extra else None
