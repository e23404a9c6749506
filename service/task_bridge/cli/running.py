"""The commands that run something: `serve`."""

from __future__ import annotations

import gc

from .. import logs
from ..errors import CannotStart
from ..settings import load
from .ending import give_up


def serve() -> None:
    """Run the service; settings come from the environment and from .env (see .env.example)."""
    import uvloop  # noqa: PLC0415 - not there on Windows, where the other commands run

    from ..app import serve as run  # noqa: PLC0415 - imports all rooms, which the other commands don't need

    try:
        settings = load()
        logs.configure(settings.log_format, settings.log_level)
        # A burst of watches allocates what stays: the default looked through all of it again and again (a quarter
        # of the CPU of taking up 10,000).
        gc.set_threshold(50_000, 20, 100)
        uvloop.run(run(settings))
    except CannotStart as error:
        give_up(error)
