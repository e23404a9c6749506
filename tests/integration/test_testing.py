"""The pytest plug-in: as its page shows it, in a pytest of its own, and what the page tells besides."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from commands import ended, processes_of, ran
from task_bridge.client import TaskBridge, WatchAbandoned
from task_bridge.simulator import scenarios
from task_bridge.testing import BridgeFixture

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


async def test_the_example_of_the_page_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    (tmp_path / "test_patching.py").write_text(example)
    plain = [
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        "-p",
        "no:xdist",
    ]  # no other plug-ins
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *plain, "test_patching.py"]
    given = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=given, stdout=PIPE, stderr=PIPE)
    done = await ended(process, within_s=50)
    assert done.code == 0, done
    assert "3 passed" in done.out[-1]
    assert [name for name in os.listdir(tmp_path) if name.startswith("task-bridge-")] == []
    assert processes_of(tmp_path) == {}


async def test_commands_and_coroutines_use_it_too(task_bridge: BridgeFixture, tmp_path: Path) -> None:
    watched = task_bridge.create(scenarios.succeeds(after_s=0.1))
    done = await ran("watch", watched, "--json", directory=tmp_path, environment=task_bridge.environment)
    assert json.loads(done.out[-1])["outcome"] == "succeeded"
    forgotten = task_bridge.create(scenarios.runs_forever())
    async with TaskBridge(task_bridge.nats_url) as bridge:
        waiting = asyncio.create_task(bridge.wait(forgotten, timeout=30))
        async for event in bridge.events(task=forgotten, follow=True):
            if event.data.final:
                break
            task_bridge.forget(forgotten)
        (failed,) = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(failed, WatchAbandoned)
    assert failed.event.data.outcome == "lost"


async def test_a_task_that_vcenter_forgets_is_lost_soon_though_it_is_the_only_one(task_bridge: BridgeFixture) -> None:
    task = task_bridge.create(scenarios.runs_forever())
    async with TaskBridge(task_bridge.nats_url) as bridge:
        waiting = asyncio.create_task(bridge.wait(task, timeout=30))
        async for event in bridge.events(task=task, follow=True):
            if event.data.final:
                break
            task_bridge.forget(task)
        (failed,) = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(failed, WatchAbandoned)
    assert failed.event.data.outcome == "lost"
