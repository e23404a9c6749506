"""What a round of chaos leaves behind for the checker to judge. Pure data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

CLOCK_S = 0.005
"""Times are written in milliseconds, by processes that read the same clock."""


class Stored(NamedTuple):
    """A message of the events stream; `stored_at` in Unix seconds, by nats-server's clock.

    One that an operator removed was still there at `there_at` and no more at `gone_at`.
    """

    subject: str
    sequence: int
    stored_at: float
    headers: Mapping[str, str]
    body: bytes
    there_at: float = math.inf
    gone_at: float = math.inf


class Heard(NamedTuple):
    """What a plain core subscriber got; `sequence` by the header that republishing adds, as it adds when (`at`)."""

    subject: str
    sequence: int
    body: bytes
    headers: Mapping[str, str] = {}
    at: float = 0.0


class Asked(NamedTuple):
    """A request that JetStream confirmed to have stored under `sequence`; `valid`: it can be served.

    Streams that are made again count from 1 again: it was stored between `sent_at` and `confirmed_at`.
    """

    sequence: int
    task: str
    sent_at: float
    valid: bool = True
    confirmed_at: float = math.inf


class Answered(NamedTuple):
    """A reply of the API. `outcome` may be an error's code; `last_event` is the id of the event in it."""

    verb: str
    task: str
    outcome: str
    watch: str | None = None
    last_event: str | None = None


class Was(NamedTuple):
    """A state of a task. `progress` is (completed, total), `error` its type, `result` as `/api` shows it."""

    at: float
    status: str
    progress: tuple[int, int] | None = None
    result: Any = None
    error: str | None = None


class Truth(NamedTuple):
    """What a task went through. `unseen_at`: when vCenter forgot or hid it, `denied_at`: refused to show it."""

    states: tuple[Was, ...]
    unseen_at: float | None = None
    denied_at: float | None = None


class Remains(NamedTuple):
    """What there is when all is over: watches by (id, task), messages in the stream of requests, watches that are
    delivered and not acknowledged, or never delivered; sessions, and how many couldn't be logged out of."""

    watches: tuple[tuple[str, str], ...] = ()
    requests: int = 0
    held: int = 0
    waiting: int = 0
    sessions: int = 0
    excused_sessions: int = 0


class Lost(NamedTuple):
    """What operators removed from the work queues: requests by (sequence, when stored), watches by (id, task).

    `events_at`: when events, or their stream, were removed for the first time. `unacked`: watches whose final event
    was removed while their message, its ack being lost or under way, was there.
    """

    requests: tuple[tuple[int, float], ...] = ()
    watches: tuple[tuple[str, str], ...] = ()
    unacked: frozenset[str] = frozenset()
    events_at: float = math.inf


class Account(NamedTuple):
    """A whole history. `heard_all`: no nats-server was disturbed, so the subscriber heard all, and each once.

    `stored` has all that the events stream ever stored, in order, also what was removed from it. `clock_s`: how
    much times may differ by. `reported_losses`: how often a bridge's log told of events that had gone. `followed_from`:
    when a follow was in force that is about all tasks; infinity without one.
    """

    prefix: str
    stored: tuple[Stored, ...]
    asked: tuple[Asked, ...] = ()
    answered: tuple[Answered, ...] = ()
    truths: Mapping[str, Truth] = {}
    heard: tuple[Heard, ...] = ()
    heard_all: bool = True
    remains: Remains = Remains()
    lost: Lost = Lost()
    clock_s: float = CLOCK_S
    reported_losses: int = 0
    followed_from: float = math.inf
