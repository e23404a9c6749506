"""Requests to JetStream over one inbox: how the bridge publishes watches and events."""

from __future__ import annotations

import asyncio
import itertools

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from .nats_py_workarounds import check_publish, send_commands

NO_RESPONDERS = "503"
REQUEST_TIMEOUT_S = 5.0
_SWEEP_S = 1.0


class RequestMux:
    """Requests over one inbox of the bridge's own, for publishes of watches and events.

    nats-py's request creates a task, a timer and a random token each time: 97 µs per publish with an event's headers,
    76 µs over one inbox. What is requested in one turn of the event loop is encoded here and sent at once, which halves
    the rest (docs/decisions/0029). One sweep per second fails the requests that were never answered.
    """

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox() + "."
        self._is_subscribed = False
        self._tokens = itertools.count()
        self._pending: dict[str, tuple[asyncio.Future[Msg], float]] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._commands: list[bytes] = []
        self._sending: asyncio.Task[None] | None = None

    async def request(self, subject: str, body: bytes, headers: dict[str, str]) -> Msg:
        """Publish and return the answer.

        Raises TimeoutError after 5 to 6 seconds, NoRespondersError, or what nats-py's publish and subscribe raise.
        """
        if not self._is_subscribed:
            self._is_subscribed = True  # for as long as the connection lives; what is sent later arrives later
            await self._connection.subscribe(self._inbox + "*", cb=self._on_answer)
        loop = asyncio.get_running_loop()
        token = str(next(self._tokens))
        answer: asyncio.Future[Msg] = loop.create_future()
        self._pending[token] = answer, loop.time() + REQUEST_TIMEOUT_S
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(_SWEEP_S, self._time_out_requests)
        try:
            command = encode_publish(subject, self._inbox + token, headers, body)
            if command is None:
                await self._connection.publish(subject, body, self._inbox + token, headers=headers)
            else:
                self._send_soon(command, len(body))
            message = await answer
        finally:
            self._pending.pop(token, None)
        if message.headers and message.headers.get("Status") == NO_RESPONDERS:
            raise nats.errors.NoRespondersError
        return message

    def _send_soon(self, command: bytes, body_bytes: int) -> None:
        """Send the command in this turn of the event loop, with all others. Raises what nats-py's publish raises."""
        check_publish(self._connection, body_bytes)
        self._commands.append(command)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_commands())

    async def _send_commands(self) -> None:
        try:
            while self._commands:
                commands, self._commands = self._commands, []
                await send_commands(self._connection, commands)
        finally:
            self._sending = None

    async def _on_answer(self, message: Msg) -> None:
        pending = self._pending.get(message.subject[len(self._inbox) :])
        if pending is not None and not pending[0].done():
            pending[0].set_result(message)

    def _time_out_requests(self) -> None:
        """Fail the requests that waited too long, from the oldest one on."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for answer, deadline in self._pending.values():
            if deadline > now:
                break
            if not answer.done():
                answer.set_exception(TimeoutError("no answer in time"))
        self._sweep_timer = loop.call_later(_SWEEP_S, self._time_out_requests) if self._pending else None


def encode_publish(subject: str, reply: str, headers: dict[str, str], body: bytes) -> bytes | None:
    """Return the command that publishes a message; None if what nats-py cleans or refuses is in its head."""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if " " in subject or not (subject.isascii() and subject.isprintable() and "".join(lines).isprintable()):
        return None
    head = "NATS/1.0\r\n{}\r\n\r\n".format("\r\n".join(lines)).encode()
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
        subject.encode(),
        reply.encode(),
        len(head),
        len(head) + len(body),
        head,
        body,
    )
