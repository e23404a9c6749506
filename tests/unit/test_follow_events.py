"""Events of follows to the letter, and what the next owner reads from them."""

from __future__ import annotations

import json
from typing import Any

from task_bridge.domain.events import is_own_event
from task_bridge.domain.follows.event import (
    FollowMemory,
    build_draft,
    build_gap,
    from_follow_cloudevent,
    read_memory,
    to_follow_cloudevent,
)
from task_bridge.domain.follows.order import Follow, FollowEntity
from task_bridge.domain.follows.place import FollowPlace, Gap, KnownTask

T = 1_795_900_000.0
URL = "https://vcenter.example.com"
FOLLOW = Follow(
    "1795900000000-1",
    "lab",
    "patching",
    T,
    operations=("clone*",),
    entity=FollowEntity("group-v3", recursive=True),
    timeout_s=14_400.0,
    labels={"team": "platform"},
)
MEMORY = FollowMemory(2, FollowPlace(T, T + 30, KnownTask("task-7", T + 20)), started_watches=5, gaps=1)

FOLLOWING: dict[str, Any] = {
    "specversion": "1.0",
    "datacontenttype": "application/json",
    "id": "1795900000000-1/3",
    "source": URL,
    "type": "io.vcenter-task-bridge.follow.following.v1",
    "subject": "patching",
    "time": "2026-11-28T21:07:40.000Z",
    "data": {
        "vcenter": "lab",
        "name": "patching",
        "follow": {
            "id": "1795900000000-1",
            "apis": ["vim"],
            "services": [],
            "operations": ["clone*"],
            "users": [],
            "entity": {"id": "group-v3", "recursive": True},
            "top_level_only": False,
            "since": "now",
            "events": "all",
            "timeout": 14400.0,
            "stalled_after": 0.0,
            "labels": {"team": "platform"},
        },
        "kind": "following",
        "final": False,
        "sequence": 3,
        "reason": "resumed",
        "from": None,
        "to": None,
        "place": {
            "begins_at": "2026-11-28T21:06:40.000Z",
            "complete_until": "2026-11-28T21:07:10.000Z",
            "task": "task-7",
            "queued_at": "2026-11-28T21:07:00.000Z",
        },
        "started_watches": 5,
        "gaps": 1,
    },
}


def test_an_event_of_a_follow_to_the_letter() -> None:
    draft = build_draft(FOLLOW, MEMORY, "following", URL, T + 60, reason="resumed")
    body = to_follow_cloudevent(draft)
    assert json.loads(body) == FOLLOWING
    assert draft.id == FOLLOWING["id"]
    assert is_own_event(body)


def test_a_gap_names_its_span_and_is_counted() -> None:
    draft = build_gap(FOLLOW, MEMORY, Gap(T, T + 9.5, "vCenter's history is empty"), URL, T + 60)
    event = json.loads(to_follow_cloudevent(draft))
    assert event["type"] == "io.vcenter-task-bridge.follow.gap.v1"
    assert event["data"] == FOLLOWING["data"] | {
        "kind": "gap",
        "reason": "vCenter's history is empty",
        "from": "2026-11-28T21:06:40.000Z",
        "to": "2026-11-28T21:06:49.500Z",
        "gaps": 2,
    }


def test_the_last_event_is_final() -> None:
    data = build_draft(FOLLOW, FollowMemory(), "unfollowed", URL, T).data
    assert (data.final, data.sequence, data.place) == (True, 1, None)


def test_the_next_owner_reads_what_the_last_one_wrote() -> None:
    for memory in (MEMORY, FollowMemory(4, FollowPlace(T, T)), FollowMemory(9)):
        body = to_follow_cloudevent(build_draft(FOLLOW, memory, "following", URL, T))
        event = from_follow_cloudevent(body)
        assert event is not None
        assert read_memory(event.data) == memory._replace(sequence=memory.sequence + 1)


def test_a_later_release_may_add_keys_and_a_foreign_body_is_none() -> None:
    event = FOLLOWING | {"data": {**FOLLOWING["data"], "more": 1}}
    read = from_follow_cloudevent(json.dumps(event).encode())
    assert read is not None
    assert read_memory(read.data) == MEMORY._replace(sequence=3)
    assert from_follow_cloudevent(b"{}") is None
    assert from_follow_cloudevent(b"\xff") is None
