"""How one vCenter does, for readiness and the log: a failure is told once, and its end once."""

from __future__ import annotations

from typing import Literal

import structlog

log = structlog.get_logger(__name__)

VCenterState = Literal["ok", "degraded", "unknown"]


class VCenterHealthTracker:
    """`degraded` from a failed look or login until a good one; `unknown` before the first.

    `last_good_look_at` is Unix seconds, `good_looks` counts them; `holding` says why tasks that vanished together
    aren't given up yet.
    """

    def __init__(self, vcenter: str) -> None:
        self.last_good_poll_at: float | None = None
        self.good_polls = 0
        self.vanished_reason: str | None = None
        self._vcenter = vcenter
        self._troubles: dict[str, str] = {}
        self._failed_look: str | None = None

    @property
    def state(self) -> VCenterState:
        if self._troubles or self._failed_look:
            return "degraded"
        return "unknown" if self.last_good_poll_at is None else "ok"

    @property
    def reason(self) -> str | None:
        return next(iter(self._troubles.values()), self._failed_look)

    def record_failure(self, reason: str, provider: str = "") -> None:
        """All of vCenter fails, or what one provider's tasks are asked for."""
        if provider not in self._troubles:
            log.warning("vcenter_unavailable", vcenter=self._vcenter, provider=provider or None, reason=reason)
        self._troubles[provider] = reason

    def record_failed_poll(self, reason: str) -> None:
        """A look failed that may be about its tasks alone, which their own log lines tell."""
        self._failed_look = reason

    def record_good_poll(self, at: float, provider: str = "") -> None:
        """vCenter answers, and so does this provider."""
        self.record_good_poll_of_provider(at, provider)
        if self._troubles:
            self._over("")

    def record_good_poll_of_provider(self, at: float, provider: str) -> None:
        """This provider answers, which says nothing about others: it stands behind another API."""
        self.last_good_poll_at, self._failed_look = at, None
        self.good_polls += 1
        if self._troubles:
            self._over(provider)

    def record_answer(self) -> None:
        """vCenter as a whole answers."""
        self._over("")

    def forget_provider(self, provider: str) -> None:
        """Nobody asks this provider any more."""
        self._troubles.pop(provider, None)

    def _over(self, provider: str) -> None:
        if self._troubles.pop(provider, None) is not None:
            log.info("vcenter_available_again", vcenter=self._vcenter, provider=provider or None)

    def set_vanished_reason(self, holding: str | None) -> None:
        if holding is not None and self.vanished_reason is None:
            log.warning("tasks_vanished_together", vcenter=self._vcenter, reason=holding)
        if holding is None and self.vanished_reason is not None:
            log.info("tasks_vanished_together_over", vcenter=self._vcenter)
        self.vanished_reason = holding
