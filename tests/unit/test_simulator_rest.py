"""The simulated vCenter's `/rest`: the same tasks in the legacy rendering."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from task_bridge.simulator import ManualClock, SimulatedVCenter, message, scenarios, std_error
from task_bridge.simulator.renderings import render_rest_error, render_rest_info


@pytest.fixture
def vcenter() -> SimulatedVCenter:
    return SimulatedVCenter(clock=ManualClock())


@pytest.fixture
async def client(vcenter: SimulatedVCenter) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(vcenter.app), base_url="https://vcenter") as client:
        await client.post("/rest/com/vmware/cis/session", auth=(vcenter.options.username, vcenter.options.password))
        yield client


async def test_a_task_is_wrapped_and_its_maps_are_lists(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    task = vcenter.create(scenarios.fails_with_error_and_result(after_s=0))
    answer = await client.get(f"/rest/cis/tasks/{task}")
    info = answer.json()["value"]
    assert (answer.status_code, list(answer.json()), info["status"]) == (200, ["value"], "FAILED")
    assert info["result"]["hosts"][0] == {"key": "host-17", "value": {"status": "OK"}}
    assert info["error"]["@class"] == "com.vmware.vapi.std.errors.internal_server_error"
    assert info["error"]["messages"][1]["params"] == [{"key": "host", "value": {"s": "esx2"}}]
    assert info["progress"]["total"] == 100


async def test_a_list_is_asked_by_the_query_and_is_a_list(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    tasks = [vcenter.create(scenarios.succeeds_at_once(), id=f"{n}:s") for n in range(3)]
    query = [("filter_spec.tasks", task) for task in (*tasks[:2], "never:s")]
    answer = await client.get("/rest/cis/tasks", params=[*query, ("result_spec.exclude_result", "true")])
    entries = answer.json()["value"]
    assert [(entry["key"], entry["value"]["status"]) for entry in entries] == [
        (tasks[0], "SUCCEEDED"),
        (tasks[1], "SUCCEEDED"),
    ]
    assert all("result" not in entry["value"] for entry in entries)


async def test_a_get_leaves_the_result_out_by_its_own_name_for_it(
    client: httpx.AsyncClient, vcenter: SimulatedVCenter
) -> None:
    task = vcenter.create(scenarios.succeeds_at_once())
    answer = await client.get(f"/rest/cis/tasks/{task}?spec.exclude_result=true")
    assert "result" not in answer.json()["value"]


async def test_a_cancel_answers_200(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    task = vcenter.create(scenarios.runs_forever())
    answer = await client.post(f"/rest/cis/tasks/{task}?action=cancel")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "status", "name"),
    [
        ("/rest/cis/tasks/never:seen", 404, "not_found"),
        ("/rest/cis/tasks", 400, "invalid_argument"),
        ("/rest/com/vmware/cis/tasks/1:s", 404, "not_found"),
    ],
)
async def test_errors_have_their_type_outside(client: httpx.AsyncClient, path: str, status: int, name: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["type"]) == (status, f"com.vmware.vapi.std.errors.{name}")
    assert "error_type" not in answer.json()["value"]


async def test_a_resource_out_of_reach_is_400_here(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    for n in range(3):
        vcenter.create(scenarios.runs_forever(), id=f"{n}:s")
    vcenter.options.max_listed = 2
    answer = await client.get("/rest/cis/tasks?filter_spec.services=s")
    assert (answer.status_code, answer.json()["type"]) == (400, "com.vmware.vapi.std.errors.resource_inaccessible")


async def test_an_unknown_path_is_named(client: httpx.AsyncClient) -> None:
    value = (await client.get("/rest/nothing")).json()["value"]
    assert value["messages"][0]["id"] == "com.vmware.vapi.rest.operationsForUrlNotFound"
    assert value["messages"][0]["args"] == ["/nothing"]


@pytest.mark.parametrize(
    ("result", "rendered"),
    [
        ({"a_member": {"b": 1}}, {"a_member": {"b": 1}}),
        ({"by_id": {"host-1": {"x": []}}}, {"by_id": [{"key": "host-1", "value": {"x": []}}]}),
        ({"hosts": {}}, {"hosts": []}),
        ({"hosts": ["host-1"]}, {"hosts": ["host-1"]}),
        ({"spec": {"_typeName": "X", "deviceChange": 1}}, {"spec": {"_typeName": "X", "deviceChange": 1}}),
        ({}, {}),
        ("text", "text"),
        (None, None),
        ([{"Key-1": 2}], [[{"key": "Key-1", "value": 2}]]),
    ],
)
def test_maps_are_told_from_structures(result: Any, rendered: Any) -> None:
    assert render_rest_info({"result": result}) == {"result": rendered}


def test_an_error_without_a_type_stays_as_it_is() -> None:
    assert render_rest_info({"error": {"messages": []}}) == {"error": {"messages": []}}


def test_a_standard_error_is_rendered_with_its_params_listed() -> None:
    error = std_error("NOT_FOUND", message("Gone.", id="x", which={"s": "this"}), data={"is_transient": True})
    assert render_rest_error(error) == {
        "type": "com.vmware.vapi.std.errors.not_found",
        "value": {
            "messages": [
                {
                    "id": "x",
                    "default_message": "Gone.",
                    "args": [],
                    "params": [{"key": "which", "value": {"s": "this"}}],
                }
            ],
            "data": {"is_transient": True},
        },
    }
