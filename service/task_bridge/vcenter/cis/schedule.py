"""When to look at a task again. Pure: ages, rates and chance are handed in. All times in seconds."""

from __future__ import annotations

from ..backoff import JITTER
from ..policy import PollPolicy

_AGES = 13.0
"""So many intervals make up a task's age."""
_SPARE = 0.8
"""What looks may take of the requests per second; results, logins and cancels need some too."""


def interval_s(policy: PollPolicy, age_s: float, remaining_s: float | None, stretch: float, chance: float) -> float:
    """How long until the next look at a task of this age.

    A thirteenth of the age: with fetching the result, and what is gathered under load, an end is then told late by
    less than a tenth of what the task took. Sooner when its progress says that the end is near. `stretch` is for
    when the requests don't suffice, and stretches all alike.
    `chance`, 0 to 1, keeps tasks that were taken up together from coming due together for ever.
    """
    interval = min(age_s / _AGES, policy.poll_max_s)
    if remaining_s is not None and remaining_s < interval:
        interval = remaining_s
    spread = max(interval * (1 - JITTER * chance), policy.poll_min_s * (1 + JITTER * chance))
    return min(spread, policy.poll_max_s) * stretch


def remaining_s(percent: float, first_percent: float, since_first_s: float) -> float | None:
    """How long a task still takes at the pace so far: from `first_percent`, `since_first_s` ago, to `percent`."""
    if percent <= first_percent or since_first_s <= 0:
        return None
    return (100 - percent) * since_first_s / (percent - first_percent)


def stretch(looks_per_s: float, tasks_a_request: int, requests_per_s: float) -> float:
    """By how much intervals must grow so that `looks_per_s` fit into the requests; 1 when they fit."""
    return max(1.0, looks_per_s / (tasks_a_request * requests_per_s * _SPARE))
