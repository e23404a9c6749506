"""When to look: intervals, back-off, the budget, and the way of a task from due to asked."""

from __future__ import annotations

import random
import time

import pytest

from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.domain.task import Progress, Task
from task_bridge.vcenter.backoff import Outage, backoff_s
from task_bridge.vcenter.cis import PollPolicy
from task_bridge.vcenter.cis.schedule import PollAgenda, TrackedCisTask, interval_s, remaining_s, stretch
from task_bridge.vcenter.cis.transport import CisTransport
from task_bridge.vcenter.http import RequestBudget
from task_bridge.vcenter.policy import TIMEOUTS
from task_bridge.vcenter.shared import ResultQueue
from task_bridge.vcenter.tracked_task import FORGOTTEN, PARKED, POLLING, TaskTracker

POLICY = PollPolicy(poll_min_s=1.0, poll_max_s=15.0)


@pytest.mark.parametrize(
    ("age_s", "left_s", "expected_s"),
    [
        (0, None, 1.0),
        (5, None, 1.0),
        (52, None, 4.0),
        (182, None, 14.0),
        (195, None, 15.0),
        (86_400, None, 15.0),
        (130, 60, 10.0),  # the end is further away than the next look
        (100, 4, 4.0),  # the end is near
        (100, 0.01, 1.0),  # overdue: not below the shortest
    ],
)
def test_a_task_is_looked_at_after_a_thirteenth_of_its_age_and_sooner_near_its_end(
    age_s: float, left_s: float | None, expected_s: float
) -> None:
    assert interval_s(POLICY, age_s, left_s, 1.0, 0.0) == pytest.approx(expected_s)


@pytest.mark.parametrize("age_s", [0, 3, 30, 300])
def test_intervals_spread_a_little_and_stay_within_the_policy(age_s: float) -> None:
    spread = [interval_s(POLICY, age_s, None, 1.0, chance / 10) for chance in range(11)]
    assert len(set(spread)) > 1
    assert min(spread) >= POLICY.poll_min_s
    assert max(spread) <= POLICY.poll_max_s
    assert max(spread) - min(spread) <= max(spread) * 0.11


def test_equal_limits_leave_no_choice() -> None:
    assert interval_s(PollPolicy(5, 5), 1_000, None, 1.0, 0.7) == 5


def test_all_intervals_stretch_alike_when_the_requests_do_not_suffice() -> None:
    assert interval_s(POLICY, 50, None, 4.0, 0.0) == 4 * interval_s(POLICY, 50, None, 1.0, 0.0)
    assert interval_s(POLICY, 900, None, 4.0, 0.0) == 60


@pytest.mark.parametrize(
    ("percent", "first", "since_s", "left_s"),
    [
        (50, 0, 10, 10),
        (99, 0, 99, 1),
        (99, 0, 990, 10),  # stuck at 99 %: expected later and later
        (100, 20, 8, 0),
        (40, 40, 10, None),  # no progress seen, so no pace
        (30, 40, 10, None),
        (50, 0, 0, None),
    ],
)
def test_what_is_left_follows_from_the_pace_so_far(
    percent: float, first: float, since_s: float, left_s: float | None
) -> None:
    assert remaining_s(percent, first, since_s) == (None if left_s is None else pytest.approx(left_s))


@pytest.mark.parametrize(
    ("looks_per_s", "tasks_a_request", "requests_per_s", "expected"),
    [
        (100, 500, 20, 1.0),
        (8_000, 500, 20, 1.0),
        (16_000, 500, 20, 2.0),
        (160, 1, 20, 10.0),
        (0, 1, 20, 1.0),
    ],
)
def test_the_stretch_makes_looks_fit_into_four_fifths_of_the_requests(
    looks_per_s: float, tasks_a_request: int, requests_per_s: float, expected: float
) -> None:
    assert stretch(looks_per_s, tasks_a_request, requests_per_s) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("failures", "chance", "asked_s", "expected_s"),
    [
        (1, 0, None, 1),
        (2, 0, None, 2),
        (4, 0, None, 8),
        (5, 0, None, 15),
        (1_000, 0, None, 15),
        (3, 1, None, 2),
        (1, 0, 120, 120),
        (1, 1, 120, 132),  # spread, so that replicas don't come back together, and never early
        (5, 0, 2, 15),
    ],
)
def test_back_off_doubles_to_the_longest_interval_and_honours_retry_after(
    failures: int, chance: float, asked_s: float | None, expected_s: float
) -> None:
    assert backoff_s(failures, POLICY, chance, asked_s) == pytest.approx(expected_s)


