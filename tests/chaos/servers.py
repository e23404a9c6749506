"""One nats-server or a cluster of three on loopback, whose servers are killed, stopped and brought back."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import nats
import nats.errors
from nats.aio.client import Client

from lab import NatsServer, free_ports


class Servers:
    """`replicas` nats-servers (1 or 3) under `directory`; `alive` are those that run."""

    def __init__(self, directory: Path, replicas: int) -> None:
        self.replicas = replicas
        ports = free_ports(replicas)
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        self.by_name: dict[str, NatsServer] = {}
        for number, port in enumerate(ports, 1):
            name = f"n{number}"
            home = directory / name
            home.mkdir()
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


async def _ignored(_: Exception) -> None:
    """What a client of the suite meets while servers are killed is meant to be."""
