"""Classic tasks of vcsim, govmomi's simulator of vCenter: what the bridge publishes is what pyVmomi reads itself."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pyVmomi

from lab import until
from task_bridge.domain.durations import parse_time
from vcsim.conftest import VcsimLab, vcsim_lab

pytestmark = [
    pytest.mark.timeout(120),
    # pyVmomi leaves the sockets of its own pool to the garbage collector (9.x, seen in one of some twenty runs).
    pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning"),
]

vim: Any = pyVmomi.vim
vmodl: Any = pyVmomi.vmodl
WAYS = ["push", "pull"]
TASK_TYPE = "com.example.backup"
STATUS = {"queued": "PENDING", "running": "RUNNING", "success": "SUCCEEDED", "error": "FAILED"}
VM, POOL = "/DC0/vm/DC0_H0_VM0", "/DC0/host/DC0_H0/Resources"
WITHIN_S = 6.0


def bridge(lab: VcsimLab, way: str = "auto") -> Any:
    """A bridge that looks at vcsim with the shipped intervals."""
    shipped = {"poll_min_s": 1.0, "poll_max_s": 15.0, "progress_interval_s": 1.0}
    return lab.bridge(vcenters={"lab": lab.vcenter_settings(vim=way)}, **shipped)


def register_task_type(instance: Any) -> None:
    """Register an extension, without which nobody can create tasks."""
    extension = vim.Extension(
        key="com.example",
        version="1.0",
        description=vim.Description(label="x", summary="x"),
        lastHeartbeatTime=datetime.now(UTC),
        taskList=[vim.Extension.TaskTypeInfo(taskID=TASK_TYPE)],
    )
    instance.content.extensionManager.RegisterExtension(extension)


def create_tasks(count: int) -> Callable[[Any], list[str]]:
    """What creates running tasks on a VM; their ids."""

    def create(instance: Any) -> list[str]:
        register_task_type(instance)
        vm = instance.content.searchIndex.FindByInventoryPath(VM)
        tasks = [instance.content.taskManager.CreateTask(vm, TASK_TYPE, "me", True).task for _ in range(count)]
        for task in tasks:
            begin_task(task)
        return [task._moId for task in tasks]

    return create


def begin_task(task: Any) -> None:
    """Set a new task running. vcsim knows it only a moment after its creation."""
    for _ in range(100):
        try:
            task.SetTaskState("running")
        except vmodl.fault.ManagedObjectNotFound:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"vcsim doesn't know {task} 2 s after its creation")


def end_tasks(tasks: list[str], state: str = "success", fault: Any = None) -> Callable[[Any], None]:
    def end(instance: Any) -> None:
        for task in tasks:
            vim.Task(task, instance._stub).SetTaskState(state, None, fault)

    return end


def read_info(task: str) -> Callable[[Any], Any]:
    return lambda instance: vim.Task(task, instance._stub).info


def read_recent(instance: Any) -> dict[str, Any]:
    """The infos of all recent tasks by their ids; None if pyVmomi refuses one: a disk is no entity to it."""

    def read(task: Any) -> Any:
        try:
            return task.info
        except TypeError:
            return None

    return {task._moId: read(task) for task in instance.content.taskManager.recentTask}


def assert_same(event: dict[str, Any], info: Any) -> None:
    """Compare a final event with what pyVmomi read of its task."""
    data = event["data"]
    service, _, operation = info.descriptionId.rpartition(".")
    assert (data["task"], data["api"], data["status"]) == (info.key, "vim", STATUS[info.state])
    assert (data["service"], data["operation"]) == (service, operation)
    assert (data["target"]["type"], data["target"]["id"]) == (type(info.entity)._wsdlName, info.entity._moId)
    assert data["user"] == info.reason.userName
    assert data["initiator"] == {"type": "user", "name": info.reason.userName}
    assert data["cancel_requested"] == bool(info.cancelled)
    for key, value in (("queued_at", info.queueTime), ("started_at", info.startTime), ("ended_at", info.completeTime)):
        assert abs((parse_time(data[key]) or 0) - value.timestamp()) < 0.002, key
    if info.error is None:
        assert data["error"] is None
    else:
        assert data["error"]["type"] == type(info.error)._wsdlName
        assert info.error.msg in [message["text"] for message in data["error"]["messages"]] or not info.error.msg
    assert_same_value(data["result"], info.result)


def assert_same_value(shown: Any, value: Any) -> None:
    """Compare a value in an event with pyVmomi's."""
    if isinstance(value, list):
        for one, other in zip(shown, value, strict=True):
            assert_same_value(one, other)
    elif isinstance(value, pyVmomi.VmomiSupport.ManagedObject):
        assert shown == {"type": type(value)._wsdlName, "id": value._moId}
    elif isinstance(value, pyVmomi.VmomiSupport.DataObject):
        for name, one in vars(value).items():
            if one is not None and not (isinstance(one, list) and not one):
                assert_same_value(shown[name], one)
    elif isinstance(value, datetime):
        assert abs((parse_time(shown) or 0) - value.timestamp()) < 0.002
    else:
        assert shown == value


