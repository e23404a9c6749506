"""Reading JetStream: the last message of a subject, by a replica or by the leader, and pages of a stream."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections.abc import Awaitable
from typing import Any, NamedTuple, TypeVar

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from ..domain.durations import parse_time
from ..domain.errors import NatsUnavailable
from .request_mux import RequestMux
from .subscription_queue import SubscriptionQueue, queued_subscription

log = structlog.get_logger(__name__)

T = TypeVar("T")


_REFUSAL_HOLDS_S = 10.0
"""So long a refusal counts: what is to be stored is tried again within four seconds."""


class StoredMessage(NamedTuple):
    """A message as it lies in a stream. `stored_at`: Unix seconds by nats-server's clock."""

    subject: str
    sequence: int
    stored_at: float
    headers: dict[str, str]
    body: bytes


class Streams:
    """The reads that the bridge needs of JetStream. Raises NatsUnavailable, and nothing else of NATS's."""

    def __init__(self, connection: Client, domain: str | None = None) -> None:
        self.connection = connection
        self.js: JetStreamContext = connection.jetstream(domain=domain, timeout=5)
        self.prefix = f"$JS.{domain}.API" if domain else "$JS.API"
        self._asking = RequestMux(connection)
        self._refusals: dict[str, tuple[str, float]] = {}

    async def read_last(self, stream: str, subject: str, *, leader: bool = False) -> StoredMessage | None:
        """The newest message of `subject` (wildcards allowed), None when there is none.

        A direct get may be answered by a replica that lags; `leader` asks the one that decides about publishes.
        """
        try:
            found = await translate_errors(self.js.get_last_msg(stream, subject, direct=not leader), stream)
        except _NotFound:
            return None
        stored_at = found.time.timestamp() if found.time else 0.0
        return StoredMessage(found.subject or "", found.seq or 0, stored_at, found.headers or {}, found.data or b"")

    async def open(self) -> None:
        """Makes `publish` possible."""
        await self._asking.open()

    async def publish(self, stream: str, subject: str, body: bytes, headers: dict[str, str]) -> PubAck:
        """Stores a message. Raises NatsUnavailable when no answer came, and StoreRefused when it was a no."""
        try:
            ack = await self._published(subject, body, headers)
        except NatsUnavailable as error:
            if isinstance(error, StoreRefused) and (error.is_taken or error.is_fenced):
                self._takes(stream)
            elif self.connection.is_connected:
                self._refuses(stream, str(error))
            raise
        self._takes(stream)
        return ack

    def refusal(self, stream: str) -> str | None:
        """Why the stream takes no message, None when it does or nobody has tried for a while."""
        reason, at = self._refusals.get(stream, ("", -math.inf))
        return reason if time.monotonic() - at < _REFUSAL_HOLDS_S else None

    def _refuses(self, stream: str, reason: str) -> None:
        if self.refusal(stream) is None:
            log.warning("stream_refuses", stream=stream, reason=reason, cure="task-bridge check tells more")
        self._refusals[stream] = reason, time.monotonic()

    def _takes(self, stream: str) -> None:
        if self._refusals.pop(stream, None) is not None:
            log.info("stream_takes_again", stream=stream)

    async def _published(self, subject: str, body: bytes, headers: dict[str, str]) -> PubAck:
        try:
            # Not js.publish_async: an error answer never reaches its future (nats-py 2.16, measured).
            answer = await self._asking.request(subject, body, headers)
            ack = _acks.decode(answer.data)
        except (TimeoutError, nats.errors.Error, OSError, msgspec.DecodeError) as error:
            told = f"no answer to a publish on {subject}: {error or type(error).__name__}"
            raise NatsUnavailable(told) from error
        if ack.error is not None:
            raise StoreRefused(ack.error.err_code, ack.error.description)
        return ack

    async def delete(self, stream: str, sequence: int) -> None:
        """Removes one message; one that is gone already is fine."""
        try:
            await translate_errors(self.js.delete_msg(stream, sequence), stream)
        except _NotFound:
            return

    async def read_page(self, stream: str, subjects: str, after: int, limit: int) -> tuple[list[StoredMessage], int]:
        """Up to `limit` messages of `subjects` behind sequence `after`, oldest first, and how many follow them."""
        return await self._batch(stream, {"seq": after + 1, "next_by_subj": subjects, "batch": limit})

    async def read_newest(self, stream: str, subjects: list[str]) -> list[StoredMessage]:
        """The newest message of each subject that one of `subjects` (wildcards allowed) matches."""
        found, _ = await self._batch(stream, {"multi_last": subjects, "batch": 1024})
        return found

    async def _batch(self, stream: str, request: dict[str, Any]) -> tuple[list[StoredMessage], int]:
        """The answers of one direct get, and how many messages follow the last one."""
        inbox = self.connection.new_inbox()
        try:
            async with queued_subscription(self.connection, inbox) as heard:
                asked = json.dumps(request).encode()
                await self.connection.publish(f"{self.prefix}.DIRECT.GET.{stream}", asked, inbox)
                return await _answers(heard, stream)
        except (TimeoutError, nats.errors.Error) as error:
            raise NatsUnavailable(f"stream {stream} didn't answer: {error or type(error).__name__}") from error


