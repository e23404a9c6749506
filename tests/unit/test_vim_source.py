"""When the source of classic tasks asks what. By virtual time, over a simulated vCenter without a network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.domain.ports import UNCHANGED, PollResult, Unanswered
from task_bridge.domain.task import Task
from task_bridge.metrics import Metrics
from task_bridge.simulator import faults, scenarios
from task_bridge.simulator.app import SimulatedVCenter
from task_bridge.vcenter.cis import CisSource
from task_bridge.vcenter.policy import PollPolicy, VimTimeouts
from task_bridge.vcenter.vim.soap import Ref
from task_bridge.vcenter.vim.source import VimSource
from vcenter_lab import Given
from virtual_time import run_in_virtual_time

NOW = 1_764_024_000.0
POLICY = PollPolicy(poll_min_s=1.0, poll_max_s=15.0, not_found_grace_s=30.0)


class Bench:
    """A vCenter and a source in front of it. `results`: what the source found, and when."""

    def __init__(self, **given: Any) -> None:
        self.clock = clock = asyncio.get_running_loop().time
        self.vcenter = SimulatedVCenter(clock=self.wall_clock, sleep=asyncio.sleep)
        settings = Given("https://vcenter.test", **given.pop("settings", {}))
        rng, metrics = random.Random(1), Metrics()
        transport = httpx.ASGITransport(app=self.vcenter)
        self.cis = CisSource(settings, POLICY, metrics, monotonic=clock, rng=rng, http_transport=transport)
        self.source = VimSource(
            self.cis.shared, settings, POLICY, metrics, clock=self.wall_clock, monotonic=clock, rng=rng, **given
        )
        self.results: list[tuple[float, str, PollResult]] = []

    def wall_clock(self) -> float:
        return NOW + self.clock()

    def create(self, **more: Any) -> str:
        return self.vcenter.create(scenarios.runs_forever(), flavour="vim", **more)

    def track(self, *tasks: str, seen: bool = False) -> None:
        for task in tasks:
            self.source.track(task, self.wall_clock(), begun=False, seen=seen, identity=None)

    async def take(self) -> None:
        async for batch in self.source.poll_results():
            for task, result in batch:
                self.results.append((self.clock(), task, result))
                if result is not UNCHANGED:
                    self.source.resume(task, quiet_until=0.0)

    def statuses(self, task: str) -> list[str]:
        return [result.status for _, found, result in self.results if found == task and isinstance(result, Task)]

    def found_at(self, status: str) -> float:
        return next(at for at, _, result in self.results if isinstance(result, Task) and result.status == status)

    def count(self, method: str) -> int:
        return len(self.vcenter.request_log.of(method))


def run(work: Callable[[Bench], Awaitable[None]], **given: Any) -> Bench:
    async def whole() -> Bench:
        bench = Bench(**given)
        async with bench.source:
            taking = asyncio.create_task(bench.take())
            await work(bench)
            taking.cancel()
        await bench.cis.__aexit__(None, None, None)
        return bench

    return run_in_virtual_time(whole())


def test_nothing_is_asked_of_vcenter_while_no_task_is_tracked() -> None:
    async def wait(bench: Bench) -> None:
        await asyncio.sleep(100)
        assert not bench.vcenter.request_log.of("Login")
        assert bench.source.report_health().state == "unknown"

    run(wait)


@pytest.mark.parametrize("mode", ["auto", "push"])
def test_a_change_is_pushed(mode: Any) -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        bench.track(task)
        await asyncio.sleep(4)
        assert bench.statuses(task) == ["RUNNING"]
        assert bench.found_at("RUNNING") <= 1
        bench.vcenter.set(task, status="SUCCEEDED")
        await asyncio.sleep(1)
        assert bench.statuses(task) == ["RUNNING", "SUCCEEDED"]
        assert bench.found_at("SUCCEEDED") <= 4.5
        assert bench.count("CreateListView") == bench.count("CreateFilter") == 1
        health = bench.source.report_health()
        assert (health.state, health.watches) == ("ok", 1)

    run(wait, mode=mode)


def test_with_pull_all_tasks_are_polled_together_every_two_seconds() -> None:
    async def wait(bench: Bench) -> None:
        tasks = [bench.create() for _ in range(3)]
        bench.track(*tasks)
        await asyncio.sleep(10.5)
        assert [bench.statuses(task) for task in tasks] == [["RUNNING"]] * 3
        bench.vcenter.set(tasks[0], status="SUCCEEDED")
        await asyncio.sleep(2.1)
        assert bench.statuses(tasks[0]) == ["RUNNING", "SUCCEEDED"]
        assert 6 <= bench.count("RetrievePropertiesEx") - 1 <= 9
        assert not bench.count("CreateListView")

    run(wait, mode="pull")


def test_one_request_at_a_time_leaves_no_room_for_push() -> None:
    async def wait(bench: Bench) -> None:
        bench.track(bench.create())
        await asyncio.sleep(5)
        assert not bench.count("CreateListView")
        assert bench.count("RetrievePropertiesEx") >= 3

    run(wait, settings={"max_concurrent_requests": 1})


def test_tasks_that_come_together_are_listed_together() -> None:
    async def wait(bench: Bench) -> None:
        bench.track(bench.create())
        await asyncio.sleep(5)
        before = bench.count("ModifyListView")
        for _ in range(5):
            bench.track(bench.create())
            await asyncio.sleep(0.015)
        await asyncio.sleep(1)
        assert 1 <= bench.count("ModifyListView") - before <= 3  # with their VM

    run(wait)


def test_a_session_that_nobody_needs_is_ended_after_a_minute() -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        bench.track(task)
        await asyncio.sleep(10)
        bench.source.forget(task)
        await asyncio.sleep(49)
        assert bench.count("Logout") == 0
        await asyncio.sleep(3)
        assert bench.count("Logout") == 1
        assert bench.source.report_health().state == "unknown"
        bench.track(task)
        await asyncio.sleep(1)
        assert bench.count("Login") == 2
        assert bench.statuses(task) == ["RUNNING", "RUNNING"]

    run(wait)


def test_a_task_that_is_asked_for_is_polled_at_once() -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        bench.track(task)
        await asyncio.sleep(2.5)
        before = len(bench.results)
        bench.source.poll_now(task)
        await asyncio.sleep(0.1)
        assert [result for _, _, result in bench.results[before:]] == [UNCHANGED]

    run(wait)


def test_while_vcenter_is_away_whoever_asks_gets_an_answer_at_once() -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        bench.track(task)
        await asyncio.sleep(5)
        with bench.vcenter.faults.during(faults.gateway_unavailable()):
            await asyncio.sleep(60)
            assert bench.source.report_health().state == "degraded"
            bench.source.poll_now(task)
            await asyncio.sleep(0.01)
            assert isinstance(bench.results[-1][2], Unanswered)
            with pytest.raises(VCenterUnavailable):
                await bench.source.fetch_identity(task)
        await asyncio.sleep(20)
        assert bench.source.report_health().state == "ok"
        bench.vcenter.set(task, status="SUCCEEDED")
        await asyncio.sleep(2)
        assert bench.statuses(task)[-1] == "SUCCEEDED"

    run(wait)


def test_a_vcenter_that_came_back_after_all_tasks_were_forgotten_is_not_told_as_away() -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        bench.track(task)
        await asyncio.sleep(5)
        with bench.vcenter.faults.during(faults.gateway_unavailable()):
            await asyncio.sleep(60)
            assert bench.source.report_health().state == "degraded"
            bench.source.forget(task)
            await asyncio.sleep(1)
            assert bench.source.report_health().state == "unknown"

    run(wait)


def test_a_session_that_ends_is_begun_again_without_a_word() -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        bench.track(task)
        await asyncio.sleep(5)
        bench.vcenter.invalidate_sessions()
        await asyncio.sleep(5)
        bench.vcenter.set(task, status="SUCCEEDED")
        await asyncio.sleep(1)
        assert bench.statuses(task) == ["RUNNING", "SUCCEEDED"]
        assert (bench.count("Login"), bench.count("CreateListView")) == (2, 2)

    with capture_logs() as logs:
        run(wait)
    assert not [log for log in logs if log["event"] in ("push_lost", "vcenter_unavailable")]


def test_a_push_that_fails_three_times_gives_way_to_polls_for_ten_minutes() -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        bench.track(task)
        with bench.vcenter.faults.during(faults.soap_fault(), operation="WaitForUpdatesEx"):
            await asyncio.sleep(60)
        bench.vcenter.set(task, status="BLOCKED")
        await asyncio.sleep(3)
        assert bench.statuses(task)[-1] == "BLOCKED"
        waits = bench.count("WaitForUpdatesEx")
        await asyncio.sleep(500)
        assert bench.count("WaitForUpdatesEx") == waits
        await asyncio.sleep(120)
        assert bench.count("WaitForUpdatesEx") > waits

    with capture_logs() as logs:
        run(wait)
    assert [log["event"] for log in logs if log["event"].startswith("push_")] == ["push_lost"] * 3 + ["push_given_up"]


def test_losses_of_push_that_are_far_apart_are_no_reason_to_give_it_up() -> None:
    async def wait(bench: Bench) -> None:
        bench.track(bench.create())
        for _ in range(4):
            with bench.vcenter.faults.during(faults.soap_fault(), operation="WaitForUpdatesEx", times=1):
                await asyncio.sleep(160)

    with capture_logs() as logs:
        run(wait)
    assert "push_given_up" not in [log["event"] for log in logs]


def test_an_end_that_a_poll_shows_and_push_does_not_loses_push() -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        bench.track(task)
        await asyncio.sleep(3)
        with bench.vcenter.faults.during(faults.silent(), operation="WaitForUpdatesEx"):
            await asyncio.sleep(31)  # until the wait that is under way has ended
            bench.vcenter.set(task, status="SUCCEEDED")
            ended_at = bench.clock()
            await asyncio.sleep(10)
            assert bench.statuses(task) == ["RUNNING", "SUCCEEDED"]
            assert bench.found_at("SUCCEEDED") - ended_at <= 5.5
            assert bench.count("CreateListView") == 2

    with capture_logs() as logs:
        run(wait)
    (lost,) = [log for log in logs if log["event"] == "push_lost"]
    assert "doesn't show ends" in lost["reason"]


def test_a_task_that_was_never_reported_goes_on_after_an_outage() -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        with bench.vcenter.faults.during(faults.gateway_unavailable()):
            bench.track(task)
            await asyncio.sleep(20)
            bench.source.poll_now(task)
            await asyncio.sleep(1)
            assert [type(result) for _, _, result in bench.results] == [Unanswered]
        await asyncio.sleep(20)
        assert bench.statuses(task) == ["RUNNING"]

    with capture_logs() as logs:
        run(wait)
    assert not [log for log in logs if log["event"] == "task_not_readable"]


def test_other_replicas_that_miss_more_tasks_have_all_polled_at_once() -> None:
    async def wait(bench: Bench) -> None:
        bench.track(bench.create(), bench.create())
        await asyncio.sleep(3)
        before, results = bench.count("RetrievePropertiesEx"), len(bench.results)
        for _ in range(2):
            bench.source.set_absent_elsewhere(2)
            await asyncio.sleep(0.2)
            assert bench.count("RetrievePropertiesEx") == before + 1
        assert len(bench.results) == results + 2

    run(wait)


def test_names_are_looked_up_in_the_session() -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        bench.track(task)
        await asyncio.sleep(1)
        ((_, _, shown),) = bench.results
        assert isinstance(shown, Task)
        assert shown.target is not None
        ref = Ref(shown.target.type or "", shown.target.id or "")
        entities = await bench.source.fetch_entities([ref], lambda: asyncio.sleep(0))
        assert ref in entities
        assert bench.count("Login") == 1

    run(wait)


def test_an_idle_lookup_keeps_the_session_while_it_is_used() -> None:
    async def wait(bench: Bench) -> None:
        await bench.source.prepare_lookup()
        await asyncio.sleep(1.5)
        assert bench.count("Logout") == 0
        await asyncio.sleep(1)
        assert bench.count("Logout") == 1

    run(wait, vim_timeouts=VimTimeouts(idle_logout_s=2.0))


def test_a_task_that_is_canceled_after_its_session_ended_is_canceled() -> None:
    async def wait(bench: Bench) -> None:
        task = bench.create()
        bench.track(task)
        await asyncio.sleep(3)
        bench.vcenter.invalidate_sessions()
        await bench.source.cancel(task)
        identity = await bench.source.fetch_identity(task)
        assert identity is not None
        assert identity.queued_at == pytest.approx(NOW, abs=0.01)
        assert bench.count("CancelTask") == 2

    run(wait)


def test_a_source_that_is_left_ends_its_session_and_asks_nothing_more() -> None:
    async def leave() -> None:
        bench = Bench()
        async with bench.source:
            bench.track(bench.create())
            await asyncio.sleep(3)
        assert bench.count("Logout") == 1
        waits = bench.count("WaitForUpdatesEx")
        await asyncio.sleep(60)
        assert bench.count("WaitForUpdatesEx") == waits
        await bench.cis.__aexit__(None, None, None)

    run_in_virtual_time(leave())
