"""Tasks that vanish or are refused, over real HTTP: what ends a watch, and what must not."""

from __future__ import annotations

import time

import pytest
from structlog.testing import capture_logs

from task_bridge.simulator import faults, scenarios
from task_bridge.simulator.app import SimulatedVCenter
from task_bridge.simulator.options import Options
from vcenter_lab import POLICY, SHORT_TIMEOUTS, Lab, lab


def running(it: Lab, count: int) -> list[str]:
    return [it.vcenter.create(scenarios.runs_forever()) for _ in range(count)]


async def test_a_task_never_seen_is_lost_after_the_grace_and_two_questions() -> None:
    async with lab() as it:
        began = time.monotonic()
        it.follow("never:seen")
        absence = await it.gone("never:seen")
        assert absence.outcome == "lost"
        assert absence.answer.type == "NOT_FOUND"
        assert time.monotonic() - began >= POLICY.not_found_grace_s
        assert len(it.vcenter.request_log.of("get", "never:seen")) == 2


async def test_a_task_that_appears_within_the_grace_is_followed() -> None:
    async with lab() as it:
        it.follow("late:task")
        await it.until(lambda: it.vcenter.request_log.of("get", "late:task"))
        it.vcenter.create(scenarios.succeeds(after_s=0.1), id="late:task")
        await it.ended("late:task")
        assert not it.is_gone("late:task")


async def test_a_task_that_vanishes_is_lost_after_a_second_answer_some_time_later() -> None:
    async with lab() as it:
        gone, other = running(it, 2)
        it.follow(gone, other)
        await it.shown(gone, other)
        it.vcenter.forget(gone)
        assert (await it.gone(gone)).outcome == "lost"
        first, second = it.vcenter.request_log.of("get", gone)
        assert second.at - first.at >= SHORT_TIMEOUTS.confirm_s
        assert not it.vcenter.request_log.of("session")  # the other task was proof enough


async def test_the_only_task_followed_is_lost_when_vcenter_answers_for_the_session() -> None:
    async with lab() as it:
        (gone,) = running(it, 1)
        it.follow(gone)
        await it.shown(gone)
        checks = len(it.vcenter.request_log.of("session"))
        it.vcenter.forget(gone)
        await it.gone(gone)
        assert len(it.vcenter.request_log.of("session")) > checks


async def test_a_task_resumed_after_a_restart_counts_as_seen() -> None:
    async with lab(policy=POLICY._replace(not_found_grace_s=60.0)) as it:
        it.follow("purged:task", seen=True)
        assert (await it.gone("purged:task")).outcome == "lost"


async def test_a_refused_task_is_denied_after_two_answers() -> None:
    async with lab() as it:
        denied, other = running(it, 2)
        it.follow(denied, other)
        await it.shown(denied, other)
        it.vcenter.deny(denied)
        absence = await it.gone(denied)
        assert (absence.outcome, absence.answer.type) == ("denied", "UNAUTHORIZED")
        assert len(it.vcenter.request_log.of("get", denied)) == 2


async def test_a_task_that_comes_back_is_followed_on() -> None:
    async with lab(timeouts=SHORT_TIMEOUTS._replace(confirm_s=5.0)) as it:
        flapping, other = running(it, 2)
        it.follow(flapping, other)
        await it.shown(flapping, other)
        it.vcenter.hide(flapping)
        await it.until(lambda: it.vcenter.request_log.of("get", flapping))
        it.vcenter.unhide(flapping)
        await it.more_looks(flapping)
        assert not it.is_gone(flapping)


@pytest.mark.parametrize("old", [False, True])
async def test_a_router_s_404_never_ends_a_task(old: bool) -> None:
    async with lab(api="api") as it:
        (task,) = running(it, 1)
        it.follow(task)
        await it.shown(task)
        with it.vcenter.faults.during(faults.route_not_found(old), path="/cis/tasks"):
            gets = len(it.vcenter.request_log.of("get"))
            await it.until(lambda: len(it.vcenter.request_log.of("get")) >= gets + 6)
            await it.until(lambda: it.source.health.state == "degraded")
        await it.more_looks(task)
        assert not it.is_gone(task)
        await it.until(lambda: it.source.health.state == "ok")