class TestOutage:
    def outage(self) -> Outage:
        return Outage(POLICY, random.Random(7))

    def test_requests_that_fail_together_count_once(self) -> None:
        together, alone = self.outage(), self.outage()
        for _ in range(4):
            together.record_failure(VCenterUnavailable("down"), asked_at=10.0, now=12.0)
        alone.record_failure(VCenterUnavailable("down"), asked_at=10.0, now=12.0)
        assert together.retry_at <= 13.0
        assert alone.retry_at <= 13.0

    def test_failures_in_a_row_wait_longer_and_an_answer_ends_it(self) -> None:
        outage = self.outage()
        now = 0.0
        for _ in range(8):
            outage.record_failure(VCenterUnavailable("down"), asked_at=now, now=now)
            waited, now = outage.retry_at - now, outage.retry_at
        assert 7.5 <= waited <= 15
        outage.record_answer(now)
        assert (outage.is_down, outage.retry_at) == (False, 0.0)
        outage.record_failure(VCenterUnavailable("down"), asked_at=now, now=now)
        assert outage.retry_at - now <= 1.0

    def test_three_doubts_in_a_row_mean_vcenter_and_an_answer_between_them_clears_it(self) -> None:
        outage = self.outage()
        outage.record_answer(0.0)
        assert [outage.count_ambiguous_failure(1.0), outage.count_ambiguous_failure(1.0)] == [False, False]
        outage.record_answer(2.0)
        assert [
            outage.count_ambiguous_failure(3.0),
            outage.count_ambiguous_failure(3.0),
            outage.count_ambiguous_failure(3.0),
        ] == [False, False, True]

    def test_a_doubt_is_certain_when_nothing_answered_for_long(self) -> None:
        outage = self.outage()
        assert outage.count_ambiguous_failure(0.0)
        outage.record_answer(1.0)
        assert not outage.count_ambiguous_failure(16.0)
        assert outage.count_ambiguous_failure(16.1)

    def test_a_named_time_is_waited_for(self) -> None:
        outage = self.outage()
        outage.record_failure(VCenterUnavailable("busy", retry_after_s=40), asked_at=0.0, now=0.0)
        assert outage.retry_at >= 40


class TestBudget:
    def test_a_second_s_worth_may_go_at_once_and_the_rest_in_turn(self) -> None:
        now = 0.0
        budget = RequestBudget(20, lambda: now)
        for _ in range(20):
            assert budget.wait_s() == 0
            budget.spend()
        assert budget.wait_s() == pytest.approx(0.05)
        now = 0.05
        assert budget.wait_s() == pytest.approx(0.0)
        now = 3600
        assert budget.is_plentiful
        for _ in range(20):
            budget.spend()
        assert budget.wait_s() == pytest.approx(0.05)

    def test_a_rate_below_one_still_lets_one_go(self) -> None:
        budget = RequestBudget(0.1, lambda: 0.0)
        assert budget.wait_s() == 0
        budget.spend()
        assert budget.wait_s() == pytest.approx(10)

    async def test_who_waits_gets_its_turn(self) -> None:
        budget = RequestBudget(50)
        for _ in range(50):
            budget.spend()
        asked = time.monotonic()
        await budget.take()
        assert time.monotonic() - asked > 0.01


class Looked:
    """A tracked task that is polled when it is due, by a clock that is set."""

    def __init__(self, age_s: float = 0.0, policy: PollPolicy = POLICY) -> None:
        self.now = 0.0
        rng = random.Random(3)
        self.transport = CisTransport(PollAgenda(policy.poll_min_s), policy, lambda: self.now, rng)
        self.tracker: TaskTracker[TrackedCisTask] = TaskTracker(
            "lab", policy, TIMEOUTS, self.transport, ResultQueue(), lambda: self.now, rng
        )
        self.tracked = TrackedCisTask.with_age("a:p", age_s, 0.0, seen=False, with_result=False)
        self.tracker.track(self.tracked)

    def look(self, percent: float | None = None, *, at: float | None = None) -> float:
        """One poll, by default when it is due; how long until the next."""
        self.now = self.tracked.due if at is None else at
        if percent is None:
            self.tracker.report_unchanged([self.tracked])
            self.transport.schedule_next([self.tracked], self.now)
        else:
            self.change(Task("RUNNING", progress=Progress(percent, 100, percent, None)))
            self.tracker.resume("a:p", quiet_until=0.0)
        return self.tracked.due - self.now

    def change(self, task: Task) -> None:
        self.transport.note_change(self.tracked, task)
        self.tracker.report_task(self.tracked, task)


