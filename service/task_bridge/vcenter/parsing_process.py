"""The process in which one long answer about a task is parsed: `parsing` starts it, writes to it and reads from it."""

from __future__ import annotations

import contextlib
import pickle
import sys

import msgspec

from ..domain.task import Rendering, Task
from ..domain.task_json import UnreadableBody, parse_raw_task

MEMORY_MAX_BYTES = 160 * 1024 * 1024
CPU_MAX_S = 20


def main() -> None:
    """Parse the task in the standard input and write it to the standard output."""
    _limit_itself()
    rendering: Rendering = "rest" if sys.argv[1] == "rest" else "api"
    body = sys.stdin.buffer.read(int(sys.argv[4]))
    outcome: Exception | tuple[Task, int]
    result = b""
    try:
        task = parse_raw_task(body, rendering, with_result=sys.argv[2] == "1", with_extra=sys.argv[3] == "1")
        if task.result is not None and task.result.json:
            result, task = task.result.json, msgspec.structs.replace(task, result=None)
        outcome = task, len(result)
    except UnreadableBody as error:
        outcome = type(error)(str(error))
    pickled = pickle.dumps(outcome)
    sys.stdout.buffer.write(b"%d\n%b" % (len(pickled), pickled))
    sys.stdout.buffer.write(result)
    sys.stdout.buffer.flush()


def _limit_itself() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has limits
        import resource  # noqa: PLC0415 - missing on some systems

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_MAX_S, CPU_MAX_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
