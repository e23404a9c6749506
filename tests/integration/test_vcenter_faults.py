"""What one task, one answer or a vCenter in trouble does to the others: nothing, and no state is invented."""

from __future__ import annotations

from functools import partial

import pytest
from structlog.testing import capture_logs

from task_bridge.domain.task import UNAVAILABLE, Rendering, Task
from task_bridge.domain.task_json import parse_raw_task
from task_bridge.simulator import faults, scenarios
from task_bridge.simulator.app import SimulatedVCenter
from task_bridge.simulator.serve import serve_vcenter
from task_bridge.vcenter import parsing
from task_bridge.vcenter.cis import poller
from vcenter_lab import SHORT_TIMEOUTS, Lab, lab, looking_at, tls


def running(it: Lab, count: int) -> list[str]:
    return [it.vcenter.create(scenarios.runs_forever()) for _ in range(count)]


async def states_while_failing(it: Lab, poisoned: list[str], others: list[str]) -> set[str]:
    """The states of health while the poisoned tasks fail some times and the others are looked at."""
    states: set[str] = set()

    def seen() -> bool:
        states.add(it.source.health.state)
        return all(it.source._tracker.tasks[task].failures >= 4 for task in poisoned)

    await it.until(seen)
    await it.more_looks(others[0], 5)
    return states


def has_failed(it: Lab, task: str) -> bool:
    return it.source._tracker.tasks[task].failures > 0


async def test_bad_tasks_among_good_ones_are_told_once_each_and_make_no_health_flap() -> None:
    with capture_logs() as logs:
        async with lab() as it:
            unreadable, refused, paged = poisoned = running(it, 3)
            others = running(it, 5)
            it.follow(*others)
            await it.shown(*others)
            it.vcenter.set(unreadable, "status")
            for task, fault in ((refused, faults.internal_server_error()), (paged, faults.html_error(500))):
                it.vcenter.faults.add(faults.internal_server_error(), operation="list", task=task)
                it.vcenter.faults.add(fault, operation="get", task=task)
            for task in poisoned:  # one by one: a list that is refused as a whole is vCenter's trouble
                it.follow(task)
                await it.until(partial(has_failed, it, task))
            assert await states_while_failing(it, poisoned, others) == {"ok"}
            assert [it.standings(task) for task in poisoned] == [[], [], []]
            it.vcenter.faults.clear()
            it.vcenter.set(unreadable, status="RUNNING")
            await it.shown(*poisoned)
    told = [(line["event"], line["task"]) for line in logs if line["log_level"] != "debug"]
    expected = [(event, task) for event in ("task_not_readable", "task_readable_again") for task in poisoned]
    assert sorted(told) == sorted(expected)


async def test_many_that_fail_in_a_row_are_vcenters_trouble_however_many_there_are() -> None:
    async with lab() as it:
        it.follow(*(tasks := running(it, 100)))
        await it.shown(*tasks)
        states = []
        for task in tasks[: poller._FAILING_MAX + 1]:
            it.source._poller._record_failed_poll(it.source._tracker.tasks[task], "It failed.")
            states.append(it.source.health.state)
        assert states == ["ok"] * poller._FAILING_MAX + ["degraded"]


async def test_a_fault_of_the_bridge_s_own_over_one_task_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(body: bytes, rendering: Rendering, **options: bool) -> Task:
        if b"poison" in bytes(body):
            raise ZeroDivisionError
        return parse_raw_task(body, rendering, **options)

    monkeypatch.setattr(parsing, "parse_raw_task", read)
    with capture_logs() as logs:
        async with lab() as it:
            (poisoned,) = running(it, 1)
            others = running(it, 5)
            it.vcenter.set(poisoned, operation="poison")
            it.follow(poisoned, *others)
            await it.shown(*others)
            assert await states_while_failing(it, [poisoned], others) == {"ok"}
            assert it.standings(poisoned) == []
            it.vcenter.set(poisoned, operation="none")
            await it.shown(poisoned)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["look_failed"]


