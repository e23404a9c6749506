"""Reports of events that can't be delivered, and the sample event of a trial. Pure."""

from __future__ import annotations

from typing import Any, Self

import msgspec

from ..domain.durations import rfc3339
from ..domain.events import NULL, TYPE_PREFIX, UNDELIVERED_TYPE
from ..domain.subjects import SERVICE


class UndeliveredData(msgspec.Struct, frozen=True):
    """`data` of a report of an event that wasn't delivered.

    `event`: the CloudEvent as it is stored, null if the report would be too large with it; the events stream has it
    at `sequence`.
    """

    delivery: str
    target: str
    reason: str
    tries: int
    sequence: int
    event: msgspec.Raw

    @classmethod
    def build(cls, delivery: str, target: str, reason: str, tries: int, sequence: int, body: bytes) -> Self:
        """Return the data for an event with this body. If that isn't JSON, `event` is its text."""
        try:
            msgspec.json.decode(body)
        except msgspec.DecodeError:
            body = msgspec.json.encode(body.decode(errors="backslashreplace"))
        return cls(delivery, target, reason, tries, sequence, msgspec.Raw(body))

    def without_event(self) -> Self:
        return msgspec.structs.replace(self, event=NULL)


class _UndeliveredEvent(msgspec.Struct, frozen=True):
    id: str
    source: str
    type: str
    subject: str
    time: str
    data: UndeliveredData


def build_undelivered(report_id: str, data: UndeliveredData, now: float) -> bytes:
    """Return the CloudEvent that says that an event wasn't delivered. `now`: Unix seconds."""
    event = _UndeliveredEvent(report_id, f"/{SERVICE}", UNDELIVERED_TYPE, data.delivery, rfc3339(now), data)
    return b'{"specversion":"1.0","datacontenttype":"application/json",' + msgspec.json.encode(event)[1:]


def read_undelivered(body: bytes) -> UndeliveredData | None:
    """Return the data of such a report, None if the body is none."""
    try:
        return msgspec.json.decode(body, type=_UndeliveredEvent).data
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def build_sample(delivery: str, now: float) -> tuple[str, bytes]:
    """Return id and body of an event for a trial: as it looks when a task has succeeded, and marked as a sample."""
    time = rfc3339(now)
    event: dict[str, Any] = {
        "specversion": "1.0",
        "datacontenttype": "application/json",
        "id": f"sample-{int(now * 1000)}/3",
        "source": "https://vcenter.example.com",
        "type": f"{TYPE_PREFIX}.task.completed.v1",
        "subject": "task-0",
        "time": time,
        "outcome": "succeeded",
        "data": {
            "vcenter": "sample",
            "api": "vim",
            "task": "task-0",
            "watch": {
                "id": f"sample-{int(now * 1000)}",
                "since": time,
                "timeout_at": None,
                "labels": {},
                "follow": None,
            },
            "kind": "completed",
            "outcome": "succeeded",
            "final": True,
            "sequence": 3,
            "status": "SUCCEEDED",
            "operation": "sample",
            "description": f"A sample event of the delivery {delivery}",
            "target": {"type": "VirtualMachine", "id": "vm-0", "name": "sample", "path": "/Sample/vm/sample"},
            "error": None,
            "result": None,
            "result_state": "none",
        },
    }
    return str(event["id"]), msgspec.json.encode(event)
