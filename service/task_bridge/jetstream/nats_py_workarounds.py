"""Workarounds for faults of nats-py 2.16, one function for each.

Every private name of nats-py that the bridge uses stands here; `tests/integration/test_nats_py_workarounds.py` shows
that the names exist, and each fault beside what its workaround does. Try them again before nats-py's pin is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.protocol import parser

if TYPE_CHECKING:  # who only asks needs no service
    from nats.micro.request import Request
    from nats.micro.service import Service

_RECOVERABLE = ("permissions violation", "stale connection")
"""Errors of nats-server that nats-py handles as it should."""
_MAX_IN_A_ROW = 64
UNREADABLE_HEADERS = "Bridge-Unreadable-Headers"
"""Header that stands for a header block which can't be read; see `accept_any_message`."""
_MSG = re.compile(rb"\AMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)\r\n")
_HMSG = re.compile(rb"\AHMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)[ \t]+(\d+)\r\n")
"""As nats-server separates the arguments; the groups are those of nats-py's own expressions."""


def reconnect_after_any_error(client: Client) -> None:
    """Make the client reconnect after every error that nats-server disconnects it with.

    nats-py closes the client for good after all errors but two: also when credentials expired or were changed, or
    there were too many connections. Its task that reconnects also ends for good, and silently, when an attempt raises,
    as it does while a seed file is half-written.
    """
    process_error, attempt_reconnect = client._process_err, client._attempt_reconnect

    async def process_any_error(err_msg: str) -> None:
        if any(words in err_msg.lower() for words in _RECOVERABLE):
            await process_error(err_msg)
            return
        error = nats.errors.Error(f"nats: {err_msg.strip(chr(39))}")
        await client._error_cb(error)
        await client._process_op_err(error)

    async def attempt_until_reconnected() -> None:
        while True:
            try:
                return await attempt_reconnect()
            except Exception as error:
                await client._error_cb(error)
                await asyncio.sleep(1.0)

    client._process_err = process_any_error  # type: ignore[method-assign]
    client._attempt_reconnect = attempt_until_reconnected  # type: ignore[method-assign]


def replace_error_callback(client: Client, callback: Callable[[Exception], Awaitable[None]]) -> None:
    """Call `callback` for the client's errors from now on.

    FastStream 0.7.8 wraps the callback that it is given and raises a refusal again, which ends nats-py's attempts to
    reconnect for good.
    """
    client._error_cb = callback


def set_inbox_prefix(client: Client, prefix: str) -> None:
    """Make inboxes begin with `prefix` from now on. It can't be changed after the first request.

    nats-py takes it before it connects; whether the user may subscribe there is known only later.
    """
    client._inbox_prefix = bytearray(prefix.encode())


def forget_last_error(client: Client) -> None:
    """Forget the last error, after a denial that does no harm; else later failures would be explained by it."""
    client._err = None


