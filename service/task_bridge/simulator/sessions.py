"""Sessions: who is logged in, how sessions end, and how often all that happened."""

import secrets
from collections.abc import Callable

from msgspec import Struct

from .clock import Clock
from .errors import too_many_sessions, unauthenticated
from .options import Options


class SimulatedSession(Struct):
    id: str
    user: str
    created_at: float
    last_accessed_at: float


class SessionCounts(Struct):
    logins: int = 0
    logouts: int = 0
    failed_logins: int = 0
    refused_logins: int = 0
    expired: int = 0
    invalidated: int = 0
    most_live: int = 0


class Sessions:
    """`counts.refused_logins` are those over the user's cap, `failed_logins` those with wrong credentials."""

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
        if credentials != (self._options.username, self._options.password):
            self.counts.failed_logins += 1
            raise unauthenticated()
        user = self._options.username
        self._refuse_over_cap(user)
        now = self._clock()
        session = SimulatedSession(secrets.token_hex(16), user, now, now)
        self._live[session.id] = session
        self.counts.logins += 1
        self.counts.most_live = max(self.counts.most_live, len(self._live))
        return session

    def touch(self, session_id: str | None) -> SimulatedSession:
        """The live session of this id, whose idle time starts again."""
        session = self._live.get(session_id or "")
        if session and self._is_over(session):
            self._expire()
        elif session:
            session.last_accessed_at = self._clock()
            return session
        raise unauthenticated()

    def logout(self, session: SimulatedSession) -> None:
        if self._live.pop(session.id, None):
            self.counts.logouts += 1

    def invalidate(self, matches: Callable[[SimulatedSession], bool] = lambda _: True) -> int:
        """Ends sessions behind their owners' backs; says how many."""
        doomed = [session.id for session in self.live if matches(session)]
        for session_id in doomed:
            del self._live[session_id]
        self.counts.invalidated += len(doomed)
        return len(doomed)

    def _refuse_over_cap(self, user: str) -> None:
        existing = sum(session.user == user for session in self.live)
        limit = self._options.max_sessions_per_user
        if existing >= limit:
            self.counts.refused_logins += 1
            raise too_many_sessions(user, existing, limit)

    def _expire(self) -> None:
        over = [session.id for session in self._live.values() if self._is_over(session)]
        for session_id in over:
            del self._live[session_id]
        self.counts.expired += len(over)

    def _is_over(self, session: SimulatedSession) -> bool:
        idle_s = self._clock() - session.last_accessed_at
        age_s = self._clock() - session.created_at
        return _beyond(idle_s, self._options.idle_timeout_s) or _beyond(age_s, self._options.session_lifetime_s)


def _beyond(seconds: float, limit_s: float | None) -> bool:
    return limit_s is not None and seconds >= limit_s
