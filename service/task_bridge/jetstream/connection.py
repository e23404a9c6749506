"""The one connection to NATS: by whatever credentials, never given up, its state told."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from faststream.nats import (
    NatsBroker,
    NatsCredentials,
    NatsNKey,
    NatsSecurity,
    NatsToken,
    NatsUserPassword,
)
from nats.aio.client import Client

from ..domain.errors import CannotStart
from ..logs import FailureLog
from ..settings import NatsSettings
from .connect import Credentials, connect_options, reconnect_after_any_error, tls_context, wait_until_connected

log = structlog.get_logger(__name__)

PING_S = 1
_TRY_S = 15.0
"""Longer than the four waits of 3 s that a try to connect may take."""
INBOX = "_INBOX.bridge"
"""A place of its own for answers, that permissions can keep others from listening at."""
_FORBIDDEN = "permissions violation"
_ASK_AGAIN_S = 6.0
_FORBIDDEN_HOLDS_S = 12.0
"""Longer than what is forbidden stays untried: 6 s for a subscription, up to 10 s for an unanswered publish."""
_SERVICE_ASKED = "$SRV"
_REFUSED = ("authorization violation", "authentication", "user authentication", "account authentication")


class Connection:
    """A FastStream broker and what is known of its connection. `reason` tells why it is away."""

    def __init__(self, settings: NatsSettings, name: str) -> None:
        self._settings = settings
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_return: list[Callable[[], None]] = []
        self._closing = False
        self._forbidden = (-math.inf, "")
        self._asking_again: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._trouble = FailureLog(log, "nats_away", "nats_back")
        self._refusal = FailureLog(log, "nats_refuses", "nats_accepts_again")
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reason: str | None = "not connected yet"
        self.broker = NatsBroker(
            list(settings.urls),
            name=name,
            inbox_prefix=INBOX,
            security=_security(settings),
            allow_reconnect=True,
            # nats-py would give up after 60 tries, and FastStream then spins deaf to SIGTERM (measured).
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            connect_timeout=3,
            # A server that stopped without closing the connection shows within three seconds.
            ping_interval=PING_S,
            max_outstanding_pings=2,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
            apply_types=False,
            graceful_timeout=2,
            logger=None,
        )

    async def open(self) -> Client:
        """Connects, waiting as long as it takes. Raises CannotStart when NATS refuses the credentials."""
        while (client := await self._try()) is None:
            pass
        client._flush_pending = _kept_when_closed(client._flush_pending)  # type: ignore[method-assign, assignment]
        self._client = client
        self.reason = None
        self._trouble.report_recovery()
        server = client.connected_url.netloc if client.connected_url else None
        log.info("nats_connected", server=server, version=".".join(map(str, server_version(client))))
        return client

    async def _try(self) -> Client | None:
        """None when it was neither connected nor refused in time: nats-py waits for ever for the end of a
        connection that was cut in the middle of its TLS handshake (2.16, seen at a restart of nats-server)."""
        connecting = asyncio.ensure_future(self._connected())
        either: tuple[asyncio.Future[Any], ...] = (connecting, self._refused)
        try:
            await asyncio.wait(either, timeout=_TRY_S, return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                raise CannotStart(
                    f"NATS at {', '.join(self._settings.urls)} refuses the bridge: {self._refused.result()}. "
                    "Check BRIDGE_NATS_CREDS_FILE, _NKEY_SEED_FILE, _USER and _PASSWORD, or _TOKEN."
                )
            return connecting.result() if connecting.done() else None
        finally:
            await cancel_and_wait(connecting)

    async def _connected(self) -> Client:
        client = await self.broker.connect()
        # FastStream's own raises a refusal again, which ends nats-py's tries to reconnect for good (0.7.8).
        client._error_cb = self._on_error
        reconnect_after_any_error(client)
        await wait_until_connected(client)
        return client

    def on_return(self, call: Callable[[], None]) -> None:
        """Calls `call` whenever a lost connection came back."""
        self._on_return.append(call)

    async def close(self) -> None:
        """Flushes and closes; never raises, never takes long."""
        self._closing = True
        if self._asking_again is not None:
            self._asking_again.cancel()
        stopping = asyncio.ensure_future(self.broker.stop())
        await asyncio.wait((stopping,), timeout=1)
        await cancel_and_wait(stopping)

    async def _on_error(self, error: Exception) -> None:
        told = str(error) or type(error).__name__
        if any(word in told.lower() for word in _REFUSED):
            self._is_refused(told.removeprefix("nats: "))
        elif _FORBIDDEN in told.lower():
            self._is_forbidden(told.removeprefix("nats: "))
        elif self.reason is None:
            log.warning("nats_error", reason=told)
        else:
            self.reason = told
            self._trouble.report_failure(reason=told, servers=list(self._settings.urls))
            self._reread()

    def _is_refused(self, told: str) -> None:
        """At the start that ends the process. Later it may be a secret that is being changed: it is read again."""
        if self._client is None:
            if not self._refused.done():
                self._refused.set_result(told)
            return
        self.reason = f"NATS refuses the bridge: {told}"
        self._refusal.report_failure(reason=told, cure="see that the credentials in the bridge's files are NATS's")
        self._reread()

    def _reread(self) -> None:
        """Secrets and certificates in files, as of now: nats-py keeps what it was given at the start, but for
        credentials files, which it reads each time (2.16). A seed's public key stays: that takes a restart."""
        if self._client is not None:
            with contextlib.suppress(OSError, ssl.SSLError):  # half-written: the next try reads them again
                now = connect_options(self._settings)
                self._client.options |= {name: now[name] for name in ("password", "token", "tls") if now.get(name)}

    def _is_forbidden(self, told: str) -> None:
        if _SERVICE_ASKED in told:
            log.warning("nats_error", reason=told)  # answers to $SRV.PING and the like; nothing depends on them
            return
        if self.forbidden is None:
            log.warning("nats_forbids", reason=told, cure="give the bridge's user this permission (deploy/nats)")
        self._forbidden = time.monotonic() + _FORBIDDEN_HOLDS_S, told
        if "subscription" in told.lower() and self._asking_again is None:
            self._asking_again = asyncio.create_task(self._ask_again())

    async def _ask_again(self) -> None:
        """A subscription is refused once and not heard of again; a new connection asks for it anew."""
        await asyncio.sleep(_ASK_AGAIN_S)
        self._asking_again = None
        if self._client is not None and not self._closing:
            await self._client.force_reconnect()

    @property
    def forbidden(self) -> str | None:
        """What nats-server doesn't permit the bridge's user, None when it's all that was tried of late."""
        until, told = self._forbidden
        return told if time.monotonic() < until else None

    async def _on_disconnected(self) -> None:
        if self.reason is None and not self._closing:
            self.reason = "connection lost"
            self._trouble.report_failure(reason=self.reason, servers=list(self._settings.urls))

    async def _on_reconnected(self) -> None:
        self.reason = None
        self._refusal.report_recovery()
        self._trouble.report_recovery()
        for call in self._on_return:
            call()

    async def _on_closed(self) -> None:
        if not self.closed.done() and not self._closing:
            self.closed.set_result(None)


