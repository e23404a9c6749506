"""The process in which one long answer is parsed: `parsing` starts it, writes to it and reads from it."""

from __future__ import annotations

import contextlib
import pickle
import sys
from typing import Any, NamedTuple

from ..domain.errors import VCenterUnavailable
from ..domain.task_json import UnreadableBody

MEMORY_MAX_BYTES = 160 * 1024 * 1024
CPU_MAX_S = 20


class Failure(NamedTuple):
    """What the parsing function raised."""

    error: Exception


def main() -> None:
    """Call the function in the standard input with the bytes behind it, and write what it returns or raises."""
    _limit_itself()
    parse = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by the bridge
    pickle.dump(_parse(parse), sys.stdout.buffer, protocol=pickle.HIGHEST_PROTOCOL)
    sys.stdout.buffer.flush()


def _parse(parse: Any) -> Any:
    # Only the function holds the bytes, so that it can let them go.
    try:
        return parse(sys.stdin.buffer.read(int(sys.argv[1])))
    except (UnreadableBody, VCenterUnavailable) as error:
        return Failure(error)


def _limit_itself() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has limits
        import resource  # noqa: PLC0415 - missing on some systems

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_MAX_S, CPU_MAX_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
