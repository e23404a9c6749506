"""`task-bridge`: the commands. Each one is thin; exit codes are the contract's."""

from __future__ import annotations

import gc
import sys
from typing import Annotated, NoReturn

import typer

from . import __version__
from .errors import CannotStart

app = typer.Typer(name="task-bridge", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"task-bridge {__version__}")
        raise typer.Exit


@app.callback()
def task_bridge(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Watches vCenter tasks for everybody: a request over NATS in, every status change and one ending out."""


@app.command()
def serve() -> None:
    """Run the service; settings come from the environment and from .env (see .env.example)."""
    import uvloop

    from . import logs
    from .app import serve as run
    from .settings import load

    try:
        settings = load()
        logs.configure(settings.log_format, settings.log_level)
        # A burst of watches allocates what stays: the default looked through all of it again and again (a quarter
        # of the CPU of taking up 10,000).
        gc.set_threshold(50_000, 20, 100)
        uvloop.run(run(settings))
    except CannotStart as error:
        _give_up(error)


def _give_up(error: CannotStart) -> NoReturn:
    for line in error.lines:
        print(line, file=sys.stderr)  # noqa: T201 - this is a command
    raise SystemExit(error.exit_code)


def main() -> None:
    """The console script."""
    app()
