"""Part of `make check-wheel`: a requester's install by itself asks, waits and follows, and starts fast.

`python -m deployment.requester BIN`: the folder of its `python` and `task-bridge`. The bridge runs from the checkout.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from asyncio.subprocess import PIPE
from pathlib import Path

from lab import Lab, lab_in
from task_bridge import logs
from task_bridge.simulator import scenarios

IMPORT_MAX_S = 0.25
WAIT = """
import asyncio, sys
from task_bridge.client import TaskBridge

async def main():
    async with TaskBridge() as bridge:
        print((await bridge.wait(sys.argv[1], timeout=20)).kind)

asyncio.run(main())
"""


def measure_import_s(python: Path) -> float:
    """Return the CPU time of a process that imports the client: the median of ten, after one that compiles it."""
    times = []
    for _ in range(11):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([python, "-c", "import task_bridge.client"], check=True, env={"PATH": os.environ["PATH"]})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(times[1:])


async def run(lab: Lab, *command: str | Path) -> str:
    """Return what a command of the requester prints. Raises AssertionError if it fails."""
    environment = {"PATH": os.environ["PATH"], "BRIDGE_NATS_URL": lab.server.url}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == 0, (command, out, err)
    return out.decode()


async def use(lab: Lab, programs: Path) -> None:
    """Ask for watches by the client and by the command, and follow a vCenter. Raises AssertionError."""
    command = programs / "task-bridge"
    async with lab.bridge():
        task = lab.vcenter.create(scenarios.succeeds(after_s=1.5))
        assert await run(lab, programs / "python", "-c", WAIT, task) == "completed.succeeded\n"
        task = lab.vcenter.create(scenarios.succeeds(after_s=1.5))
        *_, last = (await run(lab, command, "watch", task, "--json")).splitlines()
        assert json.loads(last)["data"]["final"]
        assert task in await run(lab, command, "get", task)
        await run(lab, command, "list")
        await run(lab, command, "follow", "everything")
        assert "everything" in await run(lab, command, "follows")
        await lab.listen()
        found = lab.vcenter.create(scenarios.succeeds(after_s=1.5), flavour="vim")
        await lab.ended(found)
        assert found in await run(lab, command, "events", "--task", found)


async def main(programs: Path) -> None:
    logs.configure("console", "error")
    took_s = measure_import_s(programs / "python")
    print(f"Importing the client takes {took_s:.2f} s of CPU.")
    assert took_s <= IMPORT_MAX_S, f"that is more than {IMPORT_MAX_S} s"
    with tempfile.TemporaryDirectory(prefix="requester-") as directory:
        async with lab_in(Path(directory)) as lab:
            await use(lab, programs)
    print("A requester's install asked, waited and followed.")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).absolute()))
