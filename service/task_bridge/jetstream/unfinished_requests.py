"""The requests that this replica received and could neither serve nor reject. It has survived each of them.

JetStream counts deliveries, also those that a replica asked for. Only deliveries of which no replica knows anything can
have ended one.
"""

from __future__ import annotations

from typing import NamedTuple

_MAX_REMEMBERED = 50_000


class UnfinishedRequest(NamedTuple):
    """A request in hand: when this replica first received it (monotonic s), and its vCenter if it was handed back."""

    first_seen: float
    vcenter: str | None
    reply: str


class UnfinishedRequests:
    """Remembers up to 50,000 requests by their key, and forgets the oldest."""

    def __init__(self) -> None:
        self._requests: dict[str, UnfinishedRequest] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._requests

    def remember(self, key: str, now: float, *, vcenter: str | None = None, reply: str = "") -> bool:
        """Remember a request; with `vcenter`, that it is handed back. Return whether it is new."""
        known = self._requests.get(key)
        self._requests[key] = UnfinishedRequest(known.first_seen if known else now, vcenter, reply)
        if len(self._requests) > _MAX_REMEMBERED:
            del self._requests[next(iter(self._requests))]
        return known is None

    def forget(self, key: str) -> None:
        """Forget a request that was served or rejected."""
        self._requests.pop(key, None)

    def age_s(self, key: str, now: float) -> float | None:
        """Return for how long this replica has known the request, None if it doesn't."""
        known = self._requests.get(key)
        return None if known is None else now - known.first_seen

    def list_ack_subjects(self, vcenter: str) -> list[str]:
        """Return the ack subjects of the requests that were handed back for want of this vCenter."""
        return [request.reply for request in self._requests.values() if request.vcenter == vcenter]
