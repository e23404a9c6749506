"""When a follow can show that it missed nothing, and what it says if it can't."""

from __future__ import annotations

import pytest

from task_bridge.domain.follows.order import FoundTask
from task_bridge.domain.follows.place import FollowPlace, Gap, KnownTask, Pace, find_gap, restart_after_gap
from task_bridge.domain.task import TaskIdentity

T = 1_795_900_000.0
DAY = 86_400.0
BEGAN = T - 100 * DAY


def found(*tasks: tuple[str, float]) -> list[FoundTask]:
    identities = [(task, TaskIdentity(at, "VirtualMachine.clone")) for task, at in tasks]
    return [
        FoundTask(task, "vim", identity, "VirtualMachine", "clone", None, None, None, False)
        for task, identity in identities
    ]


@pytest.mark.parametrize(
    ("tasks", "empty_at", "place"),
    [
        ([], None, FollowPlace(BEGAN, T)),
        ([], T + 60, FollowPlace(BEGAN, T + 55)),
        ([], T + 3, FollowPlace(BEGAN, T)),
        ([("task-1", T + 2)], None, FollowPlace(BEGAN, T + 2, KnownTask("task-1", T + 2))),
        ([("task-1", T + 2), ("task-2", T + 1)], None, FollowPlace(BEGAN, T + 2, KnownTask("task-1", T + 2))),
        ([("task-1", T + 2), ("task-2", T + 2)], None, FollowPlace(BEGAN, T + 2, KnownTask("task-2", T + 2))),
        ([("task-1", T + 2)], T + 60, FollowPlace(BEGAN, T + 55, KnownTask("task-1", T + 2))),
        ([("task-1", T - 9)], None, FollowPlace(BEGAN, T, KnownTask("task-1", T - 9))),
    ],
)
def test_a_place_advances_with_what_was_found_and_with_answers_that_there_is_no_more(
    tasks: list[tuple[str, float]], empty_at: float | None, place: FollowPlace
) -> None:
    assert FollowPlace(BEGAN, T).advance(found(*tasks), empty_at) == place


def test_nothing_from_before_the_follow_is_read() -> None:
    assert FollowPlace(T - 90, T).read_from == T - 60
    assert FollowPlace(T - 9, T).read_from == T - 9


def test_a_task_without_queue_time_moves_no_place() -> None:
    (task,) = found(("52:x", T))
    assert FollowPlace(BEGAN, T).advance([task._replace(identity=TaskIdentity(None, None))], None) == FollowPlace(
        BEGAN, T
    )


NEAR, FAR = FollowPlace(BEGAN, T, KnownTask("task-1", T - 30)), FollowPlace(BEGAN, T, KnownTask("task-1", T - 3_600))
NEVER = FollowPlace(BEGAN, T)


@pytest.mark.parametrize(
    ("place", "now", "oldest", "tasks", "span"),
    [
        # The newest known task is within what was read again: the history has it, or has lost something.
        (NEAR, T + 10, T - DAY, [("task-1", T - 30)], None),
        (NEAR, T + 10, T - DAY, [], (T - 30, T + 10)),
        (NEAR, T + 10, T - DAY, [("task-1", T - 29)], (T - 30, T + 10)),
        (NEAR, T + 40 * DAY, T + 10 * DAY, [("task-900", T + 10 * DAY)], (T - 30, T + 40 * DAY)),
        # It is older than that: the history must begin before the place.
        (FAR, T + 10, T - DAY, [], None),
        (FAR, T + 10, T, [], None),
        (FAR, T + 10, T + 1, [], (T, T + 1)),
        (FAR, T + 10, None, [], (T, T + 10)),
        # No task was known: a short history may be that of a quiet vCenter, until a day has passed.
        (NEVER, T + 10, T + 5, [("task-1", T + 5)], None),
        (NEVER, T + 10, None, [], None),
        (NEVER, T + 2 * DAY, T + DAY, [], (T, T + DAY)),
        (NEVER, T + 2 * DAY, T - 1, [], None),
        (NEVER, T + 2 * DAY, None, [], None),
        # vCenter's clock.
        (NEAR, T - 4, T - DAY, [("task-1", T - 30)], None),
        (NEAR, T - 600, T - DAY, [], (T - 600, T)),
        (NEVER, T - 600, None, [], (T - 600, T)),
    ],
)
def test_a_gap_is_where_completeness_cannot_be_shown(
    place: FollowPlace,
    now: float,
    oldest: float | None,
    tasks: list[tuple[str, float]],
    span: tuple[float, float] | None,
) -> None:
    gap = find_gap(place, now, oldest, has_newest=place.knows(found(*tasks)))
    assert (None if gap is None else (gap.begin, gap.end)) == span
    assert gap is None or gap.reason.startswith("vCenter's ")


@pytest.mark.parametrize(
    ("gap", "now", "until"),
    [
        (None, T + 10, T),
        (Gap(T, T + 8, ""), T + 10, T + 8),
        (Gap(T - 600, T, ""), T - 600, T - 600),
    ],
)
def test_a_follow_goes_on_behind_a_gap_and_not_ahead_of_vcenter(gap: Gap | None, now: float, until: float) -> None:
    assert restart_after_gap(NEAR, gap, now).complete_until == until


def test_a_pace_lets_a_second_of_work_through_and_then_holds_back() -> None:
    pace = Pace(200)
    assert pace.take(200, 10.0) == 0
    assert pace.take(50, 10.0) == 0.25
    assert pace.take(50, 10.25) == 0.25
    assert pace.take(50, 11.0) == 0
    assert pace.take(200, 99.0) == 0
    assert pace.take(1, 99.0) == 0.005
