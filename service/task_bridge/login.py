"""How one connects to NATS by the settings: what nats-py's `connect` wants to be told."""

from __future__ import annotations

import ssl
from typing import Any

from .settings import NatsSettings


def options(settings: NatsSettings) -> dict[str, Any]:
    """Servers, credentials and TLS as arguments of `nats.connect`. Secrets in files are read now."""
    told: dict[str, Any] = {"servers": list(settings.urls), "tls": tls_context(settings)}
    if settings.creds_file:
        told["user_credentials"] = str(settings.creds_file)
    elif settings.nkey_seed_file:
        told["nkeys_seed"] = str(settings.nkey_seed_file)
    elif settings.user is not None:
        told |= {"user": settings.user, "password": settings.password() or ""}
    else:
        told["token"] = settings.token()
    return told


def tls_context(settings: NatsSettings) -> ssl.SSLContext | None:
    """What is trusted and shown; None when nothing asks for TLS."""
    if not (settings.tls_ca_file or settings.tls_cert_file or any(url.startswith("tls:") for url in settings.urls)):
        return None
    context = ssl.create_default_context(cafile=settings.tls_ca_file)
    if settings.tls_cert_file:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    return context
