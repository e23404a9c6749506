"""Classic tasks that vanish, or whose id another task gets: what ends their watch, when, and what must not."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

import task_bridge.vcenter.source
from lab import Lab, until
from task_bridge.simulator import faults, scenarios
from task_bridge.vcenter.policy import TIMEOUTS, VIM_TIMEOUTS
from task_bridge.vcenter.vim.source import VimSource

UNINTERRUPTED_S = 2.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = TIMEOUTS._replace(confirm_s=0.3, uninterrupted_s=UNINTERRUPTED_S)
    vim_timeouts = VIM_TIMEOUTS._replace(history_retry_s=UNINTERRUPTED_S)

    def build(*args: Any, **more: Any) -> VimSource:
        return VimSource(*args, **{**more, "timeouts": timeouts, "vim_timeouts": vim_timeouts})

    monkeypatch.setattr(task_bridge.vcenter.source, "VimSource", build)


async def watch(lab: Lab, count: int, **details: str) -> list[str]:
    """Classic tasks that run for ever, once each is watched."""
    tasks = [lab.vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(count)]
    for task in tasks:
        await lab.publish(task)
    await until(lambda: all(map(lab.heard, tasks)))
    return tasks


@pytest.mark.parametrize("how", ["forget", "deny"])
@pytest.mark.parametrize("way", ["push", "pull"])
async def test_the_only_classic_task_ends_after_answers_for_a_while(lab: Lab, how: str, way: str) -> None:
    """A session that works proves nothing about the task, nor does a CIS task that is shown."""
    one = next(iter(lab.settings().vcenters.values())).model_copy(update={"vim": way})
    async with lab.bridge(vcenters={"lab": one}):
        await lab.listen()
        (task,) = await watch(lab, 1)
        await lab.publish(lab.vcenter.create(scenarios.runs_forever()))
        vanished = time.monotonic()
        getattr(lab.vcenter, how)(task)
        data = (await lab.ended(task))["data"]
    assert data["outcome"] == {"forget": "lost", "deny": "denied"}[how]
    assert UNINTERRUPTED_S <= time.monotonic() - vanished < UNINTERRUPTED_S + 5.0


async def test_beside_another_that_is_shown_it_ends_after_two_answers(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task, _ = await watch(lab, 2)
        vanished = time.monotonic()
        lab.vcenter.forget(task)
        assert (await lab.ended(task))["data"]["outcome"] == "lost"
    assert time.monotonic() - vanished < UNINTERRUPTED_S


async def test_a_task_that_is_refused_as_a_whole_is_not_logged_as_unreadable(lab: Lab) -> None:
    with capture_logs() as logs:
        async with lab.bridge():
            await lab.listen()
            task, _ = await watch(lab, 2)
            lab.vcenter.deny(task)
            assert (await lab.ended(task))["data"]["outcome"] == "denied"
    assert not [line for line in logs if line["event"] == "task_not_readable"]


class TestHistory:
    """A task of which only vCenter's history knows the end, while another task proves that the service works."""

    @pytest.mark.parametrize(
        "trouble", [faults.soap_fault(), faults.delayed(1.0), faults.html_error(503)], ids=["fault", "slow", "503"]
    )
    @pytest.mark.parametrize("method", ["CreateCollectorForTasks", "ReadNextTasks"])
    async def test_nothing_is_lost_while_the_history_cannot_be_read(
        self, lab: Lab, trouble: faults.Effect, method: str
    ) -> None:
        async with lab.bridge():
            await lab.listen()
            task, _ = await watch(lab, 2)
            with lab.vcenter.faults.during(trouble, operation=method):
                lab.vcenter.tasks.hide(task)
                await until(lambda: lab.vcenter.request_log.of(method))
                await asyncio.sleep(0.8)  # longer than two answers take
                lab.vcenter.set(task, status="SUCCEEDED", result="done")
                lab.vcenter.retire(task)
            final = (await lab.ended(task))["data"]
        assert (final["outcome"], final["result"]) == ("succeeded", "done")

    async def test_one_that_is_refused_for_good_delays_the_end_for_a_while(self, lab: Lab) -> None:
        with lab.vcenter.faults.during(faults.soap_fault(), operation="CreateCollectorForTasks"):
            async with lab.bridge():
                await lab.listen()
                task, _ = await watch(lab, 2)
                vanished = time.monotonic()
                lab.vcenter.forget(task)
                assert (await lab.ended(task))["data"]["outcome"] == "lost"
        assert UNINTERRUPTED_S <= time.monotonic() - vanished < UNINTERRUPTED_S + 5.0

    async def test_one_that_the_bridge_may_not_read_delays_nothing(self, lab: Lab) -> None:
        denied = faults.soap_fault("NoPermission")
        with lab.vcenter.faults.during(denied, operation="CreateCollectorForTasks"):
            async with lab.bridge():
                await lab.listen()
                task, _ = await watch(lab, 2)
                vanished = time.monotonic()
                lab.vcenter.forget(task)
                assert (await lab.ended(task))["data"]["outcome"] == "lost"
                assert time.monotonic() - vanished < UNINTERRUPTED_S


