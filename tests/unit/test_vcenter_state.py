"""The state of a vCenter in replies: what the replicas that poll it report, the worst of them."""

from __future__ import annotations

import msgspec
import pytest

from task_bridge.domain.errors import LoginRefused, VCenterUnavailable, VCenterUnreachable
from task_bridge.domain.vcenter_state import VCenterReport, combine_reports
from task_bridge.jetstream.replicas import ReplicaStatus
from task_bridge.vcenter.health import ApiHealthTracker
from task_bridge.vcenter.http import NoAnswer

WELL = VCenterReport("ok")
POLLS = VCenterReport("ok", polls=True)
AWAY = VCenterReport("unreachable", "No route.", 100.0)
REFUSED = VCenterReport("refused", "Wrong password.", 200.0)


def polls(report: VCenterReport) -> VCenterReport:
    return msgspec.structs.replace(report, polls=True)


@pytest.mark.parametrize(
    ("reports", "state", "reason"),
    [
        ([WELL], "ok", None),
        ([POLLS, WELL], "ok", None),
        ([AWAY], "unreachable", "No route."),
        ([WELL, AWAY], "unreachable", "No route."),  # nobody polls, so each may be right
        ([POLLS, AWAY], "ok", None),  # the one that checks once a minute doesn't know yet
        ([POLLS, polls(AWAY)], "unreachable", "No route."),
        ([polls(AWAY), polls(REFUSED)], "refused", "Wrong password."),
    ],
)
def test_the_worst_view_of_the_replicas_that_poll_counts(
    reports: list[VCenterReport], state: str, reason: str | None
) -> None:
    combined = combine_reports("lab", reports)
    assert (combined.state, combined.reason) == (state, reason)


def test_a_vcenter_that_no_replica_reports_is_unconfigured() -> None:
    combined = combine_reports("gone", [])
    assert combined.state == "unconfigured"
    assert "'gone'" in str(combined.reason)


def test_of_equal_views_the_one_that_has_failed_for_longer_counts() -> None:
    later = msgspec.structs.replace(AWAY, since=150.0)
    assert combine_reports("lab", [later, AWAY]).since == "1970-01-01T00:01:40.000Z"


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (VCenterUnavailable("It is starting."), "degraded"),
        (VCenterUnreachable("No route."), "unreachable"),
        (NoAnswer("No answer in time."), "unreachable"),
        (LoginRefused("Wrong password."), "refused"),
    ],
)
def test_health_says_what_kind_of_trouble_there_is_and_since_when(error: VCenterUnavailable, trouble: str) -> None:
    now = [10.0]
    health = ApiHealthTracker("lab", "cis", lambda: now[0])
    for now[0] in (20.0, 30.0):
        health.record_failure(error)
    report = health.report(watches=1, vanished=0)
    assert (report.state, report.trouble, report.since) == ("degraded", trouble, 20.0)
    health.record_good_poll(40.0)
    assert health.report(watches=1, vanished=0)[-2:] == (None, None)
    now[0] = 50.0
    health.record_failed_poll("A word.")
    assert health.report(watches=1, vanished=0)[-2:] == ("degraded", 50.0)


def test_a_replica_of_another_release_reports_no_state() -> None:
    status = msgspec.json.decode(b'{"instance":"a","held":1,"capacity":2}', type=ReplicaStatus)
    assert status.vcenter_reports == {}
