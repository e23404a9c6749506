"""The vCenters that replicas report, and how long a request for an unknown one has to wait. Pure.

A replica doesn't speak for the fleet: in a rolling change of settings only the new replica knows a new vCenter. All
times are monotonic seconds, passed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

UNKNOWN_FOR_S = 600.0
"""How long no replica must have reported a vCenter before its requests are rejected."""
_HAND_BACKS = 4
"""Within that time. So a request that waits in vain is rejected at its fifth delivery."""
_REPORTED_ELSEWHERE_S = 0.5
"""Until JetStream delivers a request again that another replica can serve."""


def hand_back_interval_s() -> float:
    """Return for how long a request is handed back at most."""
    return UNKNOWN_FOR_S / _HAND_BACKS


class ReportedVCenters:
    """The vCenters that other replicas report.

    `settle_s`: the time after which a replica has heard every other one, or takes it for gone.
    """

    def __init__(self, settle_s: float, now: float) -> None:
        self._settle_s = settle_s
        self._listening_since = self._checked_at = now
        self._heard_other_at = -math.inf
        self._reported_at: dict[str, float] = {}

    def check_listening(self, now: float, *, is_connected: bool) -> None:
        """Start to listen again after a time in which no report could come: without NATS, or in a stopped process."""
        if not is_connected or now - self._checked_at > self._settle_s:
            self._listening_since = now
        self._checked_at = now

    def record(self, names: Iterable[str], now: float) -> list[str]:
        """Record another replica's report. Return the vCenters that nobody has reported recently."""
        names = list(names)
        news = [name for name in names if not self.is_reported(name, now)]
        self._heard_other_at = now
        self._reported_at.update(dict.fromkeys(names, now))
        return news

    def is_reported(self, name: str, now: float) -> bool:
        return now - self._reported_at.get(name, -math.inf) <= self._settle_s

    def names(self, now: float) -> list[str]:
        """Return the vCenters that were reported recently."""
        return [name for name in self._reported_at if self.is_reported(name, now)]

    def hand_back_s(self, name: str, waited_s: float, now: float) -> float:
        """Return for how long to hand back a request for a vCenter that isn't configured here, 0 to reject it.

        `waited_s`: how long the request has waited. A replica that heard no other one for the whole time is alone and
        rejects at once; a new one must have listened for `settle_s` to know.
        """
        listened_s = now - self._listening_since
        if listened_s < self._settle_s or now - self._checked_at > self._settle_s:
            return self._settle_s
        if now - self._heard_other_at >= UNKNOWN_FOR_S:
            return 0.0
        if self.is_reported(name, now):
            return _REPORTED_ELSEWHERE_S
        silent_s = min(waited_s, listened_s, now - self._reported_at.get(name, -math.inf))
        return max(0.0, min(UNKNOWN_FOR_S - silent_s, hand_back_interval_s()))
