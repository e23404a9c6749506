"""Names of targets: which objects are asked for, when, and what becomes of the answers."""

from __future__ import annotations

import pytest

from task_bridge.domain.ports import UNCHANGED, TargetNamed
from task_bridge.domain.task import Target, add_names
from task_bridge.vcenter.names import BATCH_MAX, KEEP_S, PAUSE_MAX_S, NameBook
from task_bridge.vcenter.vim.inventory import Entity, ObjectName, build_name, find_ref
from task_bridge.vcenter.vim.soap import Ref
from unit.builders import NOW, Replica, a_watch, blocked, kinds, running, succeeded

VM = Ref("VirtualMachine", "vm-7")
NAME = ObjectName("web", "/DC/vm/web")


def vms(count: int) -> list[Ref]:
    return [Ref("VirtualMachine", f"vm-{number}") for number in range(count)]


# Which object a target is


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (Target("VirtualMachine", "vm-7"), "VirtualMachine"),
        (Target("HostSystem", "an id of any form"), "HostSystem"),
        (Target("com.vmware.vcenter.VM", "vm-7"), "VirtualMachine"),
        (Target(None, "host-17"), "HostSystem"),
        (Target("com.vmware.esx.settings.cluster", "domain-c9"), "ClusterComputeResource"),
        (Target("x", "domain-s9"), "ComputeResource"),
        (Target("x", "datacenter-2"), "Datacenter"),
        (Target("x", "datastore-12"), "Datastore"),
        (Target("x", "group-v3"), "Folder"),
        (Target("x", "group-p30"), "StoragePod"),
        (Target("x", "resgroup-8"), "ResourcePool"),
        (Target("x", "resgroup-v8"), "VirtualApp"),
        (Target("x", "network-11"), "Network"),
        (Target("x", "network-o11"), "OpaqueNetwork"),
        (Target("x", "dvportgroup-5"), "DistributedVirtualPortgroup"),
        (Target("x", "dvs-5"), "VmwareDistributedVirtualSwitch"),
        (Target("com.vmware.content.Library", "0c1f7c9e-7b0e-4b6e"), None),
        (Target("com.vmware.appliance", "vm-7 "), None),
        (Target("x", "vm-"), None),
        (Target("x", "vm-x7"), None),
        (Target("x", "vm-\N{ARABIC-INDIC DIGIT SEVEN}"), None),
        (Target("x", "svm-7"), None),
        (Target("Task", "task-7"), None),
        (Target("VirtualMachine", None), None),
        (Target("VirtualMachine", ""), None),
    ],
)
def test_objects_of_the_inventory_are_recognized_by_type_or_id(target: Target, kind: str | None) -> None:
    assert find_ref(target) == (Ref(kind, target.id or "") if kind else None)


# Paths

ROOT, DC, FOLDER = Ref("Folder", "group-d1"), Ref("Datacenter", "datacenter-2"), Ref("Folder", "group-v3")
TREE = {
    ROOT: Entity("Datacenters", None, False),
    DC: Entity("DC", ROOT, True),
    FOLDER: Entity("vm", DC, True),
    VM: Entity("a%2fb", FOLDER, True),
}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, ObjectName("a%2fb", "/DC/vm/a%2fb")),
        ({FOLDER: Entity(None, DC, True)}, ObjectName("a%2fb", None)),
        ({FOLDER: Entity("vm", None, True)}, ObjectName("a%2fb", None)),
        ({VM: Entity("a", FOLDER, True), DC: None}, ObjectName("a", None)),
        ({VM: Entity(None, FOLDER, True)}, ObjectName(None, None)),
        ({VM: Entity("a", None, False)}, ObjectName("a", None)),  # it is being created or removed
        ({VM: None}, ObjectName(None, None)),
        ({DC: Entity("DC", FOLDER, True)}, ObjectName("a%2fb", None)),  # a circle
        ({FOLDER: Entity("x" * 8_001, DC, True)}, ObjectName("a%2fb", None)),
    ],
)
def test_a_path_leads_from_below_the_root_folder(changes: dict[Ref, Entity | None], name: ObjectName) -> None:
    entities = {ref: entity for ref, entity in (TREE | changes).items() if entity is not None}
    assert build_name(VM, entities) == name


def test_the_root_folder_is_at_the_root() -> None:
    assert build_name(ROOT, TREE) == ObjectName("Datacenters", "/")


@pytest.mark.parametrize(
    ("target", "known", "named"),
    [
        (Target("A", "a"), Target("A", "a", "n", "/p"), Target("A", "a", "n", "/p")),
        (Target("A", "a", "own"), Target("A", "a", "n", "/p"), Target("A", "a", "own", "/p")),
        (Target("A", "a", "own", "/own"), Target("A", "a", "n", "/p"), Target("A", "a", "own", "/own")),
        (Target("A", "a"), Target("A", "b", "n", "/p"), Target("A", "a")),
        (Target("A", "a"), Target("B", "a", "n", "/p"), Target("A", "a")),
        (Target("A", "a", "own"), Target("A", "a"), Target("A", "a", "own")),
        (Target("A", "a"), None, Target("A", "a")),
    ],
)
def test_names_are_added_where_they_lack(target: Target, known: Target | None, named: Target) -> None:
    assert add_names(target, known) == named


# Events

UNNAMED, NAMED = Target("VirtualMachine", "vm-7"), Target("VirtualMachine", "vm-7", "web", "/DC/vm/web")


