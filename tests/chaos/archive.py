"""All that the events stream ever stored, also after an operator has removed it from there."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from chaos.account import Heard, Stored
from task_bridge.domain.errors import NatsUnavailable
from task_bridge.jetstream.streams import StoredMessage, Streams

READ_S = 45.0


async def read_queue(js: JetStreamContext, stream: str) -> tuple[list[Stored], int]:
    """Return what a work queue has, as its leader knows it, up to which sequence: messages come and go meanwhile."""
    state = (await js.stream_info(stream)).state
    found = list[Stored]()
    for sequence in range(max(1, state.first_seq), state.last_seq + 1):
        with suppress(nats.js.errors.NotFoundError):
            message = await js.get_msg(stream, sequence)
            stored_at = message.time.timestamp() if message.time else 0.0
            found.append(Stored(message.subject or "", sequence, stored_at, message.headers or {}, message.data or b""))
    return found, state.last_seq


class Archive:
    """The events stream's messages in the order in which they were stored. `read` keeps what came since."""

    def __init__(self, js: JetStreamContext, streams: Streams, stream: str) -> None:
        self.messages: list[Stored] = []
        self._js = js
        self._streams = streams
        self._stream = stream
        self._newest = 0
        self._began = 0
        """Where in `messages` the stream that is there now begins: it may have been made again."""

    @property
    def newest(self) -> int:
        return self._newest

    async def read(self) -> None:
        """Take in what was stored since the last time."""
        for message in await self._read(self._newest):
            for unread in range(self._newest + 1, message.sequence):
                self.messages.append(Stored("", unread, 0.0, {}, b"", gone_at=time.time()))
            self._newest = message.sequence
            self.messages.append(Stored(*message))

    async def note_returned(self) -> None:
        """Note what is there again: a nats-server that is killed forgets what it has just evicted (2.12, measured)."""
        there = {message.sequence for message in await self._read(0)}
        for place, message in enumerate(self.messages[self._began :], self._began):
            if message.sequence in there:
                self.messages[place] = message._replace(gone_at=math.inf)

    async def _read(self, after: int) -> list[StoredMessage]:
        """What the stream has, up to the message that its leader has stored last: others may lag."""
        deadline, found = time.monotonic() + READ_S, list[StoredMessage]()
        while True:
            try:
                newest = (await self._js.stream_info(self._stream)).state.last_seq
                following = 1
                while following:
                    page, following = await self._streams.read_page(self._stream, ">", after, 500)
                    found += page
                    after = found[-1].sequence if found else after
                if max(after, self._newest) >= newest:
                    return found
            except (NatsUnavailable, TimeoutError, nats.errors.Error):
                await asyncio.sleep(0.1)
            assert time.monotonic() < deadline, f"{self._stream} can't be read"

    def fill(self, heard: list[Heard], rejected: str) -> int:
        """Put in what was removed before it was read, as a subscriber heard it. Return how much nobody heard.

        Rejections aren't republished, so they are heard without their sequence.
        """
        known = {(message.sequence, message.subject, message.body) for message in self.messages}
        rejections = {o.headers.get("Nats-Msg-Id"): o for o in reversed(heard) if o.subject == rejected}
        for message in self.messages:
            rejections.pop(message.headers.get("Nats-Msg-Id"), None)
        unread = iter(sorted(rejections.values(), key=lambda one: one.at))
        by_sequence = {one.sequence: one for one in heard if (one.sequence, one.subject, one.body) not in known}
        for place, message in enumerate(self.messages):
            if not message.subject and (one := by_sequence.get(message.sequence) or next(unread, None)):
                self.messages[place] = message._replace(
                    subject=one.subject, stored_at=one.at, headers=one.headers, body=one.body, there_at=one.at
                )
        nobodys = [message for message in self.messages if not message.subject]
        self.messages = [message for message in self.messages if message.subject]
        return len(nobodys)

    def remove(self, is_removed: Callable[[Stored], bool], there_at: float) -> None:
        """Note that these have gone between `there_at` and now."""
        now = time.time()
        for place, message in enumerate(self.messages[self._began :], self._began):
            if message.gone_at > now and is_removed(message):
                self.messages[place] = message._replace(there_at=there_at, gone_at=now)

    def begin_again(self, there_at: float) -> None:
        """Note that the stream was deleted; the next one begins with sequence 1."""
        self.remove(lambda _: True, there_at)
        self._newest, self._began = 0, len(self.messages)
