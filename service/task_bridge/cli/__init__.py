"""The command `task-bridge`. Each subcommand is thin; the exit codes are part of the public interface."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import client_commands, delivery_commands, follow_commands, operator_commands, schema, server_commands

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
app.command()(delivery_commands.deliver)
app.command()(delivery_commands.deliveries)
app.command()(delivery_commands.redeliver)
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
    """Run the command line."""
    app()
