"""The process in which one long answer is parsed: `parsing` starts it, writes to it and reads from it."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from ..domain.errors import VCenterUnavailable
from ..domain.task_json import UnreadableBody

MEMORY_MAX_BYTES = 160 * 1024 * 1024
CPU_MAX_S = 20
T = TypeVar("T")


class Job(NamedTuple, Generic[T]):
    """Call `parse` with a body of `size` bytes, or, if `is_streamed`, with the file to read it from."""

    parse: Callable[..., T]
    size: int
    is_streamed: bool


class Failure(NamedTuple):
    """What the parsing function raised."""

    error: Exception


def main() -> None:
    """Do the job in the standard input with the body behind it, and write what it returns or raises."""
    _limit_itself()
    job = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by the bridge
    pickle.dump(_parse(job), sys.stdout.buffer, protocol=pickle.HIGHEST_PROTOCOL)
    sys.stdout.buffer.flush()


def _parse(job: Job[T]) -> T | Failure:
    try:
        return job.parse(sys.stdin.buffer if job.is_streamed else sys.stdin.buffer.read(job.size))
    except (UnreadableBody, VCenterUnavailable) as error:
        return Failure(error)


def _limit_itself() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has limits
        import resource  # noqa: PLC0415 - missing on some systems

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_MAX_S, CPU_MAX_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