def keep_unwritten_data(client: Client) -> None:
    """Keep what can't be written for the next connection, as nats-py does once it noticed that this one is closed.

    uvloop answers a write to a closed transport with a RuntimeError; asyncio's own loop drops the data. The error ends
    nats-py's flusher, and then every publish raises it (seen while nats-server was killed under load).
    """
    flush_pending: Callable[..., Awaitable[Any]] = client._flush_pending

    async def flush_or_keep(*args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(RuntimeError):
            await flush_pending(*args, **kwargs)

    client._flush_pending = flush_or_keep  # type: ignore[method-assign]


def accept_any_message(client: Client) -> None:
    """Let the client receive every message that nats-server delivers, whatever bytes are in it.

    nats-py raises in its read loop, and so loses the connection, for headers that it can't parse, for subjects that
    aren't UTF-8, and for a vertical tab or form feed in a subject, which it takes for the end of the subject. A stored
    message did that at each delivery, forever. Headers that can't be read become `{UNREADABLE_HEADERS: "true"}`, and
    bytes that aren't UTF-8 surrogate escapes.
    """
    parser.MSG_RE, parser.HMSG_RE = _MSG, _HMSG
    process_headers = client._process_headers

    async def process_or_mark(headers: bytes | None) -> dict[str, str] | None:
        if headers and not (headers.startswith(b"NATS/1.0") and headers.endswith(b"\r\n\r\n")):
            return {UNREADABLE_HEADERS: "true"}
        try:
            return await process_headers(headers)
        except Exception:
            return {UNREADABLE_HEADERS: "true"}

    def build_message(sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None) -> Msg:
        return client.msg_class(
            subject=subject.decode("utf-8", "surrogateescape"),
            reply=reply.decode("utf-8", "surrogateescape"),
            data=data,
            headers=headers,
            _client=client,
            _sid=sid,
        )

    client._process_headers = process_or_mark  # type: ignore[method-assign]
    client._build_message = build_message  # type: ignore[method-assign]


def accept_late_pongs(client: Client) -> None:
    """Let the client receive an answer to a PING that nobody waits for anymore.

    When a `flush` was canceled or timed out, nats-py's read loop ends at the PONG. Nothing is received then until the
    connection is given up, two unanswered PINGs later.
    """
    process_pong = client._process_pong

    async def process_or_skip() -> None:
        if client._pongs and client._pongs[0].done():
            client._pongs.pop(0)
            client._pings_outstanding = 0
        else:
            await process_pong()

    client._process_pong = process_or_skip  # type: ignore[method-assign]


def check_publish(client: Client, body_bytes: int) -> None:
    """Raise what `Client.publish` raises before it sends a message of `body_bytes`."""
    if client.is_closed:
        raise nats.errors.ConnectionClosedError
    if client.is_draining_pubs:
        raise nats.errors.ConnectionDrainingError
    if not client.is_connected and client._pending_data_size + body_bytes > client._max_pending_size:
        raise nats.errors.OutboundBufferLimitError
    if body_bytes > client.max_payload:
        raise nats.errors.MaxPayloadError


async def send_commands(client: Client, commands: list[bytes]) -> None:
    """Send encoded commands of NATS's protocol as one. `Client.publish` encodes and flushes each by itself."""
    await client._send_command(b"".join(commands))
    if client._flush_queue is not None and client._flush_queue.empty():
        await client._flush_pending()


def api_prefix(js: JetStreamContext) -> str:
    """Return the prefix of JetStream's API subjects, such as `$JS.API`; nats-py has no public name for it."""
    return js._prefix


def reply_subject(request: Request) -> str:
    """Return the subject to answer on; nats.micro has no public name for it."""
    return request._msg.reply


def ignore_utcnow() -> None:
    """Ignore from now on that Python 3.12 and later warn of `datetime.utcnow`, which nats.micro calls.

    Where warnings are errors, as for some users of the pytest plug-in, no service could start.
    """
    warnings.filterwarnings("ignore", "datetime.datetime.utcnow", DeprecationWarning, r"nats\.micro\.service")


async def drain_endpoints(service: Service) -> None:
    """Take no more requests, and let the handlers see all that have arrived; `Service.stop()` would drop those."""
    for endpoint in service._endpoints:
        if endpoint._subscription is not None:
            await endpoint._subscription.drain()


async def wait_until_connected(client: Client) -> None:
    """Wait until the client is connected.

    `Client.connect` also returns when the connection ended before the server's first answer. Then nats-py notices
    later and connects again.
    """
    while not client.is_connected:  # noqa: ASYNC110 -- nats-py has no event for it at the first connection
        await asyncio.sleep(0.05)


async def flush_and_wait(client: Client) -> None:
    """Wait until nats-server has accepted, or refused, everything that was sent. Raises what `flush` raises.

    The PING of a single `flush` overtakes data that waits to be written (measured).
    """
    await client.flush()
    await client.flush()


async def cancel_and_wait(*futures: asyncio.Future[Any]) -> None:
    """Cancel the futures again and again until each is done, and drop their results and errors.

    A single cancellation can get lost: nats-py swallows one and goes on connecting (measured), and `asyncio.wait_for`,
    which all requests of nats-py use, swallows one that coincides with the answer (Python 3.11: a bridge that was
    stopping never ended).
    """
    while pending := [future for future in futures if not future.done()]:
        for future in pending:
            future.cancel()
        await asyncio.wait(pending, timeout=0.1)
    for future in futures:
        if not future.cancelled():
            future.exception()  # mark it as retrieved: asyncio would log it


class SubscriptionQueue:
    """Messages of a subscription, one after the other.

    nats-py's `next_msg` makes a task for each message; in a busy event loop a thousand that have arrived take seconds
    (measured).
    """

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Msg] = asyncio.Queue()
        self._read_count = 0

    async def put(self, message: Msg) -> None:
        self._messages.put_nowait(message)

    async def next(self, timeout_s: float) -> Msg:
        """Return the next message. Raises TimeoutError."""
        self._read_count += 1
        if self._messages.empty():
            async with asyncio.timeout(timeout_s):  # wait_for of 3.11 may swallow a cancellation
                return await self._messages.get()
        if self._read_count % _MAX_IN_A_ROW == 0:
            await asyncio.sleep(0)  # let other tasks run
        return self._messages.get_nowait()


@contextlib.asynccontextmanager
async def subscription(client: Client, subject: str, callback: Callable[[Msg], Awaitable[None]]) -> AsyncIterator[None]:
    """Call `callback` for the messages of `subject` until the context ends."""
    subscribed = await client.subscribe(subject, cb=callback)
    try:
        yield
    finally:
        with contextlib.suppress(nats.errors.Error):
            await subscribed.unsubscribe()


@contextlib.asynccontextmanager
async def queued_subscription(client: Client, subject: str) -> AsyncIterator[SubscriptionQueue]:
    """Subscribe to `subject` until the context ends."""
    queue = SubscriptionQueue()
    async with subscription(client, subject, queue.put):
        yield queue
