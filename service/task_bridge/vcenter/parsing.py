"""Parse long answers outside the event loop, one at a time: one costs memory then, however many arrive at once.

Few bytes are parsed here. More are parsed in a thread, which keeps the event loop waiting only as long as a call in C
lasts. The longest go to a process of their own: parsing 31 MB of nested lists takes half a second in one call, and a
process has its own limits of memory and time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import msgspec

from ..domain.task import Rendering, Task
from ..domain.task_json import BodyOutOfBounds, parse_raw_task, size_of
from .parsing_process import Failure, Job

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


async def parse_isolated(
    body: bytes | msgspec.Raw, parse: Callable[..., T], long_bytes: int, *, is_streamed: bool = False
) -> T:
    """Return what `parse` returns, and raise its exceptions: called here, in the thread, or in a process.

    Bodies of more than `long_bytes` go to the process, so `parse` is a function of a module, perhaps a partial one.
    There it gets the body, or the file to read it from if `is_streamed`.
    """
    if size_of(body) <= long_bytes:
        return await parse_outside_loop(size_of(body), parse, body)
    return await parse_outside_loop(size_of(body), _parse_in_process, body, Job(parse, size_of(body), is_streamed))


async def parse_task_outside_loop(
    body: bytes | msgspec.Raw, rendering: Rendering, *, with_result: bool, with_extra: bool = False
) -> Task:
    """Return what `parse_raw_task` returns, whose exceptions it raises."""
    parse = functools.partial(parse_raw_task, rendering=rendering, with_result=with_result, with_extra=with_extra)
    return await parse_isolated(body, parse, LONG_BYTES)


def _parse_in_process(body: bytes | msgspec.Raw, job: Job[T]) -> T:
    """Do the job in `parsing_process`. Raises what it raises, and BodyOutOfBounds if the process dies."""
    code = "from task_bridge.vcenter.parsing_process import main; main()"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}  # and no secrets
    process = subprocess.Popen(  # noqa: S603 - this Python, with own code
        [sys.executable, "-c", code],
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
            with contextlib.suppress(BrokenPipeError):  # it doesn't read to the end what exceeds a bound
                pickle.dump(job, process.stdin)
                process.stdin.write(memoryview(body))
                process.stdin.close()
            outcome: T | Failure = pickle.load(process.stdout)  # noqa: S301 - written by the bridge's own code
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise BodyOutOfBounds("more than could be parsed in the memory and time that the bridge allows") from error
    finally:
        timer.cancel()
        process.kill()
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome
