"""An event loop that stands still ends its process; a process that was stopped lives on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from task_bridge.metrics import Metrics
from task_bridge.web.watchdog import Watchdog

SERVICE = Path(__file__).parents[2] / "service"
START = """
import asyncio, sys, time
from task_bridge.logs import configure
from task_bridge.metrics import Metrics
from task_bridge.web.watchdog import Watchdog
configure("json")
def watchdog():
    return Watchdog(Metrics().event_loop_lag, limit_s=0.5, tick_s=0.02, wake_s=0.05)
"""


def process(code: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    script = START + textwrap.dedent(code)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SERVICE)}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def test_a_loop_that_stands_still_ends_the_process_and_tells_where() -> None:
    blocked = process("""
        async def main():
            watchdog().start()
            await asyncio.sleep(0.1)
            time.sleep(30)
        asyncio.run(main())
    """)
    _, told = blocked.communicate(timeout=20)
    assert blocked.returncode == 70
    (line,) = [json.loads(line) for line in told.splitlines()]
    assert (line["level"], line["event"]) == ("critical", "event_loop_stands_still")
    assert "in main" in line["stack"]


def test_a_loop_that_stands_still_writing_its_log_ends_the_process_too() -> None:
    reader, writer = os.pipe()  # nobody reads: as soon as it is full, whoever logs blocks
    blocked = process(
        """
        import logging
        async def main():
            watchdog().start()
            while True:
                logging.getLogger("x").warning("x" * 1000)
                await asyncio.sleep(0)
        asyncio.run(main())
        """,
        stderr=writer,
    )
    os.close(writer)
    assert blocked.wait(20) == 70
    blocked.communicate()
    os.close(reader)


def test_a_process_that_was_stopped_and_continued_lives_on() -> None:
    alive = process("""
        async def main():
            dog = watchdog()
            dog.start()
            while True:
                await asyncio.sleep(0.3)  # some wake-ups of the watchdog
                print(dog.lag_s, flush=True)
                await asyncio.to_thread(sys.stdin.readline)
        asyncio.run(main())
    """)
    assert alive.stdin
    assert alive.stdout
    for _ in range(3):  # which thread runs first afterwards is chance
        assert alive.stdout.readline()
        os.kill(alive.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, alive.pid, os.WSTOPPED | os.WNOWAIT)
        time.sleep(0.7)  # above the limit: no time that passes may end it
        os.kill(alive.pid, signal.SIGCONT)
        alive.stdin.write("\n")
        alive.stdin.flush()
    assert alive.stdout.readline()
    assert alive.poll() is None
    alive.kill()
    alive.communicate()


async def test_the_worst_lateness_of_the_loop_is_measured() -> None:
    metrics = Metrics()
    dog = Watchdog(metrics.event_loop_lag, tick_s=0.01)
    dog.start()
    await asyncio.sleep(0.05)
    asyncio.get_running_loop().call_soon(time.sleep, 0.2)
    await asyncio.sleep(0.05)  # due after the tick that comes late
    assert dog.lag_s > 0.15
    assert metrics.registry.get_sample_value("task_bridge_event_loop_lag_seconds") == dog.lag_s
    dog.stop()


async def test_a_loop_with_little_to_do_is_woken_seldom_and_a_busy_one_is_watched_closely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule, intervals = Watchdog._schedule_tick, list[float]()

    def record(dog: Watchdog, loop: asyncio.AbstractEventLoop, interval_s: float) -> None:
        intervals.append(interval_s)
        schedule(dog, loop, interval_s)

    async def until(interval_s: float, pause_s: float) -> None:
        intervals.clear()
        async with asyncio.timeout(20):
            while interval_s not in intervals[1:]:  # noqa: ASYNC110 - the pause makes the loop busy or not
                await asyncio.sleep(pause_s)

    monkeypatch.setattr(Watchdog, "_schedule_tick", record)
    dog = Watchdog(Metrics().event_loop_lag, tick_s=0.02)
    dog.start()
    await until(0.05, pause_s=0.1)
    await until(0.02, pause_s=0.0)
    await until(0.05, pause_s=0.1)
    dog.stop()


async def test_a_watchdog_that_was_stopped_ends_nothing() -> None:
    ended: list[int] = []
    dog = Watchdog(Metrics().event_loop_lag, limit_s=0.3, tick_s=0.001, wake_s=0.01, end_process=ended.append)
    dog.start()
    dog.stop()
    time.sleep(0.6)  # noqa: ASYNC251 - the loop stands still on purpose
    assert ended == []
