"""What a replica remembers of requests without an outcome."""

from __future__ import annotations

import pytest

from task_bridge.jetstream import unfinished_requests
from task_bridge.jetstream.unfinished_requests import UnfinishedRequests


def test_a_request_is_known_from_its_first_delivery_until_it_is_forgotten() -> None:
    requests = UnfinishedRequests()
    assert requests.age_s("1-1", 5.0) is None
    assert requests.remember("1-1", 5.0)
    assert not requests.remember("1-1", 7.0)
    assert ("1-1" in requests, requests.age_s("1-1", 8.0)) == (True, 3.0)
    requests.forget("1-1")
    requests.forget("1-1")
    assert "1-1" not in requests


def test_the_newest_delivery_of_what_was_handed_back_for_its_vcenter_can_be_asked_for_again() -> None:
    requests = UnfinishedRequests()
    requests.remember("1-1", 1.0, vcenter="new", reply="a")
    requests.remember("1-1", 2.0, vcenter="new", reply="b")
    requests.remember("1-2", 2.0, vcenter="other", reply="c")
    requests.remember("1-3", 2.0)
    assert requests.list_ack_subjects("new") == ["b"]


def test_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished_requests, "_MAX_REMEMBERED", 2)
    requests = UnfinishedRequests()
    for number in range(3):
        requests.remember(f"1-{number}", 0.0)
    assert [f"1-{number}" in requests for number in range(3)] == [False, True, True]
