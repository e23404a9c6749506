"""Names and paths of targets, looked up over `/sdk` for both kinds of tasks."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

import task_bridge.vcenter.source
from lab import PASSWORD, USERNAME, Lab, until
from task_bridge.settings import VCenterSettings
from task_bridge.simulator import SimulatedTarget, faults, scenarios
from task_bridge.simulator.faults import Effect
from task_bridge.simulator.script import Flavour
from task_bridge.vcenter.policy import VimTimeouts
from task_bridge.vcenter.vim.source import VimSource

CLUSTER = {"type": "ClusterComputeResource", "id": "domain-c9"}
NAMED_CLUSTER = {**CLUSTER, "name": "production", "path": "/DC/host/production"}
VM = SimulatedTarget("VirtualMachine", "vm-7")
FLAVOURS: list[Flavour] = ["vlcm", "vim"]


def with_settings(lab: Lab, **more: object) -> dict[str, VCenterSettings]:
    given = {"name": "lab", "url": lab.vcenter_url, "username": USERNAME, "password": PASSWORD}
    return {"lab": VCenterSettings.model_validate(given | more)}


def lookups(lab: Lab) -> list[float]:
    """When each request for names came."""
    return [one.at for one in lab.vcenter.request_log.of("names")]


def targets(lab: Lab, task: str) -> list[dict[str, Any]]:
    return [event["data"]["target"] for event in lab.heard(task)]


async def watch_to_its_end(lab: Lab, task: str) -> dict[str, Any]:
    await lab.publish(task)
    final: dict[str, Any] = (await lab.ended(task))["data"]
    return final


async def watch_together(lab: Lab, about: list[SimulatedTarget]) -> list[str]:
    """Watch a running task about each. The first lookup is about all: its login takes so long."""
    tasks = [lab.vcenter.create(scenarios.runs_forever(), target=target) for target in about]
    lab.vcenter.faults.add(faults.delayed(1.0), operation="Login", times=1)
    for task in tasks:
        await lab.publish(task)
    await until(lambda: all(map(lab.heard, tasks)))
    await until(lambda: lookups(lab))
    return tasks


async def test_a_cis_task_gets_the_name_and_path_of_its_target(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds(after_s=1.0))
        final = await watch_to_its_end(lab, task)
    assert final["target"] == NAMED_CLUSTER
    assert targets(lab, task)[0] == {**CLUSTER, "name": None, "path": None}
    assert lab.vcenter.sessions.live == []


async def test_a_classic_task_gets_its_path_as_vcenter_spells_it(lab: Lab) -> None:
    folder = lab.vcenter.entities.put(SimulatedTarget("Folder", "group-v20"), "web")
    lab.vcenter.entities.put(VM, "a%2fb", folder)
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds(after_s=1.0), flavour="vim", target=VM)
        final = await watch_to_its_end(lab, task)
    first = targets(lab, task)[0]
    assert first == {"type": "VirtualMachine", "id": "vm-7", "name": "name of vm-7", "path": None}
    assert final["target"] == {**first, "path": "/DC/vm/web/a%2fb"}


async def test_a_vm_in_a_vapp_lies_below_it(lab: Lab) -> None:
    vapp = lab.vcenter.entities.put(SimulatedTarget("VirtualApp", "resgroup-v31"), "shop")
    lab.vcenter.entities.put(VM, "db", vapp=vapp)
    async with lab.bridge():
        await lab.listen()
        final = await watch_to_its_end(lab, lab.vcenter.create(scenarios.succeeds(after_s=0.5), target=VM))
    assert final["target"]["path"] == "/DC/host/production/Resources/shop/db"


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_the_last_event_waits_for_the_names_and_the_first_does_not(lab: Lab, flavour: Flavour) -> None:
    async with lab.bridge():
        await lab.listen()
        with lab.vcenter.faults.during(faults.delayed(0.2), operation="names"):
            task = lab.vcenter.create(scenarios.succeeds_at_once(), flavour=flavour)
            final = await watch_to_its_end(lab, task)
    first = lab.heard(task)[0]["data"]
    assert (first["kind"], first["target"]["path"]) == ("watching", None)
    assert final["target"]["path"] == (
        f"/DC/vm/name of {task.replace('task', 'vm')}" if flavour == "vim" else "/DC/host/production"
    )


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_the_last_event_waits_half_a_second_at_most(lab: Lab, flavour: Flavour) -> None:
    async with lab.bridge():
        await lab.listen()
        with lab.vcenter.faults.during(faults.delayed(60), operation="names"):
            task = lab.vcenter.create(scenarios.succeeds_at_once(), flavour=flavour)
            await lab.publish(task)
            final = await lab.ended(task)
            waited_s = _seconds_between(lab.heard(task)[0], final)
    assert 0.4 <= waited_s <= 1.0
    assert final["data"]["target"]["path"] is None


def _seconds_between(first: dict[str, Any], last: dict[str, Any]) -> float:
    seconds = [float(event["time"][17:-1]) for event in (first, last)]
    return (seconds[1] - seconds[0]) % 60


async def test_all_targets_that_wait_are_looked_up_by_one_request_every_two_seconds(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        first = [lab.vcenter.create(scenarios.succeeds(after_s=10.0), flavour="vim") for _ in range(60)]
        for task in first:
            await lab.publish(task)
        await until(lambda: all(map(lab.heard, first)))
        later = [lab.vcenter.create(scenarios.succeeds(after_s=10.0), target=VM) for _ in range(40)]
        for task in later:
            await lab.publish(task)
        for task in first + later:
            assert (await lab.ended(task))["data"]["target"]["path"]
        times = lookups(lab)
    assert 2 <= len(times) <= 4
    assert all(after - before >= 1.9 for before, after in pairwise(times))


async def test_names_are_known_for_the_next_task(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        for _ in range(3):
            final = await watch_to_its_end(lab, lab.vcenter.create(scenarios.succeeds_at_once()))
            assert final["target"] == NAMED_CLUSTER
        again = lab.vcenter.create(scenarios.runs_forever())
        await lab.publish(again)
        await until(lambda: lab.heard(again))
    assert targets(lab, again) == [NAMED_CLUSTER]
    assert len(lookups(lab)) == 1


async def test_what_does_not_exist_or_may_not_be_read_spoils_nothing_and_is_asked_for_once(lab: Lab) -> None:
    gone, hidden, below = (SimulatedTarget("VirtualMachine", f"vm-{number}") for number in (8, 9, 10))
    lab.vcenter.entities.put(below, "x", SimulatedTarget("Folder", "group-v21"))
    lab.vcenter.entities.remove(gone)
    lab.vcenter.entities.denied |= {hidden.id, "group-v21"}
    about = [gone, hidden, below, SimulatedTarget("com.example.Thing", "thing-1"), VM]
    async with lab.bridge():
        await lab.listen()
        tasks = await watch_together(lab, about)
        for task in tasks:
            lab.vcenter.set(task, status="SUCCEEDED")
        finals = [(await lab.ended(task))["data"]["target"] for task in tasks]
        for target in about:
            await watch_to_its_end(lab, lab.vcenter.create(scenarios.succeeds_at_once(), target=target))
    assert [(target["name"], target["path"]) for target in finals] == [
        (None, None),
        (None, None),
        ("x", None),
        (None, None),
        ("name of vm-7", "/DC/vm/name of vm-7"),
    ]
    assert len(lookups(lab)) == 1


async def test_one_that_vcenter_refuses_does_not_keep_the_others_from_their_names(lab: Lab) -> None:
    """As an old vcsim refuses all because of one that it doesn't have."""
    lab.vcenter.faults.add(faults.soap_fault("ManagedObjectNotFound"), operation="names", times=1)
    async with lab.bridge():
        await lab.listen()
        tasks = await watch_together(lab, [SimulatedTarget("VirtualMachine", f"vm-{n}") for n in range(20, 24)])
        await until(lambda: len(lookups(lab)) >= 3)
        for task in tasks:
            lab.vcenter.set(task, status="SUCCEEDED")
        paths = [(await lab.ended(task))["data"]["target"]["path"] for task in tasks]
    assert all(paths)


