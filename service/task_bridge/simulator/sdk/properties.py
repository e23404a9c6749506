"""Properties of tasks and VMs, as they are at a time. Pure."""

from typing import Any

from ..bodies import format_time
from ..options import Timestamps
from ..script import Fields, Frame
from ..simulated_task import SimulatedTask
from ..task_attributes import SimulatedTarget
from .values import Value, boolean, element, fault, integer, moref, structure, text, value_of_json

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
_SYSTEM_ERROR = "SystemError"


def task_ref(task_id: str) -> SimulatedTarget:
    return SimulatedTarget("Task", task_id)


def build_task_info(task: SimulatedTask, now: float, timestamps: Timestamps) -> dict[str, Value]:
    """Return the fields of TaskInfo that the task has now."""
    attributes, frame = task.attributes, task.frame_at(now)
    fields = frame.fields
    parts: dict[str, Value | None] = {
        "key": text(task.id),
        "task": moref(task_ref(task.id)),
        "description": _build_phase(fields),
        "name": text(METHODS[attributes.operation], "MethodName") if attributes.operation in METHODS else None,
        "descriptionId": text(f"{attributes.service}.{attributes.operation}"),
        "entity": moref(attributes.target) if attributes.target else None,
        "entityName": text(attributes.name) if attributes.name else None,
        "state": text(STATES.get(frame.status, frame.status.lower()), "TaskInfoState"),
        "cancelled": boolean(task.cancel_requested),
        "cancelable": boolean(bool(fields.get("cancelable", attributes.cancelable))),
        "error": _build_error(fields, frame),
        "result": value_of_json(fields.get("result")) if frame.status == "SUCCEEDED" else None,
        "progress": _build_progress(fields.get("progress"), frame),
        "reason": structure("TaskReasonUser", ("userName", text(attributes.user)))
        if attributes.user
        else Value("TaskReasonSystem", ""),
        "queueTime": time_value(task.created_at, timestamps),
        "startTime": _time_after(task, frame.started_s, timestamps),
        "completeTime": _time_after(task, frame.ended_s, timestamps),
        "eventChainId": integer(4200),
        "parentTaskKey": text(attributes.parent) if attributes.parent else None,
        "rootTaskKey": text(attributes.parent) if attributes.parent else None,
    }
    return {name: value for name, value in parts.items() if value is not None and name not in frame.removed_fields}


def task_info_value(parts: dict[str, Value]) -> Value:
    """Return TaskInfo as one value. Fields of any type name their own type."""
    inner = (element(name, value, typed=name in ("result", "reason")) for name, value in parts.items())
    return Value("TaskInfo", "".join(inner))


def build_question(task: SimulatedTask, now: float) -> Value | None:
    """Return the question that the task's VM has pending while the task is BLOCKED."""
    frame = task.frame_at(now)
    if frame.status != "BLOCKED":
        return None
    choice = structure(
        "ChoiceOption",
        *(("choiceInfo", element_description(key, label)) for key, label in (("0", "Yes"), ("1", "No"))),
        ("defaultIndex", integer(1)),
    )
    question = str(frame.fields.get("question", QUESTION))
    parts = ("id", text(f"q-{task.id}")), ("text", text(question)), ("choice", choice)
    return structure("VirtualMachineQuestionInfo", *parts)


def element_description(key: str, label: str) -> Value:
    """Return an ElementDescription."""
    return structure("ElementDescription", ("label", text(label)), ("summary", text(label)), ("key", text(key)))


def _build_phase(fields: Fields) -> Value | None:
    progress = fields.get("progress")
    phase = progress.get("message") if isinstance(progress, dict) else None
    if not isinstance(phase, dict):
        return None
    parts = ("key", text(str(phase.get("id", "")))), ("message", text(str(phase.get("default_message", ""))))
    return structure("LocalizableMessage", *parts)


def _build_progress(progress: Any, frame: Frame) -> Value | None:
    """Return the percentage. vCenter shows it only while a task is running."""
    if STATES.get(frame.status) != "running" or not isinstance(progress, dict) or not progress.get("total"):
        return None
    return integer(int(100 * progress["completed"] / progress["total"]))


def _build_error(fields: Fields, frame: Frame) -> Value | None:
    """Return the task's error: `{"fault": "InvalidState", "message": text}` unchanged, or a standard error as the
    most similar fault.
    """
    error = fields.get("error")
    if frame.status != "FAILED" or not isinstance(error, dict):
        return None
    messages = error.get("messages") or [{}]
    message = str(error.get("message", messages[0].get("default_message", "")))
    kind = str(error.get("fault") or FAULTS.get(str(error.get("error_type")), _SYSTEM_ERROR))
    return fault(kind, message, ("reason", text(message) if kind == _SYSTEM_ERROR else None))


def time_value(at: float, timestamps: Timestamps) -> Value:
    return text(format_time(at, timestamps), "xsd:dateTime")


def _time_after(task: SimulatedTask, seconds: float | None, timestamps: Timestamps) -> Value | None:
    return None if seconds is None else time_value(task.created_at + seconds, timestamps)
