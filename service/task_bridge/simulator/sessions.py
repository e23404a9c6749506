"""Sessions of the simulated vCenter, and counts of how they began and ended."""

import secrets
from collections.abc import Callable

from msgspec import Struct

from .errors import too_many_sessions_error, unauthenticated_error
from .options import Clock, Options


class SimulatedSession(Struct):
    id: str
    user: str
    created_at: float
    last_accessed_at: float


class SessionCounts(Struct):
    """`refused_logins` exceeded the limit per user; `failed_logins` had wrong credentials."""

    logins: int = 0
    logouts: int = 0
    failed_logins: int = 0
    refused_logins: int = 0
    expired: int = 0
    invalidated: int = 0
    most_live: int = 0


class Sessions:
    """The live sessions. Those past a time limit of the options expire at the next access."""

    def __init__(self, options: Options, clock: Clock) -> None:
        self.counts = SessionCounts()
        self._options = options
        self._clock = clock
        self._live: dict[str, SimulatedSession] = {}

    @property
    def live(self) -> list[SimulatedSession]:
        self._expire()
        return list(self._live.values())

    def login(self, credentials: tuple[str, str] | None) -> SimulatedSession:
        """Start a session. Raises StandardError for wrong credentials, and when the user has too many sessions."""
        if credentials != (self._options.username, self._options.password):
            self.counts.failed_logins += 1
            raise unauthenticated_error()
        user, limit = self._options.username, self._options.max_sessions_per_user
        existing = sum(session.user == user for session in self.live)
        if existing >= limit:
            self.counts.refused_logins += 1
            raise too_many_sessions_error(user, existing, limit)
        now = self._clock()
        session = SimulatedSession(secrets.token_hex(16), user, now, now)
        self._live[session.id] = session
        self.counts.logins += 1
        self.counts.most_live = max(self.counts.most_live, len(self._live))
        return session

    def touch(self, session_id: str | None) -> SimulatedSession:
        """Restart the idle time of a live session and return it. Raises StandardError without one."""
        session = self._live.get(session_id or "")
        if session and self._is_expired(session):
            self._expire()
        elif session:
            session.last_accessed_at = self._clock()
            return session
        raise unauthenticated_error()

    def logout(self, session: SimulatedSession) -> None:
        if self._live.pop(session.id, None):
            self.counts.logouts += 1

    def invalidate(self, matches: Callable[[SimulatedSession], bool] = lambda _: True) -> int:
        """End the matching sessions without their clients' knowledge; return how many."""
        ended = [session.id for session in self.live if matches(session)]
        for session_id in ended:
            del self._live[session_id]
        self.counts.invalidated += len(ended)
        return len(ended)

    def _expire(self) -> None:
        expired = [session.id for session in self._live.values() if self._is_expired(session)]
        for session_id in expired:
            del self._live[session_id]
        self.counts.expired += len(expired)

    def _is_expired(self, session: SimulatedSession) -> bool:
        now, idle_limit_s, age_limit_s = self._clock(), self._options.idle_timeout_s, self._options.session_lifetime_s
        is_idle = idle_limit_s is not None and now - session.last_accessed_at >= idle_limit_s
        return is_idle or (age_limit_s is not None and now - session.created_at >= age_limit_s)
