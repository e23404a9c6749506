"""Who sent a request, as far as NATS tells, and whether an answer may go where it asks. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from nats.micro.request import Request

_INFO_HEADER = "Nats-Request-Info"


class _Info(msgspec.Struct):
    """What nats-server writes about whoever asks from another account whose import says `share: true`."""

    acc: str | None = None
    user: str | None = None
    host: str | None = None
    name: str | None = None


def describe_requester(headers: Mapping[str, str] | None, reply: str) -> dict[str, str]:
    """Account, user, host and client name where nats-server tells them, else the reply subject.

    In the bridge's own account a requester could have written the header himself: `deploy/nats` lets none in there.
    """
    try:
        info = msgspec.json.decode((headers or {}).get(_INFO_HEADER, "{}"), type=_Info)
    except (msgspec.DecodeError, msgspec.ValidationError):
        info = _Info()
    told = {"account": info.acc, "user": info.user, "host": info.host, "client": info.name}
    return {key: value for key, value in told.items() if value} or {"reply": reply}


def reply_subject(request: Request) -> str:
    """Where the answer goes; nats.micro has no other way to ask (nats-py 2.16)."""
    return request._msg.reply


def is_answerable(reply: str, prefix: str) -> bool:
    """Whether the bridge answers on `reply`: never on a subject of JetStream's or its own.

    It may publish there and the requester may not, so the answer would be a request or an event that he forged.
    """
    return not reply.startswith(("$", f"{prefix}."))
