"""What a NATS user isn't permitted: nats-server tells that to the connection, and the request gets no answer."""

from __future__ import annotations

from nats.aio.client import Client

_FORBIDDEN = "permissions violation"
_INBOX_FORBIDDEN = f'{_FORBIDDEN} for subscription to "_inbox.'


def last_permission_violation(client: Client) -> str | None:
    """The last permission that nats-server told isn't there, in lower case, as nats-py has it (2.16)."""
    told = str(client.last_error or "").removeprefix("nats: ")
    return told if _FORBIDDEN in told else None


def denied_permission(client: Client, subject: str) -> str | None:
    """The permission without which a request to `subject` gets no answer, None when none was told to be missing."""
    told = last_permission_violation(client) or ""
    asked = f'"{subject.lower()}"'
    if asked not in told and not told.startswith(_INBOX_FORBIDDEN):
        return None
    return told.replace(asked, f'"{subject}"')


async def flush_and_wait(client: Client) -> None:
    """Waits until nats-server has taken in, or refused, all that was sent. Raises what `flush` raises."""
    await client.flush()  # its PING overtakes what waits to be written (nats-py 2.16, measured)
    await client.flush()
