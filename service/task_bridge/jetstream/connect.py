"""How one connects to NATS by the settings: what nats-py's `connect` wants to be told, and a try that ends."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client, RawCredentials

from ..domain.errors import NatsUnavailable
from ..settings import NatsSettings
from ..settings.values import read_credentials

_KEPT = ("permissions violation", "stale connection")
"""Errors of nats-server that nats-py deals with as it should."""

log = logging.getLogger(__name__)


def connect_options(settings: NatsSettings) -> dict[str, Any]:
    """Servers, credentials and TLS as arguments of `nats.connect`. Secrets in files are read now."""
    told: dict[str, Any] = {"servers": list(settings.urls), "tls": tls_context(settings)}
    if settings.creds_file:
        told["user_credentials"] = Credentials(settings.creds_file)
    elif settings.nkey_seed_file:
        told["nkeys_seed"] = str(settings.nkey_seed_file)
    elif settings.user is not None:
        told |= {"user": settings.user, "password": settings.password() or ""}
    else:
        told["token"] = settings.token()
    return told


class Credentials(RawCredentials):
    """A credentials file, read anew each time that it is needed. nats-py hangs at one without a JWT (2.16)."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def data(self) -> str:  # type: ignore[override] # which is where nats-py looks
        try:
            return read_credentials(self._file)
        except (ValueError, OSError) as error:
            raise nats.errors.Error(f"nats: BRIDGE_NATS_CREDS_FILE: {error}") from error


def tls_context(settings: NatsSettings) -> ssl.SSLContext | None:
    """What is trusted and shown; None when nothing asks for TLS."""
    if not (settings.tls_ca_file or settings.tls_cert_file or any(url.startswith("tls:") for url in settings.urls)):
        return None
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    if settings.tls_cert_file:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context


async def connect(settings: NatsSettings, within_s: float, **more: Any) -> Client:
    """A connection with the options of nats-py in `more`. Raises NatsUnavailable when it can't be had in time."""
    client, trouble = Client(), ["no answer"]

    async def hear(error: Exception) -> None:
        told = (str(error) or type(error).__name__).removeprefix("nats: ")
        log.debug("NATS: %s", told)
        if "auth" not in trouble[0].lower():  # who is refused is then cut off, which is told too
            trouble[0] = told

    async def tried() -> None:
        # nats-py goes on at a refused connection whatever it is told; who waits for it ends that.
        await client.connect(**connect_options(settings), error_cb=hear, connect_timeout=3, **more)
        reconnect_after_any_error(client)
        await wait_until_connected(client)

    connecting = asyncio.ensure_future(tried())
    try:
        await asyncio.wait((connecting,), timeout=within_s)
    finally:
        while not connecting.done():  # nats-py may swallow a cancellation and go on trying (2.16)
            connecting.cancel()
            await asyncio.wait((connecting,), timeout=0.1)
    error = TimeoutError() if connecting.cancelled() else connecting.exception()
    if error is None:
        return client
    await client.close()
    if not isinstance(error, (nats.errors.Error, OSError)):  # TimeoutError is one
        raise error
    raise NatsUnavailable(f"NATS can't be reached at {', '.join(settings.urls)}: {trouble[0]}.") from error


def reconnect_after_any_error(client: Client) -> None:
    """Has it connect again whatever error nats-server cuts it off with: credentials that expired or were changed,
    too many connections. nats-py closes for good at all but two of them (2.16). And whatever is in the way of a
    try: at a seed file that is half-written it would never try again, and not say so."""
    process, reconnect = client._process_err, client._attempt_reconnect

    async def processed(err_msg: str) -> None:
        if any(word in err_msg.lower() for word in _KEPT):
            await process(err_msg)
            return
        error = nats.errors.Error(f"nats: {err_msg.strip(chr(39))}")
        await client._error_cb(error)
        await client._process_op_err(error)

    async def reconnected() -> None:
        while True:
            try:
                return await reconnect()
            except Exception as error:
                await client._error_cb(error)
                await asyncio.sleep(1.0)

    client._process_err = processed  # type: ignore[method-assign]
    client._attempt_reconnect = reconnected  # type: ignore[method-assign]


async def wait_until_connected(client: Client) -> None:
    """Waits until it is connected indeed: nats-py takes a connection that ended before the server's first answer
    for one that was made, then notices and connects again (2.16)."""
    while not client.is_connected:  # noqa: ASYNC110 -- nats-py has no event for it at the first connection
        await asyncio.sleep(0.05)
