"""Looking at tasks over real HTTP: lists, gets where lists don't do, results, and what comes of each."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from structlog.testing import capture_logs

from task_bridge.domain.ports import Unanswered, Unchanged
from task_bridge.domain.task import UNAVAILABLE, Task
from task_bridge.simulator import faults, scenarios
from task_bridge.simulator.app import SimulatedVCenter
from task_bridge.simulator.options import Options
from task_bridge.vcenter.cis import PollPolicy
from vcenter_lab import SHORT_TIMEOUTS, lab


@pytest.mark.parametrize("renderings", ["both", "api", "rest", "vcsim"])
async def test_a_task_is_followed_to_its_end_in_whichever_rendering_there_is(renderings: str) -> None:
    vcenter = SimulatedVCenter(Options(renderings=renderings))  # type: ignore[arg-type]
    async with lab(vcenter) as it:
        task = vcenter.create(scenarios.succeeds(after_s=0.5))
        it.follow(task)
        ended = await it.ended(task)
        assert it.statuses(task)[-1] == "SUCCEEDED"
        assert ended.result is not None
        assert json.loads(ended.result.json) == scenarios.GOOD_RESULT
        assert vcenter.sessions.counts.logins == 1
    assert vcenter.sessions.live == []


@pytest.mark.parametrize("api", ["api", "rest"])
async def test_a_pinned_api_is_the_only_one_asked(api: str) -> None:
    async with lab(api=api) as it:
        task = it.vcenter.create(scenarios.succeeds(after_s=0.1))
        it.follow(task)
        await it.ended(task)
    assert all(request.path.startswith(f"/{api}/") for request in it.vcenter.request_log.requests)


async def test_all_due_tasks_of_a_provider_go_in_one_list_without_results() -> None:
    async with lab() as it:
        tasks = [it.vcenter.create(scenarios.runs_forever()) for _ in range(40)]
        others = [it.vcenter.create(scenarios.runs_forever(), service="com.other") for _ in range(10)]
        it.follow(*tasks, *others)
        await it.shown(*tasks, *others)
        lists = it.vcenter.request_log.of("list")
        assert sorted(request.tasks for request in lists[:2]) == [10, 40]
        assert not it.vcenter.request_log.of("get")


async def test_more_tasks_than_a_list_takes_go_in_several() -> None:
    async with lab() as it:
        tasks = [it.vcenter.create(scenarios.runs_forever()) for _ in range(1_200)]
        it.follow(*tasks)
        await it.shown(*tasks)
        assert max(request.tasks for request in it.vcenter.request_log.of("list")) == 500


async def test_a_first_look_is_asked_for_at_once() -> None:
    async with lab(policy=PollPolicy(5.0, 15.0, 30.0)) as it:
        task = it.vcenter.create(scenarios.runs_forever())
        await it.until(lambda: it.source.health.state == "ok")
        began = time.time()
        it.follow(task)
        await it.shown(task)
        assert it.vcenter.request_log.of("list")[0].at - began < 0.1


async def test_looks_that_find_nothing_new_say_so_and_go_on_by_themselves() -> None:
    async with lab() as it:
        task = it.vcenter.create(scenarios.runs_forever())
        it.follow(task)
        await it.shown(task)
        await it.more_looks(task)
        assert isinstance(it.found[-1].standing, Unchanged)
        assert len(it.standings(task)) == 1


async def test_a_task_that_was_given_is_not_looked_at_before_again() -> None:
    async with lab() as it:
        parked, other = (it.vcenter.create(scenarios.runs_forever()) for _ in range(2))
        it.parks = True
        it.follow(parked, other)
        await it.shown(parked, other)
        it.source.resume(other, quiet_until=0.0)
        await it.more_looks(other)
        assert it.looks(parked) == 1
        it.source.resume(parked, quiet_until=0.0)
        await it.more_looks(parked, 1)


async def test_a_forgotten_task_is_looked_at_no_more() -> None:
    async with lab() as it:
        forgotten, other = (it.vcenter.create(scenarios.runs_forever()) for _ in range(2))
        it.follow(forgotten, other)
        await it.shown(forgotten, other)
        it.source.forget(forgotten)
        it.source.forget("never:known")
        await it.more_looks(other, 1)
        before = it.looks(forgotten)
        await it.more_looks(other)
        assert it.looks(forgotten) == before


async def test_a_task_that_ended_is_told_at_once_and_again_with_its_result() -> None:
    async with lab() as it:
        task = it.vcenter.create(scenarios.succeeds_at_once())
        it.parks = True
        it.follow(task)
        await it.ended(task)
        first, second = it.standings(task)
        assert isinstance(first, Task)
        assert isinstance(second, Task)
        assert first.result is None
        assert second.result is not None
        assert (first.status, second.status) == ("SUCCEEDED", "SUCCEEDED")


async def test_results_are_fetched_by_list_some_dozens_at_a_time() -> None:
    async with lab() as it:
        tasks = [it.vcenter.create(scenarios.succeeds_at_once()) for _ in range(200)]
        it.follow(*tasks)
        for task in tasks:
            await it.ended(task)
        sizes = [request.tasks for request in it.vcenter.request_log.of("list")]
        assert max(sizes[1:]) <= 70
        assert len(sizes) < 20
        assert not it.vcenter.request_log.of("get")


async def test_results_that_are_too_many_for_one_answer_come_in_smaller_lists() -> None:
    async with lab(scheme="http") as it:  # megabytes, which take their time over TLS
        tasks = [it.vcenter.create(scenarios.large_result(size=1_000_000, after_s=0.0)) for _ in range(60)]
        it.follow(*tasks)
        for task in tasks:
            result = (await it.ended(task)).result
            assert result is not None
            assert len(result.json) > 1_000_000


async def test_a_result_that_is_too_large_for_any_answer_is_unavailable_and_the_task_ends_nevertheless() -> None:
    async with lab() as it:
        task, small = (
            it.vcenter.create(scenarios.large_result(size=34_000_000, after_s=0.0)),
            it.vcenter.create(scenarios.succeeds_at_once()),
        )
        it.follow(task, small)
        assert (await it.ended(task)).result == UNAVAILABLE
        assert (await it.ended(small)).result != UNAVAILABLE


async def test_a_result_is_fetched_after_a_failure_that_passes() -> None:
    async with lab() as it:
        task = it.vcenter.create(scenarios.succeeds_at_once())
        it.vcenter.faults.add(faults.gateway_unavailable(), operation="list", times=3)
        it.follow(task)
        assert (await it.ended(task)).result != UNAVAILABLE


async def test_partial_results_come_with_each_look_where_asked_for() -> None:
    async with lab() as it:
        task = it.vcenter.create(scenarios.partial_results(after_s=0.6, hosts=3))
        plain = it.vcenter.create(scenarios.partial_results(after_s=0.6, hosts=3))
        it.follow(task, with_result=True)
        it.follow(plain)
        await it.ended(task)
        await it.ended(plain)
        running = [s for s in it.standings(task) if isinstance(s, Task) and not s.ended]
        assert len({s.result.json for s in running if s.result}) > 1
        assert all(s.result is None for s in it.standings(plain) if isinstance(s, Task) and not s.ended)


@pytest.mark.parametrize("trouble", ["too large", "unreadable"])
async def test_the_log_says_once_when_partial_results_stop_and_the_state_is_still_followed(trouble: str) -> None:
    with capture_logs() as logs:
        async with lab() as it:
            task = it.vcenter.create(scenarios.runs_forever())
            it.follow(task, with_result=True)
            await it.shown(task)
            if trouble == "too large":
                it.vcenter.set(task, result="x" * 34_000_000)
            else:
                it.vcenter.faults.add(faults.truncated_json(), path="/tasks")
            await it.until(lambda: any(line["event"] == "partial_results_stopped" for line in logs))
            it.vcenter.faults.clear()
            it.vcenter.set(task, status="BLOCKED")
            await it.until(lambda: "BLOCKED" in it.statuses(task))
    (line,) = [line for line in logs if line["event"] == "partial_results_stopped"]
    assert (line["log_level"], line["task"]) == ("warning", task)
    assert line["reason"]


async def test_a_minimal_body_is_a_task() -> None:
    async with lab() as it:
        task = it.vcenter.create(scenarios.bare_success(after_s=0.1))
        it.follow(task)
        ended = await it.ended(task)
        assert (ended.status, ended.service, ended.progress) == ("SUCCEEDED", None, None)


async def test_a_reason_that_is_only_in_the_result_is_the_error_of_a_failed_task() -> None:
    async with lab() as it:
        task = it.vcenter.create(scenarios.fails_by_result(after_s=0.1))
        it.follow(task)
        ended = await it.ended(task)
        assert ended.error is not None
        assert ended.error.message == "Host 'esx2' did not answer."


@pytest.mark.parametrize("renderings", ["api", "rest"])
async def test_an_id_that_no_list_takes_is_found_and_asked_for_alone(renderings: str) -> None:
    vcenter = SimulatedVCenter(Options(renderings=renderings))  # type: ignore[arg-type]
    async with lab(vcenter) as it:
        tasks = [vcenter.create(scenarios.runs_forever()) for _ in range(60)]
        bad = tasks[17]
        vcenter.faults.add(faults.resource_inaccessible(), operation="list", task=bad)
        it.follow(*tasks)
        await it.shown(*tasks)
        await it.more_looks(bad)
        assert vcenter.request_log.of("get", bad)
        failed = [request for request in vcenter.request_log.of("list") if request.status and request.status >= 400]
        await it.more_looks(tasks[0], 5)
        assert len(failed) < 20
        assert it.source.health.state == "ok"


async def test_a_list_is_tried_again_later_for_an_id_that_no_list_took() -> None:
    async with lab() as it:
        bad, other = (it.vcenter.create(scenarios.runs_forever()) for _ in range(2))
        fault = it.vcenter.faults.add(faults.internal_server_error(), operation="list", task=bad)
        it.follow(bad, other)
        await it.shown(bad, other)
        it.vcenter.faults.clear(fault)
        it.vcenter.faults.add(faults.delayed(0.0), operation="list", task=bad, name="listed")
        await it.until(lambda: any(request.fault == "listed" for request in it.vcenter.request_log.requests))


async def test_without_a_list_every_task_is_asked_for_by_get_and_the_list_tried_again_later() -> None:
    vcenter = SimulatedVCenter(Options(list_enabled=False))
    async with lab(vcenter, timeouts=SHORT_TIMEOUTS._replace(relist_s=1.0)) as it:
        tasks = [vcenter.create(scenarios.succeeds(after_s=0.3)) for _ in range(5)]
        running = vcenter.create(scenarios.runs_forever())
        it.follow(*tasks, running)
        for task in tasks:
            await it.ended(task)
        tried = len([request for request in vcenter.request_log.requests if "action=list" in request.query])
        assert tried == 1
        vcenter.options.list_enabled = True
        await it.until(lambda: any(request.status == 200 for request in vcenter.request_log.of("list")))


@pytest.mark.parametrize(
    "fault",
    [faults.truncated_json(), faults.non_object(), faults.invalid_utf8(), faults.huge_body(50_000_000)],
    ids=["truncated", "not an object", "not UTF-8", "too large"],
)
async def test_an_answer_that_can_not_be_read_is_a_failed_look_and_no_more(fault: faults.Effect) -> None:
    async with lab() as it:
        tasks = [it.vcenter.create(scenarios.runs_forever()) for _ in range(4)]
        it.vcenter.faults.add(fault, operation="list", times=2)
        it.follow(*tasks)
        await it.shown(*tasks)
        assert {type(standing) for task in tasks for standing in it.standings(task)} == {Task}


async def test_one_task_that_can_not_be_read_delays_no_other() -> None:
    async with lab() as it:
        poisoned = it.vcenter.create(scenarios.runs_forever())
        others = [it.vcenter.create(scenarios.runs_forever()) for _ in range(5)]
        it.vcenter.set(poisoned, "status")
        it.vcenter.faults.add(faults.non_object(), operation="get", task=poisoned)
        it.follow(poisoned, *others)
        await it.shown(*others)
        await it.more_looks(others[0], 5)
        assert it.standings(poisoned) == []
        it.vcenter.faults.clear()
        it.vcenter.set(poisoned, status="RUNNING")
        await it.shown(poisoned)


async def test_a_hurried_look_comes_at_once_whatever_it_finds() -> None:
    async with lab(policy=PollPolicy(30.0, 60.0, 30.0)) as it:
        known, unknown = it.vcenter.create(scenarios.runs_forever()), "no:such.task"
        it.follow(known, unknown)
        await it.shown(known)
        it.source.poll_now(known)
        it.source.poll_now(unknown)
        it.source.poll_now("not:followed")
        await it.until(lambda: it.looks(known) == 2 and it.unanswered(unknown))
        answer = it.unanswered(unknown)[0].answer
        assert answer is not None
        assert answer.type == "NOT_FOUND"


async def test_a_hurried_look_is_answered_when_vcenter_is_not_there() -> None:
    async with lab(policy=PollPolicy(30.0, 60.0, 30.0)) as it:
        task = it.vcenter.create(scenarios.runs_forever())
        it.follow(task)
        await it.shown(task)
        it.vcenter.faults.add(faults.connection_reset())
        it.source.poll_now(task)
        await it.until(lambda: it.unanswered(task) == [Unanswered(None)])
        it.source.poll_now(task)  # known to be down by now
        await it.until(lambda: len(it.unanswered(task)) == 2)


async def test_a_parked_task_that_is_hurried_is_looked_at() -> None:
    async with lab() as it:
        it.parks = True
        task = it.vcenter.create(scenarios.runs_forever())
        it.follow(task)
        await it.shown(task)
        it.source.poll_now(task)
        await it.until(lambda: it.looks(task) == 2)


async def test_the_budget_is_kept_and_all_tasks_are_looked_at_alike() -> None:
    vcenter = SimulatedVCenter(Options(list_enabled=False))
    async with lab(vcenter, max_requests_per_second=40.0) as it:
        tasks = [vcenter.create(scenarios.runs_forever()) for _ in range(30)]
        it.follow(*tasks)
        await it.until(lambda: min(it.looks(task) for task in tasks) >= 3)
        began = vcenter.request_log.requests[0].at
        spent = len(vcenter.request_log.requests)
        assert spent <= 40 + 40 * (time.time() - began) + 1
        looks = [it.looks(task) for task in tasks]
        assert max(looks) - min(looks) <= 3


async def test_a_provider_that_hangs_delays_no_other_provider() -> None:
    async with lab() as it:
        hanging = [it.vcenter.create(scenarios.runs_forever(), service="com.hanging") for _ in range(1_200)]
        others = [it.vcenter.create(scenarios.runs_forever()) for _ in range(3)]
        it.follow(*hanging, *others)
        await it.shown(*hanging, *others)
        for task in hanging:
            it.vcenter.faults.add(faults.delayed(3_600), operation="list", task=task)
        await it.until(lambda: it.vcenter.request_log.in_flight >= 3)
        await it.more_looks(others[0], 10)


@pytest.mark.parametrize(
    "fault",
    [faults.html_error(500), faults.gateway_unavailable(), faults.connection_reset()],
    ids=["500", "503", "reset"],
)
async def test_a_task_whose_get_always_fails_delays_no_other(fault: faults.Effect) -> None:
    with capture_logs() as logs:
        async with lab(SimulatedVCenter(Options(list_enabled=False))) as it:
            poisoned, other = (it.vcenter.create(scenarios.runs_forever()) for _ in range(2))
            it.vcenter.faults.add(fault, operation="get", task=poisoned)
            it.follow(other, poisoned)
            await it.until(lambda: len(it.vcenter.request_log.of("get", poisoned)) >= 5)
            await it.more_looks(other, 5)
            it.vcenter.faults.clear()
            await it.shown(poisoned)
            await it.until(lambda: it.source.health.state == "ok")
    told = [line["event"] for line in logs if line["log_level"] != "debug"]
    assert told == ["task_not_readable", "task_readable_again"]


async def test_ten_thousand_tasks_are_all_seen_promptly_by_an_idle_bridge() -> None:
    async with lab(policy=PollPolicy(15.0, 15.0, 30.0), max_requests_per_second=20.0) as it:
        tasks = [it.vcenter.create(scenarios.runs_forever()) for _ in range(10_000)]
        it.follow(*tasks)
        await it.until(lambda: len({found.task for found in it.found}) == 10_000)
        assert len(it.vcenter.request_log.of("list")) <= 21


async def test_leaving_ends_what_is_under_way() -> None:
    async with lab() as it:
        task = it.vcenter.create(scenarios.runs_forever())
        it.vcenter.faults.add(faults.stalled_body(), operation="list")
        it.follow(task)
        await it.until(lambda: it.vcenter.request_log.of("list"))
        left = time.monotonic()
    assert time.monotonic() - left < 3.0
    assert it.vcenter.sessions.live == []
    assert len(asyncio.all_tasks()) == 1


async def test_looks_are_counted_by_task() -> None:
    async with lab(policy=PollPolicy(30.0, 60.0, 30.0)) as it:
        tasks = [it.vcenter.create(scenarios.runs_forever()) for _ in range(7)]
        it.follow(*tasks)
        await it.shown(*tasks)
        assert it.counted("looks_total", vcenter="lab") == 7
        assert it.counted("vcenter_requests_total", vcenter="lab", operation="list", code="200") == 1


async def test_every_task_ends_as_it_does_whatever_else_goes_wrong_on_the_way() -> None:
    troubles = [
        faults.bad_gateway(),
        faults.connection_reset(),
        faults.connection_reset(sends=10),
        faults.resource_inaccessible(),
        faults.internal_server_error(),
        faults.service_unavailable(),
        faults.unauthenticated(),
        faults.truncated_json(),
        faults.non_object(),
        faults.invalid_utf8(),
        faults.html_error(500),
        faults.route_not_found(),
    ]
    async with lab() as it:
        tasks = {
            it.vcenter.create(scenarios.SCENARIOS[fate](after_s=after_s)): status
            for fate, status in (
                ("succeeds", "SUCCEEDED"),
                ("fails_with_error", "FAILED"),
                ("blocked_then_succeeds", "SUCCEEDED"),
                ("fails_by_result", "FAILED"),
                ("canceled", "FAILED"),
                ("progress_backwards", "SUCCEEDED"),
            )
            for after_s in (4.1, 4.3, 4.5)
        }
        it.follow(*tasks)
        await it.shown(*tasks)
        for trouble in troubles:
            fault = it.vcenter.faults.add(trouble, path="/tasks", times=3)
            await it.until(lambda fault=fault: it.vcenter.faults._faults[fault].left == 0)  # type: ignore[misc]
            it.vcenter.sessions.invalidate()
        ended = {task: (await it.ended(task)) for task in tasks}
        assert {task: end.status for task, end in ended.items()} == tasks
        assert not any(it.is_gone(task) for task in tasks)
        await it.until(lambda: it.source.health.state == "ok")
    assert it.vcenter.sessions.live == []
