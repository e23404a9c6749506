"""The `nats` lines of the documents, run as they are by the nats CLI."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from commands import ran
from go_tools import find_tool
from lab import Lab, NatsServer
from task_bridge.simulator import scenarios

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = Path(__file__).parents[2] / "examples" / "README.md"


def lines(file: Path) -> list[str]:
    """The commands of a document that begin with `nats`, continued lines joined."""
    text = file.read_text().replace("\\\n", "")
    return re.findall(r"^(?:\$ )?(nats .*)$", text, re.M)


async def run(line: str, url: str, directory: Path, **more: str) -> str:
    """What a shell prints that runs the line. Fails if it fails."""
    path = os.pathsep.join([str(Path(find_tool("nats")).parent), os.environ["PATH"]])
    environment = {"PATH": path, "HOME": str(directory), "NATS_URL": url, **more}
    process = await asyncio.create_subprocess_exec(
        "bash", "-o", "pipefail", "-c", line, cwd=directory, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, (line, out, err)
    return out.decode()


async def test_the_command_line_waits_for_a_task(lab: Lab, tmp_path: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("there is no jq here")
    find_tool("nats")
    task = lab.vcenter.create(scenarios.succeeds(after_s=2))
    request, add, following, remove, subscribe, info = lines(DOCS / "other-languages.md")[:6]
    async with lab.bridge():
        assert '"accepted"' in await run(request, lab.server.url, tmp_path, TASK=task)
        live = asyncio.create_task(run(subscribe, lab.server.url, tmp_path))
        await run(add, lab.server.url, tmp_path)
        said = ""
        while '"final":true' not in said:
            said = await run(following, lab.server.url, tmp_path)
        assert task in said
        await run(remove, lab.server.url, tmp_path)
        assert "completed.succeeded" in await live
        assert "vcenter-task-bridge" in await run(info, lab.server.url, tmp_path)


async def test_what_operators_make_by_the_command_line_is_what_the_bridge_expects(lab: Lab, tmp_path: Path) -> None:
    find_tool("nats")
    empty = NatsServer(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    empty.start()
    try:
        commands = lines(DOCS / "operating.md")
        assert len(commands) >= 10
        for command in commands:
            await run(command, empty.url, tmp_path)
        environment = lab.environment(BRIDGE_NATS_URL=empty.url)
        checked = await ran("provision", "--check", directory=tmp_path, environment=environment)
        assert checked.code == 0, checked
        (bucket,) = lines(EXAMPLES)
        await run(bucket, empty.url, tmp_path)
    finally:
        empty.stop()


async def test_a_backup_of_the_streams_is_restored_into_an_empty_nats(lab: Lab, tmp_path: Path) -> None:
    find_tool("nats")
    page = (DOCS / "operating.md").read_text()
    (backup,) = re.findall(r"^ *(nats stream backup .*?) +# ", page, re.M)
    (restore,) = re.findall(r"(nats stream restore [^`\n]+)", page)
    task = lab.vcenter.create(scenarios.succeeds_at_once())
    async with lab.bridge():
        await lab.listen()
        await lab.publish(task)
        await lab.ended(task)
    (tmp_path / "empty").mkdir()
    (tmp_path / "backup").mkdir()
    empty = NatsServer(tmp_path / "empty")
    empty.start()
    try:
        await run(backup, lab.server.url, tmp_path, stream="VCENTER_TASKS_EVENTS")
        await run(restore, empty.url, tmp_path, stream="VCENTER_TASKS_EVENTS")
        events = await run("nats stream info VCENTER_TASKS_EVENTS --json", empty.url, tmp_path)
        assert '"messages": 0' not in events
    finally:
        empty.stop()
