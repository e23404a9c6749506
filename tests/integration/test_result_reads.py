"""A result whose reading ends replicas is read by two of them, and then unavailable."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
import nats.js.errors
import pytest

from lab import BridgeProcess, Lab
from task_bridge.simulator import Script, Step, scenarios
from task_bridge.simulator.faults import Effect

BUCKET = "OBJ_VCENTER_TASKS_RESULTS"
MARKS = "$O.VCENTER_TASKS_RESULTS.C.reading.*"
HUGE = b'"' + b"x" * 8_000_000 + b'"'
SLOW_AND_HUGE = Effect(reshape=lambda body: body.replace(b'"huge"', HUGE), sends=4_000_000)
"""The body with the result stalls in its middle until the fault is cleared."""


async def count_readers(lab: Lab) -> int:
    """What the only mark says; 0 without one."""
    try:
        return int((await lab.js.get_last_msg(BUCKET, MARKS)).data or b"0")
    except (nats.js.errors.NotFoundError, nats.errors.NoRespondersError):
        return 0


async def until_read_by(lab: Lab, readers: int) -> None:
    async with asyncio.timeout(20):
        while await count_readers(lab) != readers:  # noqa: ASYNC110 - nats-server's
            await asyncio.sleep(0.02)


@asynccontextmanager
async def replica(lab: Lab, directory: Path) -> AsyncIterator[BridgeProcess]:
    process = BridgeProcess(lab.environment(BRIDGE_ACK_WAIT="2s"), directory)
    await process.start()
    try:
        await process.ready()
        yield process
    finally:
        await process.close()


async def create_task_with_slow_result(lab: Lab) -> str:
    lab.vcenter.faults.add(SLOW_AND_HUGE)
    await lab.listen()
    return lab.vcenter.create(Script((Step(0.1, {"status": "SUCCEEDED", "result": "huge"}),)))


async def test_a_result_that_two_replicas_died_of_is_unavailable(lab: Lab, tmp_path: Path) -> None:
    task = await create_task_with_slow_result(lab)
    for readers in (1, 2):
        async with replica(lab, tmp_path) as process:
            if readers == 1:
                await lab.publish(task)
            await until_read_by(lab, readers)
            await process.end(signal.SIGKILL)
    async with replica(lab, tmp_path) as process:
        data = (await lab.ended(task))["data"]
        assert (data["kind"], data["outcome"], data["result_state"]) == ("completed", "succeeded", "unavailable")
        assert "2 replicas died while they read it" in process.log.read_text()
        await process.end()
    assert len(lab.heard(task)) == data["sequence"]


@pytest.mark.parametrize(("number", "readers"), [(signal.SIGKILL, 1), (signal.SIGTERM, 0)], ids=["death", "stop"])
async def test_after_one_death_or_any_stop_the_result_is_read(
    lab: Lab, tmp_path: Path, number: int, readers: int
) -> None:
    task = await create_task_with_slow_result(lab)
    for turn in range(1 if readers else 2):
        async with replica(lab, tmp_path) as process:
            if turn == 0:
                await lab.publish(task)
            await until_read_by(lab, 1)
            await process.end(number)
            assert await count_readers(lab) == readers
    lab.vcenter.faults.clear()
    async with replica(lab, tmp_path) as process:
        data = (await lab.ended(task))["data"]
        assert data["result_state"] == "inline"
        await process.end()
    assert await count_readers(lab) == readers


async def test_results_that_are_there_at_once_leave_no_marks(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        tasks = [lab.vcenter.create(scenarios.succeeds(0.2)) for _ in range(20)]
        for task in tasks:
            await lab.publish(task)
        for task in tasks:
            await lab.ended(task)
    info = await lab.js.stream_info(BUCKET)
    assert (info.state.messages, info.state.last_seq < len(tasks)) == (0, True)
