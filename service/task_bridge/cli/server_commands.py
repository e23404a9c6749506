"""The commands that run a server: `serve`, `demo`, `simulate`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import signal
import ssl
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from ..domain.errors import CannotStart
from .exit_codes import INTERRUPTED, exit_with_error

if TYPE_CHECKING:
    from rich.console import Console

    from ..lab.demo import DemoRun
    from ..settings import NatsSettings, Settings

# Functions import what the other commands don't need, and what is missing where only a client is installed.

DataDirectory = Annotated[
    Path | None,
    typer.Option("--embedded-nats", metavar="DIR", help="Also start a nats-server, with its data in DIR."),
]
Keep = Annotated[
    bool, typer.Option("--keep", help="Keep starting new tasks until Ctrl-C, so that you can look around.")
]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="The port to listen on; 0 picks a free one.")]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="FILE", help="Speak TLS with this certificate (PEM).")
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key, if the certificate's file doesn't have it.")
]
Host = Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is all addresses, for containers.")]


def serve(embedded_nats: DataDirectory = None) -> None:
    """Run the service. Settings come from the environment and from .env (see .env.example)."""
    import uvloop  # noqa: PLC0415 - missing on Windows, where the other commands run

    from .. import logs  # noqa: PLC0415
    from ..app import serve as run  # noqa: PLC0415
    from ..settings import load, read_log_format  # noqa: PLC0415

    log_format = read_log_format()
    if logs.is_json(log_format, sys.stderr):
        logs.configure(log_format)  # mistakes in the settings are reported as JSON too
    try:
        settings = load()
        logs.configure(settings.log_format, settings.log_level)
        _collect_garbage_rarely()
        uvloop.run(run(settings) if embedded_nats is None else _serve_with_nats(settings, embedded_nats))
    except CannotStart as error:
        exit_with_error(error, in_json=logs.is_json(log_format, sys.stderr))


def _collect_garbage_rarely() -> None:
    """Run the garbage collector rarely: it stops the event loop, and only reference cycles need it.

    A burst of watches allocates objects that stay. With the defaults the collector scanned all of them repeatedly (a
    quarter of the CPU for 10,000 new watches). State of tasks can't be part of a cycle and isn't tracked
    (`gc=False`), and modules stay for good. So a full collection takes 0.13 s at 50,000 watches, every 50 minutes.
    """
    gc.set_threshold(10_000, 3, 100)
    gc.freeze()


async def _serve_with_nats(settings: Settings, directory: Path) -> None:
    """Serve beside an embedded nats-server, until either of them ends."""
    from ..app import serve as run  # noqa: PLC0415
    from ..lab.nats_server import run_nats_server  # noqa: PLC0415

    host, port = _read_nats_address(settings.nats)
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


def _read_nats_address(nats: NatsSettings) -> tuple[str, int]:
    """Return host and port for an embedded nats-server. Raises CannotStart if TLS or a login is set."""
    if len(nats.urls) > 1:
        raise CannotStart("BRIDGE_NATS_URL: --embedded-nats starts one server; name one URL only", exit_code=2)
    if nats.login != "none":
        raise CannotStart(
            f"BRIDGE_NATS_*: --embedded-nats supports no logins; unset the {nats.login}, or run your own nats-server",
            exit_code=2,
        )
    if nats.urls[0].startswith("tls:") or nats.tls_ca_file or nats.tls_cert_file:
        raise CannotStart(
            "BRIDGE_NATS_URL: --embedded-nats supports no TLS; use nats:// without BRIDGE_NATS_TLS_*", exit_code=2
        )
    parts = urlsplit(nats.urls[0])
    return parts.hostname or "127.0.0.1", parts.port or 4222


def demo(keep: Keep = False) -> None:
    """Run a demo on this machine: nats-server, a simulated vCenter with a task of every outcome, and the bridge."""
    from rich.console import Console  # noqa: PLC0415

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without some character must not end the demo
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="task-bridge-demo-") as name, _log_to(Path(name) / "bridge.log"):
            runs = _run(_run_demo(console, Path(name), keep=keep))
            deviations = [deviation for run in runs or () if (deviation := run.describe_deviation())]
            problems = _read_problems(Path(name) / "bridge.log") if deviations else []
    except CannotStart as error:
        exit_with_error(error)
    if runs is None:  # Ctrl-C, the normal end of --keep
        raise typer.Exit(0 if keep else INTERRUPTED)
    for line in [*deviations, *problems]:
        typer.echo(line, err=True)
    if deviations:
        raise typer.Exit(1)
    console.print(f"All {len(runs)} tasks ended as scripted.", highlight=False)


async def _run_demo(console: Console, directory: Path, *, keep: bool) -> list[DemoRun]:
    from ..lab import demo  # noqa: PLC0415
    from . import demo_view  # noqa: PLC0415

    if not (console.is_interactive and console.file.isatty()):  # FORCE_COLOR makes a pipe interactive
        return await demo.run_demo(demo_view.LineView(console, keep=keep), directory, keep=keep)
    with demo_view.create_bars(console) as bars:
        return await demo.run_demo(demo_view.BarView(console, bars, keep=keep), directory, keep=keep)


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write the log to a file, so that it doesn't disturb the output."""
    from .. import logs  # noqa: PLC0415

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


