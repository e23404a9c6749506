"""A real nats-server, a simulated vCenter over real HTTP and the bridge, for the tests that need all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg

from credentials import suite_authority, suite_server
from task_bridge.app import Bridge
from task_bridge.jetstream.stream_reader import StreamReader
from task_bridge.jetstream.streams import Streams
from task_bridge.settings import Settings, VCenterSettings
from task_bridge.simulator import Options, SimulatedVCenter
from task_bridge.simulator.serve import serve_vcenter
from validity import check_event, check_reply

USERNAME, PASSWORD = "task-bridge@vsphere.local", "a-made-up-secret"
SERVER = Path(os.environ.get("TEST_NATS_SERVER") or Path(sys.executable).with_name("nats-server"))
PREFIX = "vcenter.tasks"
EVENTS = "VCENTER_TASKS_EVENTS"
T = TypeVar("T")


async def until(fact: Callable[[], T | None], within_s: float = 20.0) -> T:
    """The fact, as soon as it is one; fails when it isn't within `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not (found := fact()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {fact}"
        await asyncio.sleep(0.01)
    return found


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listened on a moment ago.

    They are below those that the system gives to outgoing connections, any of which could take them meanwhile: a
    cluster didn't start for that. Each worker of pytest-xdist has a range of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 12_000 + worker % 16 * 1_000
    found: list[int] = []
    for port in random.sample(range(first, first + 1_000), 1_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"there are no {count} free ports from {first} on")


class NatsServer:
    """A nats-server with JetStream on a free port of loopback; it keeps port and data over restarts."""

    def __init__(self, directory: Path, *config: str, jetstream: bool = True) -> None:
        self.port = 0
        self.jetstream = jetstream
        self.binary = SERVER
        self._directory = directory
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        log = (self._directory / "nats.log").open("ab")
        port = str(self.port or -1)
        ports = ["--ports_file_dir", str(self._directory)]
        where = ["-a", "127.0.0.1", "-p", port, "-sd", str(self._directory / "js")]
        where += ["-js"] if self.jetstream else []
        with log:
            process = subprocess.Popen([self.binary, *where, *ports, *self._config], stdout=log, stderr=log)
        self._process = process
        file = self._directory / f"nats-server_{process.pid}.ports"
        deadline = time.monotonic() + 10
        while not (file.exists() and file.read_text().endswith("}")):
            assert process.poll() is None, f"nats-server ended: see {log.name}"
            assert time.monotonic() < deadline, "nats-server isn't up after 10 s"
            time.sleep(0.01)
        self.port = int(json.loads(file.read_text())["nats"][0].rsplit(":", 1)[1])

    def send(self, number: int) -> None:
        """Sends a signal that doesn't end it."""
        if self._process is not None:
            self._process.send_signal(number)

    def reload(self) -> None:
        """Reads its configuration file anew; it has, afterwards."""
        assert self._process is not None
        log, told = self._directory / "nats.log", "Reloaded server configuration"
        count = log.read_text().count(told)
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while log.read_text().count(told) == count:
            assert time.monotonic() < deadline, "nats-server didn't reload within 10 s"
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None


@contextmanager
def guarded(directory: Path, permissions: str) -> Iterator[NatsServer]:
    """A nats-server with user `u`, who has these `permissions`, and `operator`, who may do everything."""
    directory = directory / "guarded"
    directory.mkdir()
    users = f"{{user: u, password: p, permissions: {{{permissions}}}}}, {{user: operator, password: p}}"
    config = directory / "nats.conf"
    config.write_text(f"authorization {{users: [{users}]}}")
    server = NatsServer(directory, "-c", str(config))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def as_user(user: str, server: NatsServer) -> dict[str, str]:
    """The environment of a command that logs in to a guarded server."""
    return {"BRIDGE_NATS_URL": server.url, "BRIDGE_NATS_USER": user, "BRIDGE_NATS_PASSWORD": "p"}


