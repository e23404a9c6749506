"""Tasks that vanish or are refused, over real HTTP: what ends a watch, and what must not."""

from __future__ import annotations

import time

import pytest
from structlog.testing import capture_logs

from task_bridge.domain.errors import Refused, VCenterUnavailable
from task_bridge.simulator import faults, scenarios
from task_bridge.simulator.app import SimulatedVCenter
from task_bridge.simulator.options import Options
from vcenter_lab import POLICY, SHORT_TIMEOUTS, Lab, lab


def running(it: Lab, count: int) -> list[str]:
    return [it.vcenter.create(scenarios.runs_forever()) for _ in range(count)]


PROVIDER = "com.vmware.esx.settings.clusters.software"
ANOTHER = "com.vmware.appliance.vcenter.settings.v1.config"


async def test_a_task_never_seen_is_lost_after_the_grace() -> None:
    async with lab() as it:
        began = time.monotonic()
        it.follow("never:seen")
        absence = await it.gone("never:seen")
        assert absence.outcome == "lost"
        assert absence.answer.type == "NOT_FOUND"
        assert time.monotonic() - began >= POLICY.not_found_grace_s
        assert len(it.vcenter.request_log.of("get", "never:seen")) >= 2


async def test_of_many_tasks_never_seen_each_is_asked_about_alone_only_twice_or_so() -> None:
    async with lab() as it:
        tasks = [f"{number}:seen" for number in range(30)]
        it.follow(*tasks)
        for task in tasks:
            assert (await it.gone(task)).outcome == "lost"
        assert len(it.vcenter.request_log.of("get")) <= 3 * len(tasks)  # lists ask about all in between


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


@pytest.mark.parametrize("how", ["forget", "deny"])
@pytest.mark.parametrize("other", [None, ANOTHER], ids=["alone", "beside another provider's"])
async def test_a_task_without_another_of_its_provider_ends_after_answers_for_a_while(
    how: str, other: str | None
) -> None:
    """A session that works, or another provider's task, proves nothing about the service that lost the task."""
    async with lab() as it:
        gone = it.vcenter.create(scenarios.runs_forever(), service=PROVIDER)
        others = [it.vcenter.create(scenarios.runs_forever(), service=other)] if other else []
        it.follow(gone, *others)
        await it.shown(gone, *others)
        vanished = time.monotonic()
        getattr(it.vcenter, how)(gone)
        assert (await it.gone(gone)).outcome == {"forget": "lost", "deny": "denied"}[how]
        assert time.monotonic() - vanished >= SHORT_TIMEOUTS.uninterrupted_s
        assert not it.vcenter.request_log.of("session")


NOT_ABOUT_THE_TASK = {
    "router": faults.route_not_found(),
    "old router": faults.route_not_found(old=True),
    "proxy": faults.html_error(404, "Not Found"),
    "plain text": faults.answer(404, "404 page not found", "text/plain"),
    "empty": faults.answer(404),
    "a gateway's JSON": faults.answer(404, '{"type":"not_found","message":"no such backend"}'),
    "no provider": faults.provider_not_found(PROVIDER),
    "no operation": faults.operation_not_found(),
    "503 page": faults.gateway_unavailable(),
    "forbidden page": faults.html_error(403, "Forbidden"),
}


@pytest.mark.parametrize("api", ["api", "rest"])
@pytest.mark.parametrize("answer", NOT_ABOUT_THE_TASK)
async def test_an_answer_that_is_not_about_the_task_ends_none_though_another_provider_s_is_shown(
    answer: str, api: str
) -> None:
    async with lab(api=api) as it:
        task, never = (it.vcenter.create(scenarios.runs_forever(), service=PROVIDER) for _ in range(2))
        other = it.vcenter.create(scenarios.runs_forever(), service=ANOTHER)
        it.follow(task, other)
        await it.shown(task, other)
        with it.vcenter.faults.during(NOT_ABOUT_THE_TASK[answer], provider=PROVIDER):
            it.follow(never)
            began, looks = time.monotonic(), it.looks(other)
            longest_s = max(SHORT_TIMEOUTS.uninterrupted_s, POLICY.not_found_grace_s)
            await it.until(lambda: time.monotonic() > began + 2 * longest_s and it.looks(other) > looks + 3)
            assert not it.is_gone(task)
            assert not it.is_gone(never)
            assert it.source.absent_count == 0
        it.vcenter.set(task, status="SUCCEEDED")
        await it.ended(task)
        await it.shown(never)


async def test_a_router_s_answer_between_interrupts_what_the_service_said() -> None:
    async with lab(timeouts=SHORT_TIMEOUTS._replace(uninterrupted_s=1.5)) as it:
        (task,) = running(it, 1)
        it.follow(task)
        await it.shown(task)
        it.vcenter.hide(task)
        await it.until(lambda: len(it.vcenter.request_log.of("get", task)) >= 4)
        with it.vcenter.faults.during(faults.route_not_found(), operation="get"):
            gets = len(it.vcenter.request_log.of("get", task))
            await it.until(lambda: len(it.vcenter.request_log.of("get", task)) >= gets + 2)
        interrupted = time.monotonic()
        assert not it.is_gone(task)
        assert (await it.gone(task)).outcome == "lost"
        assert time.monotonic() - interrupted >= 1.5


async def test_lists_go_on_for_other_providers_while_a_router_answers_for_one() -> None:
    async with lab(api="api", timeouts=SHORT_TIMEOUTS._replace(relist_s=60.0)) as it:
        ours = [it.vcenter.create(scenarios.runs_forever(), service=PROVIDER) for _ in range(20)]
        others = [it.vcenter.create(scenarios.runs_forever(), service=ANOTHER) for _ in range(20)]
        it.follow(*ours, *others)
        await it.shown(*ours, *others)
        with it.vcenter.faults.during(faults.route_not_found(), provider=PROVIDER), capture_logs() as logs:
            looks = it.looks(others[0])
            await it.until(lambda: it.looks(others[0]) >= looks + 8)
            failed = [entry for entry in it.vcenter.request_log.of("list") if entry.fault]
            # One of each list asks whether the service is back.
            assert 0 < len(it.vcenter.request_log.of("get")) <= len(failed)
            assert not any(it.vcenter.request_log.of("get", task) for task in others)
        before = {task: it.looks(task) for task in ours}
        await it.until(lambda: all(it.looks(task) > before[task] for task in ours))
        told = [(line["event"], line["provider"]) for line in logs if line["event"].startswith("vcenter_")]
        assert told[:1] == [("vcenter_unavailable", PROVIDER)]
        assert not [line for line in logs if line["event"] == "task_not_readable"]


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


@pytest.mark.parametrize("answer", ["router", "proxy", "a gateway's JSON", "no operation"])
async def test_a_cancel_that_the_tasks_service_does_not_answer_finds_no_task_unknown(answer: str) -> None:
    async with lab() as it:
        (task,) = running(it, 1)
        it.vcenter.faults.add(NOT_ABOUT_THE_TASK[answer], operation="cancel", times=2)  # in both renderings
        with pytest.raises(VCenterUnavailable, match="has no tasks service now"):
            await it.source.cancel(task)
        it.vcenter.faults.clear()
        with pytest.raises(Refused, match="doesn't know this task"):
            await it.source.cancel("0:p")
        await it.source.cancel(task)
