"""Entry point of `task-bridge` and `python -m task_bridge`. It handles signals while the commands are imported."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the console script. A `serve` that is stopped before it has started exits with 0, like one that ran."""
    if sys.argv[1:2] == ["serve"]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _exit)
    from .cli import main as run  # noqa: PLC0415

    run()


def _exit(_number: int, _frame: object) -> None:
    os._exit(0)


if __name__ == "__main__":
    main()