def test_a_name_or_path_alone_is_no_event_and_the_next_event_has_it() -> None:
    replica = Replica(a_watch(stalled_after_s=60.0))
    replica.look(running(target=UNNAMED))
    replica.look(TargetNamed(NAMED))
    replica.look(running(target=NAMED))
    assert kinds(replica.events) == ["watching"]
    replica.wait_until(NOW + 60.0)
    replica.look(UNCHANGED)
    assert kinds(replica.events) == ["watching", "stalled"]
    assert [event.data.target for event in replica.events] == [UNNAMED, NAMED]


def test_a_replica_that_does_not_know_the_names_keeps_those_of_the_last_event() -> None:
    replica = Replica(a_watch())
    replica.look(running(target=NAMED))
    resumed = replica.resumed()
    resumed.look(blocked(target=UNNAMED))
    resumed.look(succeeded(target=Target("VirtualMachine", "vm-8")))
    assert [event.data.target for event in resumed.events] == [NAMED, NAMED, Target("VirtualMachine", "vm-8")]


# What is asked for


def test_all_that_wait_go_in_one_request_two_seconds_after_the_last() -> None:
    book = NameBook()
    assert book.next_at < 0
    for ref in (*vms(3), *vms(3)):
        book.request(ref)
    book.record_request(10.0)
    assert book.take_batch() == vms(3)
    assert not book.has_waiting()
    assert book.next_at == 12.0


def test_a_batch_is_limited_and_the_others_follow() -> None:
    book = NameBook()
    for ref in vms(BATCH_MAX + 1):
        book.request(ref)
    assert book.take_batch() == vms(BATCH_MAX)
    book.record_names(dict.fromkeys(vms(BATCH_MAX), NAME), 0.0)
    assert book.take_batch() == vms(BATCH_MAX + 1)[-1:]


def test_what_is_in_flight_is_not_asked_for_again() -> None:
    book = NameBook()
    book.request(VM)
    book.take_batch()
    book.request(VM)
    assert not book.has_waiting()


@pytest.mark.parametrize(("later", "found"), [(0.0, NAME), (KEEP_S - 0.1, NAME), (KEEP_S, None)])
def test_a_name_is_kept_for_an_hour(later: float, found: ObjectName | None) -> None:
    book = NameBook()
    book.record_names({VM: NAME}, 100.0)
    assert book.find(VM, 100.0 + later) == found


def test_an_object_that_is_gone_is_forgotten() -> None:
    book = NameBook()
    book.record_names({VM: NAME}, 0.0)
    book.forget(VM)
    assert book.find(VM, 0.0) is None


def test_the_oldest_names_make_room() -> None:
    book = NameBook()
    for ref in vms(20_001):
        book.record_names({ref: NAME}, 0.0)
    assert book.find(vms(1)[0], 0.0) is None
    assert book.find(vms(20_001)[-1], 0.0) == NAME
    for ref in vms(20_100):
        book.request(ref)
    waiting = 0
    while book.has_waiting():
        waiting += len(book.take_batch())
    assert waiting <= 20_000


@pytest.mark.parametrize("bad", [0, 250, 499])
def test_the_one_that_is_refused_is_found_and_all_others_get_their_names(bad: int) -> None:
    book, refs, requests = NameBook(), vms(BATCH_MAX), 0
    for ref in refs:
        book.request(ref)
    while book.has_waiting():
        requests += 1
        batch = book.take_batch()
        if refs[bad] in batch:
            book.record_refusal(batch, 0.0, is_final=True)
        else:
            book.record_names(dict.fromkeys(batch, NAME), 0.0)
    assert [book.find(ref, 0.0) for ref in refs] == [
        ObjectName() if number == bad else NAME for number in range(BATCH_MAX)
    ]
    assert requests <= 30


def test_an_object_that_is_refused_for_now_is_dropped_and_the_next_request_waits() -> None:
    book = NameBook()
    for expected_s in (2.0, 4.0, 8.0):
        book.request(VM)
        book.record_refusal(book.take_batch(), 0.0, is_final=False)
        assert not book.has_waiting()
        assert book.find(VM, 0.0) is None
        assert book.next_at == expected_s


def test_without_an_answer_all_wait_longer_and_longer_so_that_logins_are_few() -> None:
    book, now, times = NameBook(), 0.0, []
    book.request(VM)
    while now < 3_600.0:
        book.record_request(now)
        times.append(now)
        book.record_failure(book.take_batch(), now)
        assert book.has_waiting()
        now = book.next_at
    assert times[:4] == [0.0, 2.0, 6.0, 14.0]
    assert len(times) <= 15
    assert times[-1] - times[-2] == PAUSE_MAX_S
    book.record_names({VM: NAME}, now)
    book.record_failure([], now)
    assert book.next_at == now + 2.0


# Whether waiting for an answer makes sense


def test_an_answer_is_coming_while_a_lookup_is_under_way_or_goes_soon() -> None:
    book = NameBook()
    other = vms(1)[0]
    assert not book.is_coming(VM, 0.0, 0.5)
    book.request(VM)
    assert book.is_coming(VM, 0.0, 0.5)  # it may go at once
    book.record_request(0.0)
    assert book.is_coming(VM, 0.0, 0.5)  # the login is under way
    book.take_batch()
    book.request(other)
    assert book.is_coming(VM, 0.0, 0.5)
    assert not book.is_coming(other, 0.0, 0.5)  # its request goes two seconds later
    assert book.is_coming(other, 1.5, 0.5)
    book.record_failure([VM], 10.0)
    assert not book.is_coming(VM, 10.0, 0.5)
