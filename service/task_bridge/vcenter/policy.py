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


class VimTimeouts(NamedTuple):
    """`gather_s`: changes of the view go together. `updates_per_s`, `updates_at_once`: update sets, so that storms
    of progress come together. `pull_s`: between looks without push. `safety_s`: between pulls of some beside push.
    `idle_s`: until a session that nobody needs is logged out. `losses` and `within_s`: push lost so often in that
    time isn't tried before `pull_for_s`. `history_s`: how long before its watch a task that was never seen may have
    been queued. `held_s`: so long may VMs hold tasks up before their questions are asked apart. `apart_s`: for so
    long they are, at least.
    """

    gather_s: float = 0.1
    updates_per_s: float = 3.0
    updates_burst: float = 3.0
    pull_interval_s: float = 2.0
    safety_pull_interval_s: float = 300.0
    idle_logout_s: float = 60.0
    push_losses_max: int = 3
    push_losses_window_s: float = 300.0
    push_retry_s: float = 600.0
    history_lookback_s: float = 86_400.0
    vm_timeout_s: float = 3.0
    separate_questions_s: float = 60.0


VIM_TIMEOUTS = VimTimeouts()