@pytest.mark.parametrize(
    ("fault", "result_s"),
    [
        (faults.task_not_found(), 8.0),
        (faults.internal_server_error(), 0.5),
        (faults.html_error(500), 0.5),
        (faults.truncated_json(), 0.5),
    ],
    ids=["purged", "500", "500 page", "truncated"],
)
async def test_a_result_that_can_not_be_had_is_unavailable_and_the_task_ended_all_the_same(
    fault: faults.Effect, result_s: float
) -> None:
    with capture_logs() as logs:
        async with lab(timeouts=SHORT_TIMEOUTS._replace(result_s=result_s)) as it:
            task = it.vcenter.create(scenarios.succeeds_at_once())
            it.vcenter.faults.add(faults.delayed(0.0), operation="list", times=1)  # the look
            it.vcenter.faults.add(faults.internal_server_error(), operation="list")
            it.vcenter.faults.add(fault, operation="get")
            it.follow(task)
            ended = await it.ended(task)
            assert (ended.status, ended.result) == ("SUCCEEDED", UNAVAILABLE)
    assert [line["event"] for line in logs].count("result_unavailable") == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("fault", [faults.delayed(3_600), faults.stalled_body(20)], ids=["headers", "body"])
async def test_an_answer_that_stalls_is_waited_for_so_long_and_invents_nothing(
    fault: faults.Effect, scheme: str
) -> None:
    async with lab(timeout_s=0.2, scheme=scheme) as it:
        tasks = running(it, 3)
        it.follow(*tasks)
        await it.shown(*tasks)
        it.vcenter.faults.add(fault, path="/tasks")
        await it.until(lambda: it.source.health.state == "degraded")
        assert "doesn't answer in time" in str(it.source.health.reason)
        it.vcenter.set(tasks[0], status="BLOCKED")
        it.vcenter.faults.clear()
        await it.until(lambda: it.statuses(tasks[0]) == ["RUNNING", "BLOCKED"])
        await it.until(lambda: it.source.health.state == "ok")
        assert [len(it.standings(task)) for task in tasks] == [2, 1, 1]


async def test_a_key_that_stands_there_twice_counts_by_its_last_value() -> None:
    async with lab() as it:
        it.vcenter.faults.add(faults.duplicate_keys(), path="/tasks")  # FAILED, then RUNNING
        (task,) = running(it, 1)
        it.follow(task)
        await it.shown(task)
        it.source.poll_now(task)
        await it.more_looks(task)
        assert it.statuses(task) == ["RUNNING"]


@pytest.mark.parametrize(("path", "status"), [("/session", 307), ("/tasks", 302), ("/tasks", 307)])
async def test_a_redirect_to_another_host_is_not_followed(path: str, status: int) -> None:
    other = SimulatedVCenter()
    async with serve_vcenter(other, ssl=tls("https")) as elsewhere, lab() as it:
        to_it = faults.Effect(status=status, headers=(("location", f"{elsewhere}/api{path}"),))
        (task,) = running(it, 1)
        it.vcenter.faults.add(to_it, path=path)
        it.follow(task)
        await it.until(lambda: it.source.health.state == "degraded")
        assert it.standings(task) == []
        it.vcenter.faults.clear()
        await it.shown(task)
        assert not other.request_log.requests


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_restart_of_vcenter_from_refusing_to_forgetting_to_knowing_ends_no_task(scheme: str) -> None:
    vcenter = SimulatedVCenter()
    async with serve_vcenter(vcenter, ssl=tls(scheme)) as url:
        port = int(url.rsplit(":", 1)[1])
    async with looking_at(vcenter, url, timeouts=SHORT_TIMEOUTS._replace(vanished_hold_s=30.0)) as it:
        await it.until(lambda: "refuses the connection" in str(it.source.health.reason))
        tasks = running(it, 5)
        it.follow(*tasks)
        async with serve_vcenter(vcenter, port=port, ssl=tls(scheme)):
            await it.shown(*tasks)
            await it.until(lambda: it.source.health.state == "ok")
        await it.until(lambda: it.source.health.state == "degraded")
        vcenter.sessions.invalidate()
        for task in tasks:
            vcenter.hide(task)
        async with serve_vcenter(vcenter, port=port, ssl=tls(scheme)):
            await it.until(lambda: it.source.health.vanished_reason)
            for task in tasks:
                vcenter.set(task, status="SUCCEEDED")
                vcenter.unhide(task)
            for task in tasks:
                await it.ended(task)
        assert {status for task in tasks for status in it.statuses(task)} == {"RUNNING", "SUCCEEDED"}
        assert not any(it.is_gone(task) for task in tasks)