class Lab:
    """What a user has: a NATS connection. And what a test knows besides: the simulated vCenter."""

    def __init__(self, server: NatsServer, client: Client, vcenter: SimulatedVCenter, vcenter_url: str) -> None:
        self.server = server
        self.client = client
        self.js: JetStreamContext = client.jetstream()
        self.vcenter = vcenter
        self.vcenter_url = vcenter_url
        self.live: list[tuple[str, dict[str, Any]]] = []
        self.heard_at: dict[str, float] = {}

    def settings(self, **more: Any) -> Settings:
        """Settings of a bridge in this lab, quick to look."""
        quick = {"poll_min_s": 0.05, "poll_max_s": 0.5, "progress_interval_s": 0.2, "not_found_grace_s": 0.5}
        given = {
            "nats": {"urls": self.server.url},
            "vcenters": {"lab": self.vcenter_settings()},
            "http_listen": "127.0.0.1:0",
        }
        return Settings(**{**given, **quick, **more})

    def vcenter_settings(self, **more: Any) -> VCenterSettings:
        """Settings of the vCenter in this lab."""
        ca_file = suite_authority().file if self.vcenter_url.startswith("https:") else None
        given = {"name": "lab", "url": self.vcenter_url, "username": USERNAME, "password": PASSWORD, "ca_file": ca_file}
        return VCenterSettings.model_validate(given | more)

    def environment(self, **more: str) -> dict[str, str]:
        """The same for a bridge in a process of its own."""
        return {
            "PATH": os.environ["PATH"],
            **({"BRIDGE_VCENTERS__LAB__CA_FILE": str(suite_authority().file)} if "https:" in self.vcenter_url else {}),
            "BRIDGE_NATS_URL": self.server.url,
            "BRIDGE_VCENTERS__LAB__URL": self.vcenter_url,
            "BRIDGE_VCENTERS__LAB__USERNAME": USERNAME,
            "BRIDGE_VCENTERS__LAB__PASSWORD": PASSWORD,
            "BRIDGE_HTTP_LISTEN": "127.0.0.1:0",
            "BRIDGE_POLL_MIN": "50ms",
            "BRIDGE_POLL_MAX": "500ms",
            "BRIDGE_PROGRESS_INTERVAL": "200ms",
            "BRIDGE_ACK_WAIT": "2s",
            **more,
        }

    @asynccontextmanager
    async def bridge(self, **more: Any) -> AsyncIterator[Bridge]:
        """A bridge in this process, ready."""
        bridge = Bridge(self.settings(**more))
        async with bridge.running() as failed:
            await until(lambda: failed.done() or bridge.status.health().status != "unready")
            if failed.done():
                failed.result()
            yield bridge

    async def publish(self, request: object, **headers: str) -> None:
        """Publishes a watch request as any language would; `request` is bytes, or made JSON."""
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        await self.client.publish(f"{PREFIX}.watch", body, headers=headers or None)
        await self.client.flush()

    async def ask(self, verb: str, request: object = None) -> dict[str, Any]:
        """The reply of an API verb; `error` is in it when it refuses."""
        return json.loads((await self.reply(verb, request)).data)  # type: ignore[no-any-return]

    async def reply(self, verb: str, request: object = None) -> Msg:
        body = request if isinstance(request, bytes) else b"" if request is None else json.dumps(request).encode()
        reply = await self.client.request(f"{PREFIX}.api.{verb}", body, timeout=15)
        check_reply(verb, reply.data, refused="Nats-Service-Error-Code" in (reply.headers or {}))
        return reply

    async def messages(self) -> list[RawStreamMsg]:
        """All that the events stream holds, in order."""
        state = (await self.js.stream_info(EVENTS)).state
        return [await self.js.get_msg(EVENTS, number) for number in range(max(1, state.first_seq), state.last_seq + 1)]

    async def stored(self) -> list[tuple[RawStreamMsg, dict[str, Any]]]:
        """The same with decoded bodies."""
        return [(message, json.loads(message.data or b"null")) for message in await self.messages()]

    async def events(self, task: str | None = None) -> list[dict[str, Any]]:
        """The stored events, of one task or of all."""
        return [body for _, body in await self.stored() if task in (None, body["subject"])]

    async def listen(self) -> None:
        """From now on `live` has what a core subscriber of all events sees, `heard_at` when a task's last came."""

        async def heard(message: Msg) -> None:
            body = json.loads(message.data)
            self.live.append((message.subject, body))
            self.heard_at[body.get("subject")] = time.time()

        await self.client.subscribe(f"{PREFIX}.events.>", cb=heard)
        await self.client.subscribe(f"{PREFIX}.rejected", cb=heard)
        await self.js.account_info()  # a round trip behind the subscriptions; flush() overtakes them

    def heard(self, task: str) -> list[dict[str, Any]]:
        return [body for _, body in self.live if body.get("subject") == task]

    async def ended(self, task: str, within_s: float = 20.0) -> dict[str, Any]:
        """The live final event of `task`."""
        return await until(lambda: next((e for e in self.heard(task) if e["data"].get("final")), None), within_s)


