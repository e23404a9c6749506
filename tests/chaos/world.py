"""What a round plays in: nats-servers, simulated vCenters, bridges behind proxies; and what was asked."""

from __future__ import annotations

import asyncio
import json
import math
import random
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from chaos.account import CLOCK_S, Account, Answered, Asked, Heard, Lost, Remains, Stored, Truth
from chaos.archive import Archive, read_queue
from chaos.proxy import Proxy
from chaos.servers import Servers
from chaos.truths import states_of
from host_clock import HostClock
from lab import PASSWORD, USERNAME, BridgeProcess
from task_bridge.domain.durations import parse_time
from task_bridge.domain.subjects import CONSUMER, SubjectNames
from task_bridge.jetstream.streams import Streams
from task_bridge.simulator import Options, Script, SimulatedVCenter
from task_bridge.simulator.script import Flavour
from task_bridge.simulator.serve import serve_vcenter
from validity import check_event

ACK_WAIT_S = 2.0
HANGS = 999
SESSIONS = 2
"""A bridge's with a vCenter: one for each kind of tasks."""
LAB, ANNEX = "lab", "annex"
"""The vCenter that all know and that is meant when none is named, and the one that some replicas don't know."""
SERVICES = ["VirtualMachine", "com.vmware.esx.settings.clusters.software", "com.vmware.simulator"]
"""Of the tasks that are started in a round."""
WRONG_CLOCK_S = 2.0
"""How well a bridge on a host whose clock is wrong knows nats-server's time, over links that may be slow."""
PERSISTENCE_S = 30.0
BEGIN_S = 90.0
"""For three bridges on a machine on which everybody else is busy too."""
_NATS_PY_NOISE = "_GatheringFuture exception was never retrieved"
"""Left behind by nats-py's drain() when it is given up because its server hangs (2.16)."""


class Replica:
    """A bridge in a process of its own behind proxies of its own, one to NATS and one to each vCenter that it knows.

    `clock`: that of its host, None if it is the machine's. `busy` is held by who does something to the replica.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        servers: Servers,
        vcenter_ports: Mapping[str, int],
        settings: Mapping[str, str],
        *,
        has_own_clock: bool,
    ) -> None:
        directory.mkdir()
        self.name = name
        self.busy = asyncio.Lock()
        self.clock = HostClock(directory) if has_own_clock else None
        self.proxy = Proxy(lambda: random.sample(ports := [server.port for server in servers.alive], len(ports)))
        self.vcenter_proxies = {
            vcenter: Proxy(lambda port=port: [port], is_nats=False)  # type: ignore[misc] # of this vCenter
            for vcenter, port in vcenter_ports.items()
        }
        self._settings = settings
        self._directory = directory

    async def begin(self) -> None:
        environment = {"PATH": "/usr/bin:/bin", "BRIDGE_DEFAULT_VCENTER": LAB}
        for vcenter, proxy in self.vcenter_proxies.items():
            await proxy.start()
            login = {"URL": f"http://{proxy.address}", "USERNAME": USERNAME, "PASSWORD": PASSWORD}
            environment |= {f"BRIDGE_VCENTERS__{vcenter.upper()}__{key}": value for key, value in login.items()}
        await self.proxy.start()
        environment |= {"BRIDGE_NATS_URL": f"nats://{self.proxy.address}", **self._settings}
        environment |= self.clock.environment if self.clock else {}
        self.process = BridgeProcess(environment, self._directory)
        await self.process.start()

    async def end(self) -> None:
        await self.process.close()
        for proxy in (self.proxy, *self.vcenter_proxies.values()):
            await proxy.close()

    def count_logged(self, event: str) -> int:
        return self.process.log.read_text(errors="replace").count(f'"event": "{event}"')

    def complaints(self) -> list[str]:
        """Lines of its log that no trouble explains: failures that nobody expected."""
        lines = self.process.log.read_text(errors="replace").splitlines()
        failures = [line[:2000] for line in lines if '"level": "error"' in line or not line.startswith("{")]
        return [line for line in failures if _NATS_PY_NOISE not in line]


class Book:
    """What the checker can't read anywhere: what was asked and answered, and what was done to tasks."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answered: list[Answered] = []
        self.heard: list[Heard] = []
        self.heard_all = True
        self.unseen_at: dict[str, float] = {}
        self.denied_at: dict[str, float] = {}
        self.excused_sessions = 0
        self.disturbed_links = 0
        self.faulty_at = 0.0
        self.lost_requests: list[tuple[int, float]] = []
        self.lost_watches: dict[str, str] = {}
        self.unacked: set[str] = set()
        self.events_lost_at = math.inf
        self.followed_from = math.inf
        self.codes: dict[str, int] = {}


