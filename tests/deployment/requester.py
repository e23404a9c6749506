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

IMPORT_MAX = 1.5
"""How much more CPU importing the client may take than importing nats-py and msgspec, which it can't do without."""
WAIT = """
import asyncio, sys
from task_bridge.client import TaskBridge

async def main():
    async with TaskBridge() as bridge:
        print((await bridge.wait(sys.argv[1], timeout=20)).kind)

asyncio.run(main())
"""


def measure_imports(python: Path) -> tuple[float, float]:
    """Return the CPU seconds of processes that import the client, and of ones that import only its two libraries.

    They run in turn: medians of ten, after one of each that compiles.
    """
    client: list[float] = []
    libraries: list[float] = []
    for _ in range(11):
        client.append(_run_s(python, "import task_bridge.client"))
        libraries.append(_run_s(python, "import nats, msgspec"))
    return statistics.median(client[1:]), statistics.median(libraries[1:])


def _run_s(python: Path, code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([python, "-c", code], check=True, env={"PATH": os.environ["PATH"]})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


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
    client_s, libraries_s = measure_imports(programs / "python")
    print(f"Importing the client takes {client_s:.2f} s of CPU, its libraries alone {libraries_s:.2f} s.")
    assert client_s <= IMPORT_MAX * libraries_s, f"that is more than {IMPORT_MAX} times as much"
    with tempfile.TemporaryDirectory(prefix="requester-") as directory:
        async with lab_in(Path(directory)) as lab:
            await use(lab, programs)
    print("A requester's install asked, waited and followed.")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).absolute()))
