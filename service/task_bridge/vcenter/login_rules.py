"""Rules of sessions and logins: when a session is replaced, and when a login may be tried.

All APIs of a vCenter share a `SessionBreaker` and a `RefusedLogins`; each API has a `SessionRecord`. Pure: callers pass
the time, in seconds of a monotonic clock.
"""

from __future__ import annotations

import enum
import random
from collections import Counter, deque
from typing import Literal

Api = Literal["cis", "vim"]
APIS: tuple[Api, ...] = ("cis", "vim")

REJECTED_PAUSE_S, PAUSE_MAX_S = 2.0, 300.0
TROUBLE_OVER_S = 900.0
"""After so long without another rejected session, pauses start from the shortest again."""
FAILING_S = 180.0
"""For how long every poll must fail before the session itself is suspected."""
RENEWAL_PAUSE_S = 600.0
REFUSED_PAUSES_S = (180.0, 360.0, 720.0, 900.0)
"""Pauses for credentials that have worked. SSO locks an account after 5 failures in 3 minutes, and replicas try too."""
NEVER_GOOD_PAUSE_S = 900.0
REFUSALS_MAX, REFUSALS_WINDOW_S = 3, 900.0
_JITTER = 0.25
_POLLS = frozenset({"tasks", "pull", "wait"})
_PREPARATIONS = frozenset({"labels", "push", "modify"})
"""Requests before the first poll. A session that doesn't live until then counts as rejected."""


def doubling_pause_s(count: int, first_s: float) -> float:
    """Return the pause after the `count`-th failure in a row. It starts with `first_s` and doubles up to a limit."""
    return float(min(PAUSE_MAX_S, first_s * 2 ** min(count - 1, 16)))


def jitter(rng: random.Random) -> float:
    """Return the factor that spreads the logins of several replicas. It never shortens a pause."""
    return rng.uniform(1.0, 1.0 + _JITTER)


class SessionBreaker:
    """Limits logins while vCenter doesn't accept the sessions that it gives.

    Each rejected session doubles the pause before the next login, whichever API it was for. Only APIs in trouble wait.
    An API is in trouble from a rejected session until a good answer to the kind of request that was rejected: a good
    answer of another kind proves nothing.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._rejections = 0
        self._rejected_at = float("-inf")
        self._paused_until = float("-inf")
        self._trouble: set[tuple[Api, str]] = set()

    def record_rejection(self, api: Api, kind: str, now: float) -> None:
        """Count a session that was rejected though vCenter had just given it."""
        if now - self._rejected_at > TROUBLE_OVER_S:
            self._rejections = 0
            self._trouble.clear()
        self._rejections += 1
        self._rejected_at = now
        self._trouble.add((api, kind))
        self._pause(now)

    def record_login(self, api: Api, now: float) -> None:
        """Let one login pass after each pause: if two APIs are in trouble, the other one waits."""
        if self._rejections and self._is_in_trouble(api):
            self._pause(now)

    def record_good_answer(self, api: Api, kind: str) -> None:
        if (api, kind) in self._trouble:
            self._trouble.discard((api, kind))
            if not self._is_in_trouble(api):
                self._rejections, self._paused_until = 0, float("-inf")

    def wait_s(self, api: Api, now: float) -> float:
        """Return how long this API must not log in."""
        return max(0.0, self._paused_until - now) if self._is_in_trouble(api) else 0.0

    def _is_in_trouble(self, api: Api) -> bool:
        return any(one == api for one, _ in self._trouble)

    def _pause(self, now: float) -> None:
        self._paused_until = now + doubling_pause_s(self._rejections, REJECTED_PAUSE_S) * jitter(self._rng)


class Verdict(enum.Enum):
    """What follows from a request that vCenter refused as if its session weren't logged in."""

    REPLACE = enum.auto()
    """Log in again and repeat the request."""
    WAIT = enum.auto()
    """vCenter doesn't accept the session that it gave: use it on, until the breaker allows a login."""
    KEEP = enum.auto()
    """The session serves other requests, so only this one is refused."""


