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
        absences.record_absent(task, True, 0.0)
        absences.confirm_absent(task, False, 0.0)
    absences.record_answer(gap_s)
    assert (absences.vanished_reason is not None) is is_held
    assert absences.confirm_absent("a", False, gap_s) is not is_held


def test_a_gap_that_is_too_long_starts_the_count_at_the_answer_after_it() -> None:
    absences = Absences(30.0, Timeouts(vanished_hold_s=LONGEST_GAP_S))
    absences.record_answer(0.0)
    for task in ("a", "b", "c"):
        absences.record_absent(task, True, 0.0)
    absences.record_answer(100.0)
    absences.record_answer(159.0)
    assert absences.vanished_reason is not None
    absences.record_answer(160.0)
    assert absences.vanished_reason is None
