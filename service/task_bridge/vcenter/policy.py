"""What this room is told about a vCenter and about how to look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol


class VCenterConfig(Protocol):
    """One configured vCenter. `url` is `scheme://host[:port]` without a trailing slash."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def ca_file(self) -> Path | None: ...
    @property
    def verify_tls(self) -> bool: ...
    @property
    def proxy(self) -> str | None: ...
    @property
    def max_concurrent_requests(self) -> int: ...
    @property
    def max_requests_per_second(self) -> float: ...
    @property
    def api(self) -> Literal["auto", "api", "rest"]: ...

    def username(self) -> str:
        """May raise OSError: a file that can't be read now."""

    def password(self) -> str:
        """May raise OSError: a file that can't be read now."""


class PollPolicy(NamedTuple):
    """How often to look at a task, and how long one that was never seen may stay unknown."""

    poll_min_s: float = 1.0
    poll_max_s: float = 15.0
    not_found_grace_s: float = 30.0


class Timeouts(NamedTuple):
    """How long is waited before something counts. Tests shorten these; nobody sets them.

    `confirm_s`: between the two answers that a task isn't there. `proof_s`: how long another task's sight proves
    that the service answers. `together` and `hold_s`: so many vanishing together end nothing for so long.
    `gather_s`: due looks, under load. `gather_results_s`, `result_s`: fetching results together, and at all.
    `ping_s`: between questions while no task is followed. `relist_s`: until a list is tried again where it failed.
    `phase_s`: for each step of a request, like the next bytes of an answer. `finish_s` and `logout_s`: on the way
    out, for requests under way and for the session.
    """

    confirm_s: float = 5.0
    proof_s: float = 60.0
    vanished_min: int = 3
    vanished_hold_s: float = 600.0
    gather_s: float = 0.1
    gather_results_s: float = 0.2
    result_s: float = 30.0
    ping_s: float = 60.0
    relist_s: float = 600.0
    read_timeout_s: float = 30.0
    finish_s: float = 0.3
    logout_s: float = 1.5


TIMEOUTS = Timeouts()
