"""The bridge's connection to NATS: it logs in by the settings, reconnects without end, and reports its state."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import time
from collections.abc import Callable
from typing import Any

import nats.errors
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
from .connect import PERMISSION_VIOLATION, Credentials, choose_inbox, connect_options, error_message, tls_context
from .nats_py_workarounds import (
    accept_any_message,
    accept_late_pongs,
    cancel_and_wait,
    keep_unwritten_data,
    reconnect_after_any_error,
    replace_error_callback,
    wait_until_connected,
)
from .permissions import REFUSED_REPLY

log = structlog.get_logger(__name__)

PING_S = 1
_ATTEMPT_S = 15.0
"""Longer than the four timeouts of 3 s that an attempt to connect may take."""
INBOX = "_INBOX.bridge"
"""Inboxes of a bridge that has no user name: permissions can keep other users from subscribing to them."""
_RESUBSCRIBE_AFTER_S = 6.0
_VIOLATION_HOLDS_S = 12.0
"""Longer than a denied action stays untried: 6 s for a subscription, up to 10 s for an unanswered publish."""
_SERVICE_DISCOVERY = "$SRV"
_REFUSALS = ("authorization violation", "authentication", "user authentication", "account authentication")


class Connection:
    """A FastStream broker and the state of its connection. `reason` says why it isn't connected, None if it is."""

    def __init__(self, settings: NatsSettings, name: str) -> None:
        self._settings = settings
        self._refused_at_start: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_denied: list[Callable[[str], bool]] = []
        self._closing = False
        self._violation = (-math.inf, "")
        self._resubscribing: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._outage_log = FailureLog(log, "nats_away", "nats_back")
        self._refusal_log = FailureLog(log, "nats_refuses", "nats_accepts_again")
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reason: str | None = "not connected yet"
        self.broker = NatsBroker(
            list(settings.urls),
            name=name,
            security=_security(settings),
            allow_reconnect=True,
            # nats-py would give up after 60 attempts, and FastStream then spins and ignores SIGTERM (measured).
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            connect_timeout=3,
            # A server that stopped without closing the connection is noticed within three seconds.
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
        """Connect, however long it takes. Raises CannotStart when NATS refuses the credentials."""
        while (client := await self._attempt()) is None:
            pass
        keep_unwritten_data(client)
        self._client = client
        self.reason = None
        self._outage_log.report_recovery()
        server = client.connected_url.netloc if client.connected_url else None
        log.info("nats_connected", server=server, version=".".join(map(str, server_version(client))))
        return client

    async def _attempt(self) -> Client | None:
        """Return None when NATS neither accepted nor refused in time.

        nats-py waits for ever for the end of a connection that was cut during its TLS handshake (2.16, seen when
        nats-server restarted).
        """
        connecting = asyncio.ensure_future(self._connect())
        either: tuple[asyncio.Future[Any], ...] = (connecting, self._refused_at_start)
        try:
            await asyncio.wait(either, timeout=_ATTEMPT_S, return_when=asyncio.FIRST_COMPLETED)
            if self._refused_at_start.done():
                raise CannotStart(
                    f"NATS at {', '.join(self._settings.urls)} refuses the bridge: {self._refused_at_start.result()}. "
                    "Check BRIDGE_NATS_CREDS_FILE, _NKEY_SEED_FILE, _USER and _PASSWORD, or _TOKEN."
                )
            return connecting.result() if connecting.done() else None
        finally:
            await cancel_and_wait(connecting)

    async def _connect(self) -> Client:
        client = await self.broker.connect()
        replace_error_callback(client, self._on_error)
        reconnect_after_any_error(client)
        accept_any_message(client)
        accept_late_pongs(client)
        await wait_until_connected(client)
        replace_error_callback(client, _ignore_denied_inbox)
        with contextlib.suppress(nats.errors.Error, OSError):  # the connection is lost again
            await choose_inbox(client, self._settings.inbox_prefixes(INBOX))
        replace_error_callback(client, self._on_error)
        return client

    def on_denied(self, callback: Callable[[str], bool]) -> None:
        """Let `callback` say of each permission violation whether the bridge works without; it is no trouble then."""
        self._on_denied.append(callback)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` each time a lost connection is back."""
        self._on_reconnect.append(callback)

    async def close(self) -> None:
        """Flush and close, within seconds; never raises."""
        self._closing = True
        if self._resubscribing is not None:
            self._resubscribing.cancel()
        stopping = asyncio.ensure_future(self.broker.stop())
        await asyncio.wait((stopping,), timeout=1)
        await cancel_and_wait(stopping)

    async def _on_error(self, error: Exception) -> None:
        message = error_message(error)
        if any(words in message.lower() for words in _REFUSALS):
            self._on_refused(message)
        elif PERMISSION_VIOLATION in message.lower():
            self._on_permission_violation(message)
        elif self.reason is None:
            log.warning("nats_error", reason=message)
        else:
            self.reason = message
            self._outage_log.report_failure(reason=message, servers=list(self._settings.urls))
            self._reload_secrets()

    def _on_refused(self, message: str) -> None:
        """End the process if it is starting. Later a secret may be about to change, so read the secrets again."""
        if self._client is None:
            if not self._refused_at_start.done():
                self._refused_at_start.set_result(message)
            return
        self.reason = f"NATS refuses the bridge: {message}"
        self._refusal_log.report_failure(
            reason=message, cure="make the credentials in the bridge's files match those of NATS"
        )
        self._reload_secrets()

    def _reload_secrets(self) -> None:
        """Read the files with secrets and certificates again.

        nats-py keeps the values it got at the start; only credentials files it reads for each connection (2.16). The
        public key of a seed stays, so another seed takes a restart.
        """
        if self._client is not None:
            with contextlib.suppress(OSError, ssl.SSLError):  # half-written: the next attempt reads them again
                options = connect_options(self._settings)
                current = {name: options[name] for name in ("password", "token", "tls") if options.get(name)}
                self._client.options |= current

    def _on_permission_violation(self, message: str) -> None:
        if _SERVICE_DISCOVERY in message:
            log.warning("nats_error", reason=message)  # a reply to $SRV.PING and the like; nothing depends on it
            return
        if REFUSED_REPLY.lower() in message.lower() or any(is_optional(message) for is_optional in self._on_denied):
            return
        if self.missing_permission is None:
            log.warning("nats_forbids", reason=message, cure="give the bridge's user this permission (deploy/nats)")
        self._violation = time.monotonic() + _VIOLATION_HOLDS_S, message
        if "subscription" in message.lower() and self._resubscribing is None:
            self._resubscribing = asyncio.create_task(self._resubscribe())

    async def _resubscribe(self) -> None:
        """Reconnect a while later: nats-server refuses a subscription once and never tries it again."""
        await asyncio.sleep(_RESUBSCRIBE_AFTER_S)
        self._resubscribing = None
        if self._client is not None and not self._closing:
            await self._client.force_reconnect()

    @property
    def missing_permission(self) -> str | None:
        """The last permission violation; None when there was none in the last seconds."""
        until, message = self._violation
        return message if time.monotonic() < until else None

    async def _on_disconnected(self) -> None:
        if self.reason is None and not self._closing:
            self.reason = "connection lost"
            self._outage_log.report_failure(reason=self.reason, servers=list(self._settings.urls))

    async def _on_reconnected(self) -> None:
        self.reason = None
        self._refusal_log.report_recovery()
        self._outage_log.report_recovery()
        for callback in self._on_reconnect:
            callback()

    async def _on_closed(self) -> None:
        if not self.closed.done() and not self._closing:
            self.closed.set_result(None)


async def _ignore_denied_inbox(_: Exception) -> None:
    """Report nothing: another prefix is tried, and whatever else happens shows again."""


def server_version(client: Client) -> tuple[int, int, int]:
    """Return the connected nats-server's version."""
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
