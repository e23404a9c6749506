"""How a command ends when it can't do what it was to do: a line a mistake on stderr, and the exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

import structlog

from ..domain.errors import CannotStart

log = structlog.get_logger(__name__)


def give_up(error: CannotStart, *, in_json: bool = False) -> NoReturn:
    """Tells what is wrong, as lines of the log where that is JSON, and leaves with the error's exit code."""
    for line in error.lines:
        if in_json:
            log.error("cannot_run", reason=line, exit_code=error.exit_code)
        else:
            print(line, file=sys.stderr)  # noqa: T201 - this is a command
    raise SystemExit(error.exit_code)