@pytest.mark.parametrize(
    "fault",
    [
        faults.html_error(404, "Not Found"),
        faults.bad_gateway(),
        faults.connection_reset(),
        faults.service_unavailable(),
        faults.too_many_requests(),
        faults.resource_inaccessible(),
        faults.internal_server_error(),
        faults.unauthenticated(),
        faults.unauthenticated(empty=True),
    ],
    ids=["404 page", "502", "reset", "503", "429", "inaccessible", "500", "401", "empty 401"],
)
async def test_trouble_of_vcenter_ends_no_task(fault: faults.Effect) -> None:
    async with lab() as it:
        seen, *_ = tasks = [*running(it, 3), "never:seen"]
        it.follow(*tasks)
        await it.shown(seen)
        it.vcenter.faults.add(fault, for_s=0.6, path="/tasks")
        await it.until(lambda: it.source.health.state == "degraded")
        await it.until(lambda: it.source.health.state == "ok")
        await it.more_looks(seen)
        assert not any(it.is_gone(task) for task in tasks[:3])


@pytest.mark.parametrize("how", ["forget", "deny"])
async def test_three_that_vanish_together_are_held_and_told_about_and_end_after_a_time_of_answers(how: str) -> None:
    async with lab() as it:
        tasks = running(it, 3)
        (stays,) = running(it, 1)
        it.follow(*tasks, stays)
        await it.shown(*tasks, stays)
        with capture_logs() as logs:
            vanished = time.monotonic()
            for task in tasks:
                getattr(it.vcenter, how)(task)
            await it.until(lambda: it.source.health.vanished_reason)
            assert not any(it.is_gone(task) for task in tasks)
            for task in tasks:
                assert (await it.gone(task)).outcome == {"forget": "lost", "deny": "denied"}[how]
            assert time.monotonic() - vanished >= SHORT_TIMEOUTS.vanished_hold_s
            await it.until(lambda: it.source.health.vanished_reason is None)
        assert [line["event"] for line in logs if "vanished" in line["event"]] == [
            "tasks_vanished_together",
            "tasks_vanished_together_over",
        ]


async def test_a_restart_that_forgets_all_tasks_for_a_while_ends_none() -> None:
    async with lab(timeouts=SHORT_TIMEOUTS._replace(vanished_hold_s=30.0)) as it:
        tasks = running(it, 50)
        it.follow(*tasks)
        await it.shown(*tasks)
        for task in tasks:
            it.vcenter.hide(task)
        await it.until(lambda: it.source.health.vanished_reason)
        asked = len(it.vcenter.request_log.of("get"))
        lists = len(it.vcenter.request_log.of("list"))
        await it.until(lambda: len(it.vcenter.request_log.of("list")) > lists + 4)
        assert len(it.vcenter.request_log.of("get")) <= max(asked, 10)  # one by one it would take minutes
        for task in tasks:
            it.vcenter.unhide(task)
        await it.until(lambda: it.source.health.vanished_reason is None)
        before = {task: it.looks(task) for task in tasks}
        await it.until(lambda: all(it.looks(task) > before[task] for task in tasks))
        assert not any(it.is_gone(task) for task in tasks)


async def test_the_first_that_vanishes_makes_the_others_be_looked_at_before_it_is_given_up() -> None:
    policy = POLICY._replace(poll_max_s=60.0)
    async with lab(policy=policy, timeouts=SHORT_TIMEOUTS._replace(confirm_s=0.5, vanished_hold_s=60.0)) as it:
        tasks = running(it, 6)
        it.follow(*tasks, age_s=10_000.0)
        await it.shown(*tasks)
        for task in tasks:
            it.vcenter.hide(task)
        it.source.poll_now(tasks[0])  # the others would be due in a minute
        await it.until(lambda: it.source.health.vanished_reason)
        assert not any(it.is_gone(task) for task in tasks)


async def test_without_a_list_too_a_task_is_lost_only_by_two_answers() -> None:
    async with lab(SimulatedVCenter(Options(list_enabled=False))) as it:
        gone, other = running(it, 2)
        it.follow(gone, other)
        await it.shown(gone, other)
        it.vcenter.forget(gone)
        assert (await it.gone(gone)).outcome == "lost"