async def _answers(heard: SubscriptionQueue, stream: str) -> tuple[list[StoredMessage], int]:
    found: list[StoredMessage] = []
    pending = 0
    while True:
        message = await heard.next(5.0)
        headers = message.headers or {}
        status = headers.get("Status")
        if status in ("204", "404"):  # the batch ends, or nothing is there
            return found, int(headers.get("Nats-Num-Pending", pending))
        if status is not None:
            raise NatsUnavailable(f"stream {stream}: {headers.get('Description', status)}")
        pending = int(headers.get("Nats-Num-Pending", 0))
        found.append(_stored(message))


class NewestMessageReader:
    """Reads the newest message of many subjects, as many at once as ask at the same time.

    One direct get a subject costs 80 to 150 µs; 90 together cost a third of that. A batch may have 1,024 results at
    most, so a subject (`….<task>.>`) may match 11.
    """

    BATCH = 90
    AT_ONCE = 4

    def __init__(self, streams: Streams, stream: str) -> None:
        self._streams = streams
        self._stream = stream
        self._asked: dict[str, asyncio.Future[StoredMessage | None]] = {}
        self._readers: set[asyncio.Task[None]] = set()

    async def read(self, subject: str) -> StoredMessage | None:
        """The newest message of `subject`, which ends in `.>`. Raises NatsUnavailable."""
        answer = self._asked.get(subject)
        if answer is None:
            answer = self._asked[subject] = asyncio.get_running_loop().create_future()
            if len(self._readers) < self.AT_ONCE:
                reader = asyncio.create_task(self._read())
                self._readers.add(reader)
                reader.add_done_callback(self._readers.discard)
        return await asyncio.shield(answer)

    async def _read(self) -> None:
        while self._asked:
            subjects = list(itertools.islice(self._asked, self.BATCH))
            asked = {subject: self._asked.pop(subject) for subject in subjects}
            try:
                found = await self._newest(subjects)
            except NatsUnavailable as error:
                for answer in asked.values():
                    answer.set_exception(error)
                    answer.exception()  # who asked may have been canceled, and asyncio would tell that nobody heard
            else:
                for subject, answer in asked.items():
                    answer.set_result(found.get(subject))

    async def _newest(self, subjects: list[str]) -> dict[str, StoredMessage]:
        if len(subjects) == 1:
            only = await self._streams.read_last(self._stream, subjects[0])
            return {subjects[0]: only} if only else {}
        depth = subjects[0].count(".")
        newest: dict[str, StoredMessage] = {}
        for stored in await self._streams.read_newest(self._stream, subjects):
            subject = ".".join(stored.subject.split(".")[:depth]) + ".>"
            if subject not in newest or newest[subject].sequence < stored.sequence:
                newest[subject] = stored
        return newest


def _stored(message: Msg) -> StoredMessage:
    headers = message.headers or {}
    stored_at = parse_time(headers.get("Nats-Time-Stamp")) or 0.0
    return StoredMessage(headers["Nats-Subject"], int(headers["Nats-Sequence"]), stored_at, headers, message.data)


class _ApiError(msgspec.Struct):
    err_code: int = 0
    description: str = "refused"


class PubAck(msgspec.Struct):
    """JetStream's answer to a publish; `duplicate`: the message id had been seen, whatever became of it."""

    seq: int = 0
    duplicate: bool = False
    error: _ApiError | None = None


_acks = msgspec.json.Decoder(PubAck)


class StoreRefused(NatsUnavailable):
    """JetStream answered a publish with a no; `code` is its err_code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_taken(self) -> bool:
        """Whether a message of the subject lies there already. The same code stands for a full stream (2.15)."""
        return self.code == 10077 and "per subject" in str(self)

    @property
    def is_fenced(self) -> bool:
        """Whether it wasn't the next one, or not certainly."""
        return self.code in (10071, 10158, 10164)


async def send_ack(connection: Client, reply: str, word: bytes) -> None:
    """One word to JetStream about a delivered message. What gets lost is made good by redelivery."""
    try:
        await connection.publish(reply, word)
    except nats.errors.Error as error:
        log.debug("word_lost", word=word.decode(), reason=str(error))


ACK, TERM, IN_PROGRESS, NAK = b"+ACK", b"+TERM", b"+WPI", b"-NAK"


def nak_later(seconds: float) -> bytes:
    """Not now: deliver it again after `seconds`."""
    return NAK + json.dumps({"delay": int(seconds * 1e9)}).encode()


_NO_MESSAGE = (10037, 10043, 10057)
"""How JetStream says that there is no such message: to a get, and twice to a delete."""


class _NotFound(Exception):  # noqa: N818 - an answer, not a failure
    pass


async def translate_errors(call: Awaitable[T], what: str) -> T:
    """The call's answer, its failures as NatsUnavailable (or _NotFound), naming what was asked."""
    try:
        return await call
    except nats.js.errors.APIError as error:
        direct = isinstance(error, nats.js.errors.NotFoundError) and error.err_code is None
        if direct or error.err_code in _NO_MESSAGE:
            raise _NotFound from error
        raise NatsUnavailable(f"{what}: {error.description or error}") from error
    except (TimeoutError, nats.errors.Error, OSError) as error:
        raise NatsUnavailable(f"{what} didn't answer: {error or type(error).__name__}") from error
