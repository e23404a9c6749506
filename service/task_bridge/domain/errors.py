"""What can go wrong, drawn once:

    BridgeError
    ├── Temporary            may work later; `retry_after_s` when the other side named a time
    │   ├── VCenterUnavailable   the network, a 5xx, a refused login, an answer nobody can read
    │   └── NatsUnavailable      no connection, no answer, no space: the next try decides
    ├── Refused              a request that is wrong or can't be served: what its sender is told
    └── CannotStart          the process can't run like this; `exit_code` and one line a mistake

Foreign errors (httpx, nats-py, msgspec) are translated at the edge that meets them and keep their cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class BridgeError(Exception):
    """The root: whatever this package raises on purpose."""


class Temporary(BridgeError):  # noqa: N818 - the field's word for it, like kopf's
    """May work later. `retry_after_s` (seconds) is set when the other side named a time."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class VCenterUnavailable(Temporary):
    """vCenter gave no answer to rely on; says nothing about any task's state. `answer`: what it did say, if
    anything (a `task.TaskError`).
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, answer: Any = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.answer = answer


class NatsUnavailable(Temporary):
    """NATS or JetStream gave no answer to rely on."""


class Problem(NamedTuple):
    """One thing that is wrong with a request: the field's path (`""` is the body itself) and what about it."""

    field: str
    problem: str


class Refused(BridgeError):  # noqa: N818 - reads as what happened to the request
    """A request is answered with this: HTTP-like `status`, a stable `code`, and what its sender can do."""

    def __init__(self, status: int, code: str, message: str, details: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = tuple(details)


class CannotStart(BridgeError):  # noqa: N818 - reads as what happened to the process
    """The process can't run like this. `lines`: one a mistake; `exit_code`: 2 for settings, 1 for the world."""

    def __init__(self, *lines: str, exit_code: int = 1) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code
