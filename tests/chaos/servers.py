"""One nats-server or a cluster of three on loopback, whose servers are killed, stopped and brought back.

Where that is possible each keeps its data in a small file system of its own, so that its disk can be filled.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nats
import nats.errors
from nats.aio.client import Client

from lab import SERVER, NatsServer, free_ports

OLDEST_VERSION = "2.12.8"
_OLDEST = Path(os.environ.get("TEST_OLDEST_NATS_SERVER") or Path(sys.prefix) / "oldest/bin/nats-server")
OLDEST = _OLDEST if _OLDEST.exists() else None
"""The oldest nats-server that the bridge works with, from which others are upgraded."""
NO_OLDEST = f"nats-server {OLDEST_VERSION} is missing: `make test` and `make chaos` install it"
DISK_MB = 64
NO_DISK = "a small file system can be mounted by root only"


class Servers:
    """`replicas` nats-servers (1 or 3) under `directory`; `alive` are those that run.

    `own_disks`: give each a file system of its own, if that is possible.
    """

    def __init__(self, directory: Path, replicas: int, *, own_disks: bool = False) -> None:
        self.replicas = replicas
        ports = free_ports(replicas)
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        self.by_name: dict[str, NatsServer] = {}
        self.disks: dict[str, Path] = {}
        self._homes: dict[str, Path] = {}
        for number, port in enumerate(ports, 1):
            name = f"n{number}"
            home = self._homes[name] = directory / name
            (home / "js").mkdir(parents=True)
            if own_disks and _mount(home / "js"):
                self.disks[name] = home / "js"
            # Their addresses aren't told to clients: a bridge is to stay behind its proxy.
            cluster = ["--cluster_name", "chaos", "--cluster", f"nats://127.0.0.1:{port}", "--routes", routes]
            more = [*cluster, "--no_advertise"] if replicas > 1 else []
            self.by_name[name] = NatsServer(home, "--name", name, *more)

    @property
    def all(self) -> list[NatsServer]:
        return list(self.by_name.values())

    @property
    def alive(self) -> list[NatsServer]:
        return [server for server in self.all if server.running]

    @property
    def outdated(self) -> list[NatsServer]:
        return [server for server in self.all if server.binary != SERVER]

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.all]

    def start(self) -> None:
        """Starts those that don't run."""
        for server in self.all:
            if not server.running:
                server.start()

    def stop(self) -> None:
        for server in self.all:
            server.stop()

    def start_anew(self, binary: Path) -> None:
        """Start all of this version, without any data: what a newer one stored an older one may not read."""
        self.stop()
        for name, server in self.by_name.items():
            server.binary = binary
            for part in (self._homes[name] / "js").iterdir():
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        self.start()

    def close(self) -> None:
        self.stop()
        for disk in self.disks.values():
            subprocess.run(["umount", "--lazy", disk], check=True)  # noqa: S607 - where it lies depends on the system

    async def connected(self) -> Client:
        """A client that is never given up."""
        return await nats.connect(self.urls, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_ignored)

    async def ready(self, client: Client, within_s: float = 30.0) -> None:
        """Waits until JetStream answers."""
        deadline = time.monotonic() + within_s
        while True:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await client.jetstream(timeout=1).account_info()
                return
            assert time.monotonic() < deadline, f"JetStream isn't up after {within_s} s"


def _mount(directory: Path) -> bool:
    """Mount a small file system in memory. Return whether that is possible here."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "chaos", str(directory)]
    return os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0


def fill_disk(disk: Path) -> Path:
    """Leave no room on a small file system. Return the file to delete for that to be over."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


async def _ignored(_: Exception) -> None:
    """What a client of the suite meets while servers are killed is meant to be."""
