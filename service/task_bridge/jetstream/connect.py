"""Connecting to NATS by the settings, within a limited time, and the permissions that nats-server refused since."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client, RawCredentials

from ..domain.errors import NatsUnavailable
from ..settings.nats import NatsSettings
from ..settings.values import read_credentials
from ..tls import create_client_context, explain_refusal
from .nats_py_workarounds import (
    accept_any_message,
    accept_late_pongs,
    cancel_and_wait,
    flush_and_wait,
    forget_last_error,
    reconnect_after_any_error,
    set_inbox_prefix,
    wait_until_connected,
)

PERMISSION_VIOLATION = "permissions violation"
INBOX = "_INBOX"
_INBOX_VIOLATION = f'{PERMISSION_VIOLATION} for subscription to "_inbox'

log = logging.getLogger(__name__)


def connect_options(settings: NatsSettings) -> dict[str, Any]:
    """Return servers, credentials and TLS as arguments of `nats.connect`. Secrets in files are read now."""
    options: dict[str, Any] = {"servers": list(settings.urls), "tls": tls_context(settings)}
    if settings.creds_file:
        options["user_credentials"] = Credentials(settings.creds_file)
    elif settings.nkey_seed_file:
        options["nkeys_seed"] = str(settings.nkey_seed_file)
    elif settings.user is not None:
        options |= {"user": settings.user, "password": settings.password() or ""}
    else:
        options["token"] = settings.token()
    return options


class Credentials(RawCredentials):
    """A credentials file that is read again for each connection. nats-py hangs if the file has no JWT (2.16)."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def data(self) -> str:  # type: ignore[override] # nats-py reads this attribute
        try:
            return read_credentials(self._file)
        except (ValueError, OSError) as error:
            raise nats.errors.Error(f"nats: BRIDGE_NATS_CREDS_FILE: {error}") from error


def tls_context(settings: NatsSettings) -> ssl.SSLContext | None:
    """Return the trusted authorities and the client's certificate; None when no setting asks for TLS."""
    if not (settings.tls_ca_file or settings.tls_cert_file or any(url.startswith("tls:") for url in settings.urls)):
        return None
    context = create_client_context(settings.tls_ca_file)
    if settings.tls_cert_file:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context


async def choose_inbox(client: Client, prefixes: Sequence[str]) -> None:
    """Get answers below the first of `prefixes` that the user may subscribe to, else below the last.

    So a permission for `_INBOX.>`, which earlier releases needed, still serves a user who is denied inboxes of its own.
    """
    *tried, last = prefixes
    for prefix in tried:
        set_inbox_prefix(client, prefix)
        subscription = await client.subscribe(client.new_inbox())
        await flush_and_wait(client)
        await subscription.unsubscribe()  # also a denied one: nats-py would try it at each reconnect
        if last_permission_violation(client) is None:
            return
        forget_last_error(client)
    set_inbox_prefix(client, last)


async def connect(settings: NatsSettings, timeout_s: float, *, inbox: str = INBOX, **options: Any) -> Client:
    """Return a new connection; `options` go to nats-py. Raises NatsUnavailable after `timeout_s`, with the reason.

    `inbox`: the prefix of inboxes if neither a setting nor the user's name gives one, or the user may not use that.
    """
    client, reason = Client(), "no answer"
    accept_any_message(client)
    accept_late_pongs(client)

    async def keep_reason(error: Exception) -> None:
        nonlocal reason
        message = error_message(error)
        log.debug("NATS: %s", message)
        if "auth" not in reason.lower():  # after a refusal the connection is cut, which is reported too
            reason = message

    async def connect_and_wait() -> None:
        # nats-py goes on after a refused connection, whatever its options say; the timeout below ends that.
        await client.connect(**connect_options(settings), error_cb=keep_reason, connect_timeout=3, **options)
        reconnect_after_any_error(client)
        await wait_until_connected(client)
        await choose_inbox(client, settings.inbox_prefixes(inbox))

    connecting = asyncio.ensure_future(connect_and_wait())
    try:
        await asyncio.wait((connecting,), timeout=timeout_s)
    finally:
        await cancel_and_wait(connecting)
    error = TimeoutError() if connecting.cancelled() else connecting.exception()
    if error is None:
        return client
    await client.close()
    if not isinstance(error, (nats.errors.Error, OSError)):  # TimeoutError is an OSError
        raise error
    raise NatsUnavailable(f"NATS can't be reached at {', '.join(settings.urls)}: {reason}.") from error


def error_message(error: Exception) -> str:
    """Return the error's text without nats-py's prefix, or what its type says where it has none."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused ({explain_refusal(error)})"
    nameless = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return (str(error) or nameless).removeprefix("nats: ")


def last_permission_violation(client: Client) -> str | None:
    """Return the last violation that nats-server reported, if it is the last error; in lower case (nats-py 2.16).

    nats-server reports violations to the connection; the request itself gets no answer.
    """
    message = error_message(client.last_error) if client.last_error else ""
    return message if PERMISSION_VIOLATION in message else None


def denied_permission(client: Client, subject: str) -> str | None:
    """Return the missing permission that keeps a request to `subject` from an answer, None if none is known."""
    violation = last_permission_violation(client) or ""
    quoted = f'"{subject.lower()}"'
    if quoted not in violation and not violation.startswith(_INBOX_VIOLATION):
        return None
    return violation.replace(quoted, f'"{subject}"')
