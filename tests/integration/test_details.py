"""`return_all`: all that vCenter knows of an ended task, and with each poll where a watch asks for `details`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from lab import Lab, until
from task_bridge.domain.task import Task
from task_bridge.simulator import Script, Step, faults, scenarios
from task_bridge.simulator.script import progress
from vcenter_lab import SHORT_TIMEOUTS
from vcenter_lab import Lab as VCenterLab
from vcenter_lab import lab as vcenter_lab

SUBTASKS = {"host-1": {"status": "SUCCEEDED", "messages": []}, "host-2": {"status": "FAILED"}}
RENDERINGS = ["api", "rest"]
OTHER = "com.vmware.appliance.tls.profiles"


def ends_with_subtasks(status: str = "SUCCEEDED") -> Script:
    return Script(
        (
            Step(0.0, {"status": "RUNNING", "progress": progress(10)}),
            Step(0.4, {"status": status, "subtasks": SUBTASKS}),
        )
    )


async def extra_of(it: VCenterLab, task: str) -> Any:
    return (await it.ended(task)).extra


# The fetch of an ended task


@pytest.mark.parametrize("rendering", RENDERINGS)
async def test_an_ended_task_is_fetched_with_all_that_vcenter_knows(rendering: str) -> None:
    async with vcenter_lab(api=rendering) as it:
        task = it.vcenter.create(ends_with_subtasks())
        it.follow(task)
        extra = await extra_of(it, task)
        assert extra["subtasks"] == SUBTASKS
        assert extra.keys() == {"subtasks", "notifications", "last_update_time"}
        polls = [entry for entry in it.vcenter.request_log.requests if entry.operation in ("get", "list")]
        assert [is_whole(entry) for entry in polls].count(True) == 1


def is_whole(entry: Any) -> bool:
    return bool(entry.return_all)


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize(
    "refusal",
    [
        faults.answer(400, '{"error_type": "INVALID_ARGUMENT", "messages": []}'),
        faults.internal_server_error(),
        faults.unauthorized(),
        faults.bad_gateway(),
        faults.delayed(30.0),
    ],
    ids=["400", "500", "403", "502", "slow"],
)
async def test_a_provider_that_refuses_is_asked_without_and_that_is_remembered(
    rendering: str, lists: bool, refusal: faults.Effect
) -> None:
    async with vcenter_lab(api=rendering, timeouts=SHORT_TIMEOUTS._replace(return_all_s=0.3)) as it:
        it.vcenter.options.list_enabled = lists
        it.vcenter.faults.add(refusal, return_all=True)
        first = it.vcenter.create(scenarios.succeeds(0.1))
        with capture_logs() as logs:
            it.follow(first)
            ended = await it.ended(first)
            assert ended.result is not None
            assert ended.result.json
            assert ended.extra is None
            asked = count_whole(it)
            assert asked >= 1
            second = it.vcenter.create(scenarios.succeeds(0.1))
            it.follow(second)
            assert await extra_of(it, second) is None
        assert count_whole(it) == asked
        (line,) = [line for line in logs if line["event"] == "return_all_refused"]
        assert line["provider"] == first.partition(":")[2]


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("lists", [True, False])
async def test_an_answer_with_all_that_can_not_be_read_is_done_without(rendering: str, lists: bool) -> None:
    async with vcenter_lab(api=rendering) as it:
        it.vcenter.options.list_enabled = lists
        it.vcenter.faults.add(faults.truncated_json(), return_all=True)
        task = it.vcenter.create(scenarios.succeeds(0.1))
        with capture_logs() as logs:
            it.follow(task)
            ended = await it.ended(task)
        assert ended.result is not None
        assert ended.result.json
        assert [line["task"] for line in logs if line["event"] == "return_all_refused"] == [task]
        assert it.statuses(task)[-1] == "SUCCEEDED"


def count_whole(it: VCenterLab) -> int:
    return sum(is_whole(entry) for entry in it.vcenter.request_log.requests)


async def test_only_the_provider_that_refuses_is_asked_without() -> None:
    async with vcenter_lab() as it:
        it.vcenter.faults.add(faults.internal_server_error(), return_all=True, provider=OTHER)
        refusing = it.vcenter.create(ends_with_subtasks(), service=OTHER)
        willing = it.vcenter.create(ends_with_subtasks())
        it.follow(refusing, willing)
        assert await extra_of(it, refusing) is None
        assert (await extra_of(it, willing))["subtasks"] == SUBTASKS


async def test_a_failure_that_is_not_about_return_all_is_not_held_against_the_provider() -> None:
    async with vcenter_lab() as it:
        task = it.vcenter.create(ends_with_subtasks())
        it.vcenter.faults.add(faults.internal_server_error(), operation="list", times=4)
        it.vcenter.faults.add(faults.internal_server_error(), operation="get", times=4)
        with capture_logs() as logs:
            it.follow(task)
            assert (await extra_of(it, task))["subtasks"] == SUBTASKS
        assert not [line for line in logs if line["event"] == "return_all_refused"]


async def test_a_partial_result_of_an_ended_task_does_without_nothing() -> None:
    async with vcenter_lab() as it:
        task = it.vcenter.create(Script((Step(0.0, {"status": "SUCCEEDED", "result": 7, "subtasks": SUBTASKS}),)))
        it.follow(task, with_result=True)
        ended = await it.ended(task)
        assert ended.result is not None
        assert (ended.result.json, ended.extra["subtasks"]) == (b"7", SUBTASKS)


# Watches with details


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("lists", [True, False])
async def test_details_come_with_each_poll_where_asked_for(rendering: str, lists: bool) -> None:
    async with vcenter_lab(api=rendering) as it:
        it.vcenter.options.list_enabled = lists
        task, plain = (it.vcenter.create(scenarios.changing_subtasks(after_s=0.8, hosts=3)) for _ in range(2))
        it.follow(task, with_details=True)
        it.follow(plain)
        await it.ended(task)
        await it.ended(plain)
        running = [one for one in it.standings(task) if isinstance(one, Task) and not one.ended]
        done = [sum(sub["status"] == "SUCCEEDED" for sub in one.extra["subtasks"].values()) for one in running]
        assert done == sorted(set(done))
        assert len(done) >= 3
        assert {one.extra for one in it.standings(plain) if isinstance(one, Task) and not one.ended} == {None}


async def test_tasks_with_details_are_listed_apart_from_the_others() -> None:
    async with vcenter_lab() as it:
        detailed = [it.vcenter.create(scenarios.runs_forever()) for _ in range(3)]
        plain = [it.vcenter.create(scenarios.runs_forever()) for _ in range(5)]
        it.follow(*detailed, with_details=True)
        it.follow(*plain)
        for task in (*detailed, *plain):
            await it.shown(task)
        await it.more_looks(detailed[0])
        await it.more_looks(plain[0])
        lists = [entry for entry in it.vcenter.request_log.requests if entry.operation == "list"]
        assert {is_whole(entry) for entry in lists if entry.tasks > 3} == {False}
        assert {True, False} == {is_whole(entry) for entry in lists}


async def test_details_of_a_provider_that_refuses_are_done_without() -> None:
    async with vcenter_lab() as it:
        it.vcenter.faults.add(faults.internal_server_error(), return_all=True)
        task = it.vcenter.create(scenarios.changing_subtasks(after_s=0.8))
        it.follow(task, with_details=True)
        assert (await it.ended(task)).status == "SUCCEEDED"
        assert it.statuses(task) == ["RUNNING", "SUCCEEDED"]
        assert count_whole(it) == 1


# The whole bridge


def ended_subtasks(data: dict[str, Any]) -> int:
    return sum(subtask["status"] == "SUCCEEDED" for subtask in data["extra"]["subtasks"].values())


async def test_a_watch_with_details_publishes_each_change_of_extra(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge(progress_interval_s=0.0):
        task = lab.vcenter.create(scenarios.changing_subtasks(after_s=2, hosts=3))
        plain = lab.vcenter.create(scenarios.changing_subtasks(after_s=2, hosts=3))
        await lab.publish({"task": task, "details": True})
        await lab.publish(plain)
        await lab.ended(task)
        await lab.ended(plain)
    events = [event["data"] for event in lab.heard(task)]
    kinds = [(data["kind"], data["status"], ended_subtasks(data)) for data in events]
    assert kinds == [
        ("watching", "RUNNING", 0),
        ("progress", "RUNNING", 1),
        ("progress", "RUNNING", 2),
        ("progress", "RUNNING", 3),
        ("completed", "SUCCEEDED", 3),
    ]
    others = [event["data"] for event in lab.heard(plain)]
    assert [(data["kind"], data["extra"] is None) for data in others] == [("watching", True), ("completed", False)]


async def test_changes_of_extra_are_published_once_an_interval_and_the_last_always(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge(progress_interval_s=1.0):
        task = lab.vcenter.create(scenarios.runs_forever())
        await lab.publish({"task": task, "details": True})
        await until(lambda: lab.heard(task))
        for count in range(10):
            lab.vcenter.set(task, subtasks={"count": count})
            await asyncio.sleep(0.06)
        await until(lambda: lab.heard(task)[-1]["data"]["extra"]["subtasks"] == {"count": 9})
        assert len(lab.heard(task)) <= 4


async def test_a_restarted_bridge_goes_on_with_details_and_repeats_nothing(lab: Lab) -> None:
    await lab.listen()
    lab.vcenter.faults.add(faults.Effect(reshape=lambda body: body.replace(b'"odd"', b'["\\ud800",NaN,1e400]')))
    odd = {"text": "odd", "number": 2**70, "share": 0.1, "nested": [[{"a": None}]]}
    async with lab.bridge():
        task = lab.vcenter.create(Script((Step(0.0, {"status": "RUNNING", "subtasks": odd}),)))
        await lab.publish({"task": task, "details": True})
        await until(lambda: lab.heard(task))
    async with lab.bridge():
        polled = lab.vcenter.request_log.polls[task]
        await until(lambda: lab.vcenter.request_log.polls[task] > polled + 5)
        assert len(lab.heard(task)) == 1
        lab.vcenter.set(task, subtasks={})
        await until(lambda: len(lab.heard(task)) == 2)
    assert lab.heard(task)[1]["data"]["kind"] == "progress"
    assert lab.heard(task)[1]["data"]["extra"]["subtasks"] == {}


async def test_a_second_request_changes_nothing_of_a_watch_without_details(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge():
        task = lab.vcenter.create(scenarios.changing_subtasks(after_s=2))
        await lab.publish(task)
        await until(lambda: lab.heard(task))
        reply = await lab.ask("watch", {"task": task, "details": True})
        assert reply["outcome"] == "already_watching"
        await lab.ended(task)
    assert [event["data"]["extra"] is None for event in lab.heard(task)] == [True, False]


async def test_a_classic_task_accepts_details_without_effect(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge():
        task = lab.vcenter.create(scenarios.succeeds(after_s=0.5), flavour="vim")
        reply = await lab.ask("watch", {"task": task, "details": True})
        assert reply["outcome"] == "accepted"
        assert (await lab.ended(task))["data"]["outcome"] == "succeeded"
