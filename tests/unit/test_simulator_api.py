"""The simulated vCenter's `/api`: tasks over HTTP, in process."""

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from task_bridge.simulator import ManualClock, Options, SimulatedTarget, SimulatedVCenter, scenarios
from task_bridge.simulator.bodies import BodyView
from task_bridge.simulator.tasks_service import FilterSpec

ROUTER = "com.vmware.vapi.rest.httpNotFound"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def vcenter(clock: ManualClock) -> SimulatedVCenter:
    return SimulatedVCenter(clock=clock, sleep=clock.sleep)


@pytest.fixture
async def client(vcenter: SimulatedVCenter) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(vcenter.app), base_url="https://vcenter") as client:
        login = await client.post("/api/session", auth=(vcenter.options.username, vcenter.options.password))
        client.headers["vmware-api-session-id"] = login.json()
        yield client


async def listed(client: httpx.AsyncClient, **filter_spec: Any) -> httpx.Response:
    return await client.post("/api/cis/tasks", params={"action": "list"}, json={"filter_spec": filter_spec})


def message_id(answer: httpx.Response) -> str:
    return str(answer.json()["messages"][0]["id"])


class TestGet:
    async def test_shows_a_task(self, client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
        task = vcenter.create(scenarios.runs_forever())
        answer = await client.get(f"/api/cis/tasks/{task}")
        assert (answer.status_code, answer.json()["status"]) == (200, "RUNNING")

    async def test_takes_the_colon_encoded(self, client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
        task = vcenter.create(scenarios.runs_forever(), id="a b:c")
        assert (await client.get("/api/cis/tasks/a%20b%3Ac")).status_code == 200
        assert vcenter.request_log.of("get")[0].task == task

    @pytest.mark.parametrize("query", ["exclude_result=true", "spec.exclude_result=true"])
    async def test_leaves_the_result_out(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, query: str
    ) -> None:
        task = vcenter.create(scenarios.succeeds_at_once())
        assert "result" in (await client.get(f"/api/cis/tasks/{task}")).json()
        assert "result" not in (await client.get(f"/api/cis/tasks/{task}?{query}")).json()

    async def test_says_not_found_unlike_the_router(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/api/cis/tasks/never:seen")
        assert (answer.status_code, answer.json()["error_type"]) == (404, "NOT_FOUND")
        assert message_id(answer) != ROUTER

    @pytest.mark.parametrize("path", ["/api/cis/tasks/{}", "/api/cis/tasks?action=list"])
    @pytest.mark.parametrize(
        ("service", "is_known"),
        [
            ("com.vmware.esx.settings.hosts.software", True),
            ("com.example.made", True),
            ("com.vmware.vcenter.ovf.library_item", False),
        ],
    )
    async def test_cannot_find_the_provider_of_a_service_that_it_does_not_know(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, path: str, service: str, is_known: bool
    ) -> None:
        vcenter.forget(vcenter.create(scenarios.runs_forever(), service="com.example.made"))
        task = f"1:{service}"
        if path.endswith("list"):
            answer = await client.post(path, json={"filter_spec": {"tasks": [task]}})
            assert answer.status_code == (200 if is_known else 404)
        else:
            answer = await client.get(path.format(task))
            assert answer.status_code == 404
        assert ("Cannot find provider" in answer.text) is not is_known

    async def test_denies_a_task_until_it_is_allowed(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter
    ) -> None:
        task = vcenter.create(scenarios.runs_forever())
        vcenter.deny(task)
        answer = await client.get(f"/api/cis/tasks/{task}")
        assert (answer.status_code, answer.json()["error_type"]) == (403, "UNAUTHORIZED")
        vcenter.allow(task)
        assert (await client.get(f"/api/cis/tasks/{task}")).status_code == 200

    async def test_flaps(self, client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
        task = vcenter.create(scenarios.runs_forever())
        seen = []
        for turn in (vcenter.hide, vcenter.unhide):
            turn(task)
            seen.append((await client.get(f"/api/cis/tasks/{task}")).status_code)
        assert seen == [404, 200]


class TestList:
    async def test_leaves_out_what_it_does_not_know_or_show(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter
    ) -> None:
        shown, hidden, denied = (vcenter.create(scenarios.runs_forever(), id=f"{n}:s") for n in range(3))
        vcenter.hide(hidden)
        vcenter.deny(denied)
        answer = await listed(client, tasks=[shown, hidden, denied, "never:s", shown])
        assert (answer.status_code, list(answer.json())) == (200, [shown])

    async def test_leaves_results_out_when_asked(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock
    ) -> None:
        task = vcenter.create(scenarios.succeeds(after_s=10))
        spec = {"filter_spec": {"tasks": [task]}, "result_spec": {"exclude_result": True}}
        seen = []
        for _ in range(2):
            body = (await client.post("/api/cis/tasks?action=list", json=spec)).json()[task]
            seen.append((body["status"], "result" in body))
            clock.advance(10)
        assert seen == [("PENDING", False), ("SUCCEEDED", False)]
        assert "result" in (await listed(client, tasks=[task])).json()[task]

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "{}",
            '{"filter_spec":{}}',
            '{"filter_spec":{"tasks":[],"services":[]}}',
            '{"filter_spec":{"status":["RUNNING"]}}',
            '{"filter_spec":{"tasks":["1:a","2:b"]}}',
            '{"filter_spec":{"tasks":["1:a","2"]}}',
            '{"filter_spec":{"services":["a","b"]}}',
            '{"filter_spec":{"tasks":"1:a"}}',
            "[]",
            "{",
        ],
    )
    async def test_refuses_a_filter_that_breaks_the_rules(self, client: httpx.AsyncClient, body: str) -> None:
        answer = await client.post("/api/cis/tasks?action=list", content=body)
        assert (answer.status_code, answer.json()["error_type"]) == (400, "INVALID_ARGUMENT")

    async def test_fails_over_its_limit_and_neither_truncates_nor_pages(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter
    ) -> None:
        script = scenarios.runs_forever()
        tasks = [vcenter.create(script, id=f"{n}:s") for n in range(1001)]
        answer = await listed(client, tasks=tasks)
        assert (answer.status_code, answer.json()["error_type"]) == (500, "RESOURCE_INACCESSIBLE")
        assert len((await listed(client, tasks=tasks[1:])).json()) == 1000

    @pytest.mark.parametrize(
        ("filter_spec", "found"),
        [
            ({"services": ["s"]}, ["1:s", "2:s"]),
            ({"services": ["s"], "status": ["RUNNING"]}, ["1:s"]),
            ({"services": ["s"], "status": ["RUNNING", "SUCCEEDED"]}, ["1:s", "2:s"]),
            ({"services": ["s"], "operations": ["scan$task"]}, ["2:s"]),
            ({"services": ["s"], "users": ["me"]}, ["1:s"]),
            ({"services": ["s"], "targets": [{"type": "HostSystem", "id": "host-1"}]}, ["2:s"]),
            ({"tasks": ["1:s", "2:s"], "status": ["SUCCEEDED"]}, ["2:s"]),
            ({"services": ["nobody's"]}, []),
        ],
    )
    async def test_filters_by_all_that_is_given(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, filter_spec: dict[str, Any], found: list[str]
    ) -> None:
        host = SimulatedTarget("HostSystem", "host-1")
        vcenter.create(scenarios.runs_forever(), id="1:s", user="me")
        vcenter.create(scenarios.succeeds_at_once(), id="2:s", operation="scan$task", target=host)
        vcenter.create(scenarios.runs_forever(), id="3:other")
        assert list((await listed(client, **filter_spec)).json()) == found

    async def test_can_be_missing(self, client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
        vcenter.options.list_enabled = False
        answer = await listed(client, tasks=["1:s"])
        assert (answer.status_code, message_id(answer)) == (404, ROUTER)

    async def test_of_500_among_thousands_costs_less_than_5_ms(self, vcenter: SimulatedVCenter) -> None:
        script = scenarios.runs_forever()
        tasks = [vcenter.create(script) for _ in range(5000)]
        wanted = FilterSpec(tasks=tasks[::10])
        spent_s = []
        for _ in range(5):
            before = time.process_time()
            msgspec.json.encode(vcenter.tasks.encode_infos(vcenter.tasks.list(wanted), BodyView(exclude_result=True)))
            spent_s.append(time.process_time() - before)
        assert min(spent_s) < 0.005


class TestCancel:
    async def test_ends_a_task_as_failed_a_little_later(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock
    ) -> None:
        task = vcenter.create(scenarios.runs_forever(cancel_takes_s=2))
        for _ in range(2):
            assert (await client.post(f"/api/cis/tasks/{task}?action=cancel")).status_code == 204
        assert (await client.get(f"/api/cis/tasks/{task}")).json()["status"] == "RUNNING"
        clock.advance(2)
        ended = (await client.get(f"/api/cis/tasks/{task}")).json()
        assert (ended["status"], ended["error"]["error_type"]) == ("FAILED", "CANCELED")

    async def test_stops_what_was_to_come(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock
    ) -> None:
        task = vcenter.create(scenarios.succeeds(after_s=10))
        clock.advance(5)
        await client.post(f"/api/cis/tasks/{task}?action=cancel")
        clock.advance(100)
        assert [state.status for state in vcenter.history(task)][-1] == "FAILED"

    @pytest.mark.parametrize(
        ("fate", "status", "error_type"),
        [
            (scenarios.runs_forever(cancelable=False), 400, "UNSUPPORTED"),
            (replace(scenarios.succeeds(), flavour="appliance"), 400, "UNSUPPORTED"),
            (scenarios.succeeds_at_once(), 400, "NOT_ALLOWED_IN_CURRENT_STATE"),
            (None, 404, "NOT_FOUND"),
        ],
    )
    async def test_is_refused_with_a_reason(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, fate: Any, status: int, error_type: str
    ) -> None:
        task = vcenter.create(fate) if fate else "never:seen"
        answer = await client.post(f"/api/cis/tasks/{task}?action=cancel")
        assert (answer.status_code, answer.json()["error_type"]) == (status, error_type)


class TestRetention:
    async def test_purges_a_task_some_time_after_its_end(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock
    ) -> None:
        vcenter.options.retention_s = 5
        task = vcenter.create(scenarios.succeeds(after_s=1))
        clock.advance(5.9)
        assert (await client.get(f"/api/cis/tasks/{task}")).status_code == 200
        clock.advance(0.1)
        assert (await listed(client, tasks=[task])).json() == {}
        assert (await client.get(f"/api/cis/tasks/{task}")).status_code == 404

    async def test_a_restart_loses_every_task_and_keeps_the_session(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter
    ) -> None:
        task = vcenter.create(scenarios.runs_forever())
        vcenter.forget_all()
        assert (await client.get(f"/api/cis/tasks/{task}")).status_code == 404

    async def test_creating_tasks_sweeps_the_old_ones_away(self, vcenter: SimulatedVCenter, clock: ManualClock) -> None:
        vcenter.options.retention_s = 5
        old = vcenter.create(scenarios.succeeds_at_once())
        clock.advance(6)
        vcenter.create(scenarios.runs_forever())
        with pytest.raises(KeyError):
            vcenter.tasks[old]


class TestCreation:
    async def test_gives_the_id_of_a_task(self, client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
        vcenter.next_scripts.queue.append(scenarios.succeeds_at_once())
        path = "/api/esx/settings/clusters/domain-c1/software?action=scan&vmw-task=true"
        answer = await client.post(path)
        task = answer.json()
        assert answer.status_code == 202
        assert task.endswith(":com.vmware.esx.settings.clusters.software")
        body = (await client.get(f"/api/cis/tasks/{task}")).json()
        assert (body["status"], body["operation"], body["target"]["id"]) == ("SUCCEEDED", "scan$task", "domain-c1")
        assert vcenter.tasks[(await client.post(path)).json()].script is vcenter.next_scripts.default

    async def test_exists_in_task_form_only(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/api/esx/settings/clusters/domain-c1/software?action=apply")
        assert (answer.status_code, message_id(answer)) == (404, ROUTER)


class TestRouter:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/api/cis/tasks"),
            ("POST", "/api/cis/tasks"),
            ("POST", "/api/cis/tasks?action=burn"),
            ("POST", "/api/cis/tasks/1:s"),
            ("DELETE", "/api/cis/tasks/1:s"),
            ("GET", "/api/nothing"),
            ("GET", "/"),
        ],
    )
    async def test_knows_no_other_path(self, client: httpx.AsyncClient, method: str, path: str) -> None:
        answer = await client.request(method, path)
        assert (answer.status_code, message_id(answer)) == (404, ROUTER)

    async def test_asks_for_a_session_before_it_looks_for_the_task(self, client: httpx.AsyncClient) -> None:
        del client.headers["vmware-api-session-id"]
        assert (await client.get("/api/cis/tasks/never:seen")).status_code == 401


class TestJournal:
    async def test_notes_who_asked_what_and_when(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock
    ) -> None:
        vcenter.request_log.clear()
        vcenter.options.latency_s = 0.25
        clock.advance(1)
        task = vcenter.create(scenarios.runs_forever(), id="1:s")
        await listed(client, tasks=[task, "2:s", "3:s"])
        noted = vcenter.request_log.requests[0]
        assert (noted.operation, noted.method, noted.path) == ("list", "POST", "/api/cis/tasks")
        assert (noted.query, noted.tasks, noted.status, noted.seconds) == ("action=list", 3, 200, 0.25)
        assert (noted.at, noted.user) == (clock.now - 0.25, vcenter.options.username)
        assert noted.session == client.headers["vmware-api-session-id"]

    async def test_counts_the_looks_at_each_task(self, client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
        task = vcenter.create(scenarios.runs_forever())
        await listed(client, tasks=[task])
        await client.get(f"/api/cis/tasks/{task}")
        assert vcenter.request_log.polls == {task: 2}
        assert vcenter.request_log.operations == {"login": 1, "list": 1, "get": 1}

    async def test_forgets_the_oldest_requests(self, clock: ManualClock) -> None:
        vcenter = SimulatedVCenter(Options(remembered_requests=2), clock=clock)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(vcenter.app), base_url="http://v") as client:
            for path in "abc":
                await client.get(f"/{path}")
        assert [request.path for request in vcenter.request_log.requests] == ["/b", "/c"]
