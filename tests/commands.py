"""`task-bridge …` as a process of its own, for the tests of the commands."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """How a command ended: its exit code, and what it said, a line each."""

    code: int
    out: list[str]
    err: list[str]


async def begun(*arguments: str, directory: Path, environment: Mapping[str, str] | None = None) -> Process:
    """The command without a terminal; its working and temporary directory is `directory`."""
    given = {"PATH": os.environ["PATH"], "TMPDIR": str(directory), **(environment or {})}
    command = [sys.executable, "-m", "task_bridge", *arguments]
    return await asyncio.create_subprocess_exec(*command, env=given, cwd=directory, stdout=PIPE, stderr=PIPE)


async def ended(process: Process, within_s: float = 20.0) -> Ended:
    """The end of a command that ends by itself, or was told to."""
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return Ended(process.returncode or 0, out.decode().splitlines(), err.decode().splitlines())


async def ran(*arguments: str, directory: Path, environment: Mapping[str, str] | None = None) -> Ended:
    """The command from its start to its end."""
    return await ended(await begun(*arguments, directory=directory, environment=environment))


def processes_of(directory: Path) -> dict[int, str]:
    """The processes that have something to do with `directory`: their command lines by their ids."""
    lines = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines[int(file.parent.name)] = file.read_text()
        except OSError:  # it has just ended
            continue
    return {number: line for number, line in lines.items() if str(directory) in line}
