"""Logins to one vCenter: when one may be tried, and one at a time.

`LoginThrottle` keeps accounts from being locked and vCenter from being flooded with sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

import structlog

from ..domain.errors import LoginRefused, VCenterUnavailable
from ..metrics import Metrics
from .login_rules import Api, RefusedLogins, SessionBreaker, SessionRecord, doubling_pause_s, jitter
from .policy import VCenterConfig

log = structlog.get_logger(__name__)

T = TypeVar("T")

SESSION_LIMIT_PAUSE_S = 10.0
_SESSION_LIMIT_FIX = "end the sessions that others left behind, or raise vCenter's limit"


class LoginThrottle:
    """Forbids logins for a while after one that failed in a way that a retry would make worse.

    `login_rules` decides about refused passwords and rejected sessions. A session limit forbids logins for a time that
    doubles. Hold `lock` while logging in: if several sessions start, only one tries a wrong password. The metric
    `vcenter_logins` counts the results.
    """

    def __init__(
        self, settings: VCenterConfig, metrics: Metrics, clock: Callable[[], float], rng: random.Random
    ) -> None:
        self.lock = asyncio.Lock()
        self.clock = clock
        self._settings = settings
        self._logins = metrics.vcenter_logins
        self._rng = rng
        self._breaker = SessionBreaker(rng)
        self._refused = RefusedLogins(rng)
        self._session_limits = 0
        self._limited_until = 0.0
        self._refusal = self._rejection = self._limit = ""  # why logins are paused

    def create_session_record(self, api: Api) -> SessionRecord:
        return SessionRecord(api, self._breaker)

    @property
    def is_refused(self) -> bool:
        """True while vCenter refuses the user name or the password, so that one kind of tasks reports it for both."""
        return self._refused.is_any_closed

    def read_credentials(self, api: Api) -> tuple[str, str]:
        """Return the user name and password, read now. Raises VCenterUnavailable while no login may be tried."""
        name = self._settings.name
        try:
            credentials = self._settings.username(), self._settings.password()
        except OSError as error:
            self.record_failure()
            reason = f"The user name or password of vCenter {name} can't be read: {error}."
            raise VCenterUnavailable(reason) from error
        now = self.clock()
        if self._refused.wait_s(api, hash(credentials), now):
            raise LoginRefused(self._refusal)
        if self._breaker.wait_s(api, now):
            raise VCenterUnavailable(self._rejection)
        if now < self._limited_until:
            raise VCenterUnavailable(self._limit)
        return credentials

    def record_failure(self) -> None:
        """Count a failed login that doesn't affect the next one."""
        self._count("failed")

    def record_refusal(
        self, api: Api, credentials: tuple[str, str], message: str, unknown_schemes: str | None = None
    ) -> VCenterUnavailable:
        """Pause logins with these credentials. Return the error to raise.

        `unknown_schemes`: a sentence about how vCenter wants its users to log in, if the bridge can't do that.
        """
        self._count("refused")
        minutes = self._refused.record_refusal(api, hash(credentials), self.clock()) / 60
        name = self._settings.name
        if unknown_schemes:
            self._refusal = (
                f"vCenter {name} lets nobody log in by user name and password: {message}. {unknown_schemes} "
                f"Allow Basic authentication at vCenter. Tried again after {minutes:.0f} minutes."
            )
        else:
            self._refusal = (
                f"vCenter {name} refuses the user name or the password: {message}. Tried again when they "
                f"change, otherwise after {minutes:.0f} minutes, so that the account isn't locked."
            )
        return LoginRefused(self._refusal)

    def record_session_limit(self, message: str, retry_after_s: float | None) -> VCenterUnavailable:
        """Pause logins because this user has too many sessions. Return the error to raise."""
        self._count("session_limit")
        self._session_limits += 1
        pause_s = max(doubling_pause_s(self._session_limits, SESSION_LIMIT_PAUSE_S), retry_after_s or 0.0)
        pause_s *= jitter(self._rng)
        self._limited_until = self.clock() + pause_s
        if self._session_limits == 1:
            log.warning("session_limit_reached", vcenter=self._settings.name, answer=message, cure=_SESSION_LIMIT_FIX)
        self._limit = (
            f"vCenter {self._settings.name} has no session left for this user: {message}. "
            f"Tried again after {pause_s:.0f} s."
        )
        return VCenterUnavailable(self._limit)

    def build_rejection(self, message: str, unknown_schemes: str | None = None) -> VCenterUnavailable:
        """Return the error to raise while vCenter rejects the session that it has just created."""
        self._rejection = (
            f"vCenter {self._settings.name} doesn't accept the session that it has just created: {message}"
            + (f". {unknown_schemes}" if unknown_schemes else "")
        )
        return VCenterUnavailable(self._rejection)

    def record_login(self, api: Api, credentials: tuple[str, str]) -> None:
        """Count a successful login and allow the next one."""
        self._count("ok")
        if self._session_limits:
            log.info("session_limit_over", vcenter=self._settings.name)
        self._refused.record_login(api, hash(credentials))
        self._session_limits, self._limited_until = 0, 0.0

    def _count(self, result: str) -> None:
        self._logins.labels(self._settings.name, result).inc()


class GivenUpSessions(Generic[T]):
    """Sessions that the bridge has replaced and not yet logged out of. `log_out` sends one logout."""

    def __init__(self, log_out: Callable[[T], Awaitable[object]]) -> None:
        self._log_out = log_out
        self._waiting: list[T] = []

    def add(self, session: T) -> None:
        self._waiting.append(session)

    async def log_out_of_all(self) -> None:
        """Try once to log out of each: some are alive, whatever vCenter said. Never raises, unless canceled."""
        while self._waiting:
            session = self._waiting.pop()
            try:
                await self._log_out(session)
            except VCenterUnavailable as error:
                log.debug("logout_failed", reason=str(error))
            except BaseException:
                self._waiting.append(session)
                raise


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