class TestTransport:
    def test_the_age_counts_from_when_the_watch_began(self) -> None:
        assert Looked(age_s=0.0).look(at=0.0) < 1.2
        assert 9.0 <= Looked(age_s=130.0).look(at=0.0) <= 10.0
        assert Looked(age_s=-3_600.0).look(at=0.0) < 1.2  # the request's clock is ahead of ours

    def test_an_old_task_is_looked_at_as_seldom_as_can_be(self) -> None:
        looked = Looked(age_s=1_000.0)
        waits = [looked.look() for _ in range(50)]
        assert all(13.5 <= wait_s <= 15.0 for wait_s in waits)
        assert len(set(waits)) > 40

    def test_progress_that_nears_its_end_is_looked_at_sooner(self) -> None:
        looked = Looked(age_s=130.0)
        looked.look(10, at=0.0)
        assert looked.look(50, at=40.0) >= 11.0  # 40 s to go: by age
        assert 4.0 <= looked.look(90, at=80.0) <= 10.0
        assert looked.look(99, at=89.0) <= 1.2
        stuck = [looked.look() for _ in range(400)]
        assert stuck[-1] > 3.0  # at 99 % for minutes: expected later and later

    def test_progress_that_goes_backwards_starts_the_pace_anew(self) -> None:
        looked = Looked(age_s=1_000.0)
        looked.look(50, at=0.0)
        looked.look(20, at=10.0)
        assert looked.look(25, at=20.0) >= 13.5

    def test_news_of_an_old_task_makes_it_count_anew(self) -> None:
        looked = Looked(age_s=1_000.0)
        looked.look(0, at=0.0)
        looked.look()
        assert looked.tracked.is_slow
        looked.look(98, at=98.0)
        assert looked.look() < 5.0

    def test_what_took_long_to_be_dealt_with_is_looked_at_at_once(self) -> None:
        looked = Looked(age_s=1_000.0)
        looked.look(0, at=0.0)
        looked.now = 20.0
        looked.change(Task("BLOCKED"))
        looked.now = 500.0
        looked.tracker.resume("a:p", quiet_until=0.0)
        assert looked.tracked.due == 500.0

    def test_when_requests_do_not_suffice_every_interval_is_longer(self) -> None:
        looked = Looked(age_s=1_000.0)
        looked.transport.stretch = 10.0
        assert 135.0 <= looked.look(at=0.0) <= 150.0

    def test_the_demand_is_that_of_those_tracked(self) -> None:
        looked = Looked(age_s=1_000.0)
        looked.look(0, at=0.0)
        assert looked.transport.polls_per_s == pytest.approx(1 / 15, rel=0.15)
        looked.tracker.forget("a:p")
        assert looked.transport.polls_per_s == pytest.approx(0.0)


