"""Options of a simulated vCenter, which may all change while it runs, and the clock that it runs by."""

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
from msgspec import Struct

Clock = Callable[[], float]
"""Returns seconds since 1970, as `time.time` does."""
Sleep = Callable[[float], Awaitable[None]]

Renderings = Literal["both", "api", "rest", "vcsim"]
SessionApi = Literal["cis", "vim"]
SESSION_APIS: tuple[SessionApi, ...] = ("cis", "vim")

# The renderings that offer a login, and those that offer tasks. vcsim has the legacy login and the modern tasks.
LOGIN_ON: dict[Renderings, tuple[str, ...]] = {
    "both": ("api", "rest"),
    "api": ("api",),
    "rest": ("rest",),
    "vcsim": ("rest",),
}
TASKS_ON: dict[Renderings, tuple[str, ...]] = {**LOGIN_ON, "vcsim": ("api",)}


class Timestamps(Struct, frozen=True):
    """Format of vCenter's times, and the skew of its clock.

    `skew_s` is added to every time; a negative one means that vCenter's clock is behind. `offset_minutes` None writes
    `Z`; a number writes the same moment with an offset such as `+02:00`. `digits` is the number of digits in the
    fraction of a second, 0 to 9. `absent` leaves all times out of task bodies.
    """

    skew_s: float = 0.0
    offset_minutes: int | None = None
    digits: int = 3
    absent: bool = False


class Options(Struct, kw_only=True, forbid_unknown_fields=True):
    """Options of a simulated vCenter. `latency_s` delays every answer; None turns a time limit off.

    `history_retention_s`: how long after their creation the history of classic tasks keeps them.
    `max_history_collectors`: how many TaskHistoryCollectors a session may have.
    `refused_sessions`: the APIs that give sessions and then refuse them. `false_refusals`: how many of the next logins
    to an API are refused though the password is right.
    """

    username: str = "administrator@vsphere.local"
    password: str = "simulated"  # noqa: S105 - there is nothing behind it
    renderings: Renderings = "both"
    list_enabled: bool = True
    max_listed: int = 1000
    retention_s: float | None = 86_400.0
    history_retention_s: float | None = None
    max_history_collectors: int = 32
    idle_timeout_s: float | None = 1_800.0
    session_lifetime_s: float | None = None
    max_sessions_per_user: int = 550
    refused_sessions: tuple[SessionApi, ...] = ()
    false_refusals: dict[SessionApi, int] = msgspec.field(default_factory=dict)
    latency_s: float = 0.0
    timestamps: Timestamps = Timestamps()
    remembered_requests: int = 100_000
    remembered_tasks: int = 100_000

    @property
    def login_on(self) -> tuple[str, ...]:
        return LOGIN_ON[self.renderings]

    @property
    def tasks_on(self) -> tuple[str, ...]:
        return TASKS_ON[self.renderings]


class ManualClock:
    """A clock that moves only when a test advances it, so that a test of an hour takes no time."""

    def __init__(self, now: float = 1_764_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        """Advance the clock instead of waiting; takes the place of `asyncio.sleep`."""
        self.advance(seconds)
