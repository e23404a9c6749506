"""Requests to JetStream over one inbox of the bridge's own, for the publishes of watches and events.

nats-py's request makes a task, a timer and a random token each time: 97 µs a publish with an event's headers, 76
this way (one run, interleaved); one sweep a second looks for what was never answered.
"""

from __future__ import annotations

import asyncio
import itertools

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

TIMEOUT_S = 5.0
_SWEEP_S = 1.0
_NO_RESPONDERS = "503"


class RequestMux:
    """`ask` is a publish with a reply. `open` must have been called."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox() + "."
        self._numbers = itertools.count()
        self._asked: dict[str, tuple[asyncio.Future[Msg], float]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Subscribes the inbox, for as long as the connection lives."""
        await self._connection.subscribe(self._inbox + "*", cb=self._answered)

    async def request(self, subject: str, body: bytes, headers: dict[str, str]) -> Msg:
        """The answer. Raises TimeoutError after 5 to 6 seconds, NoRespondersError, or what publish raises."""
        loop = asyncio.get_running_loop()
        token = str(next(self._numbers))
        answer: asyncio.Future[Msg] = loop.create_future()
        self._asked[token] = answer, loop.time() + TIMEOUT_S
        if self._sweeping is None:
            self._sweeping = loop.call_later(_SWEEP_S, self._sweep)
        try:
            await self._connection.publish(subject, body, self._inbox + token, headers=headers)
            message = await answer
        finally:
            self._asked.pop(token, None)
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            raise nats.errors.NoRespondersError
        return message

    async def _answered(self, message: Msg) -> None:
        asked = self._asked.get(message.subject[len(self._inbox) :])
        if asked is not None and not asked[0].done():
            asked[0].set_result(message)

    def _sweep(self) -> None:
        """Fails what waited too long. The dict is in the order of asking, so the first that hasn't ends it."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for answer, until in self._asked.values():
            if until > now:
                break
            if not answer.done():
                answer.set_exception(TimeoutError("no answer in time"))
        self._sweeping = loop.call_later(_SWEEP_S, self._sweep) if self._asked else None
