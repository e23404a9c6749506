"""The replies of the API, as msgspec encodes them and clients decode them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .errors import Refused
from .events import WatchRef
from .task import Progress, Target
from .vcenter_state import VCenterState


class ErrorDetail(msgspec.Struct, frozen=True):
    """A mistake in a request."""

    field: str
    problem: str


class ErrorBody(msgspec.Struct, frozen=True):
    """The `error` of error answers and rejections."""

    status: int
    code: str
    message: str
    details: list[ErrorDetail]


def error_body(refused: Refused) -> ErrorBody:
    details = [ErrorDetail(*problem) for problem in refused.details]
    return ErrorBody(refused.status, refused.code, refused.message, details)


class WatchReply(msgspec.Struct, frozen=True):
    """Reply of `watch`. `last_event` is a CloudEvent of this watch, null before its first.

    1.0 has no `vcenter_state`.
    """

    outcome: str
    vcenter: str
    task: str
    watch: WatchRef
    stream: str
    events: str
    last_event: msgspec.Raw
    vcenter_state: VCenterState | None = None


class GetReply(msgspec.Struct, frozen=True):
    """Reply of `get`: that of `watch`, with `watching`: the task is being watched now."""

    watching: bool
    vcenter: str
    task: str
    watch: WatchRef
    stream: str
    events: str
    last_event: msgspec.Raw
    vcenter_state: VCenterState | None = None


class ListedWatch(msgspec.Struct, frozen=True):
    """An entry of `list`. `status`, `progress` and `target` are null before the first poll.

    1.0 has neither `target` nor `vcenter_state`.
    """

    vcenter: str
    task: str
    watch: WatchRef
    status: str | None
    progress: Progress | None
    unconfigured: bool
    target: Target | None = None
    vcenter_state: VCenterState | None = None


class ListReply(msgspec.Struct, frozen=True):
    """Reply of `list`: a page, the total number, and where the next page starts."""

    watches: list[ListedWatch]
    total: int
    cursor: str | None


def count_fitting(listed: Sequence[ListedWatch], max_bytes: int) -> int:
    """Return how many of the first entries fit into one reply: at least one."""
    left = max_bytes
    for number, one in enumerate(listed):
        left -= len(msgspec.json.encode(one)) + 1
        if left < 0:
            return max(1, number)
    return len(listed)


class UnwatchReply(msgspec.Struct, frozen=True):
    """Reply of `unwatch`; `last_event` is the final event."""

    outcome: str
    vcenter: str
    task: str
    watch: WatchRef
    last_event: msgspec.Raw


class CancelReply(msgspec.Struct, frozen=True):
    """Reply of `cancel`: vCenter accepted the request; only the task's end shows whether it was canceled."""

    outcome: str
    vcenter: str
    task: str