async def ended_in_time(lab: VcsimLab, task: str) -> dict[str, Any]:
    """The final event of a task, which came within 6 s of vcsim's completeTime."""
    event = await lab.ended(task, 60)
    late_s = lab.heard_at[task] - (parse_time(event["data"]["ended_at"]) or 0)
    assert late_s <= WITHIN_S, f"{task} ended {late_s:.1f} s late"
    return event


BY_GOVC = [
    (("vm.power", "-off", VM), 0),
    (("vm.power", "-on", VM), 0),
    (("vm.power", "-on", VM), 1),
    (("vm.clone", "-vm", VM, "-pool", POOL, "-on=false", "copy"), 0),
    (("vm.clone", "-vm", VM, "-pool", POOL, "-on=false", "copy"), 1),
    (("snapshot.create", "-vm", VM, "before"), 0),
    (("snapshot.remove", "-vm", VM, "*"), 0),
    (("object.rename", "/DC0/vm/copy", "copied"), 0),
    (("vm.migrate", "-host", "/DC0/host/DC0_C0/DC0_C0_H1", "/DC0/vm/DC0_C0_RP0_VM0"), 0),
    (("vm.destroy", "/DC0/vm/copied"), 0),
]


OPERATIONS = {
    *("powerOff", "powerOn", "cloneVm", "createSnapshotEx", "RemoveAllSnapshots", "rename", "relocateVm", "destroy"),
}


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_follow_sees_every_task_that_govc_starts_as_pyvmomi_does(tmp_path: Path, scheme: str) -> None:
    async with vcsim_lab(tmp_path, scheme) as lab, bridge(lab):
        await lab.listen()
        assert (await lab.ask("follow", {"name": "all"}))["outcome"] == "accepted"
        await until_following(lab)
        before = (await lab.vcsim.by_pyvmomi(read_recent)).keys()
        for arguments, code in BY_GOVC:
            ended, said = await lab.vcsim.govc(*arguments)
            assert ended == code, (arguments, said)
        started = {task: info for task, info in (await lab.vcsim.by_pyvmomi(read_recent)).items() if task not in before}
        infos = [info for info in started.values() if info is not None]
        assert {info.descriptionId.rpartition(".")[2].lower() for info in infos} >= {
            *(
                "poweroff",
                "poweron",
                "clonevm",
                "createsnapshotex",
                "removeallsnapshots",
                "rename",
                "relocatevm",
                "destroy",
            )
        }
        for task in started:
            await ended_in_time(lab, task)
        for info in infos:
            assert_same(await ended_in_time(lab, info.key), info)


