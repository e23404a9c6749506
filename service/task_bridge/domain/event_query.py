"""Which stored events a reader over HTTP wants. Pure."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, NamedTuple, Protocol

from pydantic import AfterValidator

from .durations import parse_duration, parse_time
from .errors import Problem, invalid_request
from .events import FINAL_KINDS, KINDS, SUBJECT_KINDS
from .requests import StrictRequest, TaskId, validate_request
from .subjects import is_vcenter_name

_WATCH = re.compile(r"[!-.0-~]{1,256}", re.ASCII)
_WATCH_TIME = re.compile(r"([0-9]{13})-", re.ASCII)
_CLOCK_SLACK_S = 60.0
"""How much earlier than a watch's id says its first event is looked for: the bridge's idea of the time may be off."""


def _check_kind(kind: str) -> str:
    if kind not in (*SUBJECT_KINDS, *FINAL_KINDS):
        raise ValueError(f"must be one of {', '.join((*KINDS, *FINAL_KINDS))}, or a kind with its outcome")
    return kind


def _check_vcenter(vcenter: str) -> str:
    if not is_vcenter_name(vcenter):
        raise ValueError("is not the name of a vCenter")
    return vcenter


def _check_watch(watch: str) -> str:
    if not _WATCH.fullmatch(watch):
        raise ValueError("must be the id of a watch, as replies and events have it")
    return watch


def _check_since(since: str) -> str:
    if since != "now" and parse_time(since) is None:
        try:
            parse_duration(since)
        except ValueError as error:
            message = "must be now, a time like 2026-11-24T22:40:55Z, or a duration ago like 1h"
            raise ValueError(message) from error
    return since


class EventQuery(StrictRequest):
    """The events of watches that match all that is given."""

    vcenter: Annotated[str, AfterValidator(_check_vcenter)] | None = None
    task: TaskId | None = None
    kind: Annotated[str, AfterValidator(_check_kind)] | None = None
    watch: Annotated[str, AfterValidator(_check_watch)] | None = None
    since: Annotated[str, AfterValidator(_check_since)] | None = None

    def begins_at(self, now: float) -> float | None:
        """Return from which time on events can match (Unix s by nats-server's clock), None for the oldest one.

        The id of a watch says when it began, so what was stored before needn't be read.
        """
        times = [self._since_time(now)]
        if self.watch is not None and (began := _WATCH_TIME.match(self.watch)):
            times.append(int(began[1]) / 1000 - _CLOCK_SLACK_S)
        return max((time for time in times if time is not None), default=None)

    def _since_time(self, now: float) -> float | None:
        if self.since is None or self.since == "now":
            return now if self.since else None
        at = parse_time(self.since)
        return now - parse_duration(self.since) if at is None else at

    def matches(self, vcenter: str, kind: str, watch: str | None) -> bool:
        """Return whether an event matches. `kind`: with the outcome, if it is final."""
        return (
            self.vcenter in (None, vcenter)
            and self.watch in (None, watch)
            and (self.kind is None or self.kind in (kind, kind.partition(".")[0]))
        )

    def is_ended_by(self, kind: str, watch: str | None) -> bool:
        """Return whether nothing that matches can follow: this is the final event of the one watch."""
        return self.watch is not None and self.watch == watch and kind.partition(".")[0] in FINAL_KINDS


def parse_event_query(pairs: Iterable[tuple[str, str]]) -> EventQuery:
    """Parse the parameters of a URL; one without a value counts as not given. Raises Refused (400)."""
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            problem = Problem(name[:64], "is given twice")
            raise invalid_request(f"The request is refused: {problem.field}: {problem.problem}.", problem)
        given[name] = value
    known = EventQuery.model_fields
    return validate_request(EventQuery, {name: value for name, value in given.items() if value or name not in known})


def parse_last_event_id(text: str | None) -> int | None:
    """Return the sequence after which a reader goes on. Raises Refused (400)."""
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,18}", text, re.ASCII):
        problem = Problem("Last-Event-ID", "must be the id of an event of this stream, which is a number")
        raise invalid_request("The header Last-Event-ID can't be right.", problem)
    return int(text)


class StoredEvent(NamedTuple):
    """An event as it is stored, and its sequence in the stream."""

    sequence: int
    body: bytes


class EventFeed(Protocol):
    """The stored events, and those to come."""

    def open(
        self, query: EventQuery, permitted: frozenset[str] | None, after: int | None
    ) -> AbstractAsyncContextManager[AsyncIterator[StoredEvent]]:
        """Read the events that match, in order, each once, through every outage, from behind sequence `after` on.

        `permitted`: the vCenters whose events may be read, None for all. The iterator ends after the final event of
        the query's watch. Raises NatsUnavailable if the stream can't be read now.
        """
        ...
