"""The command `task-bridge`. Each subcommand is thin; the exit codes are part of the public interface.

A subcommand's module is imported when it runs: `--version`, `--help` and completion need none of the service.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__

_INSTALL = "pip install vcenter-task-bridge"

_CANT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class _Command(NamedTuple):
    """Where a subcommand is, and the first line of its help. `asks`: it talks to a bridge; `nats`: to NATS alone."""

    module: str
    function: str
    help: str
    asks: bool = False
    nats: bool = False


COMMANDS = {
    "serve": _Command(
        "server_commands",
        "serve",
        "Run the service. Settings come from the environment and from .env (see .env.example).",
    ),
    "watch": _Command("watch_command", "watch", "Watch tasks and follow them until all have ended.", asks=True),
    "events": _Command("client_commands", "events", "Print the stored events, oldest first.", asks=True),
    "list": _Command("client_commands", "list_", "List the active watches, oldest first.", asks=True),
    "get": _Command("client_commands", "get", "Show the state of tasks that are watched or were watched.", asks=True),
    "unwatch": _Command("client_commands", "unwatch", "End watches. The tasks themselves go on.", asks=True),
    "cancel": _Command(
        "client_commands",
        "cancel",
        "Cancel tasks in vCenter, if the bridge allows it (BRIDGE_ALLOW_CANCEL).",
        asks=True,
    ),
    "follow": _Command(
        "follow_commands",
        "follow",
        "Watch every task of a vCenter that matches, whoever starts it. The same name again changes the follow.",
        asks=True,
    ),
    "follows": _Command(
        "follow_commands",
        "follows",
        "List the follows, what they have found, and whether each is complete.",
        asks=True,
    ),
    "unfollow": _Command(
        "follow_commands",
        "unfollow",
        "End a follow. The watches that it has started go on.",
        asks=True,
    ),
    "deliver": _Command(
        "delivery_commands",
        "deliver",
        "Send events to HTTP targets (BRIDGE_DELIVERIES__…, see .env.example). Needs NATS, and no vCenter.",
    ),
    "deliveries": _Command(
        "delivery_commands",
        "deliveries",
        "Show each delivery: how many events wait, how old the oldest is, the last answer, what wasn't delivered.",
        nats=True,
    ),
    "redeliver": _Command(
        "delivery_commands",
        "redeliver",
        "Send the events again that couldn't be delivered.",
        nats=True,
    ),
    "demo": _Command(
        "server_commands",
        "demo",
        "Run a demo on this machine: nats-server, a simulated vCenter with a task of every outcome, and the bridge.",
    ),
    "simulate": _Command(
        "server_commands",
        "simulate",
        "Run the simulated vCenter alone, to test workflows. Its control API needs no login.",
    ),
    "provision": _Command(
        "operator_commands",
        "provision",
        "Create the streams, consumers and bucket; list any difference from the settings, then apply it.",
        nats=True,
    ),
    "check": _Command(
        "operator_commands",
        "check",
        "Check everything that the bridge depends on: one line each, with the fix if it fails.",
        nats=True,
    ),
    "token": _Command(
        "token_command",
        "token",
        "Print a new token, and its line for the file that BRIDGE_HTTP_TOKENS_FILE names.",
    ),
    "schema": _Command(
        "schema",
        "schema",
        "Print a JSON Schema of requests, replies or events, or the AsyncAPI or OpenAPI document.",
    ),
}


class LazyGroup(TyperGroup):
    """The subcommands of `COMMANDS`. Only the one that runs is imported; the others are known by name and help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if command is not None and name in COMMANDS else command, rest


def load_command(name: str) -> Any:
    """Return the subcommand, imported."""
    module, function, _, asks, nats = COMMANDS[name]
    command_class: type[TyperCommand] = TyperCommand
    if asks or nats:
        from .nats_options import AskingCommand  # noqa: PLC0415 - the other commands don't need it

        command_class = AskingCommand
    alone = typer.Typer(add_completion=False)
    run = getattr(import_module(f".{module}", __package__), function)
    alone.command(name, cls=command_class, context_settings=_HELP_OPTIONS)(run)
    return typer.main.get_command(alone)


app = typer.Typer(
    name="task-bridge",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_HELP_OPTIONS,
)


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


def _prepare_output() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without some character must not end a command


def main() -> None:
    """Run the command line. If a command needs what a requester's install lacks, say how to install it."""
    _prepare_output()
    group = typer.main.get_command(app)
    if isinstance(group, LazyGroup):
        for name, command in COMMANDS.items():
            group.add_command(TyperCommand(name, help=command.help))
    try:
        group()
    except ModuleNotFoundError as error:
        from .exit_codes import FAILED  # noqa: PLC0415 - as the commands

        if (error.name or __package__).startswith(__package__.partition(".")[0]):
            raise
        typer.echo(f"This command needs the whole service, of which {error.name} is missing: {_INSTALL}", err=True)
        raise SystemExit(FAILED) from None
    except OSError as error:
        if error.errno not in _CANT_WRITE:
            raise
        from .exit_codes import FAILED  # noqa: PLC0415 - as the commands
        from .output import drop_output  # noqa: PLC0415 - as the commands

        drop_output()
        typer.echo(f"Standard output can't be written: {error.strerror}.", err=True)
        raise SystemExit(FAILED) from None
