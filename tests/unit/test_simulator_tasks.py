"""A simulated task's life, seen without HTTP."""

from typing import Any

import pytest

from task_bridge.simulator import (
    ManualClock,
    Options,
    Script,
    SimulatedVCenter,
    Step,
    Timestamps,
    progress,
    scenarios,
)
from task_bridge.simulator.bodies import BodyView
from task_bridge.simulator.script import frame_at, frames

Body = dict[str, Any]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def vcenter(clock: ManualClock) -> SimulatedVCenter:
    return SimulatedVCenter(clock=clock)


def shown(vcenter: SimulatedVCenter, task: str, exclude_result: bool = False, return_all: bool = False) -> Body:
    return vcenter.tasks.build_infos([vcenter.tasks.get(task)], BodyView(exclude_result, return_all))[task]


def statuses(script: Script) -> list[str]:
    words = [frame.status for frame in frames(script)]
    return [word for word, before in zip(words, [None, *words], strict=False) if word != before]


@pytest.mark.parametrize(
    ("script", "goes_through"),
    [
        (scenarios.succeeds(), ["PENDING", "RUNNING", "SUCCEEDED"]),
        (scenarios.succeeds_at_once(), ["PENDING", "SUCCEEDED"]),
        (scenarios.succeeds_without_result(), ["PENDING", "RUNNING", "SUCCEEDED"]),
        (scenarios.blocked_then_succeeds(), ["PENDING", "RUNNING", "BLOCKED", "RUNNING", "SUCCEEDED"]),
        (scenarios.fails_with_error(), ["PENDING", "RUNNING", "FAILED"]),
        (scenarios.canceled(), ["PENDING", "RUNNING", "FAILED"]),
        (scenarios.interrupted(), ["PENDING", "RUNNING", "FAILED"]),
        (scenarios.stays_pending(), ["PENDING"]),
        (scenarios.runs_forever(), ["PENDING", "RUNNING"]),
        (scenarios.unknown_status("SUSPENDED"), ["PENDING", "SUSPENDED"]),
        (scenarios.progress_backwards(), ["PENDING", "RUNNING", "SUCCEEDED"]),
        (scenarios.bare_success(), ["PENDING", "SUCCEEDED"]),
    ],
)
def test_a_fate_goes_through_its_states(script: Script, goes_through: list[str]) -> None:
    assert statuses(script) == goes_through


@pytest.mark.parametrize("name", sorted(scenarios.SCENARIOS))
def test_every_named_fate_can_be_had_without_arguments(name: str) -> None:
    assert isinstance(scenarios.SCENARIOS[name](), Script)


@pytest.mark.parametrize(
    ("script", "has_error", "has_result"),
    [
        (scenarios.fails_with_error(1), True, False),
        (scenarios.fails_by_result(1), False, True),
        (scenarios.fails_with_error_and_result(1), True, True),
        (scenarios.fails_silently(1), False, False),
        (scenarios.canceled(1), True, False),
    ],
)
def test_a_failure_tells_why_in_error_or_result_or_both_or_not(
    script: Script, has_error: bool, has_result: bool
) -> None:
    fields = frame_at(script, 1).fields
    assert (fields["status"], "error" in fields, "result" in fields) == ("FAILED", has_error, has_result)


@pytest.mark.parametrize(
    ("script", "completed"),
    [
        (scenarios.progress_backwards(4), [10, 60, 30, 90]),
        (scenarios.progress_without_total(2), [0, 5]),
        (scenarios.progress_with_changing_total(3), [1, 2, 6]),
        (scenarios.without_progress(1), []),
    ],
)
def test_progress_may_go_any_way(script: Script, completed: list[int]) -> None:
    running = [frame for frame in frames(script) if frame.status == "RUNNING"]
    assert [frame.fields["progress"]["completed"] for frame in running if "progress" in frame.fields] == completed


def test_a_success_may_carry_a_result_that_failed() -> None:
    assert frame_at(scenarios.succeeds_with_failed_result(1), 1).fields["result"]["status"] == "FAILED"


def test_a_partial_result_grows_before_the_end() -> None:
    hosts = [
        len(frame_at(scenarios.partial_results(10, hosts=4), age).fields["result"]["hosts"]) for age in (0, 2, 4, 6)
    ]
    assert hosts == [0, 1, 2, 3]


def test_a_large_result_is_at_least_as_large_as_asked() -> None:
    assert len(frame_at(scenarios.large_result(1000), 1).fields["result"]["log"]) >= 1000


def test_times_appear_as_the_task_starts_and_ends(vcenter: SimulatedVCenter, clock: ManualClock) -> None:
    task = vcenter.create(scenarios.succeeds(after_s=10))
    assert {"start_time", "end_time"}.isdisjoint(shown(vcenter, task))
    clock.advance(1)
    assert shown(vcenter, task)["start_time"] == "2025-11-24T16:00:01.000Z"
    clock.advance(20)
    ended = shown(vcenter, task)
    assert ended["end_time"] == "2025-11-24T16:00:10.000Z"
    assert "last_update_time" not in ended
    assert shown(vcenter, task, return_all=True)["last_update_time"] == "2025-11-24T16:00:10.000Z"


def test_the_end_time_may_be_missing(vcenter: SimulatedVCenter) -> None:
    ended = shown(vcenter, vcenter.create(scenarios.without_end_time(after_s=0)))
    assert ended["status"] == "SUCCEEDED"
    assert "end_time" not in ended