def _read_problems(log: Path) -> list[str]:
    """Return the last lines of the log that are at least warnings."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if "[info" not in line][-20:]


def simulate(
    port: Port = 8989,
    host: Host = "127.0.0.1",
    username: Annotated[str, typer.Option(help="The user name that can log in.")] = "administrator@vsphere.local",
    password: Annotated[str, typer.Option(help="Its password.")] = "simulated",  # noqa: S107 - it protects nothing
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Run the simulated vCenter alone, to test workflows. Its control API needs no login."""
    from .. import logs  # noqa: PLC0415

    logs.configure("auto", "warning")
    try:
        _run(_simulate(host, port, username, password, _load_certificate(tls_cert, tls_key)))
    except CannotStart as error:
        exit_with_error(error)


def _load_certificate(tls_cert: Path | None, tls_key: Path | None) -> ssl.SSLContext | None:
    """Return the TLS of a server, None without a certificate. Raises CannotStart."""
    if tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls_cert, tls_key)
    except OSError as error:  # an SSLError too
        raise CannotStart(f"--tls-cert, --tls-key: can't be used: {error}", exit_code=2) from error
    return context


async def _simulate(host: str, port: int, username: str, password: str, tls: ssl.SSLContext | None) -> None:
    from ..simulator import Options, SimulatedVCenter  # noqa: PLC0415
    from ..simulator.serve import serve_vcenter  # noqa: PLC0415

    async with contextlib.AsyncExitStack() as stack:
        vcenter = SimulatedVCenter(Options(username=username, password=password))
        try:
            url = await stack.enter_async_context(serve_vcenter(vcenter, host, port, tls))
        except OSError as error:
            message = f"can't listen on {host}:{port}: {error.strerror}; set --host and --port"
            raise CannotStart(message) from error
        curl = "curl -k" if tls else "curl"
        typer.echo(_USAGE.format(url=url, username=username, password=password, curl=curl))
        await asyncio.Event().wait()


_USAGE = """\
The simulated vCenter is at {url}
  username {username}
  password {password}
Start a task that succeeds in 20 seconds; the answer holds its id:
  {curl} -d '{{"fate": "succeeds", "with": {{"after_s": 20}}}}' {url}/simulator/tasks
List the other fates and the faults by name:
  {curl} {url}/simulator
Ctrl-C ends it."""


def _run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run `main` and return its result. SIGINT and SIGTERM cancel it; then return None."""

    async def until_signal() -> Any:
        running = asyncio.ensure_future(main)
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # on Windows, where Ctrl-C raises KeyboardInterrupt
                asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        return await running

    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        return asyncio.run(until_signal())
    return None
