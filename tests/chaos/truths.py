"""What a simulated task really went through, in the words in which a bridge may tell of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from chaos.account import Was
from task_bridge.simulator.simulated_task import TaskState

RUNNING = ("RUNNING", "BLOCKED")


def states_of(task: str, states: Sequence[TaskState]) -> tuple[Was, ...]:
    return tuple(_classic(states)) if task.startswith("task-") else tuple(map(_was, states))


def _was(state: TaskState) -> Was:
    fields = state.fields
    progress = fields.get("progress")
    error = fields.get("error") or {}
    told = progress and (progress["completed"], progress["total"])
    return Was(state.at, state.status, told, fields.get("result"), error.get("error_type"))


def _classic(states: Sequence[TaskState]) -> Iterator[Was]:
    """A classic task and its VM's question are two objects: either change may be told first."""
    before: Was | None = None
    for state in states:
        now = _was(state)._replace(progress=_percent(state), result=_result(state))
        if before is not None and (before.status, now.status) == ("BLOCKED", "RUNNING"):
            yield before._replace(at=now.at, status="RUNNING")
            yield now._replace(status="BLOCKED")
        if before is not None and (before.status, now.status) == ("RUNNING", "BLOCKED"):
            yield before._replace(at=now.at, status="BLOCKED")
        if now.status == "BLOCKED":
            yield now._replace(status="RUNNING")
        yield now
        before = now


def _percent(state: TaskState) -> Any:
    """Percent while it runs, and words alone without."""
    shown = state.fields.get("progress") or {}
    if state.status in RUNNING and shown.get("total"):
        return int(100 * shown["completed"] / shown["total"]), 100
    has_words = bool(shown.get("message")) and state.status in ("PENDING", *RUNNING)
    return (None, None) if has_words or state.status == "BLOCKED" else None


def _result(state: TaskState) -> Any:
    """A reference, a scalar, or a list: the simulated vCenter writes other objects as KeyValues, all as text."""
    result = state.fields.get("result")
    if state.status != "SUCCEEDED" or not isinstance(result, dict | list):
        return result if state.status == "SUCCEEDED" else None
    if isinstance(result, dict) and result.keys() == {"type", "id"}:
        return result
    if isinstance(result, dict):
        return [{"key": str(key), "value": str(value)} for key, value in result.items()]
    return [str(item) for item in result]
