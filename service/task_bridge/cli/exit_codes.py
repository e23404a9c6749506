"""The exit codes of the commands, and the exit of a command that can't run."""

from __future__ import annotations

import sys
from typing import NoReturn

from ..domain.errors import CannotStart

FAILED, REFUSED, ABANDONED, OUT_OF_REACH, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 4, 130, 141


def exit_with_error(error: CannotStart, *, in_json: bool = False) -> NoReturn:
    """Print one line per mistake on stderr, or log it if the log is JSON, and exit with the error's code."""
    for line in error.lines:
        if in_json:
            import structlog  # noqa: PLC0415 - clients are installed without it

            structlog.get_logger(__name__).error("cannot_run", reason=line, exit_code=error.exit_code)
        else:
            print(line, file=sys.stderr)  # noqa: T201 - this is a command
    raise SystemExit(error.exit_code)
