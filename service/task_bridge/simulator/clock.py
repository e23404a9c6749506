"""The time as a thing that is handed in: seconds since 1970, as `time.time` has them."""

from collections.abc import Awaitable, Callable

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class ManualClock:
    """A clock that moves only when told to, so that a test of an hour takes no time."""

    def __init__(self, now: float = 1_764_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        """Stands in for `asyncio.sleep`: the time passes, nobody waits."""
        self.advance(seconds)
