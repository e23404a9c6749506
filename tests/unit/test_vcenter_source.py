"""What a vCenter may answer that the simulated one doesn't, request by request."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from task_bridge.domain.errors import Refused, VCenterUnavailable
from task_bridge.domain.task import UNAVAILABLE, Result, Task
from task_bridge.metrics import Metrics
from task_bridge.simulator.app import SimulatedVCenter
from task_bridge.vcenter.cis import CisSource, PollPolicy
from task_bridge.vcenter.policy import Timeouts
from vcenter_lab import POLICY, SHORT_TIMEOUTS, Given, Lab

RUNNING = {"status": "RUNNING"}
SUCCEEDED = {"status": "SUCCEEDED"}
NOT_FOUND = httpx.Response(404, json={"error_type": "NOT_FOUND", "messages": [{"id": "x", "default_message": "No."}]})

Asked = tuple[str, bool, list[str]]
"""`list` or `get`, whether with the result, and the tasks."""


class Vcenter:
    """Answers lists and gets by a function of what is asked; the session is always good."""

    def __init__(self, answer: Callable[[str, bool, list[str]], httpx.Response]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/api/session":
            return httpx.Response(201, json="token")
        if path == "/api/cis/tasks":
            spec = json.loads(request.content)
            with_result = not spec.get("result_spec", {}).get("exclude_result", False)
            asked: Asked = ("list", with_result, spec["filter_spec"]["tasks"])
        elif path.startswith("/api/cis/tasks/") and request.method == "GET":
            asked = ("get", "exclude_result" not in request.url.params, [path.removeprefix("/api/cis/tasks/")])
        else:
            return httpx.Response(404, text="404 page not found")
        self.asked.append(asked)
        return self.answer(*asked)


@asynccontextmanager
async def looking(
    answer: Callable[[str, bool, list[str]], httpx.Response],
    *,
    timeouts: Timeouts = SHORT_TIMEOUTS,
    policy: PollPolicy = POLICY,
    **given: Any,
) -> AsyncIterator[tuple[Lab, Vcenter]]:
    vcenter = Vcenter(answer)
    metrics = Metrics()
    source = CisSource(
        Given("https://vcenter.test", **given),
        policy,
        metrics,
        timeouts=timeouts,
        http_transport=httpx.MockTransport(vcenter),
    )
    async with source:
        it = Lab(SimulatedVCenter(), source, metrics, "")
        taking = asyncio.create_task(it.take())
        yield it, vcenter
        taking.cancel()


def tasks_answer(how: str, tasks: list[str], info: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json=info if how == "get" else dict.fromkeys(tasks, info))


async def test_a_result_that_can_not_be_had_in_time_is_unavailable() -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        return httpx.Response(503, text="no results now") if with_result else tasks_answer(how, tasks, SUCCEEDED)

    async with looking(answer, timeouts=SHORT_TIMEOUTS._replace(result_s=0.5)) as (it, vcenter):
        it.follow("a:p")
        assert (await it.ended("a:p")).result == UNAVAILABLE
        assert len([asked for asked in vcenter.asked if asked[1]]) >= 2


async def test_a_result_purged_between_the_end_and_the_fetch_is_unavailable_at_once() -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        if how == "get":
            return NOT_FOUND
        return httpx.Response(200, json={}) if with_result else tasks_answer(how, tasks, SUCCEEDED)

    async with looking(answer, timeouts=SHORT_TIMEOUTS._replace(result_s=60.0)) as (it, _):
        it.follow("a:p")
        assert (await it.ended("a:p")).result == UNAVAILABLE
        assert not it.is_gone("a:p")


async def test_a_task_that_seems_to_run_again_while_its_result_is_fetched_is_asked_again() -> None:
    lagging = iter([RUNNING, RUNNING])

    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        ended = {**SUCCEEDED, "result": 7}
        return tasks_answer(how, tasks, next(lagging, ended) if with_result else SUCCEEDED)

    async with looking(answer) as (it, _):
        it.follow("a:p")
        result = (await it.ended("a:p")).result
        assert result is not None
        assert result.json == b"7"
        assert it.statuses("a:p") == ["SUCCEEDED"]


async def test_a_result_that_came_with_the_look_is_kept_if_all_else_can_not_be_fetched() -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        if with_result:
            return NOT_FOUND if how == "get" else httpx.Response(200, json={})
        return tasks_answer(how, tasks, {**SUCCEEDED, "result": {"a": 1}})

    async with looking(answer) as (it, vcenter):
        it.parks = True
        it.follow("a:p")
        assert (await it.ended("a:p")).result == Result(b'{"a":1}')
        assert [asked for asked in vcenter.asked if asked[1]]


async def test_a_get_that_can_not_leave_out_the_result_asks_for_it_all() -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        if how == "list":
            return httpx.Response(307, headers={"location": "/api/cis/tasks/"})
        return tasks_answer(how, tasks, RUNNING) if with_result else httpx.Response(400, json={"error_type": "X"})

    async with looking(answer) as (it, vcenter):
        it.follow("a:p")
        await it.shown("a:p")
        await it.more_looks("a:p")
        assert len([asked for asked in vcenter.asked if asked[0] == "get" and not asked[1]]) == 1


@pytest.mark.parametrize("empty", [httpx.Response(200), httpx.Response(405), httpx.Response(404, text="no page")])
async def test_a_list_that_is_not_there_is_done_without(empty: httpx.Response) -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        return empty if how == "list" else tasks_answer(how, tasks, RUNNING)

    async with looking(answer, timeouts=SHORT_TIMEOUTS._replace(relist_s=60.0)) as (it, vcenter):
        tasks = [f"{number}:p" for number in range(5)]
        it.follow(*tasks)
        await it.shown(*tasks)
        await it.more_looks(tasks[0])
        assert len([asked for asked in vcenter.asked if asked[0] == "list"]) == 1


async def test_a_page_for_people_is_no_answer() -> None:
    pages = iter([httpx.Response(200, html="<html>Log in</html>")] * 3)

    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        return next(pages, tasks_answer(how, tasks, RUNNING))

    async with looking(answer) as (it, _):
        it.follow("a:p", "b:p")
        await it.until(lambda: "answers with a web page" in str(it.source.health.reason))
        await it.shown("a:p", "b:p")
        await it.until(lambda: it.source.health.state == "ok")


async def test_a_provider_that_lists_nothing_is_asked_ever_less_and_told_once() -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        if tasks[0].endswith(":bad"):
            return httpx.Response(500, json={"error_type": "RESOURCE_INACCESSIBLE", "messages": []})
        return tasks_answer(how, tasks, RUNNING)

    with capture_logs() as logs:
        async with looking(answer) as (it, vcenter):
            bad = [f"{number}:bad" for number in range(300)]
            it.follow(*bad, "a:good")
            await it.more_looks("a:good", 8)
            asked = [asked for asked in vcenter.asked if asked[2][0].endswith(":bad")]
            assert len(asked) < 80
            assert it.source.health.state == "degraded"
    assert [line["event"] for line in logs if line["log_level"] != "debug"] == ["vcenter_unavailable"]


async def test_a_provider_whose_lists_all_fail_is_asked_by_gets() -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        if how == "list":
            return httpx.Response(500, json={"error_type": "RESOURCE_INACCESSIBLE", "messages": []})
        return tasks_answer(how, tasks, RUNNING)

    async with looking(answer, timeouts=SHORT_TIMEOUTS._replace(relist_s=60.0)) as (it, vcenter):
        tasks = [f"{number}:p" for number in range(20)]
        it.follow(*tasks)
        await it.shown(*tasks)
        lists = [asked[0] for asked in vcenter.asked].count("list")
        for task in tasks:
            await it.more_looks(task, 1)
        assert [asked[0] for asked in vcenter.asked].count("list") == lists
        assert it.source.health.state == "ok"


async def test_a_partial_result_that_can_not_be_had_is_looked_past() -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        if with_result:
            return httpx.Response(500, json={"error_type": "ERROR", "messages": []})
        return tasks_answer(how, tasks, RUNNING)

    async with looking(answer) as (it, _):
        it.follow("a:p", with_result=True)
        await it.shown("a:p")


async def test_a_task_that_lists_leave_out_and_a_get_shows_is_asked_for_alone() -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        return httpx.Response(200, json={}) if how == "list" else tasks_answer(how, tasks, RUNNING)

    async with looking(answer, timeouts=SHORT_TIMEOUTS._replace(relist_s=60.0)) as (it, vcenter):
        it.follow("a:p")
        await it.more_looks("a:p", 5)
        assert [asked[0] for asked in vcenter.asked].count("list") == 1
        assert not it.is_gone("a:p")


async def test_ids_without_a_provider_are_followed_too() -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        if how == "list" and len(tasks) > 1:
            return httpx.Response(400, json={"error_type": "INVALID_ARGUMENT", "messages": []})
        return tasks_answer(how, tasks, RUNNING)

    async with looking(answer) as (it, _):
        it.follow("depot-task-1", "depot-task-2", "depot-task-3")
        await it.shown("depot-task-1", "depot-task-2", "depot-task-3")


async def test_a_look_that_only_differs_in_what_nobody_is_told_is_no_news() -> None:
    updates = iter(range(10_000))

    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        return tasks_answer(how, tasks, {**RUNNING, "last_update_time": str(next(updates)), "notifications": {}})

    async with looking(answer) as (it, _):
        it.follow("a:p")
        await it.more_looks("a:p", 5)
        assert len(it.standings("a:p")) == 1


async def test_a_task_followed_anew_is_told_anew() -> None:
    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        return tasks_answer(how, tasks, RUNNING)

    async with looking(answer) as (it, _):
        it.follow("a:p")
        await it.shown("a:p")
        it.follow("a:p")
        await it.until(lambda: len(it.standings("a:p")) == 2)


async def test_a_hurried_look_at_a_task_whose_result_is_being_fetched_is_its_result() -> None:
    may_go = asyncio.Event()

    def answer(how: str, with_result: bool, tasks: list[str]) -> httpx.Response:
        if with_result and not may_go.is_set():
            return httpx.Response(503)
        return tasks_answer(how, tasks, {**SUCCEEDED, "result": 1} if with_result else SUCCEEDED)

    async with looking(answer) as (it, _):
        it.parks = True
        it.follow("a:p")
        await it.shown("a:p")
        it.source.poll_now("a:p")
        may_go.set()
        await it.ended("a:p")
        assert all(isinstance(standing, Task) for standing in it.standings("a:p"))


@pytest.mark.parametrize(
    ("pace_s", "expected"),
    [(0.0, {"p": 2, "q": 2, "all": 3}), (60.0, {"p": 1, "q": 1, "all": 1})],
    ids=["late answers", "answers in time"],
)
async def test_requests_go_beside_late_answers_but_no_more_than_allowed_and_one_is_kept_for_other_providers(
    pace_s: float, expected: dict[str, int]
) -> None:
    in_flight: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/session":
            return httpx.Response(201, json="token")
        if not request.url.path.startswith("/api/cis/tasks/"):
            return httpx.Response(404, text="404 page not found")
        provider = request.url.path.partition(":")[2]
        in_flight.update([provider, "all"])
        for name in (provider, "all"):
            most[name] = max(most[name], in_flight[name])
        await asyncio.sleep(0.005)
        in_flight.subtract([provider, "all"])
        return httpx.Response(200, json=RUNNING)

    given = Given("https://vcenter.test", max_concurrent_requests=3)
    timeouts, transport = SHORT_TIMEOUTS._replace(pace_s=pace_s), httpx.MockTransport(handle)
    source = CisSource(given, POLICY, Metrics(), timeouts=timeouts, http_transport=transport)
    async with source:
        it = Lab(SimulatedVCenter(), source, Metrics(), "")
        taking = asyncio.create_task(it.take())
        tasks = [f"{number}:{provider}" for number in range(20) for provider in "pq"]
        it.follow(*tasks)
        await it.until(lambda: min(it.looks(task) for task in tasks) >= 3)
        taking.cancel()
    assert most == expected


class TestCancel:
    def source(self, answer: httpx.Response) -> CisSource:
        def handle(request: httpx.Request) -> httpx.Response:
            return httpx.Response(201, json="token") if request.url.path.endswith("/session") else answer

        return CisSource(Given("https://vcenter.test"), POLICY, Metrics(), http_transport=httpx.MockTransport(handle))

    @pytest.mark.parametrize(
        ("status", "body", "code"),
        [
            (400, {"error_type": "UNSUPPORTED", "messages": []}, "not_cancelable"),
            (400, {"type": "com.vmware.vapi.std.errors.unsupported", "value": {"messages": []}}, "not_cancelable"),
            (400, {"error_type": "NOT_ALLOWED_IN_CURRENT_STATE", "messages": []}, "already_ended"),
            (403, {"error_type": "UNAUTHORIZED", "messages": []}, "forbidden"),
            (404, {"error_type": "NOT_FOUND", "messages": []}, "unknown_task"),
        ],
    )
    async def test_a_refusal_is_told_as_the_bridge_s_own(self, status: int, body: dict[str, Any], code: str) -> None:
        async with self.source(httpx.Response(status, json=body)) as source:
            with pytest.raises(Refused) as refused:
                await source.cancel("a:p")
        assert refused.value.code == code

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.Response(400, json={"error_type": "INVALID_ARGUMENT", "messages": []}),
            httpx.Response(404, text="404 page not found"),
            httpx.Response(500, json={"error_type": "RESOURCE_INACCESSIBLE", "messages": []}),
            httpx.Response(503, headers={"retry-after": "5"}),
        ],
    )
    async def test_what_says_nothing_about_the_task_is_unavailable(self, answer: httpx.Response) -> None:
        async with self.source(answer) as source:
            with pytest.raises(VCenterUnavailable):
                await source.cancel("a:p")

    @pytest.mark.parametrize("status", [200, 202, 204])
    async def test_any_2xx_is_a_yes(self, status: int) -> None:
        async with self.source(httpx.Response(status)) as source:
            await source.cancel("a:p")
