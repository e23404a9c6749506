"""Signatures of the Standard Webhooks scheme (https://www.standardwebhooks.com). Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

_PREFIX = "whsec_"


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Return the keys of a file of secrets, one on each line. Raises ValueError, which quotes no secret."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= 2:
        raise ValueError("must hold one secret, or two lines while it is being replaced")
    try:
        keys = [_decode(line.removeprefix(_PREFIX)) for line in lines]
    except (binascii.Error, ValueError):
        raise ValueError("must hold a secret of the Standard Webhooks scheme: whsec_ and base64") from None
    if not all(keys):
        raise ValueError("can't be right: the secret is empty")
    return tuple(keys)


def _decode(text: str) -> bytes:
    """Decode base64, with its padding or without."""
    unpadded = text.rstrip("=")
    return base64.b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)


def sign(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`: one signature for each key."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return " ".join(f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}" for key in keys)
