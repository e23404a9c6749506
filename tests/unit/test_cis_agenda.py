"""The agenda of the polls of CIS tasks, at its boundaries: what goes along, by what request, and in what order."""

from __future__ import annotations

import math

import pytest

from task_bridge.vcenter.cis.schedule import SLOW_S, PollAgenda, PollGroup, TrackedCisTask, remaining_s
from task_bridge.vcenter.tracked_task import POLLING, QUEUED, WAITING

NOW = 10_000.0


def a_task(name: str = "a", provider: str = "p", **fields: bool) -> TrackedCisTask:
    tracked = TrackedCisTask.with_age(f"{name}:{provider}", 0.0, NOW, seen=False, with_result=False)
    for field, value in fields.items():
        setattr(tracked, field, value)
    return tracked


def queue_all(agenda: PollAgenda, *those: TrackedCisTask, now: float = NOW) -> None:
    for tracked in those:
        agenda.schedule(tracked, now, now)
    agenda.queue_due(now)


def groups_of(agenda: PollAgenda) -> dict[tuple[str, str, bool, bool], str]:
    """What each request asks for, in the order in which they may go, by the names of the tasks."""
    groups: dict[tuple[str, str, bool, bool], str] = {}
    while group := agenda.next_group(results_first=False):
        key = (group.provider, group.method, group.with_result, group.results)
        groups[key] = "".join(tracked.id[0] for tracked in agenda.take(group, 500))
        group.in_flight -= 1
    return groups


class TestPace:
    @pytest.mark.parametrize(
        ("percent", "first", "since_s", "left_s"), [(60, 20, 10, 10), (60, 20, 0.5, 0.5), (20.5, 20, 1, 159)]
    )
    def test_what_is_left_takes_the_pace_since_the_first_progress(
        self, percent: float, first: float, since_s: float, left_s: float
    ) -> None:
        assert remaining_s(percent, first, since_s) == pytest.approx(left_s)

    def test_a_task_estimates_it_from_the_first_progress_that_it_noted(self) -> None:
        tracked = a_task()
        assert tracked.estimate_remaining_s(NOW) is None
        tracked.note_progress(20.0, NOW)
        tracked.note_progress(60.0, NOW + 10.0)
        assert tracked.estimate_remaining_s(NOW + 10.0) == pytest.approx(10.0)

    def test_progress_that_went_back_is_the_first_anew_and_the_same_again_is_not(self) -> None:
        tracked = a_task()
        tracked.note_progress(50.0, NOW)
        tracked.note_progress(50.0, NOW + 5.0)
        assert (tracked.first_percent, tracked.first_percent_at) == (50.0, NOW)
        tracked.note_progress(20.0, NOW + 10.0)
        assert (tracked.first_percent, tracked.first_percent_at) == (20.0, NOW + 10.0)

    def test_progress_that_is_no_longer_told_gives_no_estimate_and_comes_back_as_the_first(self) -> None:
        tracked = a_task()
        tracked.note_progress(20.0, NOW)
        tracked.note_progress(None, NOW + 5.0)
        assert tracked.estimate_remaining_s(NOW + 5.0) is None
        tracked.note_progress(60.0, NOW + 10.0)
        assert (tracked.first_percent, tracked.first_percent_at) == (60.0, NOW + 10.0)


@pytest.mark.parametrize(
    ("task", "provider"), [("52f9:com.vmware.a", "com.vmware.a"), ("a:b:c", "b:c"), ("plain", ""), (":x", "x")]
)
def test_a_task_s_provider_is_what_follows_the_first_colon(task: str, provider: str) -> None:
    assert TrackedCisTask.with_age(task, 0.0, NOW, seen=True, with_result=False).provider == provider


@pytest.mark.parametrize(("age_s", "began"), [(30.0, NOW - 30.0), (0.5, NOW - 0.5), (0.0, NOW), (-60.0, NOW)])
def test_a_watch_of_the_future_began_now(age_s: float, began: float) -> None:
    tracked = TrackedCisTask.with_age("a:p", age_s, NOW, seen=True, with_result=True)
    assert (tracked.started_at, tracked.seen, tracked.with_result) == (began, True, True)


