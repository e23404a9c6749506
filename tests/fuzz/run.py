"""Hostile requests at a whole bridge in a process of its own; what must hold whatever they are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx
import nats.errors
from nats.aio.client import Client

from fuzz import hostile, raw_bytes, raw_http
from lab import EVENTS, PREFIX, BridgeProcess, Lab
from raw_nats import MessageRefused, Raw, raw_connection
from task_bridge.client import TaskBridge
from task_bridge.jetstream.nats_py_workarounds import SubscriptionQueue, accept_any_message, subscription
from task_bridge.jetstream.stream_reader import StreamReader
from task_bridge.jetstream.streams import Streams
from task_bridge.simulator import scenarios
from validity import check_event, check_reply

VERBS = ("watch", "get", "list", "unwatch", "cancel")
AT_ONCE = 50
ANSWER_S = 30.0
HTTP_ANSWER_S = 1.0
_STORED = re.compile(
    r"vcenter\.tasks\.(rejected|events\.lab\.[A-Za-z0-9%~:_-]+"
    r"\.(watching|status|progress|stalled|(completed|abandoned)\.[a-z_]+))"
)
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Attack:
    """`count` requests out of `seed`; two thirds ask the API, the others are published and kept."""

    def __init__(self, lab: Lab, bridge: BridgeProcess, http: str, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.published = 0
        self.slowest_s = 0.0
        self._lab = lab
        self._bridge = bridge
        self._http = http
        self._server = lab.server.url
        self._random = Random(seed)
        self._tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(30)]
        self._watched = 0

    async def make(self, count: int) -> None:
        remaining = iter(range(count))

        async def send() -> None:
            for _ in remaining:
                await self._send()

        await asyncio.gather(*(send() for _ in range(AT_ONCE)))

    async def _send(self) -> None:
        random, client = self._random, self._lab.client
        body = hostile.body(random, random.choice(self._tasks))
        headers = {"traceparent": random.choice(hostile.TRACES[:3])} if random.random() < 0.2 else None
        if random.random() < 0.3:
            self.published += 1
            await client.publish(f"{PREFIX}.watch", body, headers=headers)
            await client.flush()
            return
        verb = random.choice(VERBS)
        self._watched += verb == "watch"
        self.outcomes[await self._answered(client, verb, body, headers)] += 1

    async def _answered(self, client: Client, verb: str, body: bytes, headers: dict[str, str] | None) -> str:
        began = time.monotonic()
        try:
            reply = await client.request(f"{PREFIX}.api.{verb}", body, timeout=ANSWER_S, headers=headers)
        except (TimeoutError, nats.errors.Error) as error:
            raise AssertionError(f"{verb} was not answered ({error!r}): {body[:2000]!r}") from error
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        refused = "Nats-Service-Error-Code" in (reply.headers or {})
        check_reply(verb, reply.data, refused=refused)
        assert refused or verb != "cancel", "cancel is switched off"
        return f"{verb} {json.loads(reply.data)['error']['code']}" if refused else f"{verb} ok"

    async def make_raw(self, count: int) -> None:
        """Send messages that no client library would. Then the bridge must be there as before."""
        random, answers = self._random, SubscriptionQueue()
        accept_any_message(self._lab.client)
        async with subscription(self._lab.client, "raw.answers.>", answers.put), raw_connection(self._server) as raw:
            awaited = [await self._send_raw(raw, number, random) for number in range(count)]
            missing = {reply for reply in awaited if reply}
            while missing:
                missing.discard((await answers.next(ANSWER_S)).subject)
        await self.probe()

    async def _send_raw(self, raw: Raw, number: int, random: Random) -> str | None:
        """Send one, and return the subject on which the bridge must answer, if it must."""
        block, body = raw_bytes.headers(random), hostile.body(random, random.choice(self._tasks))[:100_000]
        odd, reply = raw_bytes.token(random), f"raw.answers.{number}"
        verb = random.choice(VERBS)
        subject, answered = random.choice(
            (
                (f"{PREFIX}.watch".encode(), False),
                (f"{PREFIX}.api.{verb} {reply}".encode(), True),
                (f"{PREFIX}.api.{verb} ".encode() + odd, False),
                (f"{PREFIX}.internal.replicas".encode(), False),
                (f"{PREFIX}.events.lab.".encode() + odd + b".abandoned.unwatched", False),
                (b"$SRV.PING ".replace(b"PING", random.choice((b"PING", b"INFO", b"STATS"))) + odd, False),
            )
        )
        try:
            await raw.publish(subject, block, body)
        except MessageRefused:
            self.outcomes["raw refused by NATS"] += 1
            return None
        # One whose answer would reach JetStream or another service of NATS is dropped.
        self._watched += b".api.watch" in subject and b" $" not in subject
        self.outcomes["raw"] += 1
        return reply if answered else None

    async def make_http(self, count: int) -> None:
        """Send requests over HTTP that no client library would. Then the bridge must be there as before.

        Which of them were served isn't known, so this comes after `settled`.
        """
        remaining = iter(range(count))

        async def send() -> None:
            for _ in remaining:
                sent = raw_http.request(self._random, self._random.choice(self._tasks))
                status = await self._send_http(sent)
                self.outcomes[f"http {status or 'without an answer'}"] += 1
                assert status != 500, sent[:2000]

        await asyncio.gather(*(send() for _ in range(AT_ONCE)))
        await self.probe()

    async def _send_http(self, sent: bytes) -> int | None:
        """Return the status of the answer, None if there is none."""
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(self._http).port)
        try:
            writer.write(sent)
            async with asyncio.timeout(HTTP_ANSWER_S):
                line = await reader.readline()
        except OSError:  # TimeoutError too: what isn't whole isn't answered for ten seconds
            return None
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return int(line.split()[1]) if line else None

    async def crowd(self, count: int) -> None:
        """Hold so many connections with half of a body at once. Then the bridge must be there as before."""
        half = f"POST /v1/watch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {raw_http.TOKEN}\r\n"
        opening = [asyncio.open_connection("127.0.0.1", urlsplit(self._http).port) for _ in range(count)]
        opened = [one for one in await asyncio.gather(*opening, return_exceptions=True) if isinstance(one, tuple)]
        try:
            for _, writer in opened:
                writer.write(half.encode() + b"Content-Length: 100\r\n\r\n{")
            await self.probe()
        finally:
            for _, writer in opened:
                writer.close()

    async def probe(self) -> None:
        """A watch must end as its task, over a connection that the bridge never lost."""
        task = self._lab.vcenter.create(scenarios.succeeds_at_once())
        async with TaskBridge(self._server) as client:
            await client.wait(task, timeout=ANSWER_S)
        self._watched += 1
        events = [json.loads(line)["event"] for line in self._bridge.log.read_text().split("\n")[:-1]]
        assert events.count("nats_connected") == 1
        assert not {"nats_away", "nats_refuses"} & set(events)

    async def settled(self, within_s: float) -> None:
        """Every request that was published and every one to watch is counted: with an outcome, or as rejected."""
        stored = (await self._lab.js.stream_info(f"{EVENTS.removesuffix('EVENTS')}REQUESTS")).state.last_seq
        expected = stored + self._watched - self.outcomes["watch unavailable"]
        deadline = time.monotonic() + within_s
        async with httpx.AsyncClient(trust_env=False) as http:
            while (counted := await self._counted(http)) < expected:
                assert time.monotonic() < deadline, f"{counted} of {expected} requests are answered or rejected"
                await asyncio.sleep(0.1)
        assert counted == expected

    async def _counted(self, http: httpx.AsyncClient) -> int:
        text = (await http.get(f"{self._http}/metrics", timeout=30)).text
        return int(sum(map(float, re.findall(r"^task_bridge_requests_total\{.*?\} (\S+)$", text, re.M))))

    async def nothing_leaked(self) -> None:
        """Into a subject, a URL, a metric's label, the log, the board; and every event is what the schema says."""
        lab, kept = self._lab, Counter[str]()
        async for message in StreamReader(Streams(lab.client), EVENTS, [">"], follow=False).messages():
            assert _STORED.fullmatch(message.subject), message.subject
            check_event(message.body)
            kept["rejected" if message.subject.endswith(".rejected") else "event"] += 1
        self.outcomes.update(kept)
        requests = list(lab.vcenter.request_log.requests)
        async with asyncio.timeout(30):
            # A request in flight has no operation until its body has been read.
            while any(one.operation == "unknown" and one.seconds is None for one in requests):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        for request in requests:
            assert request.operation != "unknown", request.path  # an id that left its place would ask for that
        async with httpx.AsyncClient(trust_env=False) as http:
            metrics = (await http.get(f"{self._http}/metrics", timeout=30)).text
            board = (await http.get(f"{self._http}/", timeout=30)).text
            assert (await http.get(f"{self._http}/readyz", timeout=30)).status_code == 200
        assert hostile.MARK not in metrics + board
        assert not re.search(r'vcenter="(?!lab")', metrics)
        for line in self._bridge.log.read_text().split("\n")[:-1]:
            told: dict[str, Any] = json.loads(line)
            assert not _UNPRINTED.search(line), line
            assert told["level"] in ("info", "warning"), line