class BridgeProcess:
    """`task-bridge serve` in a process of its own."""

    def __init__(self, environment: dict[str, str], directory: Path, command: list[str] | None = None) -> None:
        self._command = command or [sys.executable, "-m", "task_bridge", "serve"]
        self.environment = environment
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._ready_before = self._starts_before = 0
        self.log = directory / "bridge.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        self._ready_before, self._starts_before = self._told("ready"), self._told("starting")
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self.environment,
                cwd=self._directory,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def ready(self, within_s: float = 20.0) -> None:
        """Waits until the log of this run says that it is ready."""
        await until(lambda: self._told("ready") > self._ready_before, within_s)

    @property
    def hears_signals(self) -> bool:
        """Whether this run is past what Python does before any of the bridge's code."""
        return self._told("starting") > self._starts_before

    def _told(self, event: str) -> int:
        return self.log.read_text().count(f'"event": "{event}"') if self.log.exists() else 0

    def send(self, number: int) -> None:
        """Sends a signal that doesn't end it."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def end(self, number: int = signal.SIGTERM, within_s: float = 10.0) -> int:
        """Sends the signal; the exit code."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        async with asyncio.timeout(within_s):
            code = await self._process.wait()
        self._process = None
        return code

    async def exit(self, within_s: float = 20.0) -> int:
        """Waits for the process to end by itself; the exit code."""
        assert self._process is not None
        async with asyncio.timeout(within_s):
            return await self._process.wait()

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.end(signal.SIGKILL)


@asynccontextmanager
async def lab_in(directory: Path, *config: str, scheme: str = "http") -> AsyncIterator[Lab]:
    """A lab whose nats-server keeps its data in `directory`, and whose vCenter is served by this scheme."""
    server = NatsServer(directory, *config)
    server.start()
    vcenter = SimulatedVCenter(Options(username=USERNAME, password=PASSWORD))
    try:
        async with serve_vcenter(vcenter, ssl=suite_server() if scheme == "https" else None) as url:
            client = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
            try:
                yield Lab(server, client, vcenter, url)
            finally:
                await client.close()
        if not server.running:
            server.start()
        await _check_events(server.url)
    finally:
        server.stop()


async def _check_events(url: str) -> None:
    """All that the bridge published, whatever the test was about, is what the schemas promise to consumers."""
    client = await nats.connect(url)
    try:
        js = client.jetstream()
        for stream in [info.config.name or "" for info in await js.streams_info() if info.config.allow_direct]:
            if stream.endswith("_EVENTS"):
                async for message in StreamReader(Streams(client), stream, [">"], follow=False).messages():
                    if "Bridge-Instance" in message.headers or message.subject.endswith(".rejected"):
                        check_event(message.body)
    finally:
        await client.close()
