"""Faults of the simulated vCenter: what they do to an answer, and which requests meet them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from task_bridge.simulator import ManualClock, SimulatedVCenter, faults, scenarios
from task_bridge.simulator.faults import Effect


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


@pytest.fixture
def task(vcenter: SimulatedVCenter) -> str:
    return vcenter.create(scenarios.runs_forever(), id="1:s")


async def got(client: httpx.AsyncClient, task: str = "1:s") -> httpx.Response:
    return await client.get(f"/api/cis/tasks/{task}")


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not fact():  # noqa: ASYNC110 - a journal is written to, it doesn't wake anybody
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("effect", "status", "content_type", "error_type"),
    [
        (faults.unauthenticated(), 401, "application/json", "UNAUTHENTICATED"),
        (faults.unauthenticated(empty=True), 401, None, None),
        (faults.unauthorized(), 403, "application/json", "UNAUTHORIZED"),
        (faults.task_not_found(), 404, "application/json", "NOT_FOUND"),
        (faults.route_not_found(), 404, "application/json", "NOT_FOUND"),
        (faults.provider_not_found(), 404, "application/json", "NOT_FOUND"),
        (faults.operation_not_found(), 404, "application/json", "OPERATION_NOT_FOUND"),
        (faults.too_many_requests(), 429, None, None),
        (faults.resource_inaccessible(), 500, "application/json", "RESOURCE_INACCESSIBLE"),
        (faults.internal_server_error(), 500, "application/json", "INTERNAL_SERVER_ERROR"),
        (faults.html_error(), 500, "text/html", None),
        (faults.bad_gateway(), 502, "text/html", None),
        (faults.service_unavailable(), 503, "application/json", "SERVICE_UNAVAILABLE"),
        (faults.gateway_unavailable(), 503, "text/html", None),
        (faults.answer(418, "tea", "text/plain"), 418, "text/plain", None),
    ],
)
@pytest.mark.usefixtures("task")
async def test_a_fault_answers_in_vcenters_place(
    client: httpx.AsyncClient,
    vcenter: SimulatedVCenter,
    effect: Effect,
    status: int,
    content_type: str | None,
    error_type: str | None,
) -> None:
    vcenter.faults.add(effect)
    answer = await got(client)
    assert (answer.status_code, answer.headers.get("content-type")) == (status, content_type)
    assert error_type == (answer.json()["error_type"] if content_type == "application/json" else None)
    assert "retry-after" not in answer.headers
    assert vcenter.request_log.polls == {}


@pytest.mark.parametrize(
    "effect",
    [faults.service_unavailable(7), faults.too_many_requests(7), faults.gateway_unavailable(7)],
)
async def test_a_fault_may_say_when_to_come_back(
    client: httpx.AsyncClient, vcenter: SimulatedVCenter, effect: Effect
) -> None:
    vcenter.faults.add(effect)
    assert (await got(client)).headers["retry-after"] == "7"


async def test_a_standard_error_comes_in_the_rendering_asked_for(
    client: httpx.AsyncClient, vcenter: SimulatedVCenter
) -> None:
    vcenter.faults.add(faults.resource_inaccessible())
    answer = await client.get("/rest/cis/tasks/1:s")
    assert (answer.status_code, answer.json()["type"]) == (400, "com.vmware.vapi.std.errors.resource_inaccessible")


async def test_the_oldest_router_has_its_own_form(client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
    vcenter.faults.add(faults.route_not_found(old=True))
    assert (await got(client)).json()["majorErrorCode"] == 404


async def test_a_fault_may_meet_one_provider_s_tasks_alone(
    client: httpx.AsyncClient, vcenter: SimulatedVCenter
) -> None:
    ours, other = (vcenter.create(scenarios.runs_forever(), id=task) for task in ("1:ours", "1:other"))
    vcenter.faults.add(faults.gateway_unavailable(), provider="ours")
    lists = [{"filter_spec": {"tasks": [task]}} for task in (ours, other)]
    statuses = [
        *[(await got(client, task)).status_code for task in (ours, other)],
        *[(await client.post("/api/cis/tasks?action=list", json=spec)).status_code for spec in lists],
        (await client.get("/api/session")).status_code,
    ]
    assert statuses == [503, 200, 503, 200, 200]


class TestBrokenAnswers:
    @pytest.mark.usefixtures("task")
    @pytest.mark.parametrize("effect", [faults.truncated_json(), faults.invalid_utf8()])
    async def test_some_can_not_be_read(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, effect: Effect
    ) -> None:
        vcenter.faults.add(effect)
        answer = await got(client)
        assert answer.status_code == 200
        with pytest.raises(ValueError, match=r"Unterminated|utf-8|delimiter"):
            json.loads(answer.content)

    async def test_a_huge_one_is_right_behind_its_blanks(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, task: str
    ) -> None:
        vcenter.faults.add(faults.huge_body(100_000))
        answer = await got(client, task)
        assert len(answer.content) > 100_000
        assert answer.json()["status"] == "RUNNING"

    @pytest.mark.usefixtures("task")
    async def test_one_is_no_object(self, client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
        vcenter.faults.add(faults.non_object())
        assert isinstance((await got(client)).json(), list)

    @pytest.mark.usefixtures("task")
    async def test_one_has_a_key_twice(self, client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
        vcenter.faults.add(faults.duplicate_keys())
        pairs = json.loads((await got(client)).content, object_pairs_hook=lambda pairs: pairs)
        assert [value for key, value in pairs if key == "status"] == ["FAILED", "RUNNING"]

    async def test_a_connection_is_dropped(self, client: httpx.AsyncClient, vcenter: SimulatedVCenter) -> None:
        vcenter.faults.add(faults.connection_reset(), times=1)
        with pytest.raises(ConnectionResetError):
            await got(client)
        noted = vcenter.request_log.requests[-1]
        assert (noted.status, noted.fault, vcenter.request_log.in_flight) == (None, "fault", 0)


class TestSlowAnswers:
    async def test_one_comes_late(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock, task: str
    ) -> None:
        vcenter.faults.add(faults.delayed(30))
        before = clock.now
        assert (await got(client, task)).status_code == 200
        assert clock.now - before == 30

    async def test_a_body_stops_for_a_time(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock, task: str
    ) -> None:
        vcenter.faults.add(faults.stalled_body(sends=5, seconds=30))
        before = clock.now
        assert (await got(client, task)).json()["status"] == "RUNNING"
        assert clock.now - before == 30

    async def test_a_body_stops_until_the_fault_is_cleared(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, task: str
    ) -> None:
        vcenter.faults.add(faults.stalled_body(), times=1)
        asking = asyncio.create_task(got(client, task))
        await until(lambda: vcenter.request_log.requests[-1].operation == "get")
        assert not asking.done()
        vcenter.faults.clear()
        assert (await asking).json()["status"] == "RUNNING"

    async def test_requests_that_overlap_are_counted(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, task: str
    ) -> None:
        vcenter.faults.add(faults.stalled_body())
        asking = [asyncio.create_task(got(client, task)) for _ in range(3)]
        await until(lambda: vcenter.request_log.in_flight == 3)
        vcenter.faults.clear()
        await asyncio.gather(*asking)
        assert (vcenter.request_log.most_in_flight, vcenter.request_log.in_flight) == (3, 0)


class TestWhoMeetsAFault:
    async def statuses(self, client: httpx.AsyncClient) -> dict[str, int]:
        listing: Any = {"filter_spec": {"tasks": ["1:s", "2:s"]}}
        return {
            "get 1": (await got(client, "1:s")).status_code,
            "get 2": (await got(client, "2:s")).status_code,
            "list": (await client.post("/api/cis/tasks?action=list", json=listing)).status_code,
            "session": (await client.get("/api/session")).status_code,
        }

    @pytest.mark.parametrize(
        ("matching", "met"),
        [
            ({}, {"get 1", "get 2", "list", "session"}),
            ({"operation": "get"}, {"get 1", "get 2"}),
            ({"task": "1:s"}, {"get 1", "list"}),
            ({"task": "1:s", "operation": "list"}, {"list"}),
            ({"path": "/api/session"}, {"session"}),
            ({"times": 2}, {"get 1", "get 2"}),
        ],
    )
    async def test_it_is_decided_by_what_is_asked(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, matching: dict[str, Any], met: set[str]
    ) -> None:
        for task in ("1:s", "2:s"):
            vcenter.create(scenarios.runs_forever(), id=task)
        vcenter.faults.add(faults.bad_gateway(), **matching)
        statuses = await self.statuses(client)
        assert {asked for asked, status in statuses.items() if status == 502} == met

    async def test_it_may_last_for_a_time(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, clock: ManualClock, task: str
    ) -> None:
        vcenter.faults.add(faults.bad_gateway(), for_s=10)
        seen = []
        for _ in range(3):
            seen.append((await got(client, task)).status_code)
            clock.advance(5)
        assert seen == [502, 502, 200]

    async def test_it_may_last_for_a_block(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, task: str
    ) -> None:
        with vcenter.faults.during(faults.bad_gateway(), operation="get"):
            assert (await got(client, task)).status_code == 502
        assert (await got(client, task)).status_code == 200

    async def test_faults_queue_up(self, client: httpx.AsyncClient, vcenter: SimulatedVCenter, task: str) -> None:
        vcenter.faults.add(faults.bad_gateway(), times=1)
        vcenter.faults.add(faults.unauthenticated(), times=1)
        assert [(await got(client, task)).status_code for _ in range(3)] == [502, 401, 200]

    async def test_a_failed_login_at_the_proxy_opens_no_session(
        self, client: httpx.AsyncClient, vcenter: SimulatedVCenter
    ) -> None:
        vcenter.faults.add(faults.bad_gateway(), operation="login")
        await client.post("/api/session", auth=(vcenter.options.username, vcenter.options.password))
        assert vcenter.sessions.counts.logins == 1
