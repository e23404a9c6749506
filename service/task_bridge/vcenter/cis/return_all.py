"""Which providers answer requests for all that they know of a task (`return_all`). Pure: the clock is passed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .schedule import provider_of

REMEMBERED_S = 3_600.0
_REMEMBERED_MAX = 1_000


class ReturnAllMemory:
    """Providers, and single tasks whose answer was too large, that are asked without `return_all` for an hour."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refused_until: dict[str, float] = {}

    def is_answered(self, tasks: Sequence[str]) -> bool:
        """Return whether to ask with `return_all` for these tasks of one provider."""
        asked = [provider_of(tasks[0]), *(tasks if len(tasks) == 1 else ())]
        return all(self._refused_until.get(one, float("-inf")) <= self._clock() for one in asked)

    def record_refusal(self, provider_or_task: str) -> None:
        """Record that this provider, or this task alone, can only be had without `return_all`."""
        if len(self._refused_until) >= _REMEMBERED_MAX:
            self._refused_until.clear()  # providers come from users' requests
        self._refused_until[provider_or_task] = self._clock() + REMEMBERED_S