def test_vlcm_says_more_than_info_has(vcenter: SimulatedVCenter) -> None:
    body = shown(vcenter, vcenter.create(scenarios.runs_forever()))
    assert body["parent"] == ""
    assert body["target"] == {"type": "ClusterComputeResource", "id": "domain-c9"}
    assert body["description"]["localized"] == body["description"]["default_message"]
    assert body["progress"]["message"]["localized"]
    beyond = {"last_update_time", "notifications", "subtasks"}
    assert beyond.isdisjoint(body)
    assert beyond <= shown(vcenter, vcenter.create(scenarios.runs_forever()), return_all=True).keys()


def test_the_appliance_says_less(vcenter: SimulatedVCenter) -> None:
    body = shown(vcenter, vcenter.create(scenarios.succeeds(after_s=0), flavour="appliance"))
    assert {"parent", "target", "user", "last_update_time"}.isdisjoint(body)
    assert "localized" not in body["description"]
    assert "localized" not in body["progress"]["message"]
    assert (body["operation"], body["cancelable"]) == ("scan_desired_state", False)


def test_a_minimal_body_is_what_the_script_says_to_the_letter(vcenter: SimulatedVCenter) -> None:
    assert shown(vcenter, vcenter.create(scenarios.bare_success())) == {"status": "SUCCEEDED"}


def test_any_field_can_be_overridden_and_removed(vcenter: SimulatedVCenter) -> None:
    step = Step(0.0, {"service": 17, "zzz": [None]}, ("description", "start_time", "status"))
    body = shown(vcenter, vcenter.create(Script((step,))))
    assert (body["service"], body["zzz"]) == (17, [None])
    assert {"description", "start_time", "status"}.isdisjoint(body)


def test_a_removed_field_comes_back_when_it_is_changed_again(vcenter: SimulatedVCenter) -> None:
    task = vcenter.create(Script((Step(0.0, {}, ("user",)),)))
    vcenter.set(task, user="somebody")
    assert shown(vcenter, task)["user"] == "somebody"


def test_the_result_can_be_left_out(vcenter: SimulatedVCenter) -> None:
    task = vcenter.create(scenarios.succeeds_at_once())
    assert "result" in shown(vcenter, task)
    assert "result" not in shown(vcenter, task, exclude_result=True)


def test_return_all_adds_what_only_the_provider_knows(vcenter: SimulatedVCenter) -> None:
    task = vcenter.create(scenarios.runs_forever())
    assert "subtasks" not in shown(vcenter, task)
    assert "subtasks" in shown(vcenter, task, return_all=True)


def test_setting_changes_the_task_now_and_keeps_what_was_to_come(vcenter: SimulatedVCenter, clock: ManualClock) -> None:
    task = vcenter.create(scenarios.succeeds(after_s=10))
    clock.advance(5)
    vcenter.set(task, status="BLOCKED", progress=progress(3))
    assert shown(vcenter, task)["status"] == "BLOCKED"
    clock.advance(5)
    assert shown(vcenter, task)["status"] == "SUCCEEDED"


def test_setting_an_end_is_the_end(vcenter: SimulatedVCenter, clock: ManualClock) -> None:
    task = vcenter.create(scenarios.succeeds(after_s=10))
    clock.advance(2)
    vcenter.set(task, "end_time", status="FAILED")
    clock.advance(50)
    assert shown(vcenter, task)["status"] == "FAILED"
    assert "end_time" not in shown(vcenter, task)


def test_setting_a_task_in_the_moment_of_a_step_works_whatever_the_clock_resolves() -> None:
    script = Script((Step(1.0, {"status": "RUNNING"}),)).amend(1.0 - 5e-7, {"status": "SUCCEEDED"})
    assert frame_at(script, 1.0).status == "SUCCEEDED"


def test_cancelable_flips(vcenter: SimulatedVCenter, clock: ManualClock) -> None:
    task = vcenter.create(scenarios.cancelable_flips(after_s=4))
    seen = []
    for _ in range(3):
        clock.advance(1)
        seen.append(shown(vcenter, task)["cancelable"])
    assert seen == [True, False, True]


@pytest.mark.parametrize(
    ("timestamps", "start"),
    [
        (Timestamps(), "2025-11-24T16:00:00.000Z"),
        (Timestamps(skew_s=90.25), "2025-11-24T16:01:30.250Z"),
        (Timestamps(skew_s=-3600), "2025-11-24T15:00:00.000Z"),
        (Timestamps(offset_minutes=330), "2025-11-24T21:30:00.000+05:30"),
        (Timestamps(offset_minutes=-60, digits=0), "2025-11-24T15:00:00-01:00"),
        (Timestamps(digits=9), "2025-11-24T16:00:00.000000000Z"),
        (Timestamps(absent=True), None),
    ],
)
def test_vcenter_writes_its_own_time_in_its_own_way(
    clock: ManualClock, timestamps: Timestamps, start: str | None
) -> None:
    vcenter = SimulatedVCenter(Options(timestamps=timestamps), clock=clock)
    assert shown(vcenter, vcenter.create(scenarios.runs_forever())).get("start_time") == start


def test_the_history_tells_what_a_task_went_through(vcenter: SimulatedVCenter, clock: ManualClock) -> None:
    born = clock.now
    task = vcenter.create(scenarios.blocked_then_succeeds(blocked_s=4, after_s=10))
    clock.advance(8)
    vcenter.forget(task)
    clock.advance(8)
    assert [(state.at - born, state.status) for state in vcenter.history(task)] == [
        (0, "RUNNING"),
        (3, "BLOCKED"),
        (7, "RUNNING"),
    ]


def test_a_script_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        Script((Step(2.0), Step(1.0)))
