"""Sessions of the simulated vCenter, and counts of how they began and ended."""

import secrets
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from .errors import too_many_sessions_error, unauthenticated_error
from .options import SESSION_APIS, Clock, Options, SessionApi

SessionState = Literal["good", "refused", "failing"]


class SimulatedSession(Struct):
    """A session. `refused`: it is live, but requests in it get what they would get without one, except a logout.

    `failing`: every request in it gets a 500.
    """

    id: str
    user: str
    created_at: float
    last_accessed_at: float
    api: SessionApi = "cis"
    state: SessionState = "good"


class SessionCounts(Struct):
    """`refused_logins` exceeded the limit per user; `failed_logins` had wrong credentials, or were refused as if so."""

    logins: int = 0
    logouts: int = 0
    failed_logins: int = 0
    refused_logins: int = 0
    expired: int = 0
    invalidated: int = 0
    most_live: int = 0


class Sessions:
    """The live sessions. Those past a time limit of the options expire at the next access.

    `counts` are those of all sessions, `counts_of` those of one API: `/api` and `/rest` are `cis`, `/sdk` is `vim`.
    """

    def __init__(self, options: Options, clock: Clock) -> None:
        self.counts = SessionCounts()
        self.counts_of: dict[SessionApi, SessionCounts] = {api: SessionCounts() for api in SESSION_APIS}
        self._options = options
        self._clock = clock
        self._live: dict[str, SimulatedSession] = {}

    @property
    def live(self) -> list[SimulatedSession]:
        self._expire()
        return list(self._live.values())

    def live_of(self, api: SessionApi) -> list[SimulatedSession]:
        return [session for session in self.live if session.api == api]

    def login(self, credentials: tuple[str, str] | None, api: SessionApi = "cis") -> SimulatedSession:
        """Start a session. Raises StandardError for wrong credentials, and when the user has too many sessions."""
        if credentials != (self._options.username, self._options.password) or self._is_refused_by_mistake(api):
            self._count(api, "failed_logins")
            raise unauthenticated_error()
        user, limit = self._options.username, self._options.max_sessions_per_user
        existing = sum(session.user == user for session in self.live)
        if existing >= limit:
            self._count(api, "refused_logins")
            raise too_many_sessions_error(user, existing, limit)
        now = self._clock()
        state: SessionState = "refused" if api in self._options.refused_sessions else "good"
        session = SimulatedSession(secrets.token_hex(16), user, now, now, api, state)
        self._live[session.id] = session
        self._count(api, "logins")
        for counts, live in ((self.counts, self.live), (self.counts_of[api], self.live_of(api))):
            counts.most_live = max(counts.most_live, len(live))
        return session

    def _is_refused_by_mistake(self, api: SessionApi) -> bool:
        left = self._options.false_refusals.get(api, 0)
        if left:
            self._options.false_refusals[api] = left - 1
        return left > 0

    def _count(self, api: SessionApi, name: str) -> None:
        for counts in (self.counts, self.counts_of[api]):
            setattr(counts, name, getattr(counts, name) + 1)

    def set_state(self, state: SessionState, api: SessionApi | None = None) -> None:
        """Change the sessions that are live now, of one API or of all. A new login isn't affected."""
        for session in self.live:
            if api in (None, session.api):
                session.state = state

    def find(self, session_id: str | None) -> SimulatedSession:
        """Return a live session, even one that is refused. Raises StandardError without one."""
        self._expire()
        if session := self._live.get(session_id or ""):
            return session
        raise unauthenticated_error()

    def touch(self, session_id: str | None) -> SimulatedSession:
        """Restart the idle time of a live session and return it. Raises StandardError without one."""
        session = self.find(session_id)
        if session.state == "refused":
            raise unauthenticated_error()
        session.last_accessed_at = self._clock()
        return session

    def logout(self, session: SimulatedSession) -> None:
        if self._live.pop(session.id, None):
            self._count(session.api, "logouts")

    def invalidate(self, matches: Callable[[SimulatedSession], bool] = lambda _: True) -> int:
        """End the matching sessions without their clients' knowledge; return how many."""
        ended = [session for session in self.live if matches(session)]
        for session in ended:
            del self._live[session.id]
            self._count(session.api, "invalidated")
        return len(ended)

    def _expire(self) -> None:
        for session in [session for session in self._live.values() if self._is_expired(session)]:
            del self._live[session.id]
            self._count(session.api, "expired")

    def _is_expired(self, session: SimulatedSession) -> bool:
        now, idle_limit_s, age_limit_s = self._clock(), self._options.idle_timeout_s, self._options.session_lifetime_s
        is_idle = idle_limit_s is not None and now - session.last_accessed_at >= idle_limit_s
        return is_idle or (age_limit_s is not None and now - session.created_at >= age_limit_s)
