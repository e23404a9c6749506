"""How far apart two answers of vCenter may be for the time between them to count as time in which it answers."""

from __future__ import annotations

import pytest

from task_bridge.vcenter.absence import Absences
from task_bridge.vcenter.policy import Timeouts

LONGEST_GAP_S = 60.0


@pytest.mark.parametrize(("gap_s", "is_held"), [(LONGEST_GAP_S, False), (LONGEST_GAP_S + 1.0, True), (3_600.0, True)])
def test_the_time_between_two_answers_counts_up_to_a_minute(gap_s: float, is_held: bool) -> None:
    absences = Absences(30.0, Timeouts(vanished_hold_s=LONGEST_GAP_S))
    absences.record_answer(0.0)
    for task in ("a", "b", "c"):
        absences.record_absent(task, "p", True, 0.0)
        absences.confirm_absent(task, False, 0.0)
    absences.record_answer(gap_s)
    assert (absences.vanished_reason is not None) is is_held
    assert absences.confirm_absent("a", False, gap_s) is not is_held


def test_a_gap_that_is_too_long_starts_the_count_at_the_answer_after_it() -> None:
    absences = Absences(30.0, Timeouts(vanished_hold_s=LONGEST_GAP_S))
    absences.record_answer(0.0)
    for task in ("a", "b", "c"):
        absences.record_absent(task, "p", True, 0.0)
    absences.record_answer(100.0)
    absences.record_answer(159.0)
    assert absences.vanished_reason is not None
    absences.record_answer(160.0)
    assert absences.vanished_reason is None


HOLD_S, CONFIRM_S, START = 600.0, 5.0, 10_000.0


def vanish_together(absences: Absences, now: float) -> None:
    absences.record_answer(now)
    for task in ("a", "b", "c"):
        absences.record_absent(task, "p", True, now)


def answer_for(absences: Absences, seconds: float, start: float) -> float:
    """vCenter answers every ten seconds for so long; the time then."""
    for passed in range(0, int(seconds) + 1, 10):
        absences.record_answer(start + passed)
    return start + seconds


def test_a_task_held_back_is_asked_about_when_the_rest_of_the_hold_has_passed() -> None:
    absences = Absences(30.0, Timeouts())
    vanish_together(absences, START)
    now = answer_for(absences, 200.0, START)
    assert absences.confirm_at("a", now) == START + HOLD_S


def test_those_held_back_are_reported_with_those_of_others_and_the_minutes_that_are_left() -> None:
    absences = Absences(30.0, Timeouts())
    vanish_together(absences, START)
    absences.set_vanished_elsewhere(2)
    answer_for(absences, 240.0, START)
    assert "5 tasks" in str(absences.vanished_reason)
    assert "6 more minutes" in str(absences.vanished_reason)


def test_one_here_and_one_elsewhere_are_not_many() -> None:
    absences = Absences(30.0, Timeouts())
    absences.set_vanished_elsewhere(1)
    absences.record_absent("a", "p", True, START)
    assert absences.vanished_reason is None
    absences.set_vanished_elsewhere(2)
    assert absences.vanished_reason is not None


def test_a_task_that_was_held_back_long_enough_is_over_a_confirmation_after_it_went() -> None:
    """That a list doesn't show it and vCenter's answer about it alone can be that far apart too."""
    timeouts = Timeouts(vanished_hold_s=2.0)
    absences = Absences(30.0, timeouts)
    absences.record_shown("shown", "p", START)
    vanish_together(absences, START)
    absences.record_answer(START + 2.0)
    assert absences.vanished_reason is None
    assert absences.confirm_at("a", START + 2.0) == START + CONFIRM_S
    assert absences.confirm_at("a", START + 7.0) == START + 7.0
    assert not absences.confirm_absent("a", False, START + 4.0)
    assert absences.confirm_absent("a", False, START + CONFIRM_S)


def test_a_task_is_only_unlisted_until_vcenter_answers_about_it_alone() -> None:
    absences = Absences(30.0, Timeouts())
    assert not absences.is_only_unlisted("a")
    absences.record_absent("a", "p", True, START)
    assert absences.is_only_unlisted("a")
    absences.confirm_absent("a", False, START)
    assert not absences.is_only_unlisted("a")


def test_a_task_never_seen_that_is_forgotten_leaves_the_number_of_those_that_vanished() -> None:
    absences = Absences(30.0, Timeouts())
    absences.record_absent("a", "p", True, START)
    absences.record_absent("never", "p", False, START)
    absences.forget("never")
    assert absences.vanished_count == 1


def test_a_hold_ends_here_though_other_replicas_miss_many() -> None:
    absences = Absences(30.0, Timeouts())
    vanish_together(absences, START)
    absences.set_vanished_elsewhere(5)
    answer_for(absences, HOLD_S, START)
    assert (absences.vanished_count, absences.vanished_reason) == (0, None)


def test_the_minutes_that_are_left_of_a_long_hold_are_reported() -> None:
    absences = Absences(30.0, Timeouts(vanished_hold_s=36_000.0))
    vanish_together(absences, START)
    answer_for(absences, 600.0, START)
    assert "590 more minutes" in str(absences.vanished_reason)
