"""The commands that run something: `serve`, `demo`, `simulate`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from .. import logs
from ..domain.errors import CannotStart
from ..settings import NatsSettings, Settings, load
from .ending import give_up

if TYPE_CHECKING:
    from rich.console import Console

    from ..lab.demo import DemoRun

# Imports inside the functions are of rooms that the other commands don't need.

DataDirectory = Annotated[
    Path | None,
    typer.Option("--embedded-nats", metavar="DIR", help="Start an own nats-server too, its data in DIR."),
]
Keep = Annotated[bool, typer.Option("--keep", help="Go on with new tasks until Ctrl-C, to look around.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="Where to listen; 0 picks a free port.")]
Host = Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is all, for containers.")]


def serve(embedded_nats: DataDirectory = None) -> None:
    """Run the service; settings come from the environment and from .env (see .env.example)."""
    import uvloop  # noqa: PLC0415 - not there on Windows, where the other commands run

    from ..app import serve as run  # noqa: PLC0415

    in_json = os.environ.get("BRIDGE_LOG_FORMAT", "").lower() == "json"
    if in_json:
        logs.configure("json")  # what is wrong with the settings is told so too
    try:
        settings = load()
        in_json = settings.log_format == "json"
        logs.configure(settings.log_format, settings.log_level)
        _collect_garbage_seldom()
        uvloop.run(run(settings) if embedded_nats is None else _with_nats(settings, embedded_nats))
    except CannotStart as error:
        give_up(error, in_json=in_json)


def _collect_garbage_seldom() -> None:
    """The event loop stands still while the collector looks through what lives; all but cycles goes without it.

    A burst of watches allocates what stays: the default looked through all of it again and again (a quarter of the
    CPU of taking up 10,000). What is known about tasks can't be part of a cycle and isn't tracked (`gc=False`), and
    modules stay for good; so a full collection takes 0.13 s at 50,000 watches, where one comes every 50 minutes.
    """
    gc.set_threshold(10_000, 3, 100)
    gc.freeze()


async def _with_nats(settings: Settings, directory: Path) -> None:
    """Serves beside a nats-server of its own; when that one ends, so does this."""
    from ..app import serve as run  # noqa: PLC0415
    from ..lab.nats_server import run_nats_server  # noqa: PLC0415

    host, port = _address(settings.nats)
    async with run_nats_server(directory, host, port) as server:
        serving, ended = asyncio.create_task(run(settings)), asyncio.create_task(server.raise_on_exit())
        try:
            done, _ = await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (serving, ended):
                task.cancel()
            await asyncio.gather(serving, ended, return_exceptions=True)
        for task in done:
            task.result()


def _address(nats: NatsSettings) -> tuple[str, int]:
    """Where an embedded nats-server listens, which knows neither TLS nor logins. Raises CannotStart."""
    if len(nats.urls) > 1:
        raise CannotStart("BRIDGE_NATS_URL: --embedded-nats starts one server; name one", exit_code=2)
    if nats.login != "none":
        raise CannotStart(
            f"BRIDGE_NATS_*: --embedded-nats knows no logins; unset the {nats.login}, or run your own nats-server",
            exit_code=2,
        )
    if nats.urls[0].startswith("tls:") or nats.tls_ca_file or nats.tls_cert_file:
        raise CannotStart(
            "BRIDGE_NATS_URL: --embedded-nats knows no TLS; use nats:// without BRIDGE_NATS_TLS_*", exit_code=2
        )
    parts = urlsplit(nats.urls[0])
    return parts.hostname or "127.0.0.1", parts.port or 4222


def demo(keep: Keep = False) -> None:
    """Show it all on this machine: an own nats-server, a simulated vCenter, the bridge, a task of every fate."""
    from rich.console import Console  # noqa: PLC0415

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character must not end the show
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="task-bridge-demo-") as name, _logged_to(Path(name) / "bridge.log"):
            plays = _run(_played(console, Path(name), keep=keep))
            surprises = [surprise for play in plays or () if (surprise := play.describe_deviation())]
            warnings = _warnings(Path(name) / "bridge.log") if surprises else []
    except CannotStart as error:
        give_up(error)
    if plays is None:  # Ctrl-C, which is how --keep ends
        raise typer.Exit(0 if keep else 130)
    for line in [*surprises, *warnings]:
        typer.echo(line, err=True)
    if surprises:
        raise typer.Exit(1)
    console.print(f"All {len(plays)} tasks ended as scripted.", highlight=False)


async def _played(console: Console, directory: Path, *, keep: bool) -> list[DemoRun]:
    from ..lab import demo as story  # noqa: PLC0415
    from . import show  # noqa: PLC0415

    if not (console.is_interactive and console.file.isatty()):  # FORCE_COLOR makes a pipe interactive
        return await story.run_demo(show.LineShow(console, keep=keep), directory, keep=keep)
    with show.bars(console) as bars:
        return await story.run_demo(show.BarShow(console, bars, keep=keep), directory, keep=keep)


@contextlib.contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """The log goes to a file meanwhile: it must not disturb the show."""
    try:
        with path.open("w", encoding="utf-8") as file:
            logs.configure("console", "info", stream=file)
            try:
                yield
            finally:
                logs.configure("console", "warning")
                file.flush()
    finally:
        sys.excepthook = sys.__excepthook__


def _warnings(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if "[info" not in line][-20:]


def simulate(
    port: Port = 8989,
    host: Host = "127.0.0.1",
    username: Annotated[str, typer.Option(help="Who may log in.")] = "administrator@vsphere.local",
    password: Annotated[str, typer.Option(help="With what password.")] = "simulated",  # noqa: S107 - of nothing
) -> None:
    """Run the simulated vCenter alone, for testing workflows; it speaks HTTP, and obeys whoever reaches it."""
    logs.configure("auto", "warning")
    try:
        _run(_simulated(host, port, username, password))
    except CannotStart as error:
        give_up(error)


async def _simulated(host: str, port: int, username: str, password: str) -> None:
    from ..simulator import Options, SimulatedVCenter  # noqa: PLC0415
    from ..simulator.serve import serve_vcenter  # noqa: PLC0415

    async with contextlib.AsyncExitStack() as stack:
        vcenter = SimulatedVCenter(Options(username=username, password=password))
        try:
            url = await stack.enter_async_context(serve_vcenter(vcenter, host, port))
        except OSError as error:
            told = f"{host}:{port} can't be listened on: {error.strerror}; set --host and --port"
            raise CannotStart(told) from error
        typer.echo(_USAGE.format(url=url, username=username, password=password))
        await asyncio.Event().wait()


_USAGE = """\
A simulated vCenter is at {url}
  username {username}
  password {password}
Start a task that succeeds in 20 seconds; the answer holds its id:
  curl -d '{{"fate": "succeeds", "with": {{"after_s": 20}}}}' {url}/simulator/tasks
Other fates, and faults, by name:
  curl {url}/simulator
Ctrl-C ends it."""


def _run(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs `main` until it is over, or until SIGINT or SIGTERM: then it is canceled, and the answer is None."""

    async def until_signal() -> Any:
        running = asyncio.ensure_future(main)
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # on Windows, where Ctrl-C raises KeyboardInterrupt
                asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        return await running

    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        return asyncio.run(until_signal())
    return None
