"""How many sessions at `/sdk` there are, and when."""

from __future__ import annotations

import signal
import time

import pytest

import vcenter_lab
from lab import BridgeProcess, Lab, until
from task_bridge.simulator import faults, scenarios
from task_bridge.vcenter.policy import VimTimeouts
from task_bridge.vcenter.vim.source import VimSource


@pytest.fixture
def scheme() -> str:
    return "https"


async def test_a_session_that_nobody_needs_is_logged_out_of_and_another_begun_when_needed() -> None:
    idle = VimTimeouts(idle_logout_s=0.3)
    async with vcenter_lab.lab() as here:
        settings = vcenter_lab.Given(here.url)
        vim = VimSource(here.source.shared, settings, vcenter_lab.POLICY, here.metrics, vim_timeouts=idle)

        async def asked(method: str, times: int) -> None:
            await here.until(lambda: len(here.vcenter.request_log.of(method)) == times)

        async with vim:
            task = here.vcenter.create(scenarios.runs_forever(), flavour="vim")
            assert not here.vcenter.request_log.of("Login")
            for number in (1, 2):
                vim.track(task, time.time(), seen=False, begun=False, identity=None)
                await asked("CreateListView", number)
                await asked("Login", number)
                vim.forget(task)
                await asked("Logout", number)


async def test_a_session_is_logged_out_of_however_long_nothing_else_was_due() -> None:
    async with vcenter_lab.lab() as here:
        settings = vcenter_lab.Given(here.url)
        vim = VimSource(
            here.source.shared, settings, vcenter_lab.POLICY, here.metrics, vim_timeouts=VimTimeouts(idle_logout_s=0.1)
        )
        async with vim:
            task = here.vcenter.create(scenarios.runs_forever(), flavour="vim")
            vim.track(task, time.time(), seen=False, begun=False, identity=None)
            # The task, its object, and then nothing new: the third wait begins when all the rest is done.
            await here.until(lambda: len(here.vcenter.request_log.of("WaitForUpdatesEx")) == 3)
            vim.forget(task)
            await here.until(lambda: here.vcenter.request_log.of("Logout"))


async def test_a_bridge_that_is_ended_while_it_logs_in_leaves_no_session(lab: Lab, process: BridgeProcess) -> None:
    task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
    await process.start()
    await process.ready()
    with lab.vcenter.faults.during(faults.delayed(0.5), operation="Login"):
        await lab.publish(task)
        await until(lambda: lab.vcenter.request_log.of("Login"))
        assert await process.end(signal.SIGTERM) == 0
    await until(lambda: not lab.vcenter.sessions.live)
