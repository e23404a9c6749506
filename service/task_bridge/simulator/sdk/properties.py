"""How the managed objects stand: what each property path of theirs is. Pure."""

from typing import Any

from ..bodies import SimulatedTarget, written
from ..options import Timestamps
from ..script import Fields, Frame
from ..tasks_service import SimulatedTask
from .values import Value, anything, boolean, element, fault, integer, moref, structure, text

STATES = {
    "PENDING": "queued",
    "RUNNING": "running",
    "BLOCKED": "running",
    "SUCCEEDED": "success",
    "FAILED": "error",
}
FAULTS = {"CANCELED": "RequestCanceled", "UNSUPPORTED": "NotSupported", "UNAUTHORIZED": "NoPermission"}
METHODS = {
    "clone": "CloneVM_Task",
    "createSnapshot": "CreateSnapshot_Task",
    "destroy": "Destroy_Task",
    "powerOff": "PowerOffVM_Task",
    "powerOn": "PowerOnVM_Task",
    "relocate": "RelocateVM_Task",
}
QUESTION = "msg.device.locked:The virtual CD-ROM is locked by the guest. Disconnect anyway and override the lock?"
_PLAIN = "SystemError"


def task_ref(task_id: str) -> SimulatedTarget:
    return SimulatedTarget("Task", task_id)


def task_info(task: SimulatedTask, now: float, timestamps: Timestamps) -> dict[str, Value]:
    """The fields of TaskInfo that the task has now."""
    about, frame = task.about, task.at(now)
    fields = frame.fields
    parts: dict[str, Value | None] = {
        "key": text(task.id),
        "task": moref(task_ref(task.id)),
        "description": _description(fields),
        "name": text(METHODS[about.operation], "MethodName") if about.operation in METHODS else None,
        "descriptionId": text(f"{about.service}.{about.operation}"),
        "entity": moref(about.target) if about.target else None,
        "entityName": text(about.name) if about.name else None,
        "state": text(STATES.get(frame.status, frame.status.lower()), "TaskInfoState"),
        "cancelled": boolean(task.canceling),
        "cancelable": boolean(bool(fields.get("cancelable", about.cancelable))),
        "error": _error(fields, frame),
        "result": anything(fields.get("result")) if frame.status == "SUCCEEDED" else None,
        "progress": _percent(fields.get("progress"), frame),
        "reason": structure("TaskReasonUser", ("userName", text(about.user))) if about.user else _system(),
        "queueTime": at_time(task.created_at, timestamps),
        "startTime": _after(task, frame.started_s, timestamps),
        "completeTime": _after(task, frame.ended_s, timestamps),
        "eventChainId": integer(4200),
        "parentTaskKey": text(about.parent) if about.parent else None,
        "rootTaskKey": text(about.parent) if about.parent else None,
    }
    return {name: value for name, value in parts.items() if value is not None and name not in frame.removed}


def whole_info(parts: dict[str, Value]) -> Value:
    """TaskInfo as one value; its fields of any type name their own."""
    inner = (element(name, value, typed=name in ("result", "reason")) for name, value in parts.items())
    return Value("TaskInfo", "".join(inner))


def question(task: SimulatedTask, now: float) -> Value | None:
    """The question that the task's VM has pending while the task is BLOCKED."""
    frame = task.at(now)
    if frame.status != "BLOCKED":
        return None
    choice = structure(
        "ChoiceOption",
        *(("choiceInfo", described(key, label)) for key, label in (("0", "Yes"), ("1", "No"))),
        ("defaultIndex", integer(1)),
    )
    asked = str(frame.fields.get("question", QUESTION))
    parts = ("id", text(f"q-{task.id}")), ("text", text(asked)), ("choice", choice)
    return structure("VirtualMachineQuestionInfo", *parts)


def described(key: str, label: str) -> Value:
    """An ElementDescription."""
    return structure("ElementDescription", ("label", text(label)), ("summary", text(label)), ("key", text(key)))


def _description(fields: Fields) -> Value | None:
    shown = fields.get("progress")
    phase = shown.get("message") if isinstance(shown, dict) else None
    if not isinstance(phase, dict):
        return None
    parts = ("key", text(str(phase.get("id", "")))), ("message", text(str(phase.get("default_message", ""))))
    return structure("LocalizableMessage", *parts)


def _percent(shown: Any, frame: Frame) -> Value | None:
    """vCenter shows progress while a task is running only."""
    if STATES.get(frame.status) != "running" or not isinstance(shown, dict) or not shown.get("total"):
        return None
    return integer(int(100 * shown["completed"] / shown["total"]))


def _error(fields: Fields, frame: Frame) -> Value | None:
    """`{"fault": "InvalidState", "message": text}` to the letter, or a standard error as the fault most like it."""
    error = fields.get("error")
    if frame.status != "FAILED" or not isinstance(error, dict):
        return None
    messages = error.get("messages") or [{}]
    said = str(error.get("message", messages[0].get("default_message", "")))
    kind = str(error.get("fault") or FAULTS.get(str(error.get("error_type")), _PLAIN))
    return fault(kind, said, ("reason", text(said) if kind == _PLAIN else None))


def _system() -> Value:
    return Value("TaskReasonSystem", "")


def at_time(at: float, timestamps: Timestamps) -> Value:
    return text(written(at, timestamps), "xsd:dateTime")


def _after(task: SimulatedTask, seconds: float | None, timestamps: Timestamps) -> Value | None:
    return None if seconds is None else at_time(task.created_at + seconds, timestamps)