def _kept_when_closed(flush: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[None]]:
    """What can't be written is kept for the next connection, as nats-py does once it has noticed.

    uvloop answers a write to a closed transport with a RuntimeError, where asyncio's own drops what is written; it
    ends nats-py's flusher and then comes out of every publish (2.16, seen while nats-server was killed under load).
    """

    async def flushed(*args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(RuntimeError):
            await flush(*args, **kwargs)

    return flushed


async def cancel_and_wait(*doomed: asyncio.Future[Any]) -> None:
    """Ends them, whatever they make of it, asking again and again.

    A cancellation gets lost: nats-py swallows one and goes on connecting (2.16, measured), and so does
    `asyncio.wait_for`, under every request of nats-py, when it meets the answer (Python 3.11: a bridge told to stop
    went on for ever).
    """
    while pending := [one for one in doomed if not one.done()]:
        for one in pending:
            one.cancel()
        await asyncio.wait(pending, timeout=0.1)
    for one in doomed:
        if not one.cancelled():
            one.exception()  # it has been told, or nobody waits for it any more


def server_version(client: Client) -> tuple[int, int, int]:
    """The connected nats-server's version."""
    version = client.connected_server_version
    return version.major, version.minor, version.patch


def _security(settings: NatsSettings) -> NatsSecurity:
    context = tls_context(settings)
    if settings.creds_file:
        return NatsCredentials(Credentials(settings.creds_file), ssl_context=context)
    if settings.nkey_seed_file:
        return NatsNKey.from_file(settings.nkey_seed_file, ssl_context=context)
    if settings.user is not None:
        return NatsUserPassword(settings.user, settings.password() or "", ssl_context=context)
    if token := settings.token():
        return NatsToken(token, ssl_context=context)
    return NatsSecurity(ssl_context=context)
