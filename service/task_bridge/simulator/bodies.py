"""Bodies of tasks as `/api` serves them. Pure, and fast: one list builds 500 of them.

Flavours differ as real providers do. vLCM writes `"parent": ""` for no parent, localizes its messages and, if asked for
all that it knows (`return_all`), adds fields that Info doesn't have. The appliance leaves out parent, target and user.
`minimal` contains only what the script says. `vim` tasks are classic ones: the CIS tasks service doesn't know them;
`/sdk` shows them.
"""

from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from msgspec import Struct

from .options import Timestamps
from .script import Fields, Flavour, Frame, message
from .task_attributes import TaskAttributes

SHOWN_BY_RETURN_ALL = ("notifications", "last_update_time", "subtasks", "subtask_summaries", "subtask_order")
"""Fields that a script can set too. `minimal` tasks always show what theirs sets."""


class BodyView(Struct, frozen=True):
    """Options of a get or a list that change the body."""

    exclude_result: bool = False
    return_all: bool = False


@lru_cache(maxsize=1024)
def build_fixed_fields(attributes: TaskAttributes) -> Fields:
    """Return the fields that no step needs to repeat. Tasks with the same attributes share them."""
    if attributes.flavour == "minimal":
        return {}
    text = attributes.description
    # The appliance's message ids are words with spaces, and so is this one.
    description = message(text, id="simulator.task.description" if attributes.flavour == "vlcm" else text)
    fields: Fields = {
        "description": _localize(description) if attributes.flavour == "vlcm" else description,
        "service": attributes.service,
        "operation": attributes.operation,
        "cancelable": attributes.cancelable,
    }
    if attributes.flavour == "appliance":
        return fields
    fields["parent"] = attributes.parent
    if attributes.target:
        fields["target"] = {"type": attributes.target.type, "id": attributes.target.id}
    return fields | ({"user": attributes.user} if attributes.user else {})


def build_body(
    flavour: Flavour, fixed: Fields, created_at: float, frame: Frame, view: BodyView, timestamps: Timestamps
) -> Fields:
    """Return the Info of a task. `fixed` is the result of `build_fixed_fields` for it."""
    if flavour == "minimal":
        body = dict(frame.fields)
    else:
        body = {**fixed, **_build_times(created_at, frame, timestamps), **frame.fields}
        _add_flavour_fields(body, flavour, created_at, frame, view, timestamps)
    if view.exclude_result:
        body.pop("result", None)
    for name in frame.removed_fields:
        body.pop(name, None)
    return body


def format_time(at: float, timestamps: Timestamps) -> str:
    """Return the time in RFC 3339, cut (not rounded) to the digits that `timestamps` sets."""
    shift_s = timestamps.skew_s + 60 * (timestamps.offset_minutes or 0)
    second, nanoseconds = divmod(round((at + shift_s) * 1_000_000) * 1_000, 1_000_000_000)
    fraction = f".{nanoseconds:09d}"[: timestamps.digits + 1] if timestamps.digits else ""
    return f"{_format_second(second)}{fraction}{_format_zone(timestamps.offset_minutes)}"


def _add_flavour_fields(
    body: Fields, flavour: Flavour, created_at: float, frame: Frame, view: BodyView, timestamps: Timestamps
) -> None:
    progress = body.get("progress")
    if flavour == "vlcm" and isinstance(progress, dict):
        body["progress"] = {**progress, "message": _localize(progress.get("message"))}
    if not view.return_all:
        for name in SHOWN_BY_RETURN_ALL:
            body.pop(name, None)
    elif flavour == "vlcm":
        body.setdefault("notifications", {"info": [], "warnings": [], "errors": []})
        body.setdefault("subtasks", {})
        if not timestamps.absent:
            body.setdefault("last_update_time", format_time(created_at + frame.since_s, timestamps))
    else:
        body.setdefault("subtask_order", [])


def _build_times(created_at: float, frame: Frame, timestamps: Timestamps) -> Fields:
    if timestamps.absent:
        return {}
    times = {}
    if frame.started_s is not None:
        times["start_time"] = format_time(created_at + frame.started_s, timestamps)
    if frame.ended_s is not None:
        times["end_time"] = format_time(created_at + frame.ended_s, timestamps)
    return times


def _localize(text: Any) -> Any:
    if isinstance(text, dict) and "default_message" in text:
        return {**text, "localized": text.get("localized", text["default_message"])}
    return text


@lru_cache(maxsize=8192)
def _format_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=64)
def _format_zone(offset_minutes: int | None) -> str:
    if offset_minutes is None:
        return "Z"
    return datetime.now(timezone(timedelta(minutes=offset_minutes))).isoformat()[-6:]
