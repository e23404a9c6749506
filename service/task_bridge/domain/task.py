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

Rendering = Literal["api", "rest"]

CANCELED = frozenset({"CANCELED", "RequestCanceled"})
"""Error types of canceled tasks: of the CIS tasks service, of classic tasks."""

ENDED = frozenset({"SUCCEEDED", "FAILED"})
"""Statuses of ended tasks. BLOCKED is not an end, nor is any status of a later vCenter."""

EXTRA_MAX_BYTES = 64 * 1024
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
    """`completed` and `total` as vCenter sent them; `percent` within 0 to 100, None without a total."""

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
        error=_parse_failure(body.get("error"), info) if info["status"] == "FAILED" else None,
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


def encode_compact(value: Any) -> bytes:
    """Encode `value` as compact UTF-8 JSON; lone surrogates, which UTF-8 can't carry, become `?`."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(replace_surrogates(value))


def replace_surrogates(value: Any) -> Any:
    """Replace lone surrogates in decoded JSON by `?`: JSON can escape them, UTF-8 can't carry them."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    return [replace_surrogates(item) for item in value] if isinstance(value, list | tuple) else value


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
    kind = _error_type(inner) or _error_type({"@class": body.get("type")}) or _text(body.get("name"))
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
        data=data,
    )


def _error_type(error: dict[str, Any]) -> str | None:
    """Return `error_type`, else the last part of the class name: `…std.errors.not_found` gives `NOT_FOUND`."""
    if kind := _text(error.get("error_type")):
        return kind
    name = _text(error.get("@class"))
    return name.rsplit(".", 1)[-1].upper() if name else None


def _parse_failure(error: object, info: dict[str, Any]) -> TaskError:
    """Return the error of a FAILED task, never empty: vCenter's own, else built from its result, else a sentence."""
    if parsed := parse_error(error):
        return parsed
    result = info.get("result")
    messages = (
        tuple(_failure_messages(result))
        or tuple(_notifications(result, "errors"))
        or tuple(_failure_messages(info))
        or tuple(_notifications(result, "warnings"))
    )
    if messages:
        return TaskError(type=None, message=messages[0].text, messages=messages)
    return TaskError(
        type=None,
        message="vCenter reports that the task failed and gives no reason, neither as an error nor in the result.",
    )


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
            args = fields.get("args")
            yield Message(
                id=_text(fields.get("id")),
                text=text,
                args=tuple(arg if isinstance(arg, str) else encode_compact(arg).decode() for arg in args)
                if isinstance(args, list)
                else (),
            )


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
    percent = _percent(completed, total) if completed is not None and total else None
    return Progress(completed, total, percent, _message_text(value.get("message")))


def _percent(completed: int | float, total: int | float) -> float:
    try:
        share = completed / total
    except OverflowError:  # integers of any length are JSON
        share = float(min(Fraction(1), max(Fraction(0), Fraction(completed) / Fraction(total))))
    return round(min(100.0, max(0.0, share * 100)), 1)


def _result(info: dict[str, Any]) -> Result:
    value = info.get("result")
    if isinstance(value, Result):
        return value
    return NO_RESULT if value is None else Result(encode_compact(value))


def _extra(info: dict[str, Any]) -> Any:
    """Return what the body carries beyond Info (`notifications`, `subtasks`, …); None above EXTRA_MAX_BYTES."""
    extra = {key: value for key, value in info.items() if key not in _INFO}
    return extra if extra and len(encode_compact(extra)) <= EXTRA_MAX_BYTES else None