@pytest.mark.parametrize("off", [{"names": False}, {"vim": "off"}, {"max_concurrent_requests": 1}], ids=str)
async def test_where_names_are_off_nothing_is_sent_to_sdk(lab: Lab, off: dict[str, object]) -> None:
    async with lab.bridge(vcenters=with_settings(lab, **off)):
        await lab.listen()
        final = await watch_to_its_end(lab, lab.vcenter.create(scenarios.succeeds(after_s=0.5)))
    assert final["target"] == {**CLUSTER, "name": None, "path": None}
    assert not [one for one in lab.vcenter.request_log.requests if one.path == "/sdk"]


async def test_the_session_for_names_is_logged_out_when_idle(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    short = VimTimeouts(idle_logout_s=0.5)
    monkeypatch.setattr(task_bridge.vcenter.source, "VimSource", partial(VimSource, vim_timeouts=short))
    async with lab.bridge():
        await lab.listen()
        await watch_to_its_end(lab, lab.vcenter.create(scenarios.succeeds_at_once()))
        await until(lambda: lab.vcenter.request_log.of("Logout"), 5)
        assert len(lab.vcenter.sessions.live) == 1


SOAP_TROUBLE: dict[str, tuple[Effect, str | None]] = {
    "refuses the login": (faults.soap_fault("InvalidLogin"), "Login"),
    "is down": (faults.gateway_unavailable(), None),
    "hangs": (faults.delayed(60), None),
    "resets": (faults.connection_reset(), None),
    "refuses to read": (faults.soap_fault("SystemError"), "names"),
    "hangs while it reads": (faults.delayed(60), "names"),
}


@pytest.mark.parametrize("trouble", SOAP_TROUBLE)
async def test_trouble_at_sdk_costs_cis_tasks_nothing(lab: Lab, trouble: str) -> None:
    effect, operation = SOAP_TROUBLE[trouble]
    lab.vcenter.faults.add(effect, path="/sdk", operation=operation)
    with capture_logs() as logs:
        async with lab.bridge() as bridge:
            await lab.listen()
            tasks = [lab.vcenter.create(scenarios.succeeds(after_s=1 + n / 10)) for n in range(20)]
            for task in tasks:
                await lab.publish(task)
            await until(lambda: any(map(lab.heard, tasks)))
            if trouble != "refuses the login":
                lab.vcenter.sessions.invalidate()  # the login to come must not wait for one at /sdk
            for task in tasks:
                final = (await lab.ended(task))["data"]
                ended_at = lab.vcenter.history(task)[-1].at
                assert lab.heard_at[task] - ended_at < 5.0
                assert final["target"]["path"] is None
            assert [vcenter.state for vcenter in bridge.status.health().vcenters] == ["ok"]
    assert len(lab.vcenter.request_log.of("Login")) <= 3
    assert not [log for log in logs if log["log_level"] == "warning"]


async def test_names_come_when_sdk_works_again(lab: Lab) -> None:
    lab.vcenter.faults.add(faults.gateway_unavailable(), operation="Login", times=3)
    with capture_logs() as logs:
        async with lab.bridge():
            await lab.listen()
            task = lab.vcenter.create(scenarios.runs_forever())
            await lab.publish(task)
            await until(lambda: lookups(lab))
            lab.vcenter.set(task, status="SUCCEEDED")
            assert (await lab.ended(task))["data"]["target"] == NAMED_CLUSTER
    told = [log["event"] for log in logs if log["event"].startswith("names_")]
    assert told == ["names_unavailable", "names_available_again"]


async def test_a_session_that_ended_is_renewed_for_names(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        await watch_to_its_end(lab, lab.vcenter.create(scenarios.succeeds_at_once()))
        lab.vcenter.sessions.invalidate()
        task = lab.vcenter.create(scenarios.runs_forever(), target=VM)
        await lab.publish(task)
        await until(lambda: len(lookups(lab)) == 3)
        lab.vcenter.set(task, status="SUCCEEDED")
        assert (await lab.ended(task))["data"]["target"]["path"] == "/DC/vm/name of vm-7"


async def test_names_found_later_are_in_the_next_event_and_make_none_by_themselves(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        await lab.publish({"task": task, "timeout": "3s", "stalled_after": "2s"})
        final = await lab.ended(task)
    kinds = [event["data"]["kind"] for event in lab.heard(task)]
    assert kinds == ["watching", "stalled", "abandoned"]
    assert targets(lab, task)[1:] == [NAMED_CLUSTER, NAMED_CLUSTER], json.dumps(final)


async def test_a_replica_that_takes_a_watch_over_keeps_the_names(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge():
        task = lab.vcenter.create(scenarios.runs_forever())
        await lab.publish(task)
        await until(lambda: lookups(lab))
        lab.vcenter.set(task, status="BLOCKED")
        await until(lambda: targets(lab, task)[-1] == NAMED_CLUSTER if lab.heard(task) else None)
    async with lab.bridge(vcenters=with_settings(lab, names=False)):
        lab.vcenter.set(task, status="SUCCEEDED")
        assert (await lab.ended(task))["data"]["target"] == NAMED_CLUSTER


async def test_a_vm_that_is_locked_while_its_task_runs_is_named_in_the_last_event(lab: Lab) -> None:
    """As vcsim locks it: reading its name waits for as long."""
    lab.vcenter.locked.add(VM.id)
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever(), target=VM)
        await lab.publish(task)
        await until(lambda: lookups(lab))
        lab.vcenter.set(task, status="SUCCEEDED")
        lab.vcenter.locked.clear()
        assert (await lab.ended(task))["data"]["target"]["path"] == "/DC/vm/name of vm-7"


async def test_a_locked_vm_does_not_keep_others_from_their_names(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    short = VimTimeouts(names_timeout_s=0.5)
    monkeypatch.setattr(task_bridge.vcenter.source, "VimSource", partial(VimSource, vim_timeouts=short))
    lab.vcenter.locked.add(VM.id)
    others = [SimulatedTarget("VirtualMachine", f"vm-{number}") for number in range(20, 23)]
    async with lab.bridge():
        await lab.listen()
        tasks = await watch_together(lab, [VM, *others])
        await until(lambda: len(lookups(lab)) >= 5)
        for task in tasks:
            lab.vcenter.set(task, status="SUCCEEDED")
        paths = [(await lab.ended(task))["data"]["target"]["path"] for task in tasks]
    assert paths == [None, *(f"/DC/vm/name of {vm.id}" for vm in others)]
