"""What a round plays in: nats-servers, a simulated vCenter, bridges behind proxies; and what was asked."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from chaos.account import Account, Answered, Asked, Heard, Remains, Stored, Truth
from chaos.proxy import Proxy
from chaos.servers import Servers
from chaos.truths import states_of
from lab import PASSWORD, USERNAME, BridgeProcess
from task_bridge.domain.subjects import CONSUMER, SubjectNames
from task_bridge.jetstream.streams import Streams
from task_bridge.simulator import Options, SimulatedVCenter
from task_bridge.simulator.serve import serve_vcenter
from validity import check_event

ACK_WAIT_S = 2.0
HANGS = 999
SESSIONS = 2
"""A bridge's with a vCenter: one for each kind of tasks."""
PERSISTENCE_S = 30.0
BEGIN_S = 90.0
"""For three bridges on a machine on which everybody else is busy too."""
_NATS_PY_NOISE = "_GatheringFuture exception was never retrieved"
"""Left behind by nats-py's drain() when it is given up because its server hangs (2.16)."""


class Replica:
    """A bridge in a process of its own behind its own proxy. `busy` is held by who does something to it."""

    def __init__(self, name: str, directory: Path, environment: dict[str, str], servers: Servers) -> None:
        directory.mkdir()
        self.name = name
        self.busy = asyncio.Lock()
        self.proxy = Proxy(lambda: random.sample(ports := [server.port for server in servers.alive], len(ports)))
        self._environment = environment
        self._directory = directory

    async def begin(self) -> None:
        await self.proxy.start()
        environment = {**self._environment, "BRIDGE_NATS_URL": self.proxy.url}
        self.process = BridgeProcess(environment, self._directory)
        await self.process.start()

    async def end(self) -> None:
        await self.process.close()
        await self.proxy.close()

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
        self.faulty_at = 0.0
        self.codes: dict[str, int] = {}


