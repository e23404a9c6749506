"""What a follow takes from the lists of a CIS service, and when they don't show that it missed nothing."""

from __future__ import annotations

import pytest

from task_bridge.domain.follows.event import FollowMemory, adapt_memory, build_view
from task_bridge.domain.follows.lists import (
    LISTED_S,
    ListedTask,
    ServiceList,
    adjust_clock,
    advance_by_list,
    find_list_gap,
    is_gap_due,
    select_first,
)
from task_bridge.domain.follows.order import Follow, FoundTask
from task_bridge.domain.follows.place import FollowPlace, KnownTask
from task_bridge.domain.task import TaskIdentity

T = 1_795_900_000.0
SOFTWARE, CONFIGURATION = "com.vmware.esx.settings.clusters.software", "com.vmware.esx.settings.clusters.configuration"


def listed(task: str, started_at: float | None = None, ended_at: float | None = None, *, ended: bool) -> ListedTask:
    identity = TaskIdentity(None, None)
    return ListedTask(
        FoundTask(task, "cis", identity, SOFTWARE, "apply$task", None, None, None, ended), started_at, ended_at
    )


FRESH = FollowPlace(T, T)
RESUMED = FollowPlace(T - 9_000, T, KnownTask("newest", T - 500))


@pytest.mark.parametrize(
    ("place", "task", "is_taken"),
    [
        (FRESH, listed("live", T - 9_999, ended=False), True),  # it hadn't ended when the follow began
        (FRESH, listed("pending", ended=False), True),
        (FRESH, listed("before", T - 20, T - 10, ended=True), False),
        (FRESH, listed("across", T - 20, T + 1, ended=True), True),
        (FRESH, listed("after", T + 1, T + 2, ended=True), True),
        (FRESH, listed("no end", T - 20, ended=True), False),
        (FRESH, listed("no end", T + 1, ended=True), True),
        (FRESH, listed("no times", ended=True), True),  # it may have ended after the follow began
        (RESUMED, listed("settled", T - 200, T - 100, ended=True), False),
        (RESUMED, listed("overlap", T - 200, T - 50, ended=True), True),
        (RESUMED, listed("live", T - 200, ended=False), True),
        (FollowPlace(T - 9, T), listed("before", T - 20, T - 10, ended=True), False),  # also within the overlap
    ],
)
def test_a_follow_takes_from_its_first_list_what_is_not_over_and_settled(
    place: FollowPlace, task: ListedTask, is_taken: bool
) -> None:
    assert bool(select_first(ServiceList([task], T + 5), place)) is is_taken


def test_after_a_step_back_of_the_clock_all_is_taken_since_times_say_nothing() -> None:
    task = listed("settled", T - 900, T - 800, ended=True)
    assert select_first(ServiceList([task], T - 600), RESUMED) == [task]


NEWEST = listed("newest", T - 500, T - 400, ended=True)


@pytest.mark.parametrize(
    ("place", "listing", "live", "is_first", "span"),
    [
        (RESUMED, ServiceList([NEWEST], T + 30), set(), True, None),
        (RESUMED, ServiceList([NEWEST], T + 30), set(), False, None),
        # The newest known task is gone: the provider lost its memory while nobody looked.
        (RESUMED, ServiceList([], T + 30), set(), True, (T, T + 30)),
        (RESUMED, ServiceList([], T + 200), set(), False, (T, T + 200)),
        (RESUMED, ServiceList([], T + 30), set(), False, None),  # its provider may keep ended tasks for minutes
        (FollowPlace(T - 9e5, T, KnownTask("newest", T - LISTED_S)), ServiceList([], T + 30), set(), True, None),
        # Live tasks can't just go.
        (RESUMED, ServiceList([NEWEST], T + 30), {"newest"}, False, None),
        (RESUMED, ServiceList([NEWEST], T + 30), {"newest", "other"}, False, (T, T + 30)),
        # Longer away than ended tasks are sure to be listed.
        (RESUMED, ServiceList([NEWEST], T + LISTED_S), set(), True, None),
        (RESUMED, ServiceList([NEWEST], T + LISTED_S + 9), set(), True, (T, T + 9)),
        (FRESH, ServiceList([], T + 5), set(), True, None),
        (FollowPlace(T - 86_400, T - 86_400), ServiceList([], T), set(), True, (T - 86_400, T - LISTED_S)),
        # Too many, and vCenter's clock.
        (RESUMED, ServiceList([NEWEST], T + 30, "too many"), set(), False, (T, T + 30)),
        (RESUMED, ServiceList([NEWEST], T - 3), set(), True, None),
        (RESUMED, ServiceList([NEWEST], T - 600), set(), True, (T - 600, T)),
    ],
)
def test_a_gap_is_where_lists_do_not_show_completeness(
    place: FollowPlace, listing: ServiceList, live: set[str], is_first: bool, span: tuple[float, float] | None
) -> None:
    gap = find_list_gap(place, listing, live, is_first=is_first)
    assert (None if gap is None else (gap.begin, gap.end)) == span


