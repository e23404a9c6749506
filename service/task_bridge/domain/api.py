"""Requests to the API and its answers, whichever way they travel. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from .errors import Refused

CHANGING_VERBS = ("watch", "unwatch", "cancel", "follow", "unfollow")
"""The verbs that can change something: each request is one line of the log, with who asked."""


class ApiRequest(NamedTuple):
    """A request as it came in.

    `by`: who asked, as far as that is known: the name of a token, or what NATS says of the connection. `vcenters`:
    those that the requester may name and see, None for all. `named_vcenter`: the one that the subject names.
    """

    data: bytes
    headers: Mapping[str, str] | None = None
    by: Mapping[str, str] | str | None = None
    vcenters: frozenset[str] | None = None
    named_vcenter: str | None = None


class ApiAnswer(NamedTuple):
    """The reply as JSON and its HTTP status. `refused`: the error that the body shows, None if there is none."""

    status: int
    body: bytes
    refused: Refused | None = None


class ApiHandler(Protocol):
    """The verbs of the API."""

    async def answer(self, verb: str, request: ApiRequest) -> ApiAnswer:
        """Serve a request to one of the verbs, within 20 s. It never raises."""
        ...
