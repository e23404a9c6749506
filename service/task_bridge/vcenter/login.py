"""Logins to one vCenter: when one may be tried, and one at a time.

`LoginThrottle` keeps accounts from being locked and vCenter from being flooded with sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import structlog

from ..domain.errors import VCenterUnavailable
from ..metrics import Metrics
from .policy import VCenterConfig

log = structlog.get_logger(__name__)

T = TypeVar("T")

REFUSED_PAUSE_S = 900.0
"""SSO locks an account after 5 failures in 3 minutes, and several replicas may try."""
SESSION_LIMIT_PAUSE_S, REJECTED_SESSION_PAUSE_S = 10.0, 2.0
PAUSE_MAX_S = 300.0
_SESSION_LIMIT_FIX = "end the sessions that others left behind, or raise vCenter's limit"


class LoginThrottle:
    """Forbids logins for a while after one that failed in a way that a retry would make worse.

    A refused password forbids them until the password changes. A session limit, or a new session that vCenter then
    rejects, forbids them for a time that doubles. Hold `lock` while logging in: if several sessions start, only one
    tries a wrong password. The metric `vcenter_logins` counts the results.
    """

    def __init__(
        self, settings: VCenterConfig, metrics: Metrics, clock: Callable[[], float], rng: random.Random
    ) -> None:
        self.lock = asyncio.Lock()
        self._settings = settings
        self._logins = metrics.vcenter_logins
        self._clock = clock
        self._rng = rng
        self._refused_hash: int | None = None
        self._paused_until = 0.0
        self._reason = ""
        self._session_limits = 0
        self._rejected_sessions = 0

    @property
    def is_refused(self) -> bool:
        """True while vCenter refuses the user name or the password, so that one kind of tasks reports it for both."""
        return self._refused_hash is not None

    def read_credentials(self) -> tuple[str, str]:
        """Return the user name and password, read now. Raises VCenterUnavailable while no login may be tried."""
        name = self._settings.name
        try:
            credentials = self._settings.username(), self._settings.password()
        except OSError as error:
            self.record_failure()
            reason = f"The user name or password of vCenter {name} can't be read: {error}."
            raise VCenterUnavailable(reason) from error
        if self._refused_hash not in (None, hash(credentials)):
            self._refused_hash, self._paused_until = None, 0.0
        if self._clock() < self._paused_until:
            raise VCenterUnavailable(self._reason)
        return credentials

    def record_failure(self) -> None:
        """Count a failed login that doesn't affect the next one."""
        self._count("failed")

    def record_refusal(self, username: str, password: str, message: str) -> VCenterUnavailable:
        """Pause logins until the credentials change. Return the error to raise."""
        self._count("refused")
        self._refused_hash = hash((username, password))
        pause_s = self._pause(REFUSED_PAUSE_S)
        return self._set_reason(
            f"vCenter {self._settings.name} refuses the user name or the password: {message}. Tried again when they "
            f"change, otherwise after {pause_s / 60:.0f} minutes, so that the account isn't locked."
        )

    def record_session_limit(self, message: str, retry_after_s: float | None) -> VCenterUnavailable:
        """Pause logins because this user has too many sessions. Return the error to raise."""
        self._count("session_limit")
        self._session_limits += 1
        pause_s = self._pause(max(doubling_pause_s(self._session_limits, SESSION_LIMIT_PAUSE_S), retry_after_s or 0.0))
        if self._session_limits == 1:
            log.warning("session_limit_reached", vcenter=self._settings.name, answer=message, cure=_SESSION_LIMIT_FIX)
        return self._set_reason(
            f"vCenter {self._settings.name} has no session left for this user: {message}. "
            f"Tried again after {pause_s:.0f} s."
        )

    def record_rejected_session(self, message: str) -> VCenterUnavailable:
        """Pause logins because vCenter rejects the session that it has just created. Return the error to raise."""
        self._rejected_sessions += 1
        self._pause(doubling_pause_s(self._rejected_sessions, REJECTED_SESSION_PAUSE_S))
        return self._set_reason(
            f"vCenter {self._settings.name} doesn't accept the session that it has just created: {message}"
        )

    def record_login(self) -> None:
        """Count a successful login and allow the next one."""
        self._count("ok")
        if self._session_limits:
            log.info("session_limit_over", vcenter=self._settings.name)
        self._refused_hash, self._session_limits, self._paused_until = None, 0, 0.0

    def record_accepted_session(self) -> None:
        """Note that vCenter accepts the session in requests."""
        self._rejected_sessions = 0

    def _count(self, result: str) -> None:
        self._logins.labels(self._settings.name, result).inc()

    def _pause(self, seconds: float) -> float:
        """Forbid logins for this long and up to a quarter longer. Return the seconds."""
        pause_s = seconds * self._rng.uniform(1.0, 1.25)
        self._paused_until = self._clock() + pause_s
        return pause_s

    def _set_reason(self, reason: str) -> VCenterUnavailable:
        self._reason = reason
        return VCenterUnavailable(reason)


def doubling_pause_s(count: int, first_s: float) -> float:
    """Return the pause after the `count`-th failure in a row. It starts with `first_s` and doubles up to a limit."""
    return float(min(PAUSE_MAX_S, first_s * 2 ** min(count - 1, 16)))


class SingleFlight(Generic[T]):
    """Runs `make` once for all callers that wait for it at the same time."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._running: asyncio.Task[T] | None = None

    async def run(self) -> T:
        """Return or raise what `make` does. Canceling one caller doesn't cancel the others."""
        if self._running is None:
            self._running = asyncio.create_task(self._make())
            self._running.add_done_callback(self._clear)
        return await asyncio.shield(self._running)

    async def wait(self) -> None:
        """Wait until `make` isn't running. Never raises, unless canceled."""
        if self._running is not None:
            with contextlib.suppress(Exception):
                await self._running

    def _clear(self, running: asyncio.Task[T]) -> None:
        self._running = None
        if not running.cancelled():
            running.exception()  # mark it as retrieved, even if no caller is left to receive it
