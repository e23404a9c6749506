"""The command `task-bridge`. Each subcommand is thin; the exit codes are part of the public interface."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import client_commands, follow_commands, operator_commands, schema, server_commands
from .exit_codes import FAILED

_INSTALL = "pip install vcenter-task-bridge"

app = typer.Typer(name="task-bridge", no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(server_commands.serve)
app.command()(client_commands.watch)
app.command()(client_commands.events)
app.command("list")(client_commands.list_)
app.command()(client_commands.get)
app.command()(client_commands.unwatch)
app.command()(client_commands.cancel)
app.command()(follow_commands.follow)
app.command()(follow_commands.follows)
app.command()(follow_commands.unfollow)
app.command()(server_commands.demo)
app.command()(server_commands.simulate)
app.command()(operator_commands.provision)
app.command()(operator_commands.check)
app.command()(schema.schema)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"task-bridge {__version__}")
        raise typer.Exit


@app.callback()
def task_bridge(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Watch vCenter tasks over NATS: send a task id, get every status change and exactly one final event."""


def main() -> None:
    """Run the command line. If a command needs what a requester's install lacks, say how to install it."""
    try:
        app()
    except ModuleNotFoundError as error:
        if (error.name or __package__).startswith(__package__.partition(".")[0]):
            raise
        typer.echo(f"This command needs the whole service, of which {error.name} is missing: {_INSTALL}", err=True)
        raise SystemExit(FAILED) from None
