"""The error tree:

    BridgeError
    ├── Temporary            may work later; `retry_after_s` if the other side named a time
    │   ├── VCenterUnavailable   a 5xx, an unreadable answer
    │   │   ├── VCenterUnreachable   no connection
    │   │   └── LoginRefused         the user name or the password
    │   └── NatsUnavailable      no connection, no answer, no space: try again
    ├── Refused              a request that is wrong or can't be served, as its sender is answered
    └── CannotStart          the process can't run with what it found; `exit_code` and one line per mistake

Errors of libraries (httpx, nats-py, msgspec) are translated where they occur and kept as the cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

Trouble = Literal["degraded", "unreachable", "refused"]
"""Why a vCenter isn't well."""


class BridgeError(Exception):
    """Root of all errors that this package raises on purpose."""


class Temporary(BridgeError):  # noqa: N818 - the usual word, as in kopf
    """May work later. `retry_after_s` (seconds) is set if the other side named a time."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class VCenterUnavailable(Temporary):
    """vCenter gave no reliable answer, which says nothing about any task's state.

    `answer`: what it did say, if anything (a `task.TaskError`). `trouble`: what kind of trouble that is.
    """

    trouble: ClassVar[Trouble] = "degraded"

    def __init__(self, message: str, *, retry_after_s: float | None = None, answer: Any = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.answer = answer


class VCenterUnreachable(VCenterUnavailable):
    """There is no connection to vCenter."""

    trouble = "unreachable"


class LoginRefused(VCenterUnavailable):
    """vCenter refuses the user name or the password."""

    trouble = "refused"


class NatsUnavailable(Temporary):
    """NATS or JetStream gave no reliable answer."""


class Problem(NamedTuple):
    """One mistake in a request: the path of the field (`""` is the body itself) and what is wrong with it."""

    field: str
    problem: str


class Refused(BridgeError):  # noqa: N818 - named after what happens to the request
    """The error answer to a request: an HTTP-like `status`, a stable `code`, and what its sender can do."""

    def __init__(self, status: int, code: str, message: str, details: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = tuple(details)


def invalid_request(message: str, *details: Problem) -> Refused:
    return Refused(400, "invalid_request", message, details)


class CannotStart(BridgeError):  # noqa: N818 - named after what happens to the process
    """The process can't start. `lines`: one per mistake; `exit_code`: 2 for settings, 1 for what it found outside."""

    def __init__(self, *lines: str, exit_code: int = 1) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code
