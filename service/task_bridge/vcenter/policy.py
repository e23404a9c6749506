"""The configuration of one vCenter as this package reads it, and the times by which it polls and waits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol


class VCenterConfig(Protocol):
    """One configured vCenter. `url` is `scheme://host[:port]` without a trailing slash.

    `timeout_s`: for each step of a request, such as the next bytes of an answer.
    """

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
    def timeout_s(self) -> float: ...
    @property
    def api(self) -> Literal["auto", "api", "rest"]: ...

    def username(self) -> str:
        """Return the user name. Raises OSError if its file can't be read now."""

    def password(self) -> str:
        """Return the password. Raises OSError if its file can't be read now."""


DEFAULT_TIMEOUT_S = 30.0


class PollPolicy(NamedTuple):
    """The poll intervals, and how long a task that was never seen may stay unknown to vCenter."""

    poll_min_s: float = 1.0
    poll_max_s: float = 15.0
    not_found_grace_s: float = 30.0


class Timeouts(NamedTuple):
    """Times that both kinds of tasks share. Tests shorten these; no setting changes them.

    Absent tasks:
    `confirm_s`: between the two answers that a task isn't there.
    `proof_s`: how long a poll that shows another task proves that their provider works.
    `uninterrupted_s`: for how long a provider without that proof must answer about the task itself.
    `vanished_min`, `vanished_hold_s`: if at least this many vanish together, no watch ends for this long.

    CIS tasks:
    `gather_s`: how long due polls wait for others under load.
    `gather_results_s`: how long results wait for others.
    `pace_s`: how long an answer may take before the next request goes beside. Answers that arrive together cost more
    CPU.
    `result_s`: how long to try to fetch the result of an ended task. A `timeout_s` above its default makes it longer.
    `return_all_s`: how long an answer with all that vCenter knows may take to begin, before less is asked for.
    `ping_s`: between checks of vCenter while no task is tracked.
    `relist_s`: until a list is tried again where it failed.

    Shutdown:
    `finish_s`: for requests in flight at shutdown.
    `logout_s`: for the logout.
    """

    confirm_s: float = 5.0
    proof_s: float = 60.0
    uninterrupted_s: float = 60.0
    vanished_min: int = 3
    vanished_hold_s: float = 600.0
    gather_s: float = 0.1
    gather_results_s: float = 0.2
    pace_s: float = 0.02
    result_s: float = 30.0
    return_all_s: float = 10.0
    ping_s: float = 60.0
    relist_s: float = 600.0
    finish_s: float = 0.3
    logout_s: float = 1.5

    def with_answer_timeout(self, timeout_s: float) -> Timeouts:
        """Return the times for a vCenter whose answers may take `timeout_s`: a late result is waited for."""
        return self._replace(result_s=self.result_s + max(0.0, timeout_s - DEFAULT_TIMEOUT_S))


TIMEOUTS = Timeouts()


class VimTimeouts(NamedTuple):
    """Times of classic tasks alone. Tests shorten these; no setting changes them.

    Push:
    `gather_s`: how long changes of the view wait for others.
    `updates_per_s`, `updates_burst`: how many update sets to fetch, so that a storm of progress arrives in few.
    `push_losses_max`, `push_losses_window_s`: if push fails this often in this time, polling replaces it
    for `push_retry_s`.

    Polling:
    `pull_interval_s`: between polls without push.
    `silence_s`: for how long push may not show a task until it is pulled beside push, and between such pulls.
    `end_late_s`: how much later than a pull push may show an end. Polling alone would be as prompt then.
    `history_lookback_s`: how long before its watch a task that was never seen may have been queued.
    `history_retry_s`: for how long to ask again for the history of a task that was seen, if vCenter refuses it.
    `vm_timeout_s`: how long VMs may delay tasks before their questions are polled separately.
    `separate_questions_s`: for how long they are, at least.

    Names:
    `names_timeout_s`, `names_timeout_tight_s`: how long a lookup may take, and where few requests may go at once.

    `idle_logout_s`: until a session that nothing needs is logged out.
    """

    gather_s: float = 0.1
    updates_per_s: float = 3.0
    updates_burst: float = 3.0
    pull_interval_s: float = 2.0
    silence_s: float = 5.0
    end_late_s: float = 2.0
    idle_logout_s: float = 60.0
    push_losses_max: int = 3
    push_losses_window_s: float = 300.0
    push_retry_s: float = 600.0
    history_lookback_s: float = 86_400.0
    history_retry_s: float = 60.0
    vm_timeout_s: float = 3.0
    separate_questions_s: float = 60.0
    names_timeout_s: float = 10.0
    names_timeout_tight_s: float = 1.0


VIM_TIMEOUTS = VimTimeouts()
