"""`task-bridge demo`, as whoever has just cloned this runs it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from commands import begun, ended, processes_of
from lab import until
from task_bridge.lab import demo
from task_bridge.lab.demo import CASES, DemoRun
from task_bridge.simulator import scenarios


async def test_every_task_ends_as_scripted_and_nothing_is_left_behind(tmp_path: Path) -> None:
    code, out, err = await ended(await begun("demo", directory=tmp_path), within_s=45)
    assert (code, err) == (0, [])
    rows = dict(re.findall(r"^│ (.+?) +│ (\S+) ", "\n".join(out), re.M))
    assert rows == {case.title: case.expected_kind for case in CASES}
    assert "\x1b" not in "\n".join(out)
    assert processes_of(tmp_path) == {}
    assert os.listdir(tmp_path) == []


@pytest.mark.timeout(150)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_keep_goes_on_until_a_signal_and_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    process = await begun("demo", "--keep", directory=tmp_path)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        places = await process.stdout.readuntil(b"Ctrl-C")
    assert re.search(rb"Board: http://127\.0\.0\.1:\d+\s+NATS: nats://127\.0\.0\.1:\d+", places)
    assert re.search(rb"vCenter: http://127\.0\.0\.1:\d+", places)
    (to_try,) = re.findall(rb"^  task-bridge (events --follow --nats-url nats://\S+)$", places, re.M)
    trying = await begun(*to_try.decode().split(), directory=tmp_path)
    assert trying.stdout is not None
    async with asyncio.timeout(60):
        assert await trying.stdout.readline()
    trying.send_signal(signal.SIGINT)
    assert (await ended(trying, within_s=10))[0] == 0
    assert len(processes_of(tmp_path)) == 1
    process.send_signal(number)
    code, _, err = await ended(process, within_s=10)
    assert (code, err) == (0, [])
    assert processes_of(tmp_path) == {}
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends a child with its parent")
async def test_a_kill_takes_its_nats_server_along(tmp_path: Path) -> None:
    process = await begun("demo", directory=tmp_path)
    await until(lambda: processes_of(tmp_path))
    process.kill()
    await ended(process)
    await until(lambda: not processes_of(tmp_path))


async def test_what_is_not_as_scripted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = CASES[0]
    monkeypatch.setattr(demo, "CASES", (quick._replace(script=scenarios.fails_with_error(0.5)),))
    runs = await demo.run_demo(SilentView(), tmp_path, keep=False)
    assert [run.describe_deviation() for run in runs] == [
        "Succeeds quickly: it ended as completed.failed, not as completed.succeeded"
    ]


class SilentView:
    def show_addresses(self, addresses: demo.DemoAddresses) -> None: ...
    def show_start(self, run: DemoRun) -> None: ...
    def show_event(self, run: DemoRun, event: object) -> None: ...
    def show_results(self, runs: object) -> None: ...
