"""Classic tasks through the whole bridge: the same requests, the same events, the same guarantees."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import task_bridge.vcenter.source
from lab import PREFIX, BridgeProcess, Lab, until
from task_bridge.settings import VCenterSettings
from task_bridge.simulator import Script, SimulatedTarget, Step, faults, scenarios
from task_bridge.simulator.faults import Effect
from task_bridge.simulator.script import message, progress
from task_bridge.simulator.sdk import soap
from task_bridge.vcenter.policy import VimTimeouts
from task_bridge.vcenter.vim.source import VimSource

NEW_VM = {"type": "VirtualMachine", "id": "vm-8"}


def with_vim(lab: Lab, way: str, **more: object) -> dict[str, VCenterSettings]:
    return {"lab": lab.vcenter_settings(vim=way, **more)}


async def test_a_classic_task_is_followed_from_watching_to_its_end(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        vm = SimulatedTarget("VirtualMachine", "vm-7")
        task = lab.vcenter.create(scenarios.succeeds(after_s=1.0, result=NEW_VM), flavour="vim", target=vm)
        reply = await lab.ask("watch", {"task": f"Task:{task}"})
        final = (await lab.ended(task))["data"]
        events = await lab.events(task)
    assert (reply["task"], reply["events"]) == (task, f"{PREFIX}.events.lab.{task}.>")
    assert [event["data"]["sequence"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["data"]["kind"] for event in events]
    assert (kinds[0], kinds[-1]) == ("watching", "completed")
    assert {event["data"]["api"] for event in events} == {"vim"}
    assert (final["status"], final["outcome"], final["result"]) == ("SUCCEEDED", "succeeded", NEW_VM)
    name = "name of vm-7"
    assert final["target"] == {"type": "VirtualMachine", "id": "vm-7", "name": name, "path": f"/DC/vm/{name}"}
    assert (final["service"], final["operation"]) == ("VirtualMachine", "powerOn")
    assert (final["description"], final["user"]) == ("Power On virtual machine", "Administrator@VSPHERE.LOCAL")
    assert (final["progress"], final["duration_seconds"]) == (None, pytest.approx(0.9, abs=0.01))
    assert final["extra"]["queueTime"]
    assert (lab.vcenter.sessions.counts.most_live, lab.vcenter.sessions.live) == (2, [])


@pytest.mark.parametrize(
    ("script", "subject", "error_type"),
    [
        (scenarios.succeeds_at_once(), "completed.succeeded", None),
        (scenarios.fails_with_error(after_s=0.3), "completed.failed", "SystemError"),
        (scenarios.fails_silently(after_s=0.3), "completed.failed", None),
        (scenarios.canceled(after_s=0.3), "completed.canceled", "RequestCanceled"),
    ],
    ids=["at-once", "error", "silently", "canceled"],
)
@pytest.mark.parametrize("way", ["push", "pull"])
async def test_every_fate_ends_as_vcenter_tells_it_by_push_and_by_pull(
    lab: Lab, script: Script, subject: str, error_type: str | None, way: str
) -> None:
    one = next(iter(lab.settings().vcenters.values())).model_copy(update={"vim": way})
    async with lab.bridge(vcenters={"lab": one}):
        await lab.listen()
        task = lab.vcenter.create(script, flavour="vim")
        await lab.publish(task)
        data = (await lab.ended(task))["data"]
    assert f"{data['kind']}.{data['outcome']}" == subject
    assert (data["error"] or {}).get("type") == error_type
    assert lab.heard(task)[0]["data"]["kind"] == "watching"
    assert bool(lab.vcenter.request_log.of("WaitForUpdatesEx")) == (way == "push")


async def test_a_pending_question_blocks_the_task_and_is_told(lab: Lab) -> None:
    step = {"progress": progress(95, text="Connecting devices"), "question": "Did you move it or copy it?"}
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(Script((Step(0, {"status": "BLOCKED", **step}),)), flavour="vim")
        await lab.publish(task)
        blocked = await until(lambda: next((e for e in lab.heard(task) if e["data"]["status"] == "BLOCKED"), None))
        lab.vcenter.set(task, status="RUNNING")
        await until(lambda: lab.heard(task)[-1]["data"]["status"] == "RUNNING")
        lab.vcenter.set(task, status="SUCCEEDED")
        final = (await lab.ended(task))["data"]
    data = blocked["data"]
    assert data["progress"] == {"completed": 95, "total": 100, "percent": 95.0, "message": step["question"]}
    assert data["extra"]["question"] == {"id": f"q-{task}", "text": step["question"]}
    assert (final["outcome"], "question" in final["extra"]) == ("succeeded", False)


async def test_a_classic_task_is_canceled_on_request_where_that_is_allowed(lab: Lab) -> None:
    async with lab.bridge(allow_cancel=True):
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever(cancel_takes_s=0.1), flavour="vim")
        fixed = lab.vcenter.create(scenarios.runs_forever(cancelable=False), flavour="vim")
        await lab.publish(task)
        assert (await lab.ask("cancel", f"Task:{task}"))["outcome"] == "cancel_requested"
        assert (await lab.ended(task))["data"]["outcome"] == "canceled"
        codes = [(await lab.ask("cancel", one))["error"]["code"] for one in (fixed, task, "task-999")]
    assert codes == ["not_cancelable", "already_ended", "unknown_task"]


async def test_where_it_is_off_classic_tasks_are_refused_and_no_session_is_opened(lab: Lab) -> None:
    async with lab.bridge(vcenters=with_vim(lab, "off")):
        await lab.listen()
        reply = await lab.ask("watch", "task-101")
        await lab.publish("task-101")
        rejected = await until(lambda: next((body for subject, body in lab.live if subject.endswith("rejected")), None))
    assert reply["error"]["code"] == rejected["data"]["error"]["code"] == "invalid_request"
    assert "BRIDGE_VCENTERS__LAB__VIM" in reply["error"]["details"][0]["problem"]
    assert not lab.vcenter.request_log.of("Login")


async def test_a_task_that_vanishes_alone_is_lost_one_never_there_too_and_one_in_the_history_has_ended(
    lab: Lab,
) -> None:
    async with lab.bridge():
        await lab.listen()
        lost, retired, other = (lab.vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(3))
        for task in (lost, retired, other, "task-7"):
            await lab.publish(task)
        await until(lambda: lab.heard(lost) and lab.heard(retired) and lab.heard(other))
        lab.vcenter.forget(lost)
        ends = [(await lab.ended(task))["data"] for task in (lost, "task-7")]
        with lab.vcenter.faults.during(faults.delayed(0.3), operation="WaitForUpdatesEx"):
            lab.vcenter.set(retired, status="SUCCEEDED", result="done")
            lab.vcenter.retire(retired)
            known = (await lab.ended(retired))["data"]
    assert [(data["outcome"], data["status"]) for data in ends] == [("lost", "RUNNING"), ("lost", None)]
    assert {data["error"]["type"] for data in ends} == {"ManagedObjectNotFound"}
    assert (known["outcome"], known["result"]) == ("succeeded", "done")


async def test_a_question_and_its_task_that_changed_together_are_told_together(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        vm = SimulatedTarget("VirtualMachine", "vm-7")
        task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim", target=vm)
        lab.vcenter.set(task, status="BLOCKED", progress=progress(40))
        await lab.publish(task)
        await until(lambda: standing_of(lab, task)[-1:] == [("BLOCKED", 40)])
        with lab.vcenter.faults.during(faults.delayed(0.5), operation="Login"):
            lab.vcenter.sessions.invalidate()
            await until(lambda: len(lab.vcenter.request_log.of("Login")) > 1)
            lab.vcenter.set(task, status="RUNNING", progress=progress(60))
            await until(lambda: standing_of(lab, task)[-1] == ("RUNNING", 60))
    told = standing_of(lab, task)
    assert told[told.index(("BLOCKED", 40)) + 1 :] == [("RUNNING", 60)]


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_a_new_owner_of_a_task_that_is_blocked_says_nothing_that_it_is_not(lab: Lab, way: str) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim", target=SimulatedTarget("VirtualMachine", "vm-7"))
    lab.vcenter.set(task, status="BLOCKED", progress=progress(40))
    async with lab.bridge(vcenters=with_vim(lab, way)):
        await lab.publish(task)
        await until(lambda: standing_of(lab, task)[-1:] == [("BLOCKED", 40)])
    async with lab.bridge(vcenters=with_vim(lab, way)):
        pulls = len(lab.vcenter.request_log.of("RetrievePropertiesEx"))
        await until(lambda: len(lab.vcenter.request_log.of("RetrievePropertiesEx")) > pulls)
        lab.vcenter.set(task, progress=progress(50))
        await until(lambda: standing_of(lab, task)[-1] == ("BLOCKED", 50))
        lab.vcenter.set(task, status="RUNNING", progress=progress(60))
        await until(lambda: standing_of(lab, task)[-1] == ("RUNNING", 60))
        lab.vcenter.set(task, status="SUCCEEDED")
        await lab.ended(task)
    told = standing_of(lab, task)
    first, last = told.index(("BLOCKED", 40)), told.index(("BLOCKED", 50))
    assert {status for status, _ in told[first:last]} == {"BLOCKED"}


def standing_of(lab: Lab, task: str) -> list[tuple[str, float]]:
    events = (data["data"] for data in lab.heard(task))
    return [(data["status"], data["progress"]["percent"]) for data in events if data["progress"]]


async def test_a_history_that_is_refused_is_told_once(lab: Lab) -> None:
    method = "CreateCollectorForTasks"
    with capture_logs() as logs:
        async with lab.bridge():
            await lab.listen()
            with lab.vcenter.faults.during(faults.soap_fault(), operation=method):
                await lab.publish("task-7")
                ends = [(await lab.ended("task-7"))["data"]["outcome"]]
                assert len(lab.vcenter.request_log.of(method)) > 1
            await lab.publish("task-8")
            ends.append((await lab.ended("task-8"))["data"]["outcome"])
    assert ends == ["lost", "lost"]
    told = [line["event"] for line in logs if line["event"].startswith("history_")]
    assert told == ["history_unavailable", "history_available_again"]


async def test_a_task_that_vcenter_refuses_to_show_is_denied(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task, other = (lab.vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(2))
        await lab.publish(task)
        await lab.publish(other)
        await until(lambda: lab.heard(task) and lab.heard(other))
        lab.vcenter.deny(task)
        data = (await lab.ended(task))["data"]
    assert (data["outcome"], data["error"]["type"]) == ("denied", "NoPermission")


async def test_a_task_that_is_watched_again_is_looked_at_again(lab: Lab) -> None:
    """vCenter's view lists it still, and tells of it only when it changes."""
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
        await lab.publish(task)
        await until(lambda: lab.heard(task))
        await lab.ask("unwatch", task)
        await until(lambda: len(lab.heard(task)) == 2)
        await lab.ask("watch", task)
        await until(lambda: len(lab.heard(task)) == 3)
        lab.vcenter.set(task, status="SUCCEEDED")
        await until(lambda: len(lab.heard(task)) == 4)
    kinds = [event["data"]["kind"] for event in lab.heard(task)]
    assert kinds == ["watching", "abandoned", "watching", "completed"]


