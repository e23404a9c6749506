"""A vcsim, a nats-server and a bridge for each test; pyVmomi and govc work on the same vcsim."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import nats
import pytest
import pyVim.connect

from credentials import suite_authority
from go_tools import find_tool
from lab import PASSWORD, USERNAME, Lab, NatsServer, free_ports

connect: Any = pyVim.connect
T = TypeVar("T")


class Vcsim:
    """A vcsim that keeps its address when it is started again; its inventory is new each time."""

    def __init__(self, directory: Path, scheme: str, *options: str) -> None:
        (port,) = free_ports(1)
        self._program = find_tool("vcsim")
        self._log = directory / "vcsim.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"{scheme}://127.0.0.1:{port}"
        self._options = ["-l", f"127.0.0.1:{port}", "-username", USERNAME, "-password", PASSWORD, *options]
        if scheme == "https":
            pair = suite_authority().pair("vcsim")
            self._options += ["-tls-cert", str(pair.certificate), "-tls-key", str(pair.key)]

    async def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
                [self._program, *self._options], stdout=log, stderr=log
            )
        async with asyncio.timeout(20):
            while b"/sdk" not in self._log.read_bytes():
                assert self._process.poll() is None, self._log.read_text()
                await asyncio.sleep(0.02)

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """pyVmomi's ServiceInstance, logged in."""
        where = urlsplit(self.url)
        instance = connect.SmartConnect(
            host=where.hostname,
            port=where.port,
            protocol=where.scheme,
            user=USERNAME,
            pwd=PASSWORD,
            disableSslCertValidation=True,
        )
        try:
            yield instance
        finally:
            connect.Disconnect(instance)

    async def by_pyvmomi(self, does: Callable[[Any], T]) -> T:
        """Run a function with a ServiceInstance of its own in a thread."""

        def whole() -> T:
            with self.connected() as instance:
                return does(instance)

        return await asyncio.to_thread(whole)

    def govc_environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._log.parent),
            "GOVC_URL": f"{self.url}/sdk",
            "GOVC_USERNAME": USERNAME,
            "GOVC_PASSWORD": PASSWORD,
            "GOVC_INSECURE": "true",
        }

    async def govc(self, *arguments: str) -> tuple[int, str]:
        """Run govc; its exit code, and what it says on stderr."""
        process = await asyncio.create_subprocess_exec(
            find_tool("govc"),
            *arguments,
            env=self.govc_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            _, err = await process.communicate()
        return process.returncode or 0, err.decode()


class VcsimLab(Lab):
    """A lab whose vCenter is a vcsim."""

    vcsim: Vcsim


@asynccontextmanager
async def vcsim_lab(directory: Path, scheme: str = "http", *options: str) -> AsyncIterator[VcsimLab]:
    """A running vcsim and nats-server; the test starts the bridge."""
    vcsim, server = Vcsim(directory, scheme, *options), NatsServer(directory)
    try:
        await vcsim.start()
        server.start()
        client = await nats.connect(server.url)
        try:
            lab = VcsimLab(server, client, None, vcsim.url)  # type: ignore[arg-type] # vcsim is in its place
            lab.vcsim = vcsim
            yield lab
        finally:
            await client.close()
    finally:
        server.stop()
        vcsim.stop()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[VcsimLab]:
    async with vcsim_lab(tmp_path) as lab:
        yield lab
