"""When the source of CIS tasks sends which request. By virtual time, to the millisecond."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from task_bridge.domain.ports import UNCHANGED, PollResult, Unanswered
from task_bridge.domain.task import Task
from task_bridge.metrics import Metrics
from task_bridge.vcenter.cis import CisSource
from task_bridge.vcenter.policy import PollPolicy, Timeouts
from vcenter_lab import Given
from virtual_time import run_in_virtual_time

NOW = 1_764_024_000.0
POLICY = PollPolicy(poll_min_s=1.0, poll_max_s=15.0, not_found_grace_s=30.0)
HOUR_S = 3_600.0
PROVIDERS = "pqrstuvw"


class Vcenter:
    """Shows every task with `status`, after `answers_after_s`. While it is `down`, nothing is answered."""

    def __init__(self) -> None:
        self.status = "RUNNING"
        self.answers_after_s = 0.0
        self.down = False
        self.has_lists = True
        self.bugs = 0
        self.asked: list[tuple[float, str, list[str]]] = []
        self.in_flight = self.most_in_flight = self.finished = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/api/session":
            self._note(request.method, [])
            if self.down:
                raise httpx.ConnectError("nobody is there", request=request)
            return httpx.Response(201, json="token") if request.method == "POST" else httpx.Response(200, json={})
        listed = path == "/api/cis/tasks"
        if not listed and not path.startswith("/api/cis/tasks/"):
            return httpx.Response(404, text="404 page not found")
        if listed and not self.has_lists:
            return httpx.Response(307, headers={"location": "/api/cis/tasks/"})
        body = json.loads(request.content) if listed else {}
        tasks = body["filter_spec"]["tasks"] if listed else [path.removeprefix("/api/cis/tasks/")]
        with_result = listed and not body.get("result_spec", {}).get("exclude_result", False)
        self._note("result" if with_result else "list" if listed else "get", tasks)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.answers_after_s)
        finally:
            self.in_flight -= 1
        self.finished += 1
        if self.bugs:
            self.bugs -= 1
            raise RuntimeError("a bug")
        if self.down:
            raise httpx.ConnectError("nobody is there", request=request)
        info = {"status": self.status}
        return httpx.Response(200, json=dict.fromkeys(tasks, info) if listed else info)

    def _note(self, what: str, tasks: list[str]) -> None:
        self.asked.append((asyncio.get_running_loop().time(), what, tasks))

    def times(self, *kinds: str) -> list[float]:
        return [round(at, 3) for at, what, _ in self.asked if what in (kinds or ("list", "get", "result"))]

    def tasks(self) -> set[str]:
        return {task for _, _, tasks in self.asked for task in tasks}


class Bench:
    """A source in front of this vCenter. `results`: what it found, and when."""

    def __init__(self, vcenter: Vcenter, **given: Any) -> None:
        clock = asyncio.get_running_loop().time
        timeouts: Timeouts = given.pop("timeouts", Timeouts())
        self.resumes = True
        self.results: list[tuple[float, str, PollResult]] = []
        self.source = CisSource(
            Given("https://vcenter.test", **given),
            POLICY,
            Metrics(),
            clock=lambda: NOW + clock(),
            monotonic=clock,
            rng=random.Random(1),
            timeouts=timeouts,
            http_transport=httpx.MockTransport(vcenter),
        )
        self.clock = clock

    async def take(self) -> None:
        async for batch in self.source.poll_results():
            for task, result in batch:
                self.results.append((round(self.clock(), 3), task, result))
                if self.resumes and result is not UNCHANGED:
                    self.source.resume(task, quiet_until=0.0)

    def track(self, *tasks: str, age_s: float = HOUR_S, **more: Any) -> None:
        for task in tasks:
            self.source.track(task, NOW + self.clock() - age_s, **{"seen": True, "with_result": False, **more})

    def found(self, task: str) -> list[PollResult]:
        return [result for _, found, result in self.results if found == task]


def run(vcenter: Vcenter, work: Callable[[Bench], Awaitable[None]], **given: Any) -> Bench:
    """Run this with a source, and leave the source afterwards."""

    async def whole() -> Bench:
        bench = Bench(vcenter, **given)
        async with bench.source:
            taking = asyncio.create_task(bench.take())
            await work(bench)
            taking.cancel()
        return bench

    return run_in_virtual_time(whole())


# When nothing is tracked


def test_vcenter_is_checked_once_a_minute_while_no_task_is_tracked() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        await asyncio.sleep(130)
        assert bench.source.report_health().state == "ok"
        assert bench.source.report_health().last_good_poll_at == 120.0
        bench.track("a:p")
        await asyncio.sleep(100)

    run(vcenter, wait)
    assert vcenter.times("POST", "GET") == [0.0, 0.0, 60.0, 120.0]


def test_a_vcenter_that_is_away_is_asked_less_and_less_often_until_it_is_back() -> None:
    vcenter = Vcenter()
    vcenter.down = True

    async def wait(bench: Bench) -> None:
        await asyncio.sleep(40)
        assert bench.source.report_health().state == "degraded"
        vcenter.down = False
        await asyncio.sleep(16)
        assert bench.source.report_health().state == "ok"

    run(vcenter, wait)
    times = [at for at in vcenter.times("POST") if at < 40]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert 4 <= len(times) <= 10
    assert all(low <= pause <= high for pause, low, high in zip(pauses, (0.5, 1, 2, 4), (1, 2, 4, 8), strict=False))


# Polls


def test_a_new_task_is_polled_at_once_and_then_by_its_age() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        await asyncio.sleep(7.5)
        bench.track("a:p", age_s=0.0)
        await asyncio.sleep(4)
        assert bench.source.report_health().watches == 1

    bench = run(vcenter, wait)
    first, *others = vcenter.times()
    assert first == 7.5
    assert 2 <= len(others) <= 4
    assert all(1.0 <= after - before <= 1.3 for before, after in itertools.pairwise([first, *others]))
    assert isinstance(bench.found("a:p")[0], Task)


def test_polls_are_gathered_under_load() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        await asyncio.sleep(1)
        for number in range(200):
            bench.track(f"{number}:p")
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)

    run(vcenter, wait)
    assert len(vcenter.tasks()) == 200
    # One in a tenth of a second, five that needn't wait, and two more of these a second.
    assert 20 <= len(vcenter.times()) <= 21 + 5 + 5
    times = vcenter.times()
    assert sum(after - before < 0.099 for before, after in itertools.pairwise(times)) >= 4


def test_tasks_of_one_provider_that_come_together_are_listed_together() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        bench.track("a:p", "b:p", "c:q")
        await asyncio.sleep(0.5)

    run(vcenter, wait)
    assert [tasks for _, what, tasks in vcenter.asked if what == "list"] == [["a:p", "b:p"], ["c:q"]]


def test_so_many_requests_are_in_flight_as_may_be_and_no_more() -> None:
    vcenter = Vcenter()
    vcenter.answers_after_s = 1.0

    async def wait(bench: Bench) -> None:
        bench.track(*(f"a:{provider}" for provider in PROVIDERS))
        await asyncio.sleep(2.5)

    run(vcenter, wait)
    assert vcenter.most_in_flight == 4
    assert vcenter.tasks() == {f"a:{provider}" for provider in PROVIDERS}


def test_the_budget_of_requests_is_kept() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        bench.track(*(f"a:{provider}{number}" for provider in PROVIDERS for number in range(10)))
        await asyncio.sleep(10)
        assert bench.source.budget_used > 0.4
        await asyncio.sleep(50)

    run(vcenter, wait, max_requests_per_second=2.0)
    assert 18 <= len([at for at in vcenter.times() if at <= 10]) <= 22
    assert len(vcenter.tasks()) == 80


def test_without_lists_tasks_are_polled_as_often_as_the_budget_allows() -> None:
    vcenter = Vcenter()
    vcenter.has_lists = False

    async def wait(bench: Bench) -> None:
        bench.track(*(f"{number}:p" for number in range(40)))
        await asyncio.sleep(120)
        assert bench.source.budget_used == pytest.approx(40 / 14.2 / 0.8, rel=0.1)

    run(vcenter, wait, max_requests_per_second=1.0)
    polls = [at for at in vcenter.times("get") if at > 60]
    assert len(polls) == pytest.approx(60 * 0.8, rel=0.15)
    assert len(vcenter.tasks()) == 40


def test_a_budget_that_is_not_needed_is_not_spent() -> None:
    async def wait(bench: Bench) -> None:
        bench.track("a:p")
        await asyncio.sleep(30)
        assert bench.source.budget_used == pytest.approx(0.0, abs=0.01)

    run(Vcenter(), wait)


def test_a_task_that_is_resumed_is_polled_when_it_is_due() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        bench.resumes = False
        bench.track("a:p")
        await asyncio.sleep(100)
        assert vcenter.times() == [0.0]
        bench.source.resume("a:p", quiet_until=0.0)
        await asyncio.sleep(1)

    run(vcenter, wait)
    assert vcenter.times() == [0.0, 100.0]


def test_a_task_that_is_asked_for_is_polled_at_once() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        bench.track("a:p")
        await asyncio.sleep(5)
        bench.source.poll_now("a:p")
        await asyncio.sleep(1)

    run(vcenter, wait)
    assert vcenter.times() == [0.0, 5.0]


def test_a_task_that_is_forgotten_is_not_polled() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        bench.track("a:p")
        await asyncio.sleep(1)
        bench.source.forget("a:p")
        await asyncio.sleep(50)

    run(vcenter, wait)
    assert vcenter.times() == [0.0]


def test_polls_and_results_take_turns() -> None:
    """Requests for the results of ended tasks neither hold up the polls of others nor wait for all of them."""
    vcenter = Vcenter()
    vcenter.answers_after_s = 0.5
    vcenter.status = "SUCCEEDED"

    async def wait(bench: Bench) -> None:
        bench.track(*(f"a:{provider}" for provider in PROVIDERS))
        await asyncio.sleep(0.9)

    run(vcenter, wait)
    kinds = [what for _, what, _ in vcenter.asked if what in ("list", "result")]
    assert kinds == ["list"] * 4 + ["result", "list"] * 2


# While vCenter is away


def test_while_vcenter_is_away_whoever_asks_gets_an_answer_at_once() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        bench.track("a:p", "b:p")
        await asyncio.sleep(1)
        vcenter.down = True
        await asyncio.sleep(60)
        assert bench.source.report_health().state == "degraded"
        asked_at = round(bench.clock(), 3)
        bench.source.poll_now("b:p")
        await asyncio.sleep(0.001)
        at, task, result = bench.results[-1]
        assert (task, type(result)) == ("b:p", Unanswered)
        assert at - asked_at < 0.01

    run(vcenter, wait)


def test_while_vcenter_is_away_polls_pause_for_longer_and_longer() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        bench.track(*(f"a:{provider}" for provider in PROVIDERS))
        await asyncio.sleep(20)
        vcenter.down, vcenter.most_in_flight = True, 0
        await asyncio.sleep(100)
        assert len([at for at in vcenter.times() if at > 60]) <= 60 / 7.5 + 1
        vcenter.down = False
        await asyncio.sleep(30)
        assert bench.source.report_health().state == "ok"

    run(vcenter, wait)
    after = [tasks for at, what, tasks in vcenter.asked if at > 120 and what == "list"]
    assert {task for tasks in after for task in tasks} == {f"a:{provider}" for provider in PROVIDERS}


def test_other_replicas_that_miss_more_tasks_have_all_polled_at_once() -> None:
    vcenter = Vcenter()

    async def wait(bench: Bench) -> None:
        bench.track("a:p", "b:p")
        await asyncio.sleep(30)
        vcenter.asked.clear()
        bench.source.set_absent_elsewhere(2)
        await asyncio.sleep(0.2)
        assert vcenter.tasks() == {"a:p", "b:p"}
        vcenter.asked.clear()
        await asyncio.sleep(3)
        bench.source.set_absent_elsewhere(2)
        await asyncio.sleep(0.2)
        assert not vcenter.asked

    run(vcenter, wait)


# Faults of the bridge


def test_a_bug_in_a_request_is_told_and_the_task_is_polled_again() -> None:
    vcenter = Vcenter()
    vcenter.bugs = 1

    async def wait(bench: Bench) -> None:
        bench.track("a:p")
        await asyncio.sleep(20)

    with capture_logs() as logs:
        bench = run(vcenter, wait)
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["look_failed"]
    assert bench.results[0][:2] == (1.0, "a:p")


# The end


async def _leave(vcenter: Vcenter, **given: Any) -> float:
    """Leave a source while a request is under way. Return how long that takes."""
    bench = Bench(vcenter, **given)
    async with bench.source:
        bench.track("a:p")
        await asyncio.sleep(0.1)
        began = bench.clock()
    return round(bench.clock() - began, 3)


def test_requests_that_are_under_way_may_finish_and_the_session_ends() -> None:
    vcenter = Vcenter()
    vcenter.answers_after_s = 0.3
    assert run_in_virtual_time(_leave(vcenter)) == pytest.approx(0.2)
    assert vcenter.finished == 1
    assert vcenter.times("DELETE") == [0.3]


def test_a_request_that_hangs_is_not_waited_for() -> None:
    vcenter = Vcenter()
    vcenter.answers_after_s = 100.0
    assert run_in_virtual_time(_leave(vcenter)) == pytest.approx(0.3)
    assert vcenter.finished == 0
    assert vcenter.times("DELETE") == [0.4]


def test_a_source_that_is_left_polls_nothing_and_ends_its_results() -> None:
    vcenter = Vcenter()

    async def leave() -> None:
        bench = Bench(vcenter)
        async with bench.source:
            bench.track("a:p")
            taking = asyncio.create_task(bench.take())
            await asyncio.sleep(1)
        async with asyncio.timeout(1):
            await taking
        asked = len(vcenter.asked)
        await asyncio.sleep(100)
        assert len(vcenter.asked) == asked

    run_in_virtual_time(leave())


def test_a_source_that_was_never_entered_can_be_left() -> None:
    async def leave() -> None:
        await Bench(Vcenter()).source.__aexit__(None, None, None)

    run_in_virtual_time(leave())
