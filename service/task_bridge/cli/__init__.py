"""`task-bridge`: the commands. Each one is thin; exit codes are the contract's."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import asking, checking, running, schema

app = typer.Typer(name="task-bridge", no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(running.serve)
for ask in (asking.watch, asking.events, asking.list_, asking.get, asking.unwatch, asking.cancel):
    app.command(ask.__name__.rstrip("_"))(ask)
app.command()(running.demo)
app.command()(running.simulate)
app.command()(checking.provision)
app.command()(checking.check)
app.command()(schema.schema)


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


def main() -> None:
    """The console script."""
    app()
