"""The health of each API of a vCenter, and what it makes of the vCenter as a whole."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from task_bridge.domain.errors import VCenterUnavailable, VCenterUnreachable
from task_bridge.domain.task import Api
from task_bridge.jetstream.replicas import ReplicaStatus, count_absent
from task_bridge.vcenter.health import ApiHealth, ApiHealthTracker, combine_apis, find_apis_in_use

GOOD, NEW, BAD = ApiHealth("ok", None, 90.0), ApiHealth("unknown", None, None), ApiHealth("degraded", "Why.", 10.0)
REFUSED = ApiHealth("degraded", "Wrong password.", None, trouble="refused", since=60.0)
HELD = ApiHealth("ok", "They vanished together.", 80.0, held_back=3)


def watched(health: ApiHealth, watches: int = 1) -> ApiHealth:
    return health._replace(watches=watches)


@pytest.mark.parametrize(
    ("cis", "vim", "in_use", "whole"),
    [
        (GOOD, NEW, ["cis"], GOOD),
        (BAD, GOOD, ["cis"], BAD),
        (NEW, GOOD, ["cis"], NEW),
        (watched(GOOD), BAD, ["cis"], watched(GOOD)),
        (BAD, watched(GOOD), ["vim"], watched(GOOD)),
        (GOOD, watched(BAD), ["vim"], watched(BAD)),
        (watched(GOOD), watched(BAD), ["cis", "vim"], watched(BAD, 2)),
        (watched(BAD), watched(GOOD), ["cis", "vim"], watched(BAD, 2)),
        (watched(GOOD), watched(NEW), ["cis", "vim"], watched(NEW, 2)),
        (watched(BAD), watched(NEW), ["cis", "vim"], watched(BAD._replace(last_good_poll_at=None), 2)),
        (watched(GOOD), watched(HELD), ["cis", "vim"], watched(HELD, 2)),
        (watched(BAD), watched(HELD), ["cis", "vim"], watched(BAD._replace(held_back=3), 2)),
        # Until classic tasks are polled, what is known of the vCenter counts.
        (REFUSED, watched(NEW), ["vim"], watched(REFUSED._replace(last_good_poll_at=None))),
        (GOOD, watched(NEW), ["vim"], watched(NEW)),
    ],
)
def test_a_vcenter_is_as_well_as_the_worse_of_the_apis_in_use(
    cis: ApiHealth, vim: ApiHealth, in_use: list[Api], whole: ApiHealth
) -> None:
    apis: dict[Api, ApiHealth] = {"cis": cis, "vim": vim}
    assert find_apis_in_use(apis) == in_use
    assert combine_apis(apis) == whole


def test_trouble_began_when_another_api_had_it_first() -> None:
    later = watched(REFUSED._replace(since=70.0))
    assert combine_apis({"cis": REFUSED, "vim": later}).since == 60.0
    assert combine_apis({"cis": REFUSED, "vim": later._replace(last_good_poll_at=65.0)}).since == 70.0
    assert combine_apis({"cis": REFUSED, "vim": watched(GOOD)}).since is None


def test_where_classic_tasks_are_off_the_other_api_says_all() -> None:
    assert combine_apis({"cis": BAD}) == BAD


def test_a_failure_lasts_until_a_good_poll_of_the_same_provider_and_is_logged_once() -> None:
    health = ApiHealthTracker("lab", "cis")
    with capture_logs() as logs:
        for _ in range(2):
            health.record_failure(VCenterUnavailable("It hangs."), "com.p")
        health.record_good_poll(1.0, "com.q")
        assert (health.state, health.reason) == ("degraded", "It hangs.")
        health.record_good_poll(2.0, "com.p")
        assert (health.state, health.reason, health.last_good_poll_at) == ("ok", None, 2.0)
    told = [(log["event"], log["api"], log["provider"]) for log in logs]
    assert told == [("vcenter_unavailable", "cis", "com.p"), ("vcenter_available_again", "cis", "com.p")]


def test_an_answer_ends_a_failure_of_the_api_as_a_whole_and_no_provider_s() -> None:
    health = ApiHealthTracker("lab", "cis")
    health.record_failure(VCenterUnreachable("It is away."))
    health.record_failure(VCenterUnavailable("It hangs."), "com.p")
    health.record_answer()
    assert health.reason == "It hangs."


def test_an_api_that_nothing_needs_anymore_is_unknown() -> None:
    health = ApiHealthTracker("lab", "vim")
    health.record_good_poll(1.0)
    health.record_failure(VCenterUnreachable("It is away."))
    health.reset()
    assert health.report(watches=0, vanished=0) == ApiHealth("unknown", None, None)


def test_tasks_are_held_back_while_there_is_a_reason() -> None:
    health = ApiHealthTracker("lab", "vim")
    health.record_good_poll(1.0)
    assert health.report(watches=5, vanished=2) == ApiHealth("ok", None, 1.0, watches=5)
    health.set_vanished_reason("They vanished together.")
    assert health.report(watches=5, vanished=3) == ApiHealth("ok", "They vanished together.", 1.0, 5, 3)


@pytest.mark.parametrize(
    ("others", "counts"),
    [
        ([], {}),
        ([{"lab": {"vim": 2}}, {"lab": {"vim": 1, "cis": 4}}], {"vim": 3, "cis": 4}),
        ([{"other": {"vim": 2}}], {}),
    ],
)
def test_what_other_replicas_miss_is_counted_by_api(
    others: list[dict[str, dict[Api, int]]], counts: dict[Api, int]
) -> None:
    reports = [ReplicaStatus("r", 0, 1, absent_by_api=by_api) for by_api in others]
    assert +count_absent("lab", reports) == counts


def test_what_a_replica_of_an_older_release_misses_may_be_tasks_of_either_api() -> None:
    assert +count_absent("lab", [ReplicaStatus("r", 0, 1, absent={"lab": 2})]) == {"cis": 2, "vim": 2}
