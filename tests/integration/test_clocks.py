"""The host's clock is stepped by an hour while a bridge works: nothing ends or stalls early or late by it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from commands import ran
from host_clock import LIBRARY, MISSING, HostClock
from lab import PREFIX, BridgeProcess, Lab, until
from task_bridge.domain.subjects import SubjectNames
from task_bridge.domain.watch import Policy
from task_bridge.jetstream.journal import JetStreamJournal
from task_bridge.jetstream.streams import Streams
from task_bridge.jetstream.watch_store import WatchStore
from task_bridge.metrics import Metrics
from task_bridge.simulator import scenarios

SHORT_S, LONG_S = 8.0, 1_800.0

pytestmark = pytest.mark.skipif(LIBRARY is None, reason=MISSING)


@asynccontextmanager
async def bridge_by(clock: HostClock, lab: Lab, directory: Path, **more: str) -> AsyncIterator[str]:
    """The URL of a bridge's pages, once it is ready."""
    process = BridgeProcess(lab.environment(**clock.environment, **more), directory)
    await process.start()
    try:
        await process.ready()
        (port,) = re.findall(r'"port": (\d+)', process.log.read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        await process.close()


def kinds(lab: Lab, task: str) -> list[str]:
    return [event["data"]["outcome"] or event["data"]["kind"] for event in lab.heard(task)]


@pytest.mark.parametrize("step_s", [3_600, -3_600], ids=["ahead", "back"])
async def test_a_step_of_the_hosts_clock_ends_and_stalls_nothing_early_or_late(
    lab: Lab, tmp_path: Path, step_s: int
) -> None:
    clock = HostClock(tmp_path)
    await lab.listen()
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(6)]
    ends, stalls, lives, moves, later, waits = tasks
    async with bridge_by(clock, lab, tmp_path, BRIDGE_CAPACITY="5", BRIDGE_STALLED_AFTER="0") as url:
        requests = [
            {"task": ends, "timeout": SHORT_S},
            {"task": stalls, "stalled_after": SHORT_S},
            {"task": lives, "timeout": LONG_S},
            {"task": moves, "stalled_after": LONG_S},
        ]
        requested_at = time.monotonic()
        for request in requests:
            await lab.publish(request)
        await until(lambda: all(lab.heard(task) for task in tasks[:4]))
        clock.step(step_s)
        stepped_at = time.monotonic()
        await lab.publish({"task": later, "timeout": SHORT_S})
        await until(lambda: lab.heard(later))
        await lab.publish({"task": waits, "timeout": LONG_S})  # no replica has room for it

        await until(lambda: kinds(lab, ends)[-1] == "watch_timed_out" and "stalled" in kinds(lab, stalls))
        assert abs(time.monotonic() - requested_at - SHORT_S) <= 2.0
        await until(lambda: kinds(lab, later)[-1] == "watch_timed_out")
        assert abs(time.monotonic() - stepped_at - SHORT_S) <= 2.0
        assert {*kinds(lab, lives), *kinds(lab, moves), *kinds(lab, waits)} <= {"watching", "status", "progress"}

        async with httpx.AsyncClient() as http:
            readiness = (await http.get(f"{url}/readyz")).json()
            metrics = (await http.get(f"{url}/metrics")).text
    assert readiness["clock_difference_seconds"] == pytest.approx(step_s, abs=2.0)
    assert "nats-server's" in readiness["clock_reason"]
    (difference,) = re.findall(r"^task_bridge_clock_difference_seconds (\S+)$", metrics, re.M)
    assert float(difference) == pytest.approx(step_s, abs=2.0)
    (vcenter,) = readiness["vcenters"]
    assert vcenter["last_good_look_age_seconds"] < 5.0
    times = [event["time"] for event in lab.heard(ends)]
    assert times == sorted(times)


async def test_a_bridge_on_a_host_whose_clock_is_wrong_goes_by_nats_servers(lab: Lab, tmp_path: Path) -> None:
    clock = HostClock(tmp_path)
    clock.step(-3_600)
    await lab.listen()
    stored, asked = (lab.vcenter.create(scenarios.runs_forever()) for _ in range(2))
    async with bridge_by(clock, lab, tmp_path):
        requested_at = time.monotonic()
        await lab.publish({"task": stored, "timeout": 3.0})
        await lab.ask("watch", {"task": asked, "timeout": 3.0})
        for task in (stored, asked):
            final = await lab.ended(task)
            assert final["data"]["outcome"] == "watch_timed_out"
        assert abs(time.monotonic() - requested_at - 3.0) <= 2.0


@pytest.mark.parametrize(("step_s", "ok"), [(0, True), (3_600, False), (-60, False)])
async def test_check_compares_the_clocks(lab: Lab, tmp_path: Path, step_s: int, ok: bool) -> None:
    async with lab.bridge():
        pass  # creates the streams
    clock = HostClock(tmp_path)
    clock.step(step_s)
    checked = await ran("check", directory=tmp_path, environment=lab.environment(**clock.environment))
    (line,) = [line for line in checked.out if "clock" in line]
    if ok:
        assert "nats-server" in line
    else:
        assert f"{abs(step_s)}" in line
        assert "NTP" in line


async def test_a_watch_whose_time_is_up_ends_though_the_clock_was_set_back_since(lab: Lab) -> None:
    names = SubjectNames(PREFIX)
    async with lab.bridge(capacity=1):
        await lab.listen()
        held, waits = (lab.vcenter.create(scenarios.runs_forever()) for _ in range(2))
        await lab.publish(held)
        await until(lambda: lab.heard(held))
        await lab.publish({"task": waits, "timeout": LONG_S})  # this replica has no room for it
        streams = Streams(lab.client)
        journal = JetStreamJournal(streams, names, Metrics(), time.time)
        policy = Policy(lab.vcenter_url, 0.0, 604_800.0)
        watches = WatchStore(streams, names, journal, lambda _: policy, {}, time.time)
        stored = None
        while stored is None:
            stored = await watches.read_watch("lab", waits)
        async with asyncio.timeout(5):
            await watches.time_out(stored)
        assert (await lab.ended(waits))["data"]["outcome"] == "watch_timed_out"
