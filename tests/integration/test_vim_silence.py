"""A wait for updates that is silent, slow or wrong: an end is published within 6 s, and no request too many is sent."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import pytest
from structlog.testing import capture_logs

import task_bridge.vcenter.source
from lab import Lab, until
from task_bridge.domain.durations import parse_time
from task_bridge.simulator import SimulatedTarget, faults, scenarios
from task_bridge.simulator.faults import Effect
from task_bridge.simulator.script import progress
from task_bridge.simulator.sdk import soap
from task_bridge.simulator.serve import serve_vcenter
from task_bridge.vcenter.policy import VimTimeouts
from task_bridge.vcenter.vim.source import VimSource
from vcenter_lab import tls

WAIT, PULL = "WaitForUpdatesEx", "RetrievePropertiesEx"
NOTHING = Effect(status=200, body=bytes(soap.method_response(WAIT, "").body), headers=(("content-type", "text/xml"),))


@pytest.fixture
def scheme() -> str:
    return "https"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the times that are waited in earnest."""
    timeouts = VimTimeouts(silence_s=1.0, end_late_s=0.4, pull_interval_s=0.4)
    monkeypatch.setattr(task_bridge.vcenter.source, "VimSource", partial(VimSource, vim_timeouts=timeouts))


@pytest.fixture
async def logs() -> AsyncIterator[list[dict[str, object]]]:
    with capture_logs() as logs:
        yield logs  # type: ignore[misc]


def create(lab: Lab, count: int = 1, **details: object) -> list[str]:
    return [lab.vcenter.create(scenarios.runs_forever(), flavour="vim", **details) for _ in range(count)]  # type: ignore[arg-type]


async def follow(lab: Lab, tasks: list[str]) -> None:
    for task in tasks:
        await lab.publish(task)
    await until(lambda: all(map(lab.heard, tasks)))


async def push_breaks(lab: Lab, effect: Effect) -> None:
    """From the wait that begins now on; the one under way is answered."""
    asked = len(lab.vcenter.request_log.of(WAIT))
    lab.vcenter.faults.add(effect, operation=WAIT)
    (task,) = create(lab)
    await follow(lab, [task])
    await until(lambda: len(lab.vcenter.request_log.of(WAIT)) > asked)


async def ends_in_time(lab: Lab, tasks: list[str], within_s: float = 2.5) -> None:
    """They end now, and the bridge sees each of them within this time."""
    for task in tasks:
        lab.vcenter.set(task, status="SUCCEEDED")
    for task in tasks:
        event = await lab.ended(task)
        assert event["data"]["outcome"] == "succeeded"
        assert seconds_of(event["time"]) - seconds_of(event["data"]["ended_at"]) < within_s


def seconds_of(time: str) -> float:
    seconds = parse_time(time)
    assert seconds is not None
    return seconds


def pulls(lab: Lab) -> int:
    return len(lab.vcenter.request_log.of(PULL))


def without(*ids: str) -> Effect:
    """A wait that shows everything but these: something else instead."""

    def reshape(body: bytes) -> bytes:
        for one in ids:
            body = body.replace(f">{one}<".encode(), b">other-1<")
        return body

    return Effect(reshape=reshape)


BREAKS = {
    "silent": faults.silent(),
    "slow": faults.delayed(20.0),
    "late": faults.late(3.0),
    "headers-only": faults.stalled_body(0),
    "nothing-new": NOTHING,
}


