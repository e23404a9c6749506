"""The health of one vCenter, for readiness and the log. A failure is logged once, and so is its end."""

from __future__ import annotations

from typing import Literal

import structlog

log = structlog.get_logger(__name__)

VCenterState = Literal["ok", "degraded", "unknown"]


class VCenterHealthTracker:
    """`degraded` from a failed poll or login until a good one; `unknown` before the first.

    `last_good_poll_at` is in seconds of a monotonic clock. `good_polls` counts the good ones.
    """

    def __init__(self, vcenter: str) -> None:
        self.last_good_poll_at: float | None = None
        self.good_polls = 0
        self._vcenter = vcenter
        self._failures: dict[str, str] = {}  # reasons by provider; "" is vCenter as a whole
        self._failed_poll_reason: str | None = None
        self._vanished_reasons: dict[str, str] = {}  # by API

    @property
    def state(self) -> VCenterState:
        if self._failures or self._failed_poll_reason:
            return "degraded"
        return "unknown" if self.last_good_poll_at is None else "ok"

    @property
    def reason(self) -> str | None:
        return next(iter(self._failures.values()), self._failed_poll_reason)

    @property
    def vanished_reason(self) -> str | None:
        """A sentence while tasks that vanished together aren't given up yet; otherwise None."""
        return next(iter(self._vanished_reasons.values()), None)

    def record_failure(self, reason: str, provider: str = "") -> None:
        """Record that vCenter as a whole fails, or requests for one provider's tasks."""
        if provider not in self._failures:
            log.warning("vcenter_unavailable", vcenter=self._vcenter, provider=provider or None, reason=reason)
        self._failures[provider] = reason

    def record_failed_poll(self, reason: str) -> None:
        """Record a failed poll that may concern its tasks alone. Those are logged one by one elsewhere."""
        self._failed_poll_reason = reason

    def record_good_poll(self, at: float, provider: str = "") -> None:
        """Record that vCenter answers, and so does this provider."""
        self.record_good_poll_of_provider(at, provider)
        if self._failures:
            self.record_answer()

    def record_good_poll_of_provider(self, at: float, provider: str) -> None:
        """Record that this provider answers. That proves nothing about others, which another API serves."""
        self.last_good_poll_at, self._failed_poll_reason = at, None
        self.good_polls += 1
        if self._failures:
            self._end_failure(provider)

    def record_answer(self) -> None:
        """Record that vCenter as a whole answers."""
        self._end_failure("")

    def forget_provider(self, provider: str) -> None:
        """Drop the failure of a provider that nothing polls anymore."""
        self._failures.pop(provider, None)

    def set_vanished_reason(self, api: str, reason: str | None) -> None:
        """Set why this API's tasks that vanished together aren't given up yet. None: none is held back anymore."""
        if reason is not None:
            if api not in self._vanished_reasons:
                log.warning("tasks_vanished_together", vcenter=self._vcenter, api=api, reason=reason)
            self._vanished_reasons[api] = reason
        elif self._vanished_reasons.pop(api, None) is not None:
            log.info("tasks_vanished_together_over", vcenter=self._vcenter, api=api)

    def _end_failure(self, provider: str) -> None:
        if self._failures.pop(provider, None) is not None:
            log.info("vcenter_available_again", vcenter=self._vcenter, provider=provider or None)
