"""The pauses of an outage of vCenter."""

from __future__ import annotations

import random

import pytest

from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.vcenter.backoff import Outage
from task_bridge.vcenter.policy import PollPolicy

POLICY = PollPolicy(poll_min_s=1.0, poll_max_s=16.0)


class Unlucky(random.Random):
    """Shortens no pause."""

    def random(self) -> float:
        return 0.0


@pytest.fixture
def outage() -> Outage:
    return Outage(POLICY, Unlucky())


def fail(outage: Outage, asked_at: float, now: float) -> float:
    """A request fails; for how long the next one waits."""
    outage.record_failure(VCenterUnavailable("nobody is there"), asked_at, now)
    return outage.retry_at - now


def test_it_lasts_from_a_failure_until_an_answer(outage: Outage) -> None:
    assert (outage.is_down, outage.retry_at) == (False, 0.0)
    fail(outage, 0.0, 1.0)
    assert outage.is_down
    outage.record_answer(2.0)
    assert (outage.is_down, outage.retry_at) == (False, 0.0)


def test_each_failure_in_a_row_doubles_the_pause_and_an_answer_starts_afresh(outage: Outage) -> None:
    assert [fail(outage, now, now) for now in (0.0, 100.0, 200.0)] == [1.0, 2.0, 4.0]
    outage.record_answer(300.0)
    assert fail(outage, 400.0, 400.0) == 1.0


def test_requests_that_were_in_flight_together_count_once(outage: Outage) -> None:
    assert [fail(outage, 0.0, now) for now in (10.0, 11.0, 12.0)] == [1.0, 1.0, 1.0]
    assert fail(outage, 12.0, 13.0) == 2.0


@pytest.mark.parametrize(
    ("silent_s", "failures", "is_vcenter"),
    [(0.0, 1, False), (0.0, 2, False), (0.0, 3, True), (16.0, 1, False), (16.5, 1, True)],
)
def test_an_ambiguous_failure_is_vcenter_s_after_a_long_silence_or_when_it_is_the_third(
    outage: Outage, silent_s: float, failures: int, is_vcenter: bool
) -> None:
    outage.record_answer(100.0)
    counted = [outage.count_ambiguous_failure(100.0 + silent_s) for _ in range(failures)]
    assert counted == [*[False] * (failures - 1), is_vcenter]


def test_an_answer_between_ambiguous_failures_starts_their_count_afresh(outage: Outage) -> None:
    outage.record_answer(100.0)
    assert not any(outage.count_ambiguous_failure(100.0) for _ in range(2))
    outage.record_answer(100.0)
    assert not outage.count_ambiguous_failure(100.0)


def test_while_it_is_down_every_failure_is_vcenter_s(outage: Outage) -> None:
    outage.record_answer(100.0)
    fail(outage, 100.0, 100.0)
    assert outage.count_ambiguous_failure(100.0)
