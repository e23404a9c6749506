"""How a command ends when it can't do what it was to do: a line a mistake on stderr, and the exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

from ..errors import CannotStart


def give_up(error: CannotStart) -> NoReturn:
    """Tells what is wrong and leaves with the error's exit code."""
    for line in error.lines:
        print(line, file=sys.stderr)  # noqa: T201 - this is a command
    raise SystemExit(error.exit_code)
