"""`task-bridge`, and `python -m task_bridge`: what hears signals while the commands are being imported."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """The console script. A `serve` that is told to stop before it has begun ends as one that ran: with 0."""
    if sys.argv[1:2] == ["serve"]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _leave)
    from .cli import main as run  # noqa: PLC0415

    run()


def _leave(_number: int, _frame: object) -> None:
    os._exit(0)


if __name__ == "__main__":
    main()
