"""Bodies of the shapes that real vCenters answer, from the wire to the final event's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from task_bridge.domain.events import attach_result, to_cloudevent
from task_bridge.domain.task import Rendering, parse_error, parse_task
from task_bridge.domain.watch import Policy, Watch, next_event, record_poll, view_from_event

BODIES = Path(__file__).parent / "bodies"
WATCH = Watch(id="1764024055123-42", vcenter="lab", task="52f9:com.example", since=1764024055.123)
POLICY = Policy("https://vcenter.example.com", 2.0, 604_800.0)
FROM_VLCM = {
    "target": {"type": "ClusterComputeResource", "id": "domain-c21", "name": None, "path": None},
    "parent": None,
    "user": "Operator@EXAMPLE.TEST",
    "initiator": {"type": "user", "name": "Operator@EXAMPLE.TEST"},
    "description": "Task made by the lifecycle service",
}
FROM_APPLIANCE = {"target": None, "parent": None, "user": None, "cancelable": False}

EXPECTED: dict[str, dict[str, Any]] = {
    "vlcm-succeeded.rest": {
        **FROM_VLCM,
        "outcome": "succeeded",
        "operation": "check_compliance$task",
        "cancelable": True,
        "duration_seconds": 11.412,
        "error": None,
    },
    "vlcm-failed.rest": {
        **FROM_VLCM,
        "outcome": "failed",
        "duration_seconds": 1.901,
        "progress": {"completed": 40, "total": 100, "percent": 40.0, "message": "How far the lifecycle service is"},
        "error": {
            "type": "INTERNAL_SERVER_ERROR",
            "message": "The plugin 'net' failed to perform 'VALIDATE'.",
            "messages": [
                {
                    "id": "org.example.plugin.failed",
                    "text": "The plugin 'net' failed to perform 'VALIDATE'.",
                    "args": ["net", "VALIDATE"],
                },
                {"id": "org.example.cause", "text": "The host closed the connection.", "args": []},
            ],
            "transient": None,
            "data": None,
        },
        "result": {"cluster_status": "NOT_COMPLIANT", "failed_hosts": [], "hosts": {"host-31": {}}},
    },
    "appliance-scan.rest": {
        **FROM_APPLIANCE,
        "outcome": "succeeded",
        "duration_seconds": 2.495,
        "extra": None,
        "result": {
            "status": "NON_COMPLIANT",
            "compliant": ["AuthManagement"],
            "non_compliant": ["Appliance"],
            "unavailable": [],
            "notifications": {},
            "compliance_result": {
                "Appliance": {
                    "diff_results": {
                        "/network/interfaces/0": {
                            "current_value": True,
                            "desired_value": False,
                            "category": "network",
                        }
                    }
                }
            },
        },
    },
    "config-result-failed.rest": {
        **FROM_APPLIANCE,
        "outcome": "succeeded",
        "status": "SUCCEEDED",
        "error": None,
        "duration_seconds": 4.988,
    },
    "solutions-succeeded.api": {
        **FROM_VLCM,
        "outcome": "succeeded",
        "duration_seconds": 0.035,
        "extra": {
            "last_update_time": "2025-09-14T23:01:58.391Z",
            "notifications": {"info": [], "warnings": [], "errors": []},
        },
        "result": {
            "status": "NON_COMPLIANT",
            "cluster_solutions_status": {
                "compliances": {"solution-b": {"status": "NON_COMPLIANT", "hooks": [{"key": "a", "value": "b"}]}}
            },
        },
    },
}


def final_data(name: str) -> dict[str, Any]:
    """The data of the event that a task with this body ends with."""
    rendering: Rendering = "rest" if name.endswith(".rest") else "api"
    body = json.loads((BODIES / f"{name}.json").read_text())
    view = view_from_event(None)
    task = parse_task(body["value"] if rendering == "rest" else body, rendering, with_result=True)
    record_poll(view, None, task, WATCH.since)
    watching = next_event(WATCH, None, view, WATCH.since, POLICY)
    assert watching is not None
    completed = next_event(WATCH, watching.event, view, WATCH.since + 1, POLICY)
    assert completed is not None
    assert completed.result is not None
    data: dict[str, Any] = json.loads(to_cloudevent(attach_result(completed.event, completed.result)))["data"]
    return data


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_vcenter_answers_is_told_as_the_contract_says(name: str) -> None:
    data = final_data(name)
    assert {key: data[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert (data["kind"], data["sequence"], data["result_state"]) == ("completed", 2, "inline")


def test_maps_inside_a_result_of_the_old_rendering_are_objects_at_every_depth() -> None:
    hosts = final_data("vlcm-succeeded.rest")["result"]["hosts"]
    assert set(hosts) == {"host-31", "host-32"}
    warning = hosts["host-31"]["host_status"]["notifications"]["warnings"][0]
    assert warning["message"]["params"] == {"host": {"s": "192.0.2.31"}}
    assert warning["time"] == "1970-01-01T00:00:00.000Z"


def test_an_error_answer_is_read_with_its_messages() -> None:
    error = parse_error(json.loads((BODIES / "not-found.api.json").read_text()))
    assert error is not None
    assert (error.type, error.messages[0].args) == ("NOT_FOUND", ("{task}", "task"))
