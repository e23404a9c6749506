"""How long this room waits for what. Tests shorten these; nobody sets them."""

from __future__ import annotations

from typing import NamedTuple


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
