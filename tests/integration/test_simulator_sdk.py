"""The simulated vCenter's `/sdk`, used by pyVmomi: a client that knows nothing of this one."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
import pyVim.connect
import pyVim.task
import pyVmomi

from task_bridge.simulator import Options, SimulatedTarget, SimulatedVCenter, scenarios
from task_bridge.simulator.script import Script, Step
from task_bridge.simulator.serve import serve_vcenter

pytestmark = pytest.mark.timeout(30)

T = TypeVar("T")
# Its types aren't fit for mypy's strict mode.
vim: Any = pyVmomi.vim
vmodl: Any = pyVmomi.vmodl
connect: Any = pyVim.connect
WaitForTask: Any = pyVim.task.WaitForTask
USER, PASSWORD = "administrator@vsphere.local", "simulated"


class Served:
    """A simulated vCenter; `by_pyvmomi` runs a function with a logged-in ServiceInstance in a thread."""

    def __init__(self, vcenter: SimulatedVCenter, url: str) -> None:
        self.vcenter = vcenter
        self._address = urlsplit(url)

    @contextmanager
    def connected(self, password: str = PASSWORD) -> Iterator[Any]:
        where = {"host": self._address.hostname, "port": self._address.port, "protocol": "http"}
        instance = connect.SmartConnect(**where, user=USER, pwd=password)
        try:
            yield instance
        finally:
            connect.Disconnect(instance)

    async def by_pyvmomi(self, does: Callable[[Any], T]) -> T:
        def whole() -> T:
            with self.connected() as instance:
                return does(instance)

        return await asyncio.to_thread(whole)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    vcenter = SimulatedVCenter(Options(username=USER, password=PASSWORD))
    async with serve_vcenter(vcenter) as url:
        yield Served(vcenter, url)


def task_of(instance: Any, task_id: str) -> Any:
    return vim.Task(task_id, instance._stub)


async def test_a_task_that_its_owner_creates_and_completes_is_waited_for(served: Served) -> None:
    def does(instance: Any) -> tuple[str, Any, Any]:
        vm = vim.VirtualMachine("vm-7", instance._stub)
        made = instance.content.taskManager.CreateTask(vm, "com.example.backup", "me", True)
        assert (made.state, made.descriptionId, made.entity) == ("queued", "com.example.backup", vm)

        def owner() -> None:
            with served.connected() as other:
                task = task_of(other, made.task._moId)
                task.SetTaskState("running")
                task.UpdateProgress(40)
                task.SetTaskDescription(vmodl.LocalizableMessage(key="a", message="Copying disks"))
                task.SetTaskState("success", vm)

        thread = threading.Timer(0.2, owner)
        thread.start()
        state = WaitForTask(made.task, si=instance)
        thread.join()
        return state, made.task.info, vm

    state, info, vm = await served.by_pyvmomi(does)
    assert (state, info.state, info.result, info.entity) == ("success", "success", vm, vm)
    assert info.description.message == "Copying disks"
    assert info.reason.userName == USER
    assert info.queueTime <= info.startTime <= info.completeTime
    assert (served.vcenter.sessions.counts.logins, served.vcenter.sessions.live) == (2, [])


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        (scenarios.fails_with_error(after_s=0.2), vmodl.fault.SystemError),
        (scenarios.canceled(after_s=0.2), vmodl.fault.RequestCanceled),
    ],
    ids=["failed", "canceled"],
)
async def test_scripted_failures_are_raised_by_its_waiter(served: Served, script: Script, fault: type) -> None:
    task_id = served.vcenter.create(script, flavour="vim")

    def does(instance: Any) -> Any:
        with pytest.raises(fault):
            WaitForTask(task_of(instance, task_id), si=instance)
        return task_of(instance, task_id).info

    info = await served.by_pyvmomi(does)
    assert (info.key, info.state) == (task_id, "error")
    assert info.error.msg


async def test_a_question_blocks_until_it_is_answered(served: Served) -> None:
    task_id = served.vcenter.create(Script((Step(0.0, {"status": "BLOCKED"}),)), flavour="vim", operation="clone")

    def does(instance: Any) -> str:
        task = task_of(instance, task_id)
        with pytest.raises(pyVim.task.TaskBlocked):
            WaitForTask(task, si=instance)
        vm = task.info.entity
        assert vm.runtime.question.choice.choiceInfo[0].label == "Yes"
        vm.AnswerVM(vm.runtime.question.id, "0")
        return str(task.info.state)

    assert await served.by_pyvmomi(does) == "running"
    assert served.vcenter.tasks[task_id].frame.status == "RUNNING"


async def test_many_tasks_that_end_at_once_cost_what_changes(served: Served) -> None:
    tasks = [served.vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(1_500)]

    def does(instance: Any) -> tuple[int, float]:
        content, query = instance.content, vmodl.query.PropertyCollector
        collector = content.propertyCollector
        view = content.viewManager.CreateListView([task_of(instance, task) for task in tasks])
        through = query.TraversalSpec(name="view", type=vim.view.ListView, path="view", skip=False)
        of = query.ObjectSpec(obj=view, skip=True, selectSet=[through])
        wanted = query.PropertySpec(type=vim.Task, pathSet=["info.state"])
        collector.CreateFilter(query.FilterSpec(objectSet=[of], propSet=[wanted]), True)
        ended, version, options, began = 0, "", query.WaitOptions(maxWaitSeconds=5), 0.0
        while ended < len(tasks):
            found = collector.WaitForUpdatesEx(version, options)
            version = found.version
            updates = found.filterSet[0].objectSet
            ended += sum(update.changeSet[0].val == "success" for update in updates)
            if not began and not found.truncated:
                began = time.monotonic()
                for task in tasks:
                    served.vcenter.set(task, status="SUCCEEDED")
        return ended, time.monotonic() - began

    ended, seconds = await served.by_pyvmomi(does)
    assert ended == 1_500
    assert seconds < 10  # 15 update sets; a second, most of it pyVmomi's


async def test_a_list_view_grows_during_a_wait_and_names_what_it_cannot_resolve(served: Served) -> None:
    first = served.vcenter.create(scenarios.runs_forever(), flavour="vim")
    second = served.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")

    def does(instance: Any) -> tuple[Any, ...]:
        content, query = instance.content, vmodl.query.PropertyCollector
        view = content.viewManager.CreateListView([])
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            content.viewManager.CreateListView([task_of(instance, "task-9")])
        collector = content.propertyCollector.CreatePropertyCollector()
        through = query.TraversalSpec(name="view", type=vim.view.ListView, path="view", skip=False)
        of = query.ObjectSpec(obj=view, skip=True, selectSet=[through])
        wanted = query.PropertySpec(type=vim.Task, pathSet=["info.state"])
        collector.CreateFilter(query.FilterSpec(objectSet=[of], propSet=[wanted]), True)
        options = query.WaitOptions(maxWaitSeconds=0)
        assert collector.WaitForUpdatesEx("", options) is None
        unresolved = view.Modify([task_of(instance, first), task_of(instance, "task-9")], [])
        one = collector.WaitForUpdatesEx("", options)

        def add() -> None:
            with_time = task_of(instance, second)
            view.Modify([with_time], [task_of(instance, first)])

        threading.Timer(0.2, add).start()
        two = collector.WaitForUpdatesEx(one.version, query.WaitOptions(maxWaitSeconds=5))
        with pytest.raises(vmodl.query.InvalidCollectorVersion):
            collector.WaitForUpdatesEx("99", options)
        return unresolved, one, two

    unresolved, one, two = await served.by_pyvmomi(does)
    assert [ref._moId for ref in unresolved] == ["task-9"]
    entered = one.filterSet[0].objectSet[0]
    assert (entered.kind, entered.obj._moId, entered.changeSet[0].val) == ("enter", first, "running")
    assert {(update.kind, update.obj._moId) for update in two.filterSet[0].objectSet} == {
        ("leave", first),
        ("enter", second),
    }


async def test_a_locked_vm_lets_wait_whoever_reads_it_and_whoever_changes_a_view_that_is_being_read(
    served: Served,
) -> None:
    vcenter = served.vcenter
    vcenter.locked.add("vm-1")
    tasks = [vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(2)]

    def follow(instance: Any) -> list[float]:
        began = time.monotonic()
        content, vm = instance.content, vim.VirtualMachine("vm-1", instance._stub)
        collector, view = content.propertyCollector, content.viewManager.CreateListView()
        told = vmodl.query.PropertyCollector
        through = told.TraversalSpec(name="view", type=vim.ListView, path="view", skip=False)
        collector.CreateFilter(
            told.FilterSpec(
                propSet=[
                    told.PropertySpec(type=vim.Task, pathSet=["info.state"]),
                    told.PropertySpec(type=vim.VirtualMachine, pathSet=["name"]),
                ],
                objectSet=[told.ObjectSpec(obj=view, skip=True, selectSet=[through])],
            ),
            partialUpdates=False,
        )
        view.ModifyListView(add=[task_of(instance, tasks[0])])
        version = collector.WaitForUpdatesEx("").version
        waiting = threading.Thread(target=collector.WaitForUpdatesEx, args=(version,))
        waiting.start()
        view.ModifyListView(add=[vm])
        at_once = time.monotonic() - began
        waiting.join(0.5)
        threading.Timer(0.5, vcenter.locked.clear).start()
        view.ModifyListView(add=[task_of(instance, tasks[1])])
        changed = time.monotonic() - began
        waiting.join()
        vcenter.locked.add("vm-1")
        threading.Timer(0.5, vcenter.locked.clear).start()
        assert vm.name == "name of vm-1"
        return [at_once, changed, time.monotonic() - began]

    at_once, changed, read = await served.by_pyvmomi(follow)
    assert at_once + 1.0 <= changed <= read - 0.5


async def test_update_sets_are_truncated_and_go_on(served: Served) -> None:
    tasks = [served.vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(25)]

    def does(instance: Any) -> list[tuple[int, bool]]:
        query = vmodl.query.PropertyCollector
        collector = instance.content.propertyCollector
        named = [query.ObjectSpec(obj=task_of(instance, task)) for task in tasks]
        wanted = query.PropertySpec(type=vim.Task, pathSet=["info.state"])
        collector.CreateFilter(query.FilterSpec(objectSet=named, propSet=[wanted]), True)
        seen: list[tuple[int, bool]] = []
        version = ""
        while not seen or seen[-1][1]:
            found = collector.WaitForUpdatesEx(version, query.WaitOptions(maxWaitSeconds=1, maxObjectUpdates=10))
            version = found.version
            seen.append((len(found.filterSet[0].objectSet), bool(found.truncated)))
        return seen

    assert await served.by_pyvmomi(does) == [(10, True), (10, True), (5, False)]


async def test_an_ended_session_shows_two_faces(served: Served) -> None:
    task_id = served.vcenter.create(scenarios.runs_forever(), flavour="vim")
    loop = asyncio.get_running_loop()

    def does(instance: Any) -> Any:
        query = vmodl.query.PropertyCollector
        collector, task = instance.content.propertyCollector, task_of(instance, task_id)
        wanted = query.PropertySpec(type=vim.Task, pathSet=["info.state"])
        spec = query.FilterSpec(objectSet=[query.ObjectSpec(obj=task)], propSet=[wanted])
        collector.CreateFilter(spec, True)
        version = collector.WaitForUpdatesEx("", None).version
        loop.call_soon_threadsafe(lambda: loop.call_later(0.2, served.vcenter.invalidate_sessions))
        with pytest.raises(vim.fault.NotAuthenticated):
            collector.WaitForUpdatesEx(version, None)
        return collector.RetrievePropertiesEx([spec], query.RetrieveOptions())

    (shown,) = (await served.by_pyvmomi(does)).objects
    assert (shown.obj._moId, shown.propSet) == (task_id, [])
    assert isinstance(shown.missingSet[0].fault, vim.fault.NotAuthenticated)


async def test_a_retired_task_is_only_in_the_history_and_a_forgotten_one_nowhere(served: Served) -> None:
    kept, retired, forgotten = (served.vcenter.create(scenarios.succeeds_at_once(), flavour="vim") for _ in range(3))
    served.vcenter.retire(retired)
    served.vcenter.forget(forgotten)

    def does(instance: Any) -> tuple[list[str], list[str]]:
        for gone in (retired, forgotten):
            with pytest.raises(vmodl.fault.ManagedObjectNotFound):
                _ = task_of(instance, gone).info
        history = instance.content.taskManager.CreateCollectorForTasks(vim.TaskFilterSpec())
        forward = [info.key for info in history.ReadNextTasks(10)]
        backward = [info.key for info in history.ReadPreviousTasks(1)]
        history.DestroyCollector()
        return forward, backward

    assert await served.by_pyvmomi(does) == ([kept, retired], [retired])


def history_of(instance: Any, **task_filter: Any) -> Any:
    return instance.content.taskManager.CreateCollectorForTasks(vim.TaskFilterSpec(**task_filter))


def keys(infos: Any) -> list[str]:
    return [info.key for info in infos]


async def test_a_history_collector_gets_the_tasks_that_are_created_while_it_exists(served: Served) -> None:
    tasks = [served.vcenter.create(scenarios.succeeds_at_once(), flavour="vim") for _ in range(5)]

    def read(instance: Any) -> None:
        history = history_of(instance)
        assert [keys(history.ReadNextTasks(3)), keys(history.ReadNextTasks(3))] == [tasks[:3], tasks[3:]]
        assert not history.ReadNextTasks(3)
        newer = served.vcenter.create(scenarios.runs_forever(), flavour="vim")
        assert keys(history.ReadNextTasks(1_000)) == [newer]
        assert keys(history.ReadPreviousTasks(2)) == [newer, tasks[4]]
        assert keys(history.ReadNextTasks(1)) == [tasks[4]]
        history.RewindCollector()
        assert keys(history.ReadNextTasks(1_000)) == [*tasks, newer]
        history.SetCollectorPageSize(2)
        history.ResetCollector()
        assert keys(history.ReadPreviousTasks(1_000)) == tasks[3::-1]
        for size in (0, 1_001):
            with pytest.raises(vmodl.fault.InvalidArgument):
                history.ReadNextTasks(size)

    await served.by_pyvmomi(read)


async def test_a_history_collector_filters_as_its_spec_says(served: Served) -> None:
    create = partial(served.vcenter.create, flavour="vim")
    vm, folder = SimulatedTarget("VirtualMachine", "vm-7"), SimulatedTarget("Folder", "group-v3")
    parent = create(scenarios.succeeds_at_once(), target=vm, user="LAB\\one")
    child = create(scenarios.runs_forever(), target=folder, user="LAB\\two", parent=parent)
    system = create(scenarios.fails_silently(after_s=0), target=None, user=None)

    def read(instance: Any) -> dict[str, list[str]]:
        spec = vim.TaskFilterSpec
        users, entity = spec.ByUsername, spec.ByEntity
        now = instance.CurrentTime()

        def times(kind: str, begin: float, end: float) -> Any:
            at = [now + timedelta(seconds=shift) for shift in (begin, end)]
            return spec.ByTime(timeType=kind, beginTime=at[0], endTime=at[1])

        filters = {
            "one user": {"userName": users(systemUser=False, userList=["LAB\\one"])},
            "any user": {"userName": users(systemUser=False)},
            "system": {"userName": users(systemUser=True)},
            "entity": {"entity": entity(entity=vim.VirtualMachine("vm-7", None), recursion="self")},
            "below root": {"entity": entity(entity=instance.content.rootFolder, recursion="children")},
            "state": {"state": ["running", "queued"]},
            "failed": {"state": ["error"]},
            "parent": {"parentTaskKey": [parent]},
            "root": {"rootTaskKey": [parent]},
            "queued": {"time": times("queuedTime", -60, 60)},
            "queued before": {"time": times("queuedTime", -60, -30)},
            "completed": {"time": times("completedTime", -60, 60)},
            "tag": {"tag": ["x"]},
        }
        return {name: keys(history_of(instance, **one).ReadNextTasks(10)) for name, one in filters.items()}

    assert await served.by_pyvmomi(read) == {
        "one user": [parent],
        "any user": [parent, child],
        "system": [system],
        "entity": [parent],
        "below root": [parent, child],
        "state": [child],
        "failed": [system],
        "parent": [child],
        "root": [parent, child],
        "queued": [parent, child, system],
        "queued before": [],
        "completed": [parent, system],
        "tag": [],
    }


async def test_history_is_purged_and_collectors_are_few_and_end_with_their_session(served: Served) -> None:
    options = served.vcenter.options
    options.max_history_collectors = 2
    served.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")

    def read(instance: Any) -> Any:
        history, other = history_of(instance), history_of(instance)
        with pytest.raises(vim.fault.InvalidState):
            history_of(instance)
        other.DestroyCollector()
        history_of(instance)
        options.history_retention_s = 0.0
        assert not history.ReadNextTasks(10)
        options.history_retention_s = None
        instance.content.sessionManager.Logout()
        log_in_again = instance.content.sessionManager.Login
        log_in_again(options.username, options.password)
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            history.ReadNextTasks(10)

    await served.by_pyvmomi(read)


async def test_neither_api_knows_the_others_tasks(served: Served) -> None:
    classic = served.vcenter.create(scenarios.runs_forever(), flavour="vim")
    cis = served.vcenter.create(scenarios.runs_forever())

    def does(instance: Any) -> None:
        assert task_of(instance, classic).info.state == "running"
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            _ = task_of(instance, cis).info

    await served.by_pyvmomi(does)
    assert [task.id for task in served.vcenter.tasks if not task.is_classic] == [cis]


async def test_a_cancel_is_refused_as_vcenter_refuses_it(served: Served) -> None:
    runs, fixed, ended = (
        served.vcenter.create(script, flavour="vim")
        for script in (
            scenarios.runs_forever(cancel_takes_s=0.1),
            scenarios.runs_forever(cancelable=False),
            scenarios.succeeds_at_once(),
        )
    )

    def does(instance: Any) -> Any:
        for task, fault in ((fixed, vmodl.fault.NotSupported), (ended, vim.fault.InvalidState)):
            with pytest.raises(fault):
                task_of(instance, task).CancelTask()
        task = task_of(instance, runs)
        task.CancelTask()
        return WaitForTask(task, si=instance, raiseOnError=False), task.info

    state, info = await served.by_pyvmomi(does)
    assert (state, info.cancelled, isinstance(info.error, vmodl.fault.RequestCanceled)) == ("error", True, True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its connection open
async def test_a_wrong_password_is_an_invalid_login(served: Served) -> None:
    def does() -> None:
        with pytest.raises(vim.fault.InvalidLogin), served.connected("wrong"):
            pass
        gc.collect()

    await asyncio.to_thread(does)
    assert served.vcenter.sessions.counts.failed_logins == 1


async def test_pyvmomi_reads_the_inventory_upwards(served: Served) -> None:
    entities = served.vcenter.entities
    folder = entities.put(SimulatedTarget("Folder", "group-v20"), "web")
    entities.put(SimulatedTarget("VirtualMachine", "vm-7"), "a%2fb", folder)
    entities.put(SimulatedTarget("VirtualMachine", "vm-8"), "db", vapp=SimulatedTarget("VirtualApp", "resgroup-v9"))
    entities.remove(SimulatedTarget("VirtualMachine", "vm-9"))

    def does(instance: Any) -> list[Any]:
        vm, in_vapp = (vim.VirtualMachine(key, instance._stub) for key in ("vm-7", "vm-8"))
        path, entity = [], vm
        while entity is not None:
            path.append(entity.name)
            entity = entity.parent
        host = vim.HostSystem("host-17", instance._stub)
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            _ = vim.VirtualMachine("vm-9", instance._stub).name
        return [path, in_vapp.parent, in_vapp.parentVApp.name, host.parent.name, instance.content.rootFolder.name]

    path, *others = await served.by_pyvmomi(does)
    assert path == ["a%2fb", "web", "vm", "DC", "Datacenters"]
    assert others == [None, "name of resgroup-v9", "production", "Datacenters"]


async def test_pyvmomi_traverses_the_inventory_upwards_as_far_as_its_filter_says(served: Served) -> None:
    served.vcenter.entities.denied.add("group-v3")

    def does(instance: Any) -> list[dict[str, Any]]:
        query = vmodl.query.PropertyCollector
        further = query.SelectionSpec(name="up")
        once = query.TraversalSpec(type=vim.ManagedEntity, path="parent", skip=False)
        ever = query.TraversalSpec(name="up", type=vim.ManagedEntity, path="parent", skip=False, selectSet=[further])
        of_others = query.TraversalSpec(type=vim.HostSystem, path="parent", skip=False)
        wanted = query.PropertySpec(type=vim.ManagedEntity, pathSet=["name"])
        vm, answers = vim.VirtualMachine("vm-7", instance._stub), []
        for select in (once, ever, of_others):
            of = query.ObjectSpec(obj=vm, skip=False, selectSet=[select])
            spec = query.FilterSpec(objectSet=[of], propSet=[wanted])
            found = instance.content.propertyCollector.RetrievePropertiesEx([spec], query.RetrieveOptions()).objects
            answers.append({one.obj._moId: [value.val for value in one.propSet] for one in found})
        return answers

    once, ever, of_others = await served.by_pyvmomi(does)
    assert once == {"vm-7": ["name of vm-7"], "group-v3": []}
    assert ever == {**once, "datacenter-2": ["DC"], "group-d1": ["Datacenters"]}
    assert of_others == {"vm-7": ["name of vm-7"]}
