"""The names in NATS: exactly those of the contract, and no task id that can leave its token."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_bridge.domain.subjects import (
    CONSUMER,
    SERVICE,
    VERBS,
    SubjectNames,
    decode_task_token,
    is_prefix,
    is_vcenter_name,
    task_token,
)

NAMES = SubjectNames("vcenter.tasks")
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)


def test_the_fixed_names_are_those_of_the_contract() -> None:
    assert CONSUMER == "bridge"
    assert SERVICE == "vcenter-task-bridge"
    assert set(VERBS) == {"watch", "unwatch", "get", "list", "cancel", "follow", "unfollow", "follows"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (NAMES.requests, "vcenter.tasks.watch"),
        (NAMES.api, "vcenter.tasks.api"),
        (NAMES.rejected, "vcenter.tasks.rejected"),
        (NAMES.events, "vcenter.tasks.events"),
        (NAMES.follow_requests, "vcenter.tasks.follow"),
        (NAMES.follow_event_subject("lab", "all", "gap"), "vcenter.tasks.follows.lab.all.gap"),
        (NAMES.follows_stream, "VCENTER_TASKS_FOLLOWS"),
        (NAMES.follow_requests_stream, "VCENTER_TASKS_FOLLOW_REQUESTS"),
        (NAMES.requests_stream, "VCENTER_TASKS_REQUESTS"),
        (NAMES.watches_stream, "VCENTER_TASKS_WATCHES"),
        (NAMES.events_stream, "VCENTER_TASKS_EVENTS"),
        (NAMES.results_bucket, "VCENTER_TASKS_RESULTS"),
        (NAMES.event_filter("lab", "a:b.c"), "vcenter.tasks.events.lab.a:b%2Ec.>"),
    ],
)
def test_public_names_follow_from_the_prefix(name: str, text: str) -> None:
    assert name == text


def test_what_users_have_no_business_with_is_internal() -> None:
    internal = [NAMES.watches, NAMES.put, NAMES.watch_subject("lab", "t"), NAMES.put_subject("lab", "t", "status")]

    assert all(name.startswith("vcenter.tasks.internal.") for name in internal)


def test_two_prefixes_share_nothing() -> None:
    one, other = SubjectNames("vcenter.tasks"), SubjectNames("tasks_2.of-mine")

    names = [(names.requests_stream, names.watches_stream, names.events_stream) for names in (one, other)]

    assert other.events_stream == "TASKS_2_OF-MINE_EVENTS"
    assert not set(names[0]) & set(names[1])


@pytest.mark.parametrize(
    ("task", "token"),
    [
        ("52f9f1b0-160a:com.vmware", "52f9f1b0-160a:com%2Evmware"),
        ("a_b~c-D:9", "a_b~c-D:9"),
        ("*", "%2A"),
        (">", "%3E"),
        ("a b", "a%20b"),
        ("100%", "100%25"),
        ("%2E", "%252E"),
        ("ä", "%C3%A4"),
        ("日", "%E6%97%A5"),
        ("$JS", "%24JS"),
    ],
)
def test_a_task_id_is_percent_encoded_with_upper_case_hex(task: str, token: str) -> None:
    assert task_token(task) == token
    assert decode_task_token(token) == task


@given(ids)
def test_no_task_id_can_leave_its_token_and_each_comes_back(task: str) -> None:
    token = task_token(task)

    assert re.fullmatch(r"([A-Za-z0-9_~:-]|%[0-9A-F]{2})+", token)
    assert decode_task_token(token) == task


@given(ids, ids)
def test_two_tasks_never_share_a_token(one: str, other: str) -> None:
    assert (task_token(one) == task_token(other)) == (one == other)


@given(ids)
def test_subjects_tell_whose_they_are(task: str) -> None:
    event = NAMES.event_filter("lab_2", task).replace(">", "completed.failed")

    assert NAMES.parse_event_subject(event) == ("lab_2", task)
    assert NAMES.put_subject("lab_2", task, "status").split(".")[-3:] == ["lab_2", task_token(task), "status"]


@pytest.mark.parametrize("name", ["a", "9", "lab", "lab_2", "a_b_c", "x" * 63])
def test_a_vcenter_can_be_named_so(name: str) -> None:
    assert is_vcenter_name(name)


@pytest.mark.parametrize(
    "name", ["", "_a", "a_", "a__b", "Lab", "a-b", "a.b", "a b", "ä", "x" * 64, "lab\n", "*", ">", "²"]
)
def test_a_vcenter_cannot_be_named_so(name: str) -> None:
    assert not is_vcenter_name(name)


@pytest.mark.parametrize("prefix", ["a", "vcenter.tasks", "A-1_b.c", "x" * 64])
def test_a_prefix_can_be_so(prefix: str) -> None:
    assert is_prefix(prefix)


@pytest.mark.parametrize("prefix", ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "$JS.API", "x" * 65, "a\n"])
def test_a_prefix_cannot_be_so(prefix: str) -> None:
    assert not is_prefix(prefix)