class TestReborn:
    """vCenter gave the id to another task."""

    @pytest.mark.parametrize("operation", ["clone", "powerOn"], ids=["another operation", "another time"])
    @pytest.mark.parametrize("way", ["push", "pull"])
    async def test_the_old_watch_ends_at_once_and_a_request_starts_a_new_one(
        self, lab: Lab, way: str, operation: str
    ) -> None:
        one = next(iter(lab.settings().vcenters.values())).model_copy(update={"vim": way})
        async with lab.bridge(vcenters={"lab": one}):
            await lab.listen()
            (task,) = await watch(lab, 1)
            await asyncio.sleep(1.1)  # times that differ by less may be the same
            await self.reborn(lab, task, operation)

    @pytest.mark.parametrize("way", ["push", "pull"])
    async def test_while_vanished_tasks_are_held_too(self, lab: Lab, way: str) -> None:
        one = next(iter(lab.settings().vcenters.values())).model_copy(update={"vim": way})
        async with lab.bridge(vcenters={"lab": one}) as bridge:
            await lab.listen()
            tasks = await watch(lab, 4)
            for task in tasks:
                lab.vcenter.hide(task)
            await until(lambda: bridge.status.health().vcenters[0].reason)
            lab.vcenter.unhide(tasks[0])
            await self.reborn(lab, tasks[0], "clone")
            assert not any(event["data"]["final"] for task in tasks[1:] for event in lab.heard(task))

    async def reborn(self, lab: Lab, task: str, operation: str) -> None:
        began = time.monotonic()
        lab.vcenter.create(scenarios.runs_forever(), id=task, flavour="vim", operation=operation)
        lost = (await lab.ended(task))["data"]
        assert time.monotonic() - began < 4.0  # a pull may be two seconds away
        assert (lost["outcome"], lost["operation"]) == ("lost", "powerOn")
        assert "another task" in lost["error"]["message"]
        lab.live.clear()
        reply = await lab.ask("watch", task)
        assert (reply["outcome"], reply["watch"]["id"] != lost["watch"]["id"]) == ("accepted", True)
        watching = await until(lambda: lab.heard(task))
        assert (watching[0]["data"]["kind"], watching[0]["data"]["operation"]) == ("watching", operation)
        lab.vcenter.set(task, status="SUCCEEDED")
        assert (await lab.ended(task))["data"]["outcome"] == "succeeded"

    async def test_the_old_task_s_end_is_looked_up_in_the_history_before(self, lab: Lab) -> None:
        async with lab.bridge():
            await lab.listen()
            task, _ = await watch(lab, 2)
            with lab.vcenter.faults.during(faults.delayed(0.5), operation="WaitForUpdatesEx"):
                lab.vcenter.set(task, status="SUCCEEDED", result="done")
                lab.vcenter.retire(task)
                lab.vcenter.create(scenarios.runs_forever(), id=task, flavour="vim", operation="clone")
            final = (await lab.ended(task))["data"]
            assert (final["outcome"], final["operation"], final["result"]) == ("succeeded", "powerOn", "done")


async def test_a_hold_of_classic_tasks_is_not_over_when_a_cis_task_is_polled(lab: Lab) -> None:
    with capture_logs() as logs:
        async with lab.bridge() as bridge:
            await lab.listen()
            tasks = await watch(lab, 3)
            modern = lab.vcenter.create(scenarios.runs_forever())
            await lab.publish(modern)
            await until(lambda: lab.heard(modern))
            for task in tasks:
                lab.vcenter.hide(task)
            await until(lambda: bridge.status.health().vcenters[0].reason)
            polls = len(lab.vcenter.request_log.of("list"))
            await until(lambda: len(lab.vcenter.request_log.of("list")) > polls + 3)
            assert "3 tasks" in str(bridge.status.health().vcenters[0].reason)
            assert not [line for line in logs if line["event"] == "tasks_vanished_together_over"]
            for task in tasks:
                lab.vcenter.unhide(task)
            await until(lambda: any(line["event"] == "tasks_vanished_together_over" for line in logs))
    told = [(line["event"], line["api"]) for line in logs if line["event"].startswith("tasks_vanished")]
    assert told == [("tasks_vanished_together", "vim"), ("tasks_vanished_together_over", "vim")]