async def test_an_end_is_published_within_six_seconds(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        tasks = create(lab, 50)
        await follow(lab, tasks)
        await push_breaks(lab, faults.silent())
        await ends_in_time(lab, tasks, 6.0)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", BREAKS)
async def test_an_end_is_published_in_time_whatever_the_wait_does(lab: Lab, how: str) -> None:
    async with lab.bridge():
        await lab.listen()
        tasks = create(lab, 20)
        await follow(lab, tasks)
        await push_breaks(lab, BREAKS[how])
        await ends_in_time(lab, tasks)


@pytest.mark.usefixtures("quick")
async def test_a_task_that_the_wait_never_shows_is_followed_all_the_same(lab: Lab) -> None:
    lab.vcenter.faults.add(faults.silent(), operation=WAIT)
    async with lab.bridge():
        await lab.listen()
        (task,) = create(lab)
        await lab.publish(task)
        await until(lambda: lab.heard(task), 2.5)
        await ends_in_time(lab, [task])


@pytest.mark.usefixtures("quick")
async def test_an_end_that_a_wait_leaves_out_while_it_shows_others_is_published_in_time(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        hidden, other = create(lab, 2)
        await follow(lab, [hidden, other])
        await push_breaks(lab, without(hidden))
        done = itertools.count()
        ending = asyncio.create_task(ends_in_time(lab, [hidden]))
        while not ending.done():
            lab.vcenter.set(other, progress=progress(next(done) % 100))
            await asyncio.sleep(0.1)
        await ending


@pytest.mark.usefixtures("quick")
async def test_more_tasks_than_a_pull_takes_end_in_time(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        tasks = create(lab, 600)
        await follow(lab, tasks)
        await push_breaks(lab, faults.silent())
        await ends_in_time(lab, tasks[::299], 3.0)
        assert max(request.tasks for request in lab.vcenter.request_log.of(PULL)) == 500


@pytest.mark.usefixtures("quick")
async def test_a_quiet_vcenter_costs_one_pull_an_interval(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        tasks = create(lab, 30, target=SimulatedTarget("VirtualMachine", "vm-7"))
        await follow(lab, tasks)
        await until(lambda: len(lab.vcenter.request_log.of(PULL)) > 2)
        began, before = time.time(), pulls(lab)
        await until(lambda: pulls(lab) == before + 3)
        asked = lab.vcenter.request_log.of(PULL)[before:]
        assert all(later.at - earlier.at > 0.99 for earlier, later in itertools.pairwise(asked))
        assert {request.tasks for request in asked} == {30}
        assert len([one for one in lab.vcenter.request_log.since(began) if one.path == "/sdk"]) == len(asked)


@pytest.mark.usefixtures("quick")
async def test_tasks_that_the_wait_shows_are_not_pulled_beside_it(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        tasks = create(lab, 3)
        await follow(lab, tasks)
        shown = len(lab.vcenter.request_log.of(WAIT))
        for percent in range(1, 100):
            before = pulls(lab)
            for task in tasks:
                lab.vcenter.set(task, progress=progress(percent))
            await until(lambda: all(lab.heard(task)[-1]["data"]["progress"] for task in tasks))
            await asyncio.sleep(0.05)
            if len(lab.vcenter.request_log.of(WAIT)) >= shown + 8:
                break
        assert pulls(lab) == before


@pytest.mark.usefixtures("quick")
async def test_a_pull_of_a_task_s_vm_holds_nothing_up(lab: Lab) -> None:
    """A locked VM keeps the wait silent, and whatever else reads it."""
    vm = SimulatedTarget("VirtualMachine", "vm-7")
    async with lab.bridge():
        await lab.listen()
        tasks = create(lab, 3, target=vm)
        await follow(lab, tasks)
        await push_breaks(lab, faults.silent())
        lab.vcenter.locked.add(vm.id)
        await ends_in_time(lab, tasks)


@pytest.mark.usefixtures("quick")
async def test_a_change_on_a_vm_is_told_with_its_question_though_a_pull_shows_it(lab: Lab) -> None:
    vm = SimulatedTarget("VirtualMachine", "vm-7")
    async with lab.bridge():
        await lab.listen()
        (task,) = create(lab, target=vm)
        lab.vcenter.set(task, status="BLOCKED", progress=progress(40))
        await lab.publish(task)
        await until(lambda: lab.heard(task) and lab.heard(task)[-1]["data"]["status"] == "BLOCKED")
        await push_breaks(lab, without(task, vm.id))
        lab.vcenter.set(task, status="RUNNING", progress=progress(60))
        await until(lambda: lab.heard(task)[-1]["data"]["status"] == "RUNNING", 7.0)
        told = [(one["data"]["status"], one["data"]["progress"]["completed"]) for one in lab.heard(task)]
        assert told[-2:] == [("BLOCKED", 40), ("RUNNING", 60)]


def count(logs: list[dict[str, object]], event: str) -> int:
    return [log["event"] for log in logs].count(event)


@pytest.mark.usefixtures("quick")
async def test_ends_that_only_pulls_show_are_losses_and_lead_to_pulling(
    lab: Lab, logs: list[dict[str, object]]
) -> None:
    async with lab.bridge():
        await lab.listen()
        listed = await _followed(lab)
        lab.vcenter.faults.add(faults.silent(), operation=WAIT)
        for number in range(1, 4):
            await ends_in_time(lab, await _followed(lab), 3.0)
            await until(partial(lambda number: count(logs, "push_lost") == number, number), 3.0)
        assert count(logs, "push_given_up") == 1
        waits = len(lab.vcenter.request_log.of(WAIT))
        await ends_in_time(lab, [*listed, *await _followed(lab)], 3.0)
        later = await _followed(lab)
        await asyncio.sleep(0.5)  # a loss would be counted by now
        await ends_in_time(lab, later, 3.0)
        assert len(lab.vcenter.request_log.of(WAIT)) == waits
        assert count(logs, "push_lost") == 3


async def _followed(lab: Lab) -> list[str]:
    """A task that works on no VM, so that the next one is listed at once."""
    tasks = create(lab, target=SimulatedTarget("ClusterComputeResource", "domain-c9"))
    await follow(lab, tasks)
    return tasks


@pytest.mark.usefixtures("quick")
async def test_an_end_that_the_wait_shows_a_moment_later_is_no_loss(lab: Lab, logs: list[dict[str, object]]) -> None:
    async with lab.bridge():
        await lab.listen()
        for _ in range(10):
            task = (await _followed(lab))[0]
            await asyncio.sleep(0.2)
            lab.vcenter.set(task, status="SUCCEEDED")
            await lab.ended(task)
    assert not count(logs, "push_lost")


@pytest.mark.timeout(150)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_restarts_of_vcenter_are_no_failure_of_push(lab: Lab, logs: list[dict[str, object]], scheme: str) -> None:
    vcenter = lab.vcenter
    async with AsyncExitStack() as serving:
        url = await serving.enter_async_context(serve_vcenter(vcenter, ssl=tls(scheme)))
        port = int(url.rpartition(":")[2])
        async with lab.bridge(vcenters={"lab": lab.vcenter_settings(url=url)}):
            await lab.listen()
            (task,) = await _followed(lab)
            for _ in range(4):
                await until(lambda: (waits := vcenter.request_log.of(WAIT)) and waits[-1].status is None)
                await serving.aclose()
                vcenter.restart(forget=False)
                await until(
                    lambda: logs[-1:] and count(logs, "vcenter_unavailable") > count(logs, "vcenter_available_again")
                )
                await serving.enter_async_context(serve_vcenter(vcenter, port=port, ssl=tls(scheme)))
                await until(lambda: count(logs, "vcenter_unavailable") == count(logs, "vcenter_available_again"))
            await until(lambda: (waits := vcenter.request_log.of(WAIT)) and waits[-1].status is None)
            vcenter.set(task, status="SUCCEEDED")
            await lab.ended(task)
    assert not count(logs, "push_lost")
    assert not count(logs, "push_given_up")


@pytest.mark.parametrize("effect", [faults.connection_reset(), faults.gateway_unavailable()], ids=["reset", "503"])
async def test_a_wait_that_alone_is_cut_is_a_failure_of_push(
    lab: Lab, logs: list[dict[str, object]], effect: Effect
) -> None:
    async with lab.bridge():
        await lab.listen()
        lab.vcenter.faults.add(effect, operation=WAIT)
        (task,) = create(lab)
        await lab.publish(task)
        await until(lambda: count(logs, "push_given_up"))
        await ends_in_time(lab, [task])
    assert count(logs, "push_lost") == 3