class TestDue:
    @pytest.mark.parametrize("together", [False, True])
    @pytest.mark.parametrize(
        ("wait_s", "early_s", "goes"),
        [
            (SLOW_S - 0.1, 0.2, True),
            (SLOW_S - 0.1, 0.4, False),  # a short interval is cut by a quarter of a second at most
            (SLOW_S, 0.9, True),
            (SLOW_S, 1.3, False),
            (15.0, 0.9, True),
            (15.0, 1.3, False),
        ],
    )
    def test_long_intervals_may_be_cut_by_a_second(
        self, together: bool, wait_s: float, early_s: float, goes: bool
    ) -> None:
        agenda, tracked, due = PollAgenda(poll_min_s=1.0), a_task(), NOW + wait_s
        if together:
            agenda.schedule_together([tracked], NOW, due)
        else:
            agenda.schedule(tracked, NOW, due)
        assert (tracked.phase, tracked.due) == (WAITING, due)
        agenda.queue_due(due - early_s)
        assert (tracked.phase == QUEUED) is goes

    @pytest.mark.parametrize(("wait_s", "ahead_s"), [(3.9, 0.25), (4.0, 1.0), (15.0, 1.0)])
    def test_how_early_is_known_before(self, wait_s: float, ahead_s: float) -> None:
        assert PollAgenda(poll_min_s=1.0).ahead_s(NOW, NOW + wait_s) == ahead_s

    def test_an_interval_above_four_seconds_is_cut_by_a_second_even_if_all_are_that_long(self) -> None:
        assert PollAgenda(poll_min_s=60.0).ahead_s(NOW, NOW + 1.0) == 1.0

    def test_no_task_is_no_entry(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        agenda.schedule_together([], NOW, NOW + 10.0)
        assert agenda.first_due() == math.inf

    @pytest.mark.parametrize(("wait_s", "per_s"), [(1.0, 40), (10.0, 4)])
    def test_the_first_due_time_is_known_to_a_fortieth_or_a_quarter_of_a_second(
        self, wait_s: float, per_s: int
    ) -> None:
        for fraction in range(10):
            agenda, due = PollAgenda(poll_min_s=1.0), NOW + wait_s + fraction / 9
            agenda.schedule_together([a_task()], NOW, due)
            assert agenda.first_due() == math.floor(due * per_s) / per_s
            agenda.queue_due(due)
            assert agenda.first_due() == math.inf

    def test_what_has_been_due_for_long_comes_first(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        for name, due in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
            agenda.schedule(a_task(name), NOW, NOW + due)
        agenda.queue_due(NOW + 3.0)
        assert list(groups_of(agenda).values()) == ["abc"]


class TestRequests:
    @pytest.mark.parametrize(
        ("fields", "method", "with_result", "results"),
        [
            ({}, "list", False, False),
            ({"with_result": True}, "list", True, False),
            ({"awaits_result": True}, "list", True, True),
            ({"by_get": True}, "get", False, False),
            ({"by_get": True, "with_result": True}, "get", True, False),
            ({"by_get": True, "awaits_result": True}, "get", True, True),
        ],
    )
    @pytest.mark.parametrize("has_home", [False, True])
    def test_a_task_goes_with_those_that_one_request_can_ask_for(
        self, has_home: bool, fields: dict[str, bool], method: str, with_result: bool, results: bool
    ) -> None:
        agenda, tracked, other = PollAgenda(poll_min_s=1.0), a_task(), a_task("b")
        tracked.with_result = fields.get("with_result", False)
        if has_home:
            queue_all(agenda, tracked)
            groups_of(agenda)
        for field, value in fields.items():
            setattr(tracked, field, value)
        queue_all(agenda, tracked, other)
        groups = groups_of(agenda)
        assert "a" in groups[("p", method, with_result, results)]
        assert "b" in groups[("p", "list", False, False)]

    def test_a_result_s_list_is_no_home(self) -> None:
        agenda, tracked = PollAgenda(poll_min_s=1.0), a_task(awaits_result=True)
        queue_all(agenda, tracked)
        assert tracked.home is None
        tracked.awaits_result = False
        queue_all(agenda, tracked)
        assert tracked.home is not None
        assert not tracked.home.results

    @pytest.mark.parametrize("where", ["task", "home", "agenda"])
    @pytest.mark.parametrize(("until", "method"), [(NOW - 0.1, "list"), (NOW, "list"), (NOW + 0.1, "get")])
    @pytest.mark.parametrize("has_home", [False, True])
    def test_it_is_listed_again_from_the_time_on_that_was_set(
        self, where: str, until: float, method: str, has_home: bool
    ) -> None:
        agenda, tracked = PollAgenda(poll_min_s=1.0), a_task()
        if has_home or where == "home":
            queue_all(agenda, tracked)
            groups_of(agenda)
        match where:
            case "task":
                tracked.listable_from = until
            case "home":
                assert tracked.home is not None
                tracked.home.listable_from = until
            case "agenda":
                agenda.lists_from = until
        queue_all(agenda, tracked)
        assert [key[1] for key in groups_of(agenda)] == [method]

    def test_a_machine_that_has_just_started_lists_tasks_too(self) -> None:
        """Its monotonic clock begins at 0."""
        agenda, tracked = PollAgenda(poll_min_s=1.0), TrackedCisTask("a:p", False, provider="p", started_at=0.0)
        for now in (0.0, 0.5):
            queue_all(agenda, tracked, now=now)
            assert [key[1:3] for key in groups_of(agenda)] == [("list", False)]

    def test_an_urgent_task_goes_before_others_of_its_group_and_of_all(self) -> None:
        agenda, urgent = PollAgenda(poll_min_s=1.0), a_task("u", "q")
        queue_all(agenda, a_task("a", "p"), a_task("b", "q"))
        agenda.queue(urgent, NOW, before_others=True)
        assert (urgent.phase, urgent.due) == (QUEUED, -math.inf)
        assert list(groups_of(agenda).items()) == [
            (("q", "list", False, False), "ub"),
            (("p", "list", False, False), "a"),
        ]

    def test_a_task_that_left_the_queue_is_not_taken_and_decides_no_order(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        old, young, other = a_task("a"), a_task("b"), a_task("x", "q")
        agenda.schedule(old, NOW, NOW - 9.0)
        agenda.schedule(other, NOW, NOW - 5.0)
        agenda.schedule(young, NOW, NOW - 1.0)
        agenda.queue_due(NOW)
        old.phase = WAITING
        assert list(groups_of(agenda).values()) == ["x", "b"]
        assert (old.phase, young.phase) == (WAITING, POLLING)

    def test_a_group_s_due_time_is_that_of_the_first_that_is_still_queued(self) -> None:
        group = PollGroup("p", "list", False)
        assert (group.first_due(), group.results) == (math.inf, False)
        for name, due, phase in (("a", 1.0, WAITING), ("b", 2.0, QUEUED), ("c", 3.0, WAITING)):
            tracked = a_task(name)
            tracked.phase, tracked.due = phase, due
            group.queue.append(tracked)
        assert group.first_due() == 2.0

    @pytest.mark.parametrize(("results_first", "first"), [(True, "r"), (False, "a")])
    def test_results_go_first_if_it_is_their_turn(self, results_first: bool, first: str) -> None:
        agenda, result = PollAgenda(poll_min_s=1.0), a_task("r", awaits_result=True)
        agenda.schedule(a_task("a"), NOW, NOW - 2.0)
        agenda.schedule(result, NOW, NOW - 1.0)
        agenda.queue_due(NOW)
        group = agenda.next_group(results_first=results_first)
        assert group is not None
        assert agenda.take(group, 5)[0].id[0] == first

    def test_without_results_it_is_everybody_s_turn(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        queue_all(agenda, a_task())
        assert agenda.next_group(results_first=True) is not None

    @pytest.mark.parametrize(("in_flight_max", "at_once"), [(None, 1), (1, 1), (2, 1), (3, 2), (4, 3)])
    def test_one_request_is_left_to_other_groups_but_each_may_have_one(
        self, in_flight_max: int | None, at_once: int
    ) -> None:
        agenda = PollAgenda(1.0) if in_flight_max is None else PollAgenda(1.0, in_flight_max)
        queue_all(agenda, *(a_task(str(number)) for number in range(8)))
        taken = 0
        while (group := agenda.next_group(results_first=False)) is not None:
            taken += len(agenda.take(group, 1))
        assert taken == at_once

    def test_a_failing_group_may_have_one_request(self) -> None:
        agenda = PollAgenda(1.0, in_flight_max=4)
        queue_all(agenda, a_task("a"), a_task("b"))
        group = agenda.next_group(results_first=False)
        assert group is not None
        group.failures = 1
        assert agenda.next_group(results_first=False) is group
        agenda.take(group, 1)
        assert (agenda.next_group(results_first=False), agenda.has_queued()) == (None, False)

    def test_nothing_taken_is_no_request(self) -> None:
        agenda = PollAgenda(1.0)
        tracked = a_task()
        queue_all(agenda, tracked)
        group = agenda.next_group(results_first=False)
        assert group is not None
        tracked.phase = WAITING
        assert agenda.take(group, 5) == []
        assert group.in_flight == 0

    def test_groups_are_kept_for_five_hundred_providers_and_their_tasks_stay_listed_together(self) -> None:
        agenda = PollAgenda(1.0)
        first = a_task("a", "0")
        queue_all(agenda, first, *(a_task("x", str(number)) for number in range(1, 500)))
        assert len(agenda._groups) == 500
        again = a_task("b", "0")
        queue_all(agenda, again)
        assert again.home is first.home
        queue_all(agenda, a_task("x", "500"))
        assert len(agenda._groups) == 1
