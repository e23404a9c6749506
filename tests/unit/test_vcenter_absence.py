"""When a task that vCenter doesn't show counts as lost or denied."""

from __future__ import annotations

import pytest

from task_bridge.vcenter.absence import Absences
from task_bridge.vcenter.policy import Timeouts

GRACE_S, CONFIRM_S, HOLD_S = 30.0, 5.0, 600.0


@pytest.fixture
def absences() -> Absences:
    return Absences(GRACE_S, Timeouts())


def answer_for(absences: Absences, seconds: float, start: float = 0.0) -> float:
    """vCenter answers every ten seconds for so long, and shows another task; the time then."""
    now = start
    while now <= start + seconds:
        absences.record_answer(now)
        absences.record_shown("shown", "p", now)
        now += 10.0
    return now


def test_those_that_other_replicas_miss_count_too(absences: Absences) -> None:
    absences.record_absent("a", "p", True, 0.0)
    absences.confirm_absent("a", False, 0.0)
    assert absences.vanished_count == 1
    assert absences.set_vanished_elsewhere(2)
    assert not absences.set_vanished_elsewhere(2)
    assert absences.vanished_reason is not None
    assert not absences.confirm_absent("a", False, 10.0)
    absences.forget("a")
    assert absences.vanished_reason is None
    absences.record_absent("b", "p", True, 20.0)
    assert absences.vanished_reason is not None


def test_those_that_only_others_miss_hold_nothing(absences: Absences) -> None:
    absences.set_vanished_elsewhere(10)
    assert absences.vanished_reason is None
    absences.record_absent("a", "p", False, 0.0)
    assert absences.vanished_reason is None


def test_two_different_answers_do_not_confirm_each_other(absences: Absences) -> None:
    absences.record_shown("shown", "p", 0.0)
    absences.record_absent("a", "p", True, 0.0)
    assert not absences.confirm_absent("a", False, 0.0)
    assert not absences.confirm_absent("a", True, 10.0)
    assert absences.confirm_absent("a", True, 15.0)


def test_a_task_that_comes_back_starts_afresh(absences: Absences) -> None:
    absences.record_absent("a", "p", True, 0.0)
    absences.confirm_absent("a", False, 0.0)
    assert absences.forget("a")
    assert not absences.forget("a")
    assert absences.record_absent("a", "p", True, 100.0)
    assert not absences.confirm_absent("a", False, 100.0)


def test_the_first_look_without_a_task_seen_before_asks_to_look_around(absences: Absences) -> None:
    assert absences.record_absent("a", "p", True, 0.0)
    assert not absences.record_absent("a", "p", True, 1.0)
    assert not absences.record_absent("never seen", "p", False, 1.0)


def test_a_list_s_silence_alone_ends_nothing_and_asks_for_an_answer(absences: Absences) -> None:
    absences.record_absent("a", "p", True, 0.0)
    assert absences.confirm_at("a", 3.0) == 3.0
    absences.confirm_absent("a", False, 3.0)
    assert absences.confirm_at("a", 4.0) == 8.0


class TestTogether:
    def vanish(self, absences: Absences, count: int, now: float = 0.0) -> None:
        for number in range(count):
            absences.record_absent(f"t{number}", "p", True, now)
            absences.confirm_absent(f"t{number}", False, now)

    def test_two_are_not_many(self, absences: Absences) -> None:
        absences.record_shown("shown", "p", 0.0)
        self.vanish(absences, 2)
        assert absences.vanished_reason is None
        assert absences.confirm_absent("t0", False, 5.0)

    def test_three_that_vanish_together_end_only_after_ten_minutes_of_answers(self, absences: Absences) -> None:
        absences.record_answer(0.0)
        self.vanish(absences, 3)
        assert "3 tasks" in str(absences.vanished_reason)
        now = answer_for(absences, 590.0)
        assert not absences.confirm_absent("t0", False, now)
        assert absences.confirm_at("t0", now) > now
        now = answer_for(absences, 20.0, start=now)
        assert absences.vanished_reason is None
        assert absences.confirm_at("t0", now) == now
        assert all(absences.confirm_absent(f"t{number}", False, now) for number in range(3))

    def test_nothing_else_ends_meanwhile(self, absences: Absences) -> None:
        absences.record_absent("never seen", "p", False, 0.0)
        absences.confirm_absent("never seen", False, 0.0)
        self.vanish(absences, 3, now=10.0)
        assert not absences.confirm_absent("never seen", False, 60.0)

    def test_time_without_answers_does_not_count(self, absences: Absences) -> None:
        absences.record_answer(0.0)
        self.vanish(absences, 3)
        now = answer_for(absences, 300.0)
        absences.record_outage()
        now = answer_for(absences, 290.0, start=now + 30.0)
        assert absences.vanished_reason is not None
        now = answer_for(absences, 290.0, start=now + 3_600.0)  # too long between two answers to know
        assert absences.vanished_reason is None

    def test_those_that_come_back_are_followed_on_and_the_rest_waits_its_time(self, absences: Absences) -> None:
        absences.record_answer(0.0)
        self.vanish(absences, 3)
        absences.forget("t1")
        absences.forget("t2")
        assert not absences.confirm_absent("t0", False, 20.0)
        assert absences.confirm_absent("t0", False, answer_for(absences, 610.0))

    def test_when_all_come_back_it_is_over(self, absences: Absences) -> None:
        self.vanish(absences, 3)
        for number in range(3):
            absences.forget(f"t{number}")
        assert absences.vanished_reason is None
        absences.record_shown("shown", "p", 100.0)
        absences.record_absent("single", "p", True, 100.0)
        absences.confirm_absent("single", False, 100.0)
        assert absences.confirm_absent("single", False, 105.0)

    def test_a_second_wave_gets_its_own_ten_minutes(self, absences: Absences) -> None:
        absences.record_answer(0.0)
        self.vanish(absences, 3)
        now = answer_for(absences, 500.0)
        for number in range(3):
            absences.record_absent(f"second{number}", "p", True, now)
            absences.confirm_absent(f"second{number}", False, now)
        now = answer_for(absences, 110.0, start=now)
        assert absences.confirm_absent("t0", False, now)
        assert not absences.confirm_absent("second0", False, now)
        now = answer_for(absences, 500.0, start=now)
        assert absences.confirm_absent("second0", False, now)

    def test_one_missed_long_ago_does_not_shorten_the_wait_of_others(self, absences: Absences) -> None:
        absences.record_answer(0.0)
        absences.record_absent("unproven", "p", True, 0.0)
        absences.confirm_absent("unproven", False, 0.0)
        now = answer_for(absences, 570.0)
        self.vanish(absences, 2, now=now)
        now = answer_for(absences, 300.0, start=now)
        assert not absences.confirm_absent("t0", False, now)