class TestAgenda:
    def tracked(self, name: str, *, due: float, agenda: PollAgenda, now: float = 0.0) -> TrackedCisTask:
        tracked = TrackedCisTask(f"{name}:p", False, provider="p", started_at=0.0)
        agenda.schedule(tracked, now, due)
        return tracked

    def taken(self, agenda: PollAgenda, now: float, at_most: int = 500) -> list[str]:
        agenda.queue_due(now)
        group = agenda.next_group(results_first=False)
        if group is None:
            return []
        taken = agenda.take(group, at_most)
        group.in_flight -= 1
        return [tracked.id[0] for tracked in taken]

    def test_what_is_due_within_the_next_second_goes_along(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        self.tracked("a", due=10.0, agenda=agenda)
        self.tracked("b", due=10.9, agenda=agenda)
        self.tracked("c", due=11.5, agenda=agenda)
        assert agenda.first_due() <= 10.0
        assert self.taken(agenda, 10.0) == ["a", "b"]

    def test_short_intervals_are_not_cut_by_more_than_a_quarter(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        self.tracked("a", due=1.0, agenda=agenda)
        self.tracked("b", due=1.2, agenda=agenda)
        self.tracked("c", due=1.5, agenda=agenda)
        assert self.taken(agenda, 1.0) == ["a", "b"]

    def test_a_task_that_was_moved_is_taken_once_at_its_new_time(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        moved = self.tracked("a", due=10.0, agenda=agenda)
        agenda.schedule(moved, 5.0, 5.0)
        assert self.taken(agenda, 5.0) == ["a"]
        agenda.schedule(moved, 5.0, 30.0)
        assert self.taken(agenda, 10.0) == []
        assert self.taken(agenda, 30.0) == ["a"]
        assert moved.phase == POLLING

    @pytest.mark.parametrize("phase", [PARKED, FORGOTTEN])
    def test_a_task_that_does_not_wait_any_more_is_not_taken(self, phase: int) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        self.tracked("a", due=10.0, agenda=agenda).phase = phase
        assert self.taken(agenda, 10.0) == []

    def test_the_queue_whose_task_waited_longest_comes_first_and_a_hurried_task_before_all(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        late = TrackedCisTask("late:p", False, provider="p", started_at=0.0)
        later = TrackedCisTask("x:q", False, provider="q", started_at=0.0)
        agenda.schedule(late, 0.0, 2.0)
        agenda.schedule(later, 0.0, 1.0)
        agenda.queue_due(3.0)
        group = agenda.next_group(results_first=False)
        assert group is not None
        assert group.provider == "q"
        agenda.queue(late, 3.0, before_others=True)
        group = agenda.next_group(results_first=False)
        assert group is not None
        assert agenda.take(group, 5) == [late]

    def test_only_so_many_are_taken_and_the_rest_stays_queued(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        for name in "abcde":
            self.tracked(name, due=1.0, agenda=agenda)
        assert self.taken(agenda, 1.0, at_most=3) == ["a", "b", "c"]
        assert agenda.has_queued()
        assert self.taken(agenda, 1.0) == ["d", "e"]
        assert not agenda.has_queued()

    def test_one_that_no_list_works_with_is_asked_for_alone(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        odd = self.tracked("a", due=1.0, agenda=agenda)
        odd.listable_from = 100.0
        self.tracked("b", due=1.0, agenda=agenda)
        agenda.queue_due(1.0)
        groups = {}
        while group := agenda.next_group(results_first=False):
            groups[group.method] = [tracked.id[0] for tracked in agenda.take(group, 500)]
            group.in_flight -= 1
        assert groups == {"get": ["a"], "list": ["b"]}
        agenda.schedule(odd, 100.0, 101.0)
        agenda.queue_due(101.0)
        group = agenda.next_group(results_first=False)
        assert group is not None
        assert group.method == "list"

    def test_without_any_list_every_task_is_asked_for_alone(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        agenda.lists_from = 50.0
        self.tracked("a", due=1.0, agenda=agenda)
        agenda.queue_due(1.0)
        group = agenda.next_group(results_first=False)
        assert group is not None
        assert group.method == "get"

    def test_a_provider_that_fails_is_asked_by_one_request_at_a_time_and_none_by_all_there_are(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0, in_flight_max=3)
        for name in "abcd":
            self.tracked(name, due=1.0, agenda=agenda)
        agenda.queue_due(1.0)
        group = agenda.next_group(results_first=False)
        assert group is not None
        agenda.take(group, 1)
        assert agenda.next_group(results_first=False) is group
        group.failures = 1
        assert agenda.next_group(results_first=False) is None
        assert not agenda.has_queued()
        group.failures = 0
        agenda.take(group, 1)
        assert agenda.next_group(results_first=False) is None
        group.in_flight = 0
        assert agenda.has_queued()

    def test_many_providers_that_come_and_go_leave_nothing_behind(self) -> None:
        agenda = PollAgenda(poll_min_s=1.0)
        for number in range(2_000):
            tracked = TrackedCisTask(f"x:{number}", False, provider=str(number), started_at=0.0)
            agenda.schedule(tracked, 0.0, 0.0)
            assert self.taken(agenda, 0.0) == ["x"]
            tracked.phase = FORGOTTEN
        assert len(agenda._groups) <= 500
        assert agenda.next_group(results_first=False) is None