async def test_tasks_that_vanish_together_are_not_given_up(lab: Lab) -> None:
    async with lab.bridge() as bridge:
        await lab.listen()
        tasks = [lab.vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(5)]
        for task in tasks:
            await lab.publish(task)
        await until(lambda: all(map(lab.heard, tasks)))
        for task in tasks:
            lab.vcenter.hide(task)
        assert "5 tasks" in await until(lambda: bridge.status.health().vcenters[0].reason)
        for task in tasks:
            lab.vcenter.unhide(task)
            lab.vcenter.set(task, status="SUCCEEDED")
        for task in tasks:
            assert (await lab.ended(task))["data"]["outcome"] == "succeeded"
        await until(lambda: bridge.status.health().vcenters[0].state == "ok")


async def test_a_restart_of_vcenter_invents_nothing_and_its_reused_ids_are_other_tasks(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        ended = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        running = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
        for task in (ended, running):
            await lab.publish(task)
        first = await lab.ended(ended)
        assert (await lab.ask("watch", ended))["last_event"] == first
        await until(lambda: lab.heard(running))
        lab.vcenter.restart()
        later = [
            lab.vcenter.create(scenarios.succeeds(after_s=1.5), flavour="vim", operation="clone") for _ in range(2)
        ]
        assert later == [ended, running]
        reply = await lab.ask("watch", ended)
        assert (reply["outcome"], reply["last_event"]) == ("accepted", None)
        second = await until(lambda: next((e for e in lab.heard(ended)[2:] if e["data"]["final"]), None))
        lost = (await lab.ended(running))["data"]
        assert (await lab.ask("watch", ended))["last_event"] == second
    assert second["data"]["watch"]["id"] == reply["watch"]["id"]
    assert (second["data"]["operation"], lost["outcome"], lost["operation"]) == ("clone", "lost", "powerOn")


async def test_the_watch_goes_on_over_a_killed_bridge_and_a_restarted_vcenter(
    lab: Lab, process: BridgeProcess, tmp_path: Path
) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
    await process.start()
    await process.ready()
    await lab.publish(task)
    await until(lambda: lab.heard(task))
    await process.end(9)
    lab.vcenter.restart(forget=False)
    lab.vcenter.set(task, status="SUCCEEDED", result={"type": "VirtualMachine", "id": "vm-9"})
    await process.start()
    await process.ready()
    data = (await lab.ended(task, within_s=30))["data"]
    assert (data["outcome"], data["result"]["id"]) == ("succeeded", "vm-9")
    assert [event["data"]["sequence"] for event in await lab.events(task)] == list(range(1, data["sequence"] + 1))
    assert await process.end() == 0
    assert lab.vcenter.sessions.live == []


async def test_sessions_that_expire_while_waiting_cost_no_event(lab: Lab) -> None:
    lab.vcenter.options.idle_timeout_s = 1.0
    async with lab.bridge() as bridge:
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds(after_s=4.0, looks=2), flavour="vim")
        await lab.publish(task)
        data = (await lab.ended(task))["data"]
        assert data["outcome"] == "succeeded"
        assert bridge.status.health().status == "ok"
    statuses = [event["data"]["status"] for event in await lab.events(task)]
    assert statuses[0] in ("PENDING", "RUNNING")
    assert lab.vcenter.sessions.live == []