async def until_following(lab: VcsimLab) -> None:
    async with asyncio.timeout(20):
        while not [one for one in (await lab.ask("follows"))["follows"] if one["state"] == "following"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_task_that_pyvmomi_works_on_is_followed_from_its_creation_to_its_end(
    tmp_path: Path, way: str, scheme: str
) -> None:
    async with vcsim_lab(tmp_path, scheme) as lab, bridge(lab, way):
        await lab.listen()
        (good, bad) = await lab.vcsim.by_pyvmomi(create_tasks(2))
        for task in (good, bad):
            assert (await lab.ask("watch", task))["outcome"] == "accepted"
        await until(lambda: lab.heard(good) and lab.heard(bad))
        await lab.vcsim.by_pyvmomi(lambda instance: vim.Task(good, instance._stub).UpdateProgress(40))
        await until(lambda: any((e["data"]["progress"] or {}).get("percent") == 40 for e in lab.heard(good)))
        await lab.vcsim.by_pyvmomi(end_tasks([good]))
        fault = vmodl.fault.NotSupported(msg="The disk can't be moved.")
        await lab.vcsim.by_pyvmomi(end_tasks([bad], "error", fault))
        for task in (good, bad):
            event = await ended_in_time(lab, task)
            assert_same(event, await lab.vcsim.by_pyvmomi(read_info(task)))
        assert lab.heard(bad)[-1]["data"]["error"]["message"] == "The disk can't be moved."


@pytest.mark.parametrize("way", WAYS)
async def test_200_tasks_that_end_at_once_end_within_6_seconds(lab: VcsimLab, way: str) -> None:
    async with bridge(lab, way):
        await lab.listen()
        tasks = await lab.vcsim.by_pyvmomi(create_tasks(200))
        for task in tasks:
            await lab.publish(task)
        await until(lambda: all(lab.heard(task) for task in tasks), 60)
        await lab.vcsim.by_pyvmomi(end_tasks(tasks))
        for task in tasks:
            assert (await ended_in_time(lab, task))["data"]["outcome"] == "succeeded"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["restart", "kill"])
async def test_after_a_restart_old_tasks_are_lost_and_new_ones_end_in_time(
    lab: VcsimLab, way: str, number: int
) -> None:
    async with bridge(lab, way):
        await lab.listen()
        (old,) = await lab.vcsim.by_pyvmomi(create_tasks(1))
        await lab.ask("watch", old)
        await until(lambda: lab.heard(old))
        await asyncio.to_thread(lab.vcsim.stop, number)
        await asyncio.sleep(1.5)  # a task queued within a second of another of its id counts as the same
        await lab.vcsim.start()
        # vcsim counts its ids anew, so the first of these has the old id.
        *_, new = await lab.vcsim.by_pyvmomi(create_tasks(3))
        assert new != old
        await lab.ask("watch", new)
        await until(lambda: lab.heard(new), 60)
        await lab.vcsim.by_pyvmomi(end_tasks([new]))
        assert (await ended_in_time(lab, new))["data"]["outcome"] == "succeeded"
        assert (await lab.ended(old, 90))["data"]["outcome"] == "lost"


@pytest.mark.parametrize("way", WAYS)
async def test_a_session_that_expires_after_8_seconds_loses_nothing(tmp_path: Path, way: str) -> None:
    async with vcsim_lab(tmp_path, "http", "-session-timeout", "8s") as lab, bridge(lab, way):
        await lab.listen()
        for pause_s in (0, 12):  # between them the session is idle
            await asyncio.sleep(pause_s)
            (task,) = await lab.vcsim.by_pyvmomi(create_tasks(1) if pause_s == 0 else create_more)
            await lab.ask("watch", task)
            await until(lambda task=task: lab.heard(task))  # type: ignore[misc]
            await asyncio.sleep(9)
            await lab.vcsim.by_pyvmomi(end_tasks([task]))
            assert (await ended_in_time(lab, task))["data"]["outcome"] == "succeeded"


def create_more(instance: Any) -> list[str]:
    """Create a running task where the task type is registered."""
    vm = instance.content.searchIndex.FindByInventoryPath(VM)
    task = instance.content.taskManager.CreateTask(vm, TASK_TYPE, "me", True).task
    begin_task(task)
    return [task._moId]


@pytest.mark.parametrize("way", WAYS)
async def test_a_vm_that_vcsim_locks_while_a_task_works_on_it_delays_no_other_task(tmp_path: Path, way: str) -> None:
    async with vcsim_lab(tmp_path, "http", "-task-delay", "10000") as lab, bridge(lab, way):
        await lab.listen()
        locking = asyncio.create_task(lab.vcsim.govc("vm.power", "-off", "/DC0/vm/DC0_H0_VM1"))
        others = await lab.vcsim.by_pyvmomi(create_tasks(10))
        recent = await lab.vcsim.by_pyvmomi(read_recent)
        (locked,) = [task for task, info in recent.items() if info and info.descriptionId == "VirtualMachine.powerOff"]
        for task in (locked, *others):
            await lab.ask("watch", task)
        await until(lambda: all(lab.heard(task) for task in others))
        await lab.vcsim.by_pyvmomi(end_tasks(others))
        for task in others:
            await ended_in_time(lab, task)
        assert not locking.done(), "the others ended while the VM was locked"
        assert (await locking)[0] == 0
        await ended_in_time(lab, locked)
