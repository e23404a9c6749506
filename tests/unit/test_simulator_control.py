"""The simulated vCenter driven from outside, by its own HTTP paths."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from task_bridge.simulator import ManualClock, SimulatedVCenter, faults, scenarios


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def vcenter(clock: ManualClock) -> SimulatedVCenter:
    return SimulatedVCenter(clock=clock)


@pytest.fixture
async def client(vcenter: SimulatedVCenter) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(vcenter.app)
    async with httpx.AsyncClient(transport=transport, base_url="https://vcenter/simulator") as client:
        yield client


async def login(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    answer = await client.post("https://vcenter/api/session", auth=(vcenter.options.username, vcenter.options.password))
    client.headers["vmware-api-session-id"] = answer.json()


async def created(client: httpx.AsyncClient, **wanted: Any) -> str:
    answer = await client.post("/tasks", json=wanted)
    assert answer.status_code == 201
    return str(answer.json()["tasks"][0])


async def test_names_its_fates_and_faults_with_their_arguments(client: httpx.AsyncClient) -> None:
    names = (await client.get("https://vcenter/simulator")).json()
    assert names["fates"].keys() == scenarios.SCENARIOS.keys()
    assert names["faults"].keys() == faults.FAULTS.keys()
    assert "seconds: float" in names["faults"]["delayed"]


async def test_a_task_of_a_named_fate(client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock) -> None:
    task = await created(client, fate="fails_with_error", id="1:s", user="me", **{"with": {"after_s": 3}})
    clock.advance(3)
    assert (await client.get("/tasks")).json() == {"1:s": "FAILED"}
    assert vcenter.tasks[task].attributes.user == "me"


async def test_a_task_of_a_script(client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock) -> None:
    steps = [{"after_s": 0, "changes": {"status": "RUNNING"}}, {"after_s": 2, "changes": {"status": "ODD"}}]
    task = await created(client, script={"steps": steps, "flavour": "minimal"})
    clock.advance(2)
    history = (await client.get(f"/tasks/{task}/history")).json()["states"]
    assert [(state["at"] - clock.now, state["status"]) for state in history] == [(-2, "RUNNING"), (0, "ODD")]


async def test_many_tasks_at_once_in_any_flavour(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    answer = await client.post("/tasks", json={"count": 3, "flavour": "appliance", "target": None})
    assert len(set(answer.json()["tasks"])) == 3
    assert {task.attributes.flavour for task in vcenter.tasks} == {"appliance"}


async def test_a_task_is_set_hidden_and_denied(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    await login(client, vcenter)
    task = await created(client, fate="runs_forever")
    seen = []
    for change in ({"set": {"status": "BLOCKED"}, "remove": ["user"]}, {"hidden": True}, {"denied": True}):
        assert (await client.patch(f"/tasks/{task}", json=change)).status_code == 204
        seen.append((await client.get(f"https://vcenter/api/cis/tasks/{task}")).status_code)
    assert seen == [200, 404, 403]
    assert vcenter.history(task)[-1].status == "BLOCKED"
    assert (await client.patch(f"/tasks/{task}", json={"hidden": False, "denied": False})).status_code == 204
    assert (await client.get(f"https://vcenter/api/cis/tasks/{task}")).status_code == 200


async def test_tasks_are_forgotten_and_remembered_in_history(client: httpx.AsyncClient) -> None:
    one, two = [await created(client, fate="runs_forever") for _ in range(2)]
    assert (await client.delete(f"/tasks/{one}")).status_code == 204
    assert list((await client.get("/tasks")).json()) == [two]
    assert (await client.delete("/tasks")).status_code == 204
    assert (await client.get("/tasks")).json() == {}
    assert list((await client.get("/history")).json()) == [one, two]
    assert (await client.get(f"/tasks/{one}/history")).status_code == 200


async def test_what_becomes_of_tasks_that_clients_make(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    await client.post("/next", json={"fate": "fails_silently"})
    await client.post("/next", json={"fate": "stays_pending", "always": True})
    assert list(vcenter.next_scripts.queue) == [scenarios.fails_silently()]
    assert vcenter.next_scripts.default == scenarios.stays_pending()


async def test_faults_come_and_go(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    fault = {
        "kind": "gateway_unavailable",
        "with": {"retry_after_s": 5},
        "operation": "get",
        "times": 2,
        "provider": "s",
    }
    added = (await client.post("/faults", json=fault)).json()["fault"]
    await client.post("/faults", json={"kind": "delayed", "with": {"seconds": 1}})
    active = (await client.get("/faults")).json()["faults"]
    assert [(fault["name"], fault["operation"], fault["provider"], fault["left"]) for fault in active] == [
        ("gateway_unavailable", "get", "s", 2),
        ("delayed", None, None, None),
    ]
    answer = await client.get("https://vcenter/api/cis/tasks/1:s")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert vcenter.request_log.requests[-1].fault == "gateway_unavailable"
    assert (await client.delete(f"/faults/{added}")).status_code == 204
    assert (await client.delete("/faults")).status_code == 204
    assert (await client.get("/faults")).json() == {"faults": []}


async def test_the_journal_has_vcenters_requests_only(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    await login(client, vcenter)
    await client.get("https://vcenter/api/cis/tasks/1:s")
    told = (await client.get("/journal")).json()
    assert [entry["operation"] for entry in told["requests"]] == ["login", "get"]
    assert (told["in_flight"], told["most_in_flight"], told["operations"]) == (0, 1, {"login": 1, "get": 1})
    narrowed = (await client.get("/journal", params={"operation": "get", "task": "1:s", "since": "0"})).json()
    assert [entry["status"] for entry in narrowed["requests"]] == [404]
    await client.delete("/journal")
    assert (await client.get("/journal")).json()["requests"] == []


async def test_sessions_are_counted_and_ended(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    await login(client, vcenter)
    told = (await client.get("/sessions")).json()
    assert (told["live"], told["logins"], told["failed_logins"]) == (1, 1, 0)
    assert (await client.delete("/sessions")).json() == {"invalidated": 1}
    assert (await client.get("/sessions")).json()["live"] == 0


async def test_options_are_turned(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    changes = {"list_enabled": False, "retention_s": None, "timestamps": {"skew_s": -5}}
    assert (await client.patch("/options", json=changes)).status_code == 204
    options = vcenter.options
    assert (options.list_enabled, options.retention_s, options.timestamps.skew_s) == (False, None, -5)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "problem"),
    [
        ("POST", "/tasks", '{"fate": "flies"}', 400, "there is no 'flies'"),
        ("POST", "/tasks", '{"fate": "succeeds", "with": {"later": 3}}', 400, "later"),
        ("POST", "/tasks", '{"script": {"step": []}}', 400, "unknown field `step`"),
        ("POST", "/tasks", '{"script": {"steps": [{"after_s": 2}, {"after_s": 1}]}}', 400, "order"),
        ("POST", "/tasks", "{", 400, "truncated"),
        ("PATCH", "/tasks/1:s", '{"set": {"status": "X"}}', 404, "1:s"),
        ("DELETE", "/tasks/1:s", "", 404, "1:s"),
        ("GET", "/tasks/1:s/history", "", 404, "1:s"),
        ("POST", "/faults", '{"kind": "flood"}', 400, "there is no 'flood'"),
        ("DELETE", "/faults/none", "", 404, "none"),
        ("GET", "/journal?since=yesterday", "", 400, "yesterday"),
        ("PATCH", "/options", '{"speed": 1}', 400, "speed"),
        ("PATCH", "/options", '{"renderings": "soap"}', 400, "soap"),
        ("GET", "/elsewhere", "", 404, "/elsewhere"),
        ("PUT", "/tasks", "", 404, "PUT"),
    ],
)
async def test_a_mistake_is_told(
    client: httpx.AsyncClient, method: str, path: str, body: str, status: int, problem: str
) -> None:
    answer = await client.request(method, path, content=body)
    assert answer.status_code == status
    assert problem in answer.json()["problem"]