class World:
    """One round's: `prefix` is its own, so that the rounds of a run can share nats-servers."""

    def __init__(
        self, directory: Path, servers: Servers, prefix: str, vcenter: SimulatedVCenter, vcenter_url: str
    ) -> None:
        self.servers = servers
        self.names = SubjectNames(prefix)
        self.vcenter = vcenter
        self.book = Book()
        self.replicas: list[Replica] = []
        self.client: Client
        self.js: JetStreamContext
        self._vcenter_url = vcenter_url
        self._directory = directory

    async def begin(self, replicas: int, **environment: str) -> None:
        """Starts the bridges, and waits until all are ready."""
        self.client = await self.servers.connected()
        self._listener = await self.servers.connected()
        self.js = self.client.jetstream(timeout=5)
        await self.servers.ready(self.client)
        for _ in range(replicas):
            self._add(environment)
        await asyncio.gather(*(replica.begin() for replica in self.replicas))
        await asyncio.gather(*(replica.process.ready(BEGIN_S) for replica in self.replicas))
        for subject in (f"{self.names.events}.>", self.names.rejected):
            await self._listener.subscribe(subject, cb=self._hear)
        await self._listener.jetstream().account_info()  # a round trip behind the subscriptions

    def _add(self, environment: dict[str, str]) -> None:
        name = f"bridge-{len(self.replicas) + 1}"
        given = {
            "PATH": "/usr/bin:/bin",
            "BRIDGE_VCENTERS__LAB__URL": self._vcenter_url,
            "BRIDGE_VCENTERS__LAB__USERNAME": USERNAME,
            "BRIDGE_VCENTERS__LAB__PASSWORD": PASSWORD,
            "BRIDGE_HTTP_LISTEN": "127.0.0.1:0",
            "BRIDGE_SUBJECT_PREFIX": self.names.prefix,
            "BRIDGE_STREAM_REPLICAS": str(self.servers.replicas),
            "BRIDGE_POLL_MIN": "50ms",
            "BRIDGE_POLL_MAX": "500ms",
            "BRIDGE_PROGRESS_INTERVAL": "200ms",
            "BRIDGE_NOT_FOUND_GRACE": "500ms",
            "BRIDGE_ACK_WAIT": f"{ACK_WAIT_S:g}s",
            **environment,
        }
        self.replicas.append(Replica(name, self._directory / name, given, self.servers))

    async def end(self) -> None:
        for replica in self.replicas:
            await replica.end()
        self.servers.start()
        await self.servers.ready(self.client)
        for stream in (self.names.requests_stream, self.names.watches_stream, self.names.events_stream):
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
        self.book.heard.append(Heard(message.subject, int(headers.get("Nats-Sequence", 0)), message.data))

    # Acting as a user

    async def store(self, request: object, task: str, *, valid: bool = True, at: float) -> bool:
        """Publishes a request until JetStream confirms it; False when it didn't in time."""
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        headers = {"Nats-Msg-Id": f"{random.getrandbits(64):x}"}
        while time.time() < at + PERSISTENCE_S:
            try:
                ack = await self.js.publish(self.names.requests, body, timeout=2, headers=headers)
            except (TimeoutError, nats.errors.Error):
                await asyncio.sleep(0.3)
            else:
                self.book.asked.append(Asked(ack.seq, task, at, valid))
                return True
        return False

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

    # Looking afterwards

    async def left(self) -> tuple[int, int]:
        """How many requests and how many watches are stored; (-1, -1) while JetStream doesn't answer."""
        try:
            requests = await self.js.stream_info(self.names.requests_stream)
            watches = await self.js.stream_info(self.names.watches_stream)
        except (TimeoutError, nats.errors.Error):
            return -1, -1
        return requests.state.messages, watches.state.messages

    async def account(self) -> Account:
        """The whole history, for the checker."""
        stored = await self._all(self.names.events_stream)
        for message in stored:
            check_event(message.body)
        watches = [json.loads(message.body) for message in await self._all(self.names.watches_stream)]
        consumer = await self.js.consumer_info(self.names.watches_stream, CONSUMER)
        requests, _ = await self.left()
        return Account(
            prefix=self.names.prefix,
            stored=tuple(stored),
            asked=tuple(self.book.asked),
            answered=tuple(self.book.answered),
            truths=self._truths(),
            heard=tuple(self.book.heard),
            heard_all=self.book.heard_all,
            remains=Remains(
                watches=tuple((watch["id"], watch["task"]) for watch in watches),
                requests=requests,
                held=consumer.num_ack_pending or 0,
                waiting=consumer.num_pending or 0,
                sessions=len(self.vcenter.sessions.live),
                excused_sessions=self.book.excused_sessions,
            ),
        )

    async def _all(self, stream: str) -> list[Stored]:
        """All messages of a stream. Read until a replica has answered that has them all."""
        streams = Streams(self.client)
        while True:
            state = (await self.js.stream_info(stream)).state
            found: list[Stored] = []
            following = 1
            while following:
                page, following = await streams.read_page(stream, ">", found[-1].sequence if found else 0, 500)
                found += (Stored(*message) for message in page)
            if len(found) == state.messages:
                return found

    def _truths(self) -> dict[str, Truth]:
        book = self.book
        return {
            task: Truth(states_of(task, states), book.unseen_at.get(task), book.denied_at.get(task))
            for task, states in self.vcenter.histories().items()
        }

    async def heard_everything(self, within_s: float = 5.0) -> None:
        """Waits until what is stored has been heard, or as long as may be."""
        stored = (await self.js.stream_info(self.names.events_stream)).state.messages
        for _ in range(int(within_s / 0.05)):
            if len(self.book.heard) >= stored:
                return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def world(directory: Path, servers: Servers, prefix: str) -> AsyncIterator[World]:
    """A world without bridges yet."""
    vcenter = SimulatedVCenter(Options(username=USERNAME, password=PASSWORD))
    async with serve_vcenter(vcenter) as url:
        here = World(directory, servers, prefix, vcenter, url)
        try:
            yield here
        finally:
            await here.end()


async def killed(world: World, replica: Replica, number: int = signal.SIGKILL) -> int:
    """Ends a bridge by a signal; its exit code, HANGS when it doesn't end.

    Sessions that it can't log out of are excused.
    """
    began, book = time.time(), world.book
    was_faulty = bool(world.vcenter.faults.active())
    try:
        code = await replica.process.end(number, within_s=20)
    except TimeoutError:
        await replica.process.end(signal.SIGKILL)
        code = HANGS
    is_faulty = was_faulty or book.faulty_at >= began or bool(world.vcenter.faults.active())
    if number == signal.SIGKILL or code == HANGS or is_faulty:
        book.excused_sessions += SESSIONS
    return code