def test_lists_that_stay_incomplete_are_one_gap_for_some_minutes() -> None:
    incomplete, complete = ServiceList([], T, "too many"), ServiceList([], T)
    assert is_gap_due(incomplete, None)
    assert not is_gap_due(incomplete, T - 299)
    assert is_gap_due(incomplete, T - 300)
    assert is_gap_due(complete, T - 1)


def test_the_place_is_where_vcenter_was_asked_with_the_task_that_started_last() -> None:
    tasks = [listed("a", T - 5, ended=False), listed("b", T - 2, T - 1, ended=True), listed("c", T - 3, ended=False)]
    assert advance_by_list(FRESH, ServiceList(tasks, T + 5)) == FollowPlace(T, T + 5, KnownTask("b", T - 2))
    assert advance_by_list(FRESH, ServiceList([], T + 5)) == FollowPlace(T, T + 5)
    pending = [*tasks, listed("d", ended=False)]
    assert advance_by_list(FRESH, ServiceList(pending, T + 5)).newest == KnownTask("d", T + 5)
    assert advance_by_list(RESUMED, ServiceList([], T - 9_600)) == FollowPlace(T - 9_600, T - 9_600)


@pytest.mark.parametrize(
    ("before", "date", "after"),
    [
        (0.0, T, 0.0),
        (0.0, T - 0.6, 0.0),  # whole seconds
        (0.0, None, 0.0),
        (0.0, T + 60, 59.5),
        (0.0, T - 60, -59.0),
        (59.7, T + 60, 59.7),
        (59.7, T, 1.0),
    ],
)
def test_the_clock_of_vcenter_is_known_to_a_second_by_its_answers(
    before: float, date: float | None, after: float
) -> None:
    assert adjust_clock(before, date, asked_at=T, answered_at=T + 0.5) == pytest.approx(after)


def follow(*apis: str, services: tuple[str, ...] = ()) -> Follow:
    return Follow("1-1", "lab", "all", T, apis=apis, services=services)


HISTORY, LISTED = FollowPlace(T, T + 90, KnownTask("task-7", T + 80)), FollowPlace(T, T + 60, KnownTask("x", T))
START = FollowPlace(T + 90, T + 90)


@pytest.mark.parametrize(
    ("before", "memory", "after", "adapted"),
    [
        (
            follow("vim"),
            FollowMemory(3, HISTORY),
            follow("vim", services=("VirtualMachine",)),
            FollowMemory(3, FollowPlace(T, T + 90)),
        ),
        (
            follow("vim"),
            FollowMemory(3, HISTORY),
            follow("vim", "cis", services=(SOFTWARE,)),
            FollowMemory(3, FollowPlace(T, T + 90), {SOFTWARE: START}),
        ),
        (
            follow("cis", services=(SOFTWARE, CONFIGURATION)),
            FollowMemory(3, None, {SOFTWARE: LISTED}),  # the other one hasn't been listed yet
            follow("vim", "cis", services=(SOFTWARE, CONFIGURATION)),
            FollowMemory(3, FollowPlace(T + 60, T + 60), {SOFTWARE: LISTED}),
        ),
        (
            follow("vim", "cis", services=(SOFTWARE,)),
            FollowMemory(3, HISTORY, {SOFTWARE: LISTED}),
            follow("cis", services=(CONFIGURATION,)),
            FollowMemory(3, None, {CONFIGURATION: START}),
        ),
        (follow("vim"), FollowMemory(1), follow("cis", services=(SOFTWARE,)), FollowMemory(1)),
    ],
)
def test_a_follow_that_replaces_another_goes_on_from_its_place(
    before: Follow, memory: FollowMemory, after: Follow, adapted: FollowMemory
) -> None:
    assert adapt_memory(memory, build_view(before), after) == adapted