async def test_a_standstill_is_told_although_nothing_is_pushed(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        shown = {"status": "RUNNING", "progress": {"total": 100, "completed": 10, "message": message("Copying")}}
        task = lab.vcenter.create(Script((Step(0, shown),)), flavour="vim")
        await lab.publish({"task": task, "stalled_after": 1})
        stalled = await until(lambda: next((e for e in lab.heard(task) if e["data"]["kind"] == "stalled"), None), 5)
        assert stalled["data"]["progress"]["message"] == "Copying"


async def test_both_kinds_are_followed_beside_each_other_and_the_vcenter_is_listed_once(lab: Lab) -> None:
    async with lab.bridge() as bridge:
        await lab.listen()
        classic = [lab.vcenter.create(scenarios.succeeds(after_s=1.0), flavour="vim") for _ in range(20)]
        modern = [lab.vcenter.create(scenarios.succeeds(after_s=1.0)) for _ in range(20)]
        for task in (*classic, *modern):
            await lab.publish(task)
        for task in (*classic, *modern):
            assert (await lab.ended(task))["data"]["api"] == ("vim" if task in classic else "cis")
        assert [one.name for one in bridge.status.health().vcenters] == ["lab"]
    assert lab.vcenter.request_log.most_in_flight <= 4


async def test_a_task_is_followed_although_the_change_of_the_view_that_lists_it_was_lost(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        first = lab.vcenter.create(scenarios.succeeds(after_s=60.0), flavour="vim")
        await lab.publish(first)
        await until(lambda: lab.heard(first))
        lab.vcenter.faults.add(faults.connection_reset(), operation="ModifyListView", times=2)
        task = lab.vcenter.create(scenarios.succeeds(after_s=1.0), flavour="vim")
        await lab.publish(task)
        assert (await lab.ended(task))["data"]["outcome"] == "succeeded"


async def test_a_session_that_a_cancel_begins_anew_is_no_trouble(lab: Lab) -> None:
    """The wait of the session before goes on meanwhile, as vcsim lets it."""
    wait = "WaitForUpdatesEx"
    async with lab.bridge(allow_cancel=True):
        await lab.listen()
        task, other = (lab.vcenter.create(scenarios.succeeds(after_s=60.0), flavour="vim") for _ in range(2))
        await lab.publish(task)
        await until(lambda: lab.heard(task))
        nothing = Effect(status=200, body=bytes(soap.method_response(wait, "").body), delay_s=2.0)
        lab.vcenter.faults.add(nothing, operation=wait, times=1)
        await lab.publish(other)
        await until(lambda: lab.heard(other) or lab.vcenter.request_log.of(wait)[-1].fault)
        with capture_logs() as logs:
            lab.vcenter.sessions.invalidate()
            await lab.ask("cancel", task)
            assert (await lab.ended(task))["data"]["outcome"] == "canceled"
            waits = len(lab.vcenter.request_log.of(wait))
            await until(lambda: len(lab.vcenter.request_log.of(wait)) > waits)
            lab.vcenter.set(other, status="SUCCEEDED")
            await lab.ended(other)
    assert not [log for log in logs if log["log_level"] == "warning" or log["event"] == "push_lost"]


async def test_sessions_that_end_again_and_again_are_no_reason_to_give_push_up(lab: Lab) -> None:
    def is_waiting() -> bool:
        """A session that ends before its first wait was answered would count as rejected."""
        *before, last = lab.vcenter.request_log.of("WaitForUpdatesEx")
        is_answered = any(wait.session == last.session and wait.status == 200 for wait in before)
        return last.status is None and is_answered and last.session in {one.id for one in lab.vcenter.sessions.live}

    async with lab.bridge(vcenters=with_vim(lab, "auto")):
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds(after_s=60.0), flavour="vim")
        await lab.publish(task)
        await until(lambda: lab.heard(task))
        with capture_logs() as logs:
            for _ in range(4):
                await until(is_waiting)
                lab.vcenter.sessions.invalidate()
            await until(is_waiting)
            lab.vcenter.set(task, status="SUCCEEDED")
            await lab.ended(task)
    assert not [log for log in logs if log["log_level"] == "warning" or log["event"] == "push_lost"]


# A VM that is kept locked, as vcsim does while a delayed task works on it

LOCKED = SimulatedTarget("VirtualMachine", "vm-7")
READS = ("RetrievePropertiesEx", "ModifyListView", "WaitForUpdatesEx")


async def locked_task(lab: Lab) -> str:
    """A followed task on the locked VM, of whose question somebody wants to know by now."""
    lab.vcenter.locked.add(LOCKED.id)
    task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim", target=LOCKED)
    await lab.publish(task)
    await until(lambda: lab.heard(task), 6)
    asked = sum(len(lab.vcenter.request_log.of(one)) for one in READS)
    await until(lambda: sum(len(lab.vcenter.request_log.of(one)) for one in READS) > asked, 6)
    return task


async def told_in_time(lab: Lab, *tasks: str) -> None:
    """They are watched, end now, and both is told within 6 s."""
    began = time.monotonic()
    await until(lambda: all(map(lab.heard, tasks)), 6)
    for task in tasks:
        lab.vcenter.set(task, status="SUCCEEDED")
    for task in tasks:
        await lab.ended(task, 6)
    assert time.monotonic() - began < 6


async def becomes(lab: Lab, task: str, status: str) -> None:
    await until(lambda: lab.heard(task) and lab.heard(task)[-1]["data"]["status"] == status, 6)


@pytest.mark.parametrize(("way", "slots"), [("push", 4), ("push", 2), ("pull", 4), ("pull", 1)])
async def test_a_vm_that_is_kept_locked_holds_up_no_task(lab: Lab, way: str, slots: int) -> None:
    with capture_logs() as logs:
        async with lab.bridge(vcenters=with_vim(lab, way, max_concurrent_requests=slots)):
            await lab.listen()
            before, after, later = (lab.vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(3))
            await lab.publish(before)
            await until(lambda: lab.heard(before))
            task = await locked_task(lab)
            await lab.publish(after)
            await told_in_time(lab, before, after)
            await lab.publish(later)
            await told_in_time(lab, task, later)
    assert [log["event"] for log in logs].count("questions_asked_apart") == 1
    assert not [log for log in logs if log["log_level"] == "warning" or log["event"] == "push_lost"]


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_a_task_of_a_locked_vm_is_taken_up_by_a_new_owner(lab: Lab, way: str) -> None:
    await lab.listen()
    with capture_logs() as logs:
        async with lab.bridge(vcenters=with_vim(lab, way)):
            task = await locked_task(lab)
        async with lab.bridge(vcenters=with_vim(lab, way)):
            other = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
            await lab.publish(other)
            await told_in_time(lab, task, other)
    assert not [log for log in logs if log["event"] == "vcenter_unavailable"]


async def test_a_locked_vm_whose_task_is_not_watched_any_more_holds_up_no_task(lab: Lab) -> None:
    with capture_logs() as logs:
        async with lab.bridge(vcenters=with_vim(lab, "push")):
            await lab.listen()
            await lab.ask("unwatch", await locked_task(lab))
            other = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
            await lab.publish(other)
            await told_in_time(lab, other)
    assert not [log for log in logs if log["event"] in ("vcenter_unavailable", "push_lost")]


async def test_a_locked_vm_holds_up_no_task_where_a_view_is_refused_for_one_unknown_object(lab: Lab) -> None:
    """As older vcsim refuses it: which objects there are is asked for, and the locked one is among them."""
    with capture_logs() as logs:
        async with lab.bridge(vcenters=with_vim(lab, "push")):
            await lab.listen()
            task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim", target=LOCKED)
            await lab.publish(task)
            await until(lambda: len(lab.vcenter.request_log.of("ModifyListView")) == 2)
            lab.vcenter.locked.add(LOCKED.id)
            lab.vcenter.faults.add(faults.soap_fault("ManagedObjectNotFound"), operation="ModifyListView", times=1)
            lab.vcenter.sessions.invalidate()
            await until(lambda: [log for log in logs if log["event"] == "questions_asked_apart"], 6)
            await told_in_time(lab, task)
    assert not [log for log in logs if log["event"] in ("vcenter_unavailable", "push_lost")]


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_questions_are_asked_apart_until_no_vm_is_locked(
    lab: Lab, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = VimTimeouts(vm_timeout_s=1.0, pull_interval_s=0.3, separate_questions_s=1.5)
    monkeypatch.setattr(task_bridge.vcenter.source, "VimSource", partial(VimSource, vim_timeouts=quick))
    with capture_logs() as logs:

        def told(event: str) -> int:
            return [log["event"] for log in logs].count(event)

        async with lab.bridge(vcenters=with_vim(lab, way)):
            await lab.listen()
            await locked_task(lab)
            await until(lambda: told("questions_asked_apart"), 6)
            other = lab.vcenter.create(
                scenarios.runs_forever(), flavour="vim", target=SimulatedTarget("VirtualMachine", "vm-8")
            )
            lab.vcenter.set(other, status="BLOCKED", progress=progress(40))
            await lab.publish(other)
            await until(lambda: lab.heard(other), 6)
            listed = len(lab.vcenter.request_log.of("ModifyListView"))
            lab.vcenter.locked.clear()
            await becomes(lab, other, "BLOCKED")
            await until(lambda: told("questions_asked_together"), 6)
            await until(lambda: way == "pull" or len(lab.vcenter.request_log.of("ModifyListView")) > listed, 6)
            pulls = len(lab.vcenter.request_log.of("RetrievePropertiesEx"))
            for status in ("RUNNING", "BLOCKED"):
                lab.vcenter.set(other, status=status)
                await becomes(lab, other, status)
            pulled = len(lab.vcenter.request_log.of("RetrievePropertiesEx")) > pulls
    assert pulled == (way == "pull")
    assert (told("questions_asked_apart"), told("questions_asked_together")) == (1, 1)
    assert not told("vcenter_unavailable")


@pytest.mark.parametrize("away", [faults.gateway_unavailable(), faults.delayed(60)], ids=["refuses", "hangs"])
async def test_a_completed_task_is_answered_from_the_stream_while_vcenter_is_away(lab: Lab, away: Effect) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await lab.publish(task)
        final = await lab.ended(task)
        with lab.vcenter.faults.during(away):
            reply = await lab.ask("watch", task)
        assert (reply.get("outcome"), reply.get("last_event")) == ("already_completed", final), reply
        assert (await lab.js.stream_info("VCENTER_TASKS_WATCHES")).state.messages == 0
        assert len(await lab.events(task)) == final["data"]["sequence"]
