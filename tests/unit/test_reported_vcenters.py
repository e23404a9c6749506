"""How long a request for a vCenter that this replica doesn't know waits for one that does."""

from __future__ import annotations

import pytest

from task_bridge.jetstream.reported_vcenters import UNKNOWN_FOR_S, ReportedVCenters, hand_back_interval_s

SETTLE_S = 5.0
LONG = 10 * UNKNOWN_FOR_S


def listening(until: float, *, others_until: float | None = None, names: tuple[str, ...] = ()) -> ReportedVCenters:
    """What a replica knows that listened from 0 on, and heard another one report `names` until `others_until`."""
    reported = ReportedVCenters(SETTLE_S, 0.0)
    now = 0.0
    while now < until:
        now = min(until, now + 1.0)
        reported.check_listening(now, is_connected=True)
        if others_until is not None and now <= others_until:
            reported.record(names, now)
    return reported


def test_a_replica_that_has_just_started_waits_until_it_would_have_heard_another() -> None:
    assert listening(4.0).hand_back_s("new", LONG, 4.0) == SETTLE_S
    assert listening(5.0).hand_back_s("new", 0.0, 5.0) == 0.0


def test_a_replica_whose_only_neighbor_left_is_alone_after_the_time() -> None:
    assert listening(60.0, others_until=50.0).hand_back_s("new", 0.0, 60.0) == hand_back_interval_s()
    end = 50.0 + UNKNOWN_FOR_S
    assert listening(end, others_until=50.0).hand_back_s("new", 0.0, end) == 0.0


@pytest.mark.parametrize(
    ("waited_s", "seconds"),
    [(0.0, 150.0), (150.0, 150.0), (450.0, 150.0), (500.0, 100.0), (599.0, 1.0), (600.0, 0.0), (LONG, 0.0)],
)
def test_a_request_is_rejected_when_it_has_waited_in_vain(waited_s: float, seconds: float) -> None:
    reported = listening(1_000.0, others_until=1_000.0, names=("old",))
    assert reported.hand_back_s("new", waited_s, 1_000.0) == seconds


def test_however_long_a_request_waited_a_replica_must_have_listened_that_long_itself() -> None:
    reported = listening(100.0, others_until=100.0)
    assert reported.hand_back_s("new", LONG, 100.0) == 150.0
    reported = listening(550.0, others_until=550.0)
    assert reported.hand_back_s("new", LONG, 550.0) == 50.0


def test_a_vcenter_that_another_replica_reports_is_left_to_it_and_begins_the_time_anew_when_it_goes() -> None:
    reported = listening(1_000.0, others_until=1_000.0, names=("new",))
    assert reported.names(1_000.0) == ["new"]
    assert 0 < reported.hand_back_s("new", LONG, 1_000.0) < 1.0
    reported = listening(1_010.0, others_until=1_000.0, names=("new",))
    assert reported.names(1_010.0) == []
    assert reported.hand_back_s("new", LONG, 1_010.0) == 150.0


def test_only_a_vcenter_that_nobody_reported_recently_is_news() -> None:
    reported = ReportedVCenters(SETTLE_S, 0.0)
    assert reported.record(["a", "b"], 1.0) == ["a", "b"]
    assert reported.record(["a", "b", "c"], 2.0) == ["c"]
    assert reported.record(["a"], 10.0) == ["a"]


@pytest.mark.parametrize("is_connected", [False, True])
def test_what_could_not_be_heard_proves_nothing(is_connected: bool) -> None:
    """Without NATS, or after the process was stopped for an hour and continued."""
    reported = listening(1_000.0, others_until=1_000.0)
    now = 1_001.0 if not is_connected else 4_600.0
    if is_connected:
        assert reported.hand_back_s("new", LONG, now) == SETTLE_S  # before anything could be heard
    reported.check_listening(now, is_connected=is_connected)
    reported.check_listening(now + 1, is_connected=True)
    assert reported.hand_back_s("new", LONG, now + 1) == SETTLE_S
