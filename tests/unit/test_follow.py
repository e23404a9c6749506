"""Which tasks a follow is about, from when on, and when two requests mean the same."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from task_bridge.domain.errors import Refused
from task_bridge.domain.follows.order import (
    Follow,
    FoundTask,
    build_watch_id,
    is_operation_selected,
    is_selected,
)
from task_bridge.domain.follows.request import FollowNameRequest, FollowRequest, build_follow
from task_bridge.domain.managed_objects import find_object_type
from task_bridge.domain.requests import parse_request
from task_bridge.domain.task import Target, TaskIdentity

VLCM = "com.vmware.esx.settings.clusters.software"
NOW = 1_795_900_000.0


def follow(requested_at: float = NOW, **fields: Any) -> Follow:
    request = parse_request(FollowRequest, json.dumps({"name": "patching", **fields}).encode())
    return build_follow(request, "lab", requested_at, "1795900000000-1", stalled_after_s=900.0)


def problems(**fields: Any) -> dict[str, str]:
    with pytest.raises(Refused) as refusal:
        follow(**fields)
    assert (refusal.value.status, refusal.value.code) == (400, "invalid_request")
    return dict(refusal.value.details)


def found(**fields: Any) -> FoundTask:
    return FoundTask(
        **{
            "id": "task-7",
            "api": "vim",
            "identity": TaskIdentity(NOW, "VirtualMachine.clone"),
            "service": "VirtualMachine",
            "operation": "clone",
            "user": "LAB.LOCAL\\deploy",
            "parent": None,
            "target": Target("VirtualMachine", "vm-7"),
            "ended": False,
        }
        | fields
    )


def test_a_name_alone_follows_all_classic_tasks_from_now_on() -> None:
    assert follow() == Follow("1795900000000-1", "lab", "patching", NOW, stalled_after_s=900.0)


def test_every_field_is_kept() -> None:
    assert follow(
        apis=["cis", "vim"],
        services=[VLCM, "VirtualMachine", VLCM],
        operations=["!reconfigure", "clone*"],
        users=["LAB.LOCAL\\deploy"],
        entity={"id": "group-v3", "recursive": True},
        top_level_only=True,
        since="1h",
        events="endings",
        timeout="4h",
        stalled_after=0,
        labels={"team": "platform"},
    ) == Follow(
        "1795900000000-1",
        "lab",
        "patching",
        NOW,
        apis=("vim", "cis"),
        services=("VirtualMachine", VLCM),
        operations=("!reconfigure", "clone*"),
        users=("LAB.LOCAL\\deploy",),
        entity=follow(entity={"id": "group-v3", "recursive": True}).entity,
        top_level_only=True,
        since="1h",
        events="endings",
        timeout_s=14_400.0,
        stalled_after_s=0.0,
        labels={"team": "platform"},
    )


@pytest.mark.parametrize(
    ("fields", "apis"),
    [
        ({}, ("vim",)),
        ({"services": ["VirtualMachine"]}, ("vim",)),
        ({"services": ["com.vmware.vcIntegrity"]}, ("vim",)),
        ({"services": ["VirtualMachine", VLCM]}, ("vim", "cis")),
        ({"services": [VLCM]}, ("vim", "cis")),
        ({"services": [VLCM], "apis": ["cis"]}, ("cis",)),
        ({"services": [VLCM], "apis": ["vim"]}, ("vim",)),
    ],
)
def test_cis_tasks_are_followed_if_one_of_their_services_is_named(
    fields: dict[str, Any], apis: tuple[str, ...]
) -> None:
    assert follow(**fields).apis == apis


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "Patching"}, "name"),
        ({"name": "a--b"}, "name"),
        ({"name": "-a"}, "name"),
        ({"name": "a.b"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"name": 7}, "name"),
        ({"since": "yesterday"}, "since"),
        ({"since": ""}, "since"),
        ({"since": "400d"}, "since"),
        ({"since": 60}, "since"),
        ({"apis": []}, ""),
        ({"apis": ["vim", "vim"]}, ""),
        ({"apis": ["rest"]}, "apis.0"),
        ({"apis": ["cis"]}, ""),
        ({"apis": ["cis"], "services": ["VirtualMachine"]}, ""),
        ({"operations": ["!"]}, "operations"),
        ({"operations": "clone"}, "operations"),
        ({"entity": {"recursive": True}}, "entity.id"),
        ({"entity": {"id": "group-v3", "type": "Folder"}}, "entity.type"),
        ({"entity": {"id": "a b"}}, "entity.id"),
        ({"entity": {"id": "web01"}}, "entity.id"),
        ({"entity": {"id": "group-x3"}}, "entity.id"),
        ({"events": "some"}, "events"),
        ({"timeout": 0}, "timeout"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"task": "task-7"}, "task"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_field(fields: dict[str, Any], field: str) -> None:
    assert list(problems(**fields)) == [field]


def test_a_follow_is_named_by_its_name() -> None:
    assert parse_request(FollowNameRequest, b'{"name": "config"}').name == "config"
    with pytest.raises(Refused):
        parse_request(FollowNameRequest, b'"config"')


@pytest.mark.parametrize(
    ("since", "begins"),
    [
        ("now", NOW + 5.0),
        ("1h", NOW + 5.0 - 3_600.0),
        ("PT90S", NOW + 5.0 - 90.0),
        ("2026-11-24T10:00:00Z", 1_795_514_400.0),
        ("2026-11-24T10:00:00+01:00", 1_795_510_800.0),
    ],
)
def test_a_follow_begins_by_the_clock_of_vcenter(since: str, begins: float) -> None:
    assert follow(since=since).begins_at(5.0) == begins


def test_the_same_request_in_another_order_at_another_time_asks_the_same() -> None:
    one = follow(users=["a", "b"], labels={"x": "1", "y": "2"})
    same = follow(requested_at=NOW + 9, users=["b", "a", "a"], labels={"y": "2", "x": "1"})
    assert one.asks_the_same_as(same)
    for other in ({"users": ["a"]}, {"users": ["a", "b"], "since": "1h"}, {"users": ["a", "b"], "events": "endings"}):
        assert not one.asks_the_same_as(follow(labels={"x": "1", "y": "2"}, **other))


@pytest.mark.parametrize(
    ("patterns", "selected", "left_out"),
    [
        ((), ["clone", ""], []),
        (("clone",), ["clone"], ["cloneVM", "Clone", ""]),
        (("clone*",), ["clone", "cloneVM"], ["xclone"]),
        (("*clone",), ["clone", "xclone"], ["cloneVM"]),
        (("a*b*c",), ["abc", "axbxc", "abbc"], ["ab", "acb", "ac"]),
        (("aba*aba",), ["abaaba", "abaxaba"], ["aba", "ababa"]),
        (("*",), ["clone", ""], []),
        (("**",), ["clone", ""], []),
        (("!clone*",), ["reconfigure", ""], ["clone", "cloneVM"]),
        (("power*", "!powerOff"), ["powerOn"], ["powerOff", "clone"]),
        (("power*", "!*"), [], ["powerOn"]),
        (("a.c", "[ab]", "$task"), ["a.c", "[ab]", "$task"], ["abc", "a", "task"]),
    ],
)
def test_operations_are_selected_by_patterns(
    patterns: tuple[str, ...], selected: list[str], left_out: list[str]
) -> None:
    assert [name for name in selected if not is_operation_selected(patterns, name)] == []
    assert [name for name in left_out if is_operation_selected(patterns, name)] == []


def test_no_pattern_makes_matching_slow() -> None:
    began = time.process_time()
    assert not is_operation_selected(("*a" * 127 + "b",), "a" * 256)
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize(
    ("fields", "task", "selected"),
    [
        ({}, {}, True),
        ({}, {"api": "cis"}, False),
        ({"services": ["VirtualMachine"]}, {}, True),
        ({"services": ["Folder"]}, {}, False),
        ({"services": ["Folder"]}, {"service": None}, False),
        ({"operations": ["!clone"]}, {}, False),
        ({"users": ["LAB.LOCAL\\deploy"]}, {}, True),
        ({"users": ["lab.local\\Deploy"]}, {}, True),
        ({"users": ["deploy@lab.local"]}, {}, True),
        ({"users": ["LAB.LOCAL\\deploy"]}, {"user": "deploy@LAB.LOCAL"}, True),
        ({"users": ["deploy"]}, {}, False),
        ({"users": ["deploy"]}, {"user": "deploy"}, True),
        ({"users": ["LAB.LOCAL\\deploy"]}, {"user": None}, False),
        ({"top_level_only": True}, {}, True),
        ({"top_level_only": True}, {"parent": "task-1"}, False),
        ({"entity": {"id": "vm-7"}}, {}, True),
        ({"entity": {"id": "vm-8"}}, {}, False),
        ({"entity": {"id": "vm-7"}}, {"target": None}, False),
        ({"entity": {"id": "group-v3", "recursive": True}}, {}, True),
    ],
)
def test_a_follow_is_about_the_tasks_that_match(fields: dict[str, Any], task: dict[str, Any], selected: bool) -> None:
    assert is_selected(follow(**fields), found(**task)) is selected


@pytest.mark.parametrize(
    ("entity", "kind"),
    [
        ("vm-98", "VirtualMachine"),
        ("domain-c9", "ClusterComputeResource"),
        ("group-v3", "Folder"),
        ("resgroup-8", "ResourcePool"),
        ("resgroup-v8", "VirtualApp"),
        ("datacenter-2", "Datacenter"),
        ("host-12", "HostSystem"),
        ("network-o5", "OpaqueNetwork"),
        ("vm", None),
        ("vm7", None),
        ("vm-", None),
        ("", None),
        ("VirtualMachine-vm-98", None),
    ],
)
def test_the_type_of_a_managed_object_is_known_by_its_id(entity: str, kind: str | None) -> None:
    assert find_object_type(entity) == kind


def test_the_watch_of_a_task_has_one_id_whenever_it_is_found() -> None:
    one = build_watch_id("lab", found())
    assert one == build_watch_id("lab", found(ended=True, operation="x"))
    assert one.startswith("1795900000000-f")
    others = [
        build_watch_id("prod", found()),
        build_watch_id("lab", found(id="task-8")),
        build_watch_id("lab", found(identity=TaskIdentity(NOW + 0.001, "VirtualMachine.clone"))),
        build_watch_id("lab", found(identity=TaskIdentity(NOW, "VirtualMachine.powerOn"))),
    ]
    assert len({one, *others}) == 5
    assert build_watch_id("lab", found(id="52:x", api="cis", identity=TaskIdentity(None, None))).startswith("0-f")