class SessionRecord:
    """What vCenter has answered in the current session of one API.

    Requests have kinds, such as `tasks` or `check`: vCenter may accept a session for some and not for others.
    """

    def __init__(self, api: Api, breaker: SessionBreaker) -> None:
        self._api = api
        self._breaker = breaker
        self._accepted: set[str] = set()
        self._is_rejected = False
        self._has_served = False
        self._failing: tuple[str, float] | None = None
        self._renewed_at = float("-inf")

    @property
    def is_accepted(self) -> bool:
        """True if any request in this session, apart from preparations, got a good answer."""
        return bool(self._accepted - _PREPARATIONS)

    def begin(self, now: float) -> None:
        """Start with a session that vCenter has just given."""
        self._accepted.clear()
        self._is_rejected = False
        self._breaker.record_login(self._api, now)

    def record_good_answer(self, kind: str) -> None:
        self._accepted.add(kind)
        self._is_rejected = False
        self._breaker.record_good_answer(self._api, kind)
        self._has_served = True
        if kind in _POLLS or (self._failing and self._failing[0] == kind):
            self._failing = None

    def record_refusal(self, kind: str, now: float, *, is_alive: bool) -> Verdict:
        """Decide about the session after a refusal. `is_alive`: vCenter still reports the session as logged in."""
        if self.is_accepted and not is_alive:
            return Verdict.REPLACE
        if kind in self._accepted:
            self._accepted.discard(kind)  # unless it is accepted again, the next refusal isn't this request's alone
            return Verdict.REPLACE if self._may_renew(now) else Verdict.KEEP
        if not self._is_rejected:
            self._is_rejected = True
            self._breaker.record_rejection(self._api, kind, now)
        return Verdict.WAIT if self._breaker.wait_s(self._api, now) else Verdict.REPLACE

    def record_failure(self, kind: str, now: float) -> bool:
        """Record a 500 or a fault. Return True if the session should be replaced: it once served, and no longer does.

        Every poll must have failed like this for a while.
        """
        if self._failing is None:
            self._failing = (kind, now)
        return self._has_served and now - self._failing[1] >= FAILING_S and self._may_renew(now)

    def record_other_answer(self) -> None:
        """Record no answer, or one that is neither good nor a failure of this kind."""
        self._failing = None

    def _may_renew(self, now: float) -> bool:
        """Return True, once in a while: the session is only suspected."""
        if now - self._renewed_at < RENEWAL_PAUSE_S:
            return False
        self._renewed_at = now
        return True


class RefusedLogins:
    """Decides when credentials that vCenter refused may be tried again. Others may be tried at once.

    `credentials` are known by a number, such as a hash. Those that have worked may have been refused by mistake: each
    API tries them again after a few minutes, and a refusal by one doesn't close the other. Those that never worked are
    tried seldom, by one API for all.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._good: set[int] = set()
        self._refused: int | None = None
        self._in_a_row: Counter[Api] = Counter()
        self._retry_at: dict[Api, float] = {}
        self._refused_at: deque[float] = deque(maxlen=REFUSALS_MAX)

    @property
    def is_any_closed(self) -> bool:
        """True from a refusal until a login."""
        return bool(self._retry_at)

    def has_worked(self, credentials: int) -> bool:
        return credentials in self._good

    def wait_s(self, api: Api, credentials: int, now: float) -> float:
        """Return how long these credentials must not be tried by this API."""
        if credentials != self._refused:
            return 0.0
        retry_at = self._retry_at.get(api, float("-inf"))
        if len(self._refused_at) == REFUSALS_MAX:
            retry_at = max(retry_at, self._refused_at[0] + REFUSALS_WINDOW_S)
        return max(0.0, retry_at - now)

    def record_refusal(self, api: Api, credentials: int, now: float) -> float:
        """Record that vCenter refused the credentials. Return how long this API must not try them again."""
        if credentials != self._refused:
            self._refused = credentials
            self._in_a_row.clear()
            self._retry_at.clear()
            self._refused_at.clear()
        self._refused_at.append(now)
        self._in_a_row[api] += 1
        if self.has_worked(credentials):
            pause_s = REFUSED_PAUSES_S[min(self._in_a_row[api], len(REFUSED_PAUSES_S)) - 1]
            self._retry_at[api] = now + pause_s * jitter(self._rng)
        else:
            self._retry_at = dict.fromkeys(APIS, now + NEVER_GOOD_PAUSE_S * jitter(self._rng))
        return self.wait_s(api, credentials, now)

    def record_login(self, api: Api, credentials: int) -> None:
        """Record that the credentials work. Those that never did before are open to all APIs now."""
        for one in [api] if self.has_worked(credentials) else APIS:
            self._in_a_row.pop(one, None)
            self._retry_at.pop(one, None)
        self._good.add(credentials)
