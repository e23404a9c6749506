"""When a login may be tried. It keeps accounts from being locked and vCenter from being flooded with sessions."""

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
"""SSO locks an account after 5 failures in 3 minutes, and there are replicas."""
_CAPPED_CURE = "end the sessions that others left behind, or raise vCenter's limit"
SESSION_LIMIT_PAUSE_S, REJECTED_SESSION_PAUSE_S = 10.0, 2.0
PAUSE_MAX_S = 300.0


class LoginThrottle:
    """Closed for a while after a login that failed in a way which another one would make worse.

    A refused password closes it until the password changes, a session limit or a session that vCenter gave and
    didn't accept for a time that doubles. `turn` is held while logging in: with several sessions to begin, a wrong
    password is tried by one of them. It counts how logins end.
    """

    def __init__(
        self, settings: VCenterConfig, metrics: Metrics, clock: Callable[[], float], rng: random.Random
    ) -> None:
        self.lock = asyncio.Lock()
        self._settings = settings
        self._logins = metrics.vcenter_logins
        self._clock = clock
        self._rng = rng
        self._refused: int | None = None
        self._closed_until = 0.0
        self._why = ""
        self._capped = 0
        self._useless = 0

    @property
    def is_refused(self) -> bool:
        """Whether vCenter refused the user name or the password, which needn't be told once a kind of tasks."""
        return self._refused is not None

    def read_credentials(self) -> tuple[str, str]:
        """User name and password, read now. Raises VCenterUnavailable while no login may be tried with them."""
        name = self._settings.name
        try:
            both = self._settings.username(), self._settings.password()
        except OSError as error:
            self.record_failure()
            told = f"The user name or password of vCenter {name} can't be read: {error}."
            raise VCenterUnavailable(told) from error
        if self._refused not in (None, hash(both)):
            self._refused, self._closed_until = None, 0.0
        if self._clock() < self._closed_until:
            raise VCenterUnavailable(self._why)
        return both

    def record_failure(self) -> None:
        """A login that says nothing about the next one."""
        self._count("failed")

    def record_refusal(self, username: str, password: str, said: str) -> VCenterUnavailable:
        self._count("refused")
        self._refused = hash((username, password))
        pause_s = self._close(REFUSED_PAUSE_S)
        return self._because(
            f"vCenter {self._settings.name} refuses the user name or the password: {said}. Tried again when they "
            f"change, else {pause_s / 60:.0f} minutes later, so that the account isn't locked."
        )

    def record_session_limit(self, said: str, retry_after_s: float | None) -> VCenterUnavailable:
        self._count("session_limit")
        self._capped += 1
        pause_s = self._close(max(doubling_pause_s(self._capped, SESSION_LIMIT_PAUSE_S), retry_after_s or 0.0))
        if self._capped == 1:
            log.warning("session_limit_reached", vcenter=self._settings.name, answer=said, cure=_CAPPED_CURE)
        return self._because(
            f"vCenter {self._settings.name} has no session left for this user: {said}. "
            f"Tried again {pause_s:.0f} s later."
        )

    def record_rejected_session(self, said: str) -> VCenterUnavailable:
        self._useless += 1
        self._close(doubling_pause_s(self._useless, REJECTED_SESSION_PAUSE_S))
        return self._because(f"vCenter {self._settings.name} doesn't accept the session that it has just given: {said}")

    def record_login(self) -> None:
        self._count("ok")
        if self._capped:
            log.info("session_limit_over", vcenter=self._settings.name)
        self._refused, self._capped, self._closed_until = None, 0, 0.0

    def record_accepted_session(self) -> None:
        """A session was accepted."""
        self._useless = 0

    def _count(self, result: str) -> None:
        self._logins.labels(self._settings.name, result).inc()

    def _close(self, seconds: float) -> float:
        pause_s = seconds * self._rng.uniform(1.0, 1.25)
        self._closed_until = self._clock() + pause_s
        return pause_s

    def _because(self, why: str) -> VCenterUnavailable:
        self._why = why
        return VCenterUnavailable(why)


def doubling_pause_s(times: int, first_s: float) -> float:
    """The `times`-th pause of a row that starts with `first_s`."""
    return float(min(PAUSE_MAX_S, first_s * 2 ** min(times - 1, 16)))


class SingleFlight(Generic[T]):
    """Runs `make` once for all who wait for it at the same time."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._running: asyncio.Task[T] | None = None

    async def run(self) -> T:
        """What `make` returns or raises. Whoever waits may be canceled: the others still need it."""
        if self._running is None:
            self._running = asyncio.create_task(self._make())
            self._running.add_done_callback(self._over)
        return await asyncio.shield(self._running)

    async def wait(self) -> None:
        """Until nothing is being made. Never raises, unless canceled."""
        if self._running is not None:
            with contextlib.suppress(Exception):
                await self._running

    def _over(self, running: asyncio.Task[T]) -> None:
        self._running = None
        if not running.cancelled():
            running.exception()  # told to those who wait, if anybody still does
