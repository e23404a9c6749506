"""Parse long answers outside the event loop, one at a time: one costs memory then, however many arrive at once.

Few bytes are parsed here. More are parsed in a thread, which keeps the event loop waiting only as long as a call in C
lasts. The longest, of single tasks, go to a process of their own: parsing 31 MB of nested lists takes half a second in
one call, and a process has its own limits of memory and time.
"""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, ParamSpec, TypeVar

import msgspec

from ..domain.task import Rendering, Result, Task
from ..domain.task_json import BodyOutOfBounds, UnreadableBody, parse_raw_task, size_of

SHORT_BYTES = 16 * 1024
"""Parsing so few bytes takes a few milliseconds at worst, and handing them to a thread costs more than most take."""
LONG_BYTES = 512 * 1024
"""vCenter's tasks have some kilobytes, so what starting a process costs (50 ms) is seldom spent."""
PROCESS_TIMEOUT_S = 20.0

P = ParamSpec("P")
T = TypeVar("T")
_executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parsing")


async def parse_outside_loop(size: int, parse: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `parse` returns: called here for few bytes, in the thread for more. `size`: of the answer."""
    if size <= SHORT_BYTES:
        return parse(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_executor, functools.partial(parse, *args, **kwargs))


async def parse_task_outside_loop(
    body: bytes | msgspec.Raw, rendering: Rendering, *, with_result: bool, with_extra: bool = False
) -> Task:
    """Return what `parse_raw_task` returns, whose exceptions it raises."""
    size = size_of(body)
    parse = parse_raw_task if size <= LONG_BYTES else _parse_in_process
    return await parse_outside_loop(size, parse, body, rendering, with_result=with_result, with_extra=with_extra)


def _parse_in_process(body: bytes | msgspec.Raw, rendering: Rendering, *, with_result: bool, with_extra: bool) -> Task:
    """Parse the task in `parsing_process`. Raises UnreadableBody, of a process that died too."""
    code = "from task_bridge.vcenter.parsing_process import main; main()"
    arguments = [rendering, str(int(with_result)), str(int(with_extra)), str(size_of(body))]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}  # and no secrets
    process = subprocess.Popen(  # noqa: S603 - this Python, with own code
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    timer = threading.Timer(PROCESS_TIMEOUT_S, process.kill)
    timer.start()
    try:
        with process:
            assert process.stdin is not None  # noqa: S101 - it is a pipe
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            process.stdin.write(memoryview(body))
            process.stdin.close()
            return _read_task(process.stdout)
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        if isinstance(error, UnreadableBody):
            raise
        raise BodyOutOfBounds("more than could be parsed in the memory and time that the bridge allows") from error
    finally:
        timer.cancel()
        process.kill()


def _read_task(output: IO[bytes]) -> Task:
    """Return the task, or raise the exception, that the process wrote: its size, itself, and the bytes of a result."""
    size = int(output.readline() or b"0")
    outcome = pickle.loads(output.read(size))  # noqa: S301 - written by the bridge's own code
    if isinstance(outcome, Exception):
        raise outcome
    task, result_bytes = outcome
    if result_bytes:
        task = msgspec.structs.replace(task, result=Result(output.read(result_bytes)))
        if len(task.result.json) < result_bytes:
            raise EOFError
    return task  # type: ignore[no-any-return]
