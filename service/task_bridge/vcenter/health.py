"""The health of each API of a vCenter, for readiness and the log. A failure is logged once, and so is its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import structlog

from ..domain.errors import Trouble, VCenterUnavailable
from ..domain.task import Api

log = structlog.get_logger(__name__)

ApiState = Literal["ok", "degraded", "unknown"]

_BEST_FIRST: tuple[ApiState | Trouble, ...] = ("ok", "unknown", "degraded", "unreachable", "refused")


class ApiHealth(NamedTuple):
    """The health of one API, or of the vCenter as a whole, at one moment.

    `last_good_poll_at` is in seconds of a monotonic clock. `watches`: of this replica, polled by this API.
    `held_back`: absent tasks that aren't given up yet because several vanished together. `trouble`: why it is
    `degraded`; `since`: since when, by the same clock.
    """

    state: ApiState
    reason: str | None
    last_good_poll_at: float | None
    watches: int = 0
    held_back: int = 0
    trouble: Trouble | None = None
    since: float | None = None


def find_apis_in_use(apis: Mapping[Api, ApiHealth]) -> list[Api]:
    """Return the APIs that watches need. Without watches it is that of CIS tasks, by which vCenter is checked. Pure."""
    return [api for api, health in apis.items() if health.watches] or ["cis"]


def combine_apis(apis: Mapping[Api, ApiHealth]) -> ApiHealth:
    """Return a vCenter's health: the worst state and the oldest poll of the APIs in use. Pure."""
    in_use = [apis[api] for api in find_apis_in_use(apis)]
    judged = list(in_use)
    if all(one.state == "unknown" for one in in_use):  # until one is polled, trouble of another is what is known
        judged += [one for one in apis.values() if one.trouble]
    judged.sort(key=lambda one: _BEST_FIRST.index(one.trouble or one.state))
    times = [one.last_good_poll_at for one in in_use]
    return ApiHealth(
        judged[-1].state,
        next((one.reason for one in reversed(judged) if one.reason), None),
        None if None in times else min(at for at in times if at is not None),
        sum(one.watches for one in in_use),
        sum(one.held_back for one in in_use),
        judged[-1].trouble,
        _find_begin(judged[-1], apis.values()),
    )


def _find_begin(worst: ApiHealth, apis: Iterable[ApiHealth]) -> float | None:
    """Return since when there is trouble: another API may have had it before the worst one was polled at all."""
    good_at = -math.inf if worst.last_good_poll_at is None else worst.last_good_poll_at
    begins = [one.since for one in apis if one.since is not None and one.since > good_at]
    return min(begins, default=worst.since) if worst.trouble else None


class _Failure(NamedTuple):
    reason: str
    trouble: Trouble


class ApiHealthTracker:
    """`degraded` from a failed poll or login until a good one; `unknown` before the first.

    `good_polls` counts the good ones. `vanished_reason` is set while tasks that vanished together aren't given up yet,
    and says why.
    """

    def __init__(self, vcenter: str, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self.last_good_poll_at: float | None = None
        self.good_polls = 0
        self._vcenter = vcenter
        self._api = api
        self._clock = clock
        self._failures: dict[str, _Failure] = {}  # by provider; "" is the API as a whole
        self._failed_poll: _Failure | None = None
        self._failing_since: float | None = None
        self.vanished_reason: str | None = None

    @property
    def state(self) -> ApiState:
        if self._failure is not None:
            return "degraded"
        return "unknown" if self.last_good_poll_at is None else "ok"

    @property
    def reason(self) -> str | None:
        return self._failure and self._failure.reason

    @property
    def _failure(self) -> _Failure | None:
        return next(iter(self._failures.values()), self._failed_poll)

    def report(self, *, watches: int, vanished: int) -> ApiHealth:
        """Return the health now. `vanished`: the absent tasks that were seen before."""
        reason, held_back = self.reason or self.vanished_reason, vanished if self.vanished_reason else 0
        trouble = self._failure.trouble if self._failure else None
        since = self._failing_since if trouble else None
        return ApiHealth(self.state, reason, self.last_good_poll_at, watches, held_back, trouble, since)

    def record_failure(self, error: VCenterUnavailable, provider: str = "") -> None:
        """Record that the API as a whole fails, or requests for one provider's tasks."""
        reason = str(error)
        if provider not in self._failures:
            where = {"vcenter": self._vcenter, "api": self._api, "provider": provider or None}
            log.warning("vcenter_unavailable", **where, reason=reason)
        self._begin_failing()
        self._failures[provider] = _Failure(reason, error.trouble)

    def record_failed_poll(self, reason: str) -> None:
        """Record a failed poll that may concern its tasks alone. Those are logged one by one elsewhere."""
        self._begin_failing()
        self._failed_poll = _Failure(reason, "degraded")

    def _begin_failing(self) -> None:
        if self._failure is None:
            self._failing_since = self._clock()

    def record_good_poll(self, at: float, provider: str = "") -> None:
        """Record that the API answers, and so does this provider."""
        self.last_good_poll_at, self._failed_poll = at, None
        self.good_polls += 1
        if self._failures:
            self._end_failure(provider)
            self.record_answer()

    def record_answer(self) -> None:
        """Record that the API as a whole answers."""
        self._end_failure("")

    def reset(self) -> None:
        """Forget all polls, because nothing polls by this API anymore."""
        self._failures.clear()
        self.last_good_poll_at = self._failed_poll = None

    def set_vanished_reason(self, reason: str | None) -> None:
        """Set why tasks that vanished together aren't given up yet. None: nothing is held back anymore."""
        if reason is not None and self.vanished_reason is None:
            log.warning("tasks_vanished_together", vcenter=self._vcenter, api=self._api, reason=reason)
        if reason is None and self.vanished_reason is not None:
            log.info("tasks_vanished_together_over", vcenter=self._vcenter, api=self._api)
        self.vanished_reason = reason

    def _end_failure(self, provider: str) -> None:
        if self._failures.pop(provider, None) is not None:
            log.info("vcenter_available_again", vcenter=self._vcenter, api=self._api, provider=provider or None)