class World:
    """One round's: `prefix` is its own, so that the rounds of a run can share nats-servers."""

    def __init__(
        self, directory: Path, servers: Servers, prefix: str, vcenters: dict[str, tuple[SimulatedVCenter, int]]
    ) -> None:
        self.servers = servers
        self.names = SubjectNames(prefix)
        self.vcenters = {name: vcenter for name, (vcenter, _) in vcenters.items()}
        self.vcenter = self.vcenters[LAB]
        self.book = Book()
        self.replicas: list[Replica] = []
        self.unread = 0
        """How many events were removed before anybody got to know them: a history without them can't be judged."""
        self.client: Client
        self.js: JetStreamContext
        self.archive: Archive
        self._vcenter_of: dict[str, str] = {}
        self._vcenter_ports = {name: port for name, (_, port) in vcenters.items()}
        self._directory = directory

    async def begin(self, replicas: int, **settings: str) -> None:
        """Starts as many bridges with the same settings, and waits until all are ready."""
        await self.begin_with([({LAB}, settings)] * replicas)

    async def begin_with(
        self, replicas: list[tuple[set[str], dict[str, str]]], *, clocks_s: list[float] | None = None
    ) -> None:
        """Starts a bridge for each set of vCenters and settings, and waits until all are ready.

        `clocks_s`: how far the clock of each one's host is off.
        """
        self.client = await self.servers.connected()
        self._listener = await self.servers.connected()
        self.js = self.client.jetstream(timeout=5)
        self.archive = Archive(self.js, Streams(self.client), self.names.events_stream)
        await self.servers.ready(self.client)
        for vcenters, settings in replicas:
            self._add(vcenters, settings, has_own_clock=clocks_s is not None)
        for replica, off_s in zip(self.replicas, clocks_s or [], strict=False):
            if replica.clock:
                replica.clock.step(off_s)
        await asyncio.gather(*(replica.begin() for replica in self.replicas))
        await asyncio.gather(*(replica.process.ready(BEGIN_S) for replica in self.replicas))
        for subject in (f"{self.names.events}.>", self.names.rejected):
            await self._listener.subscribe(subject, cb=self._hear)
        await self._listener.jetstream().account_info()  # a round trip behind the subscriptions

    def _add(self, vcenters: set[str], settings: dict[str, str], *, has_own_clock: bool) -> None:
        name = f"bridge-{len(self.replicas) + 1}"
        given = {
            "BRIDGE_HTTP_LISTEN": "127.0.0.1:0",
            "BRIDGE_SUBJECT_PREFIX": self.names.prefix,
            "BRIDGE_STREAM_REPLICAS": str(self.servers.replicas),
            "BRIDGE_POLL_MIN": "50ms",
            "BRIDGE_POLL_MAX": "500ms",
            "BRIDGE_PROGRESS_INTERVAL": "200ms",
            "BRIDGE_NOT_FOUND_GRACE": "500ms",
            "BRIDGE_ACK_WAIT": f"{ACK_WAIT_S:g}s",
            **settings,
        }
        ports = {vcenter: self._vcenter_ports[vcenter] for vcenter in sorted(vcenters)}
        self.replicas.append(
            Replica(name, self._directory / name, self.servers, ports, given, has_own_clock=has_own_clock)
        )

    async def end(self) -> None:
        for replica in self.replicas:
            await replica.end()
        self.servers.start()
        await self.servers.ready(self.client)
        names = self.names
        queues = (names.requests_stream, names.watches_stream, names.follow_requests_stream, names.follows_stream)
        for stream in (*queues, names.events_stream):
            await self._deleted(stream)
        await self._deleted(f"OBJ_{self.names.results_bucket}")
        for client in (self.client, self._listener):
            await client.close()

    async def _deleted(self, stream: str) -> None:
        try:
            await self.js.delete_stream(stream)
        except (TimeoutError, nats.errors.Error):
            return  # it goes with the round's directory

    async def _hear(self, message: Msg) -> None:
        headers = message.headers or {}
        sequence, at = int(headers.get("Nats-Sequence", 0)), parse_time(headers.get("Nats-Time-Stamp")) or time.time()
        self.book.heard.append(Heard(message.subject, sequence, message.data, headers, at))

    # Acting as a user

    async def store(self, request: object, task: str, *, valid: bool = True, at: float, message_id: str = "") -> bool:
        """Publishes a request until JetStream confirms it; False when it didn't in time."""
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        headers = {"Nats-Msg-Id": message_id or f"{random.getrandbits(64):x}"}
        while time.time() < at + PERSISTENCE_S:
            try:
                ack = await self.js.publish(self.names.requests, body, timeout=2, headers=headers)
            except (TimeoutError, nats.errors.Error):
                await asyncio.sleep(0.3)
            else:
                self.book.asked.append(Asked(ack.seq, task, at, valid, time.time()))
                return True
        return False

    def create(self, vcenter: str, script: Script, flavour: Flavour | None = None) -> str:
        """Start a task. Its id names its vCenter as long as the annex has no classic ones, whose numbers repeat."""
        task = self.vcenters[vcenter].create(script, flavour=flavour)
        self._vcenter_of[task] = vcenter
        return task

    def vcenter_of(self, task: str) -> str:
        return self._vcenter_of.get(task, LAB)

    def end_task(self, task: str) -> None:
        """The task succeeds now, unless it has ended or is gone."""
        vcenter = self.vcenters[self.vcenter_of(task)]
        there = {one.id: one for one in vcenter.tasks}.get(task)
        if there is not None and there.frame_at(time.time()).status not in ("SUCCEEDED", "FAILED"):
            vcenter.set(task, status="SUCCEEDED")

    async def ask(self, verb: str, task: str, request: object) -> dict[str, Any]:
        """One request to the API; what came back is noted, and that nothing came too."""
        place = len(self.book.answered)
        self.book.answered.append(Answered(verb, task, "unanswered"))
        try:
            reply = await self.client.request(f"{self.names.api}.{verb}", json.dumps(request).encode(), timeout=6)
        except (TimeoutError, nats.errors.Error):
            return {}
        answer: dict[str, Any] = json.loads(reply.data)
        outcome = answer.get("outcome") or answer["error"]["code"]
        last = answer.get("last_event") or {}
        watch = (answer.get("watch") or {}).get("id")
        self.book.answered[place] = Answered(verb, task, outcome, watch, last.get("id"))
        return answer

    async def follow(self) -> None:
        """Follow all tasks of the lab, and note since when: tasks that were queued before aren't judged."""
        body = json.dumps({"name": "all", "vcenter": LAB, "apis": ["vim", "cis"], "services": SERVICES}).encode()
        outcome, deadline = None, time.monotonic() + BEGIN_S
        while outcome not in ("accepted", "already_following"):
            assert time.monotonic() < deadline, "no bridge follows"
            try:
                reply = await self.client.request(f"{self.names.api}.follow", body, timeout=6)
                outcome = json.loads(reply.data).get("outcome")
            except (TimeoutError, nats.errors.Error):
                await asyncio.sleep(0.3)
        self.book.followed_from = time.time() + WRONG_CLOCK_S

    # Looking afterwards

    async def left(self) -> tuple[int, int]:
        """How many requests and how many watches are stored; (-1, -1) while JetStream doesn't answer."""
        try:
            requests = await self.js.stream_info(self.names.requests_stream)
            watches = await self.js.stream_info(self.names.watches_stream)
        except (TimeoutError, nats.errors.Error):
            return -1, -1
        return requests.state.messages, watches.state.messages

    async def all_ended(self, tasks: list[str], deadline: float) -> None:
        """Waits until each of these tasks has a final event."""
        missing = set(tasks)
        while missing and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            await self.archive.read()
            bodies = [json.loads(message.body) for message in self.archive.messages if message.body]
            missing = set(tasks) - {body["data"].get("task") for body in bodies if body["data"].get("final")}

    async def account(self) -> Account:
        """The whole history, for the checker."""
        await self.archive.read()
        await self.archive.note_returned()
        self.unread = self.archive.fill(self.book.heard, self.names.rejected)
        for message in self.archive.messages:
            check_event(message.body)
        queue, _ = await self.read_queue(self.names.watches_stream)
        watches = [json.loads(message.body) for message in queue]
        consumer = await self.js.consumer_info(self.names.watches_stream, CONSUMER)
        requests, _ = await self.left()
        book, has_own_clocks = self.book, any(replica.clock for replica in self.replicas)
        return Account(
            prefix=self.names.prefix,
            stored=tuple(self.archive.messages),
            asked=tuple(book.asked),
            answered=tuple(book.answered),
            truths=self._truths(),
            heard=tuple(book.heard),
            heard_all=book.heard_all,
            remains=Remains(
                watches=tuple((watch["id"], watch["task"]) for watch in watches),
                requests=requests,
                held=consumer.num_ack_pending or 0,
                waiting=consumer.num_pending or 0,
                sessions=sum(len(vcenter.sessions.live) for vcenter in self.vcenters.values()),
                excused_sessions=book.excused_sessions,
            ),
            lost=Lost(
                tuple(book.lost_requests),
                tuple(book.lost_watches.items()),
                frozenset(book.unacked),
                book.events_lost_at,
            ),
            clock_s=WRONG_CLOCK_S if has_own_clocks else CLOCK_S,
            reported_losses=sum(replica.count_logged("memory_lost") for replica in self.replicas),
            followed_from=book.followed_from,
        )

    async def read_queue(self, stream: str) -> tuple[list[Stored], int]:
        """All messages that a work queue has now, and the last sequence that it gave."""
        return await read_queue(self.js, stream)

    def _truths(self) -> dict[str, Truth]:
        book = self.book
        return {
            task: Truth(states_of(task, states), book.unseen_at.get(task), book.denied_at.get(task))
            for vcenter in self.vcenters.values()
            for task, states in vcenter.histories().items()
        }

    async def heard_everything(self, within_s: float = 5.0) -> None:
        """Waits until what is stored has been heard, or as long as may be."""
        await self.archive.read()
        stored = len(self.archive.messages)
        for _ in range(int(within_s / 0.05)):
            if len(self.book.heard) >= stored:
                return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def world(directory: Path, servers: Servers, prefix: str) -> AsyncIterator[World]:
    """A world without bridges yet."""
    async with AsyncExitStack() as stack:
        vcenters = {}
        for name in (LAB, ANNEX):
            vcenter = SimulatedVCenter(Options(username=USERNAME, password=PASSWORD))
            url = await stack.enter_async_context(serve_vcenter(vcenter))
            vcenters[name] = vcenter, int(url.rpartition(":")[2])
        here = World(directory, servers, prefix, vcenters)
        try:
            yield here
        finally:
            await here.end()


async def killed(world: World, replica: Replica, number: int = signal.SIGKILL) -> int:
    """Ends a bridge by a signal; its exit code, HANGS when it doesn't end.

    Sessions that it can't log out of are excused.
    """
    began, book = time.time(), world.book
    was_faulty = bool(world.vcenter.faults.active() or book.disturbed_links)
    try:
        code = await replica.process.end(number, within_s=20)
    except TimeoutError:
        await replica.process.end(signal.SIGKILL)
        code = HANGS
    is_faulty = was_faulty or book.faulty_at >= began or bool(world.vcenter.faults.active())
    if number == signal.SIGKILL or code == HANGS or is_faulty:
        book.excused_sessions += SESSIONS * len(replica.vcenter_proxies)
    return code
