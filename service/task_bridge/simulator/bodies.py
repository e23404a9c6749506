"""From a task's frame to the body that `/api` serves. Pure, and quick: a list makes 500 of them.

Flavours differ as real providers do: vLCM says `"parent": ""` for no parent, localizes its messages and adds
fields that Info doesn't have; the appliance leaves parent, target and user out; `minimal` is what the script says
and no more. `vim` tasks are classic ones: the CIS tasks service doesn't know them, `/sdk` shows them.
"""

from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from msgspec import Struct

from .options import Timestamps
from .script import Fields, Flavour, Frame, message

SERVICES: dict[Flavour, str] = {
    "vlcm": "com.vmware.esx.settings.clusters.software",
    "appliance": "com.vmware.appliance.vcenter.settings.v1.config",
    "minimal": "com.vmware.simulator",
    "vim": "VirtualMachine",
}
OPERATIONS: dict[Flavour, str] = {
    "vlcm": "apply$task",
    "appliance": "scan_desired_state",
    "minimal": "run",
    "vim": "powerOn",
}
DESCRIPTIONS: dict[Flavour, str] = {
    "vlcm": "Simulated change of a cluster's image",
    "appliance": "Simulated scan of the appliance",
    "minimal": "Simulated task",
    "vim": "Power On virtual machine",
}


class SimulatedTarget(Struct, frozen=True):
    type: str
    id: str


CLUSTER = SimulatedTarget("ClusterComputeResource", "domain-c9")


class About(Struct, frozen=True):
    """What a task is, and stays: filters of list go by this, whatever its body shows. `name` is its target's."""

    flavour: Flavour
    service: str
    operation: str
    description: str
    target: SimulatedTarget | None = None
    user: str | None = None
    parent: str = ""
    cancelable: bool = True
    name: str | None = None


class BodyView(Struct, frozen=True):
    """How a body was asked for."""

    exclude_result: bool = False
    return_all: bool = False


@lru_cache(maxsize=1024)
def unchanging(about: About) -> Fields:
    """The part of the body that no step needs to repeat; tasks that are alike share it."""
    if about.flavour == "minimal":
        return {}
    fields: Fields = {
        "description": _described(about.description, about.flavour == "vlcm"),
        "service": about.service,
        "operation": about.operation,
        "cancelable": about.cancelable,
    }
    if about.flavour == "appliance":
        return fields
    fields |= {"parent": about.parent, "notifications": {"info": [], "warnings": [], "errors": []}}
    if about.target:
        fields["target"] = {"type": about.target.type, "id": about.target.id}
    return fields | ({"user": about.user} if about.user else {})


def body(
    flavour: Flavour, fixed: Fields, created_at: float, frame: Frame, view: BodyView, timestamps: Timestamps
) -> Fields:
    """The Info of a task. `fixed` is what `unchanging` made for it."""
    if flavour == "minimal":
        made = dict(frame.fields)
    else:
        made = {**fixed, **_times(flavour, created_at, frame, timestamps), **frame.fields}
        _complete(made, flavour, view)
    if view.exclude_result:
        made.pop("result", None)
    for name in frame.removed:
        made.pop(name, None)
    return made


def written(at: float, timestamps: Timestamps) -> str:
    """RFC 3339, cut (not rounded) to the digits asked for."""
    shift_s = timestamps.skew_s + 60 * (timestamps.offset_minutes or 0)
    second, nanoseconds = divmod(round((at + shift_s) * 1_000_000) * 1_000, 1_000_000_000)
    fraction = f".{nanoseconds:09d}"[: timestamps.digits + 1] if timestamps.digits else ""
    return f"{_second(second)}{fraction}{_zone(timestamps.offset_minutes)}"


def _complete(made: Fields, flavour: Flavour, view: BodyView) -> None:
    shown = made.get("progress")
    if flavour == "vlcm" and isinstance(shown, dict):
        made["progress"] = {**shown, "message": _localized(shown.get("message"))}
    if view.return_all:
        made.setdefault("subtasks" if flavour == "vlcm" else "subtask_order", {} if flavour == "vlcm" else [])


def _times(flavour: Flavour, created_at: float, frame: Frame, timestamps: Timestamps) -> Fields:
    if timestamps.absent:
        return {}
    times = {}
    if frame.started_s is not None:
        times["start_time"] = written(created_at + frame.started_s, timestamps)
    if frame.ended_s is not None:
        times["end_time"] = written(created_at + frame.ended_s, timestamps)
    if flavour == "vlcm":
        times["last_update_time"] = written(created_at + frame.since_s, timestamps)
    return times


def _localized(text: Any) -> Any:
    if isinstance(text, dict) and "default_message" in text:
        return {**text, "localized": text.get("localized", text["default_message"])}
    return text


@lru_cache(maxsize=1024)
def _described(text: str, localized: bool) -> Fields:
    # The appliance's ids are words with spaces, and so is this one.
    described = message(text, id="simulator.task.description" if localized else text)
    return _localized(described) if localized else described


@lru_cache(maxsize=8192)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=64)
def _zone(offset_minutes: int | None) -> str:
    if offset_minutes is None:
        return "Z"
    return datetime.now(timezone(timedelta(minutes=offset_minutes))).isoformat()[-6:]
