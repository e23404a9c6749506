"""What a simulated vCenter can be told to be like. All may change while it runs."""

from typing import Literal

from msgspec import Struct

Renderings = Literal["both", "api", "rest", "vcsim"]

# Where one can log in, and where the tasks are. vcsim has the legacy login and the modern tasks.
LOGIN_ON: dict[Renderings, tuple[str, ...]] = {
    "both": ("api", "rest"),
    "api": ("api",),
    "rest": ("rest",),
    "vcsim": ("rest",),
}
TASKS_ON: dict[Renderings, tuple[str, ...]] = {**LOGIN_ON, "vcsim": ("api",)}


class Timestamps(Struct, frozen=True):
    """How vCenter's clock and its way of writing differ from ours.

    `skew_s` is added to every time (below zero: vCenter is behind); `offset_minutes` None writes `Z`, a number
    writes the same moment as `+02:00`; `digits` are those of the second's fraction, 0 to 9; `absent` leaves all
    times out of task bodies.
    """

    skew_s: float = 0.0
    offset_minutes: int | None = None
    digits: int = 3
    absent: bool = False


class Options(Struct, kw_only=True, forbid_unknown_fields=True):
    username: str = "administrator@vsphere.local"
    password: str = "simulated"  # noqa: S105 - there is nothing behind it
    renderings: Renderings = "both"
    list_enabled: bool = True
    max_listed: int = 1000
    retention_s: float | None = 86_400.0
    idle_timeout_s: float | None = 1_800.0
    session_lifetime_s: float | None = None
    max_sessions_per_user: int = 550
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
