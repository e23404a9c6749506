"""Time by nats-server's clock that no step of the host's clock disturbs. Pure: the clocks are passed in."""

from __future__ import annotations

from collections.abc import Callable

DIFFERENCE_LIMIT_S = 5.0
"""Difference between the clocks of this host and of nats-server above which operators are warned."""


class ServerClock:
    """Unix seconds by nats-server's clock: its last measurement, and what a monotonic clock counted since.

    `offset_s` is nats-server's time minus the monotonic clock's. Whoever keeps it goes on with the time of that moment,
    whatever happens to any clock later; a watch does so from its takeover on. Until the first measurement the host's
    clock stands in for nats-server's. `difference_s` is the host's clock minus nats-server's at the last measurement,
    None before it.
    """

    def __init__(self, read_wall: Callable[[], float], read_monotonic: Callable[[], float]) -> None:
        self.monotonic = read_monotonic
        self.offset_s = read_wall() - read_monotonic()
        self.difference_s: float | None = None
        self._read_wall = read_wall

    def now(self) -> float:
        """Return Unix seconds by nats-server's clock."""
        return self.monotonic() + self.offset_s

    def record_server_time(self, server_time: float, asked_at: float) -> None:
        """Apply the time that nats-server wrote into an answer that has just arrived.

        `asked_at` is the monotonic time of the request. The server wrote its time between then and now, so the
        measurement is good to that round trip: an offset within it stays, any other moves to its nearer end. A slow
        answer thus changes nothing that a quick one measured better.
        """
        lowest, highest = server_time - self.monotonic(), server_time - asked_at
        self.offset_s = min(max(self.offset_s, lowest), highest)
        self.difference_s = self._read_wall() - self.now()


def describe_difference(difference_s: float | None) -> str | None:
    """Return what to do about a host's clock that is so far ahead of nats-server's; None if it is near or unknown."""
    if difference_s is None or abs(difference_s) <= DIFFERENCE_LIMIT_S:
        return None
    direction = "ahead of" if difference_s > 0 else "behind"
    return (
        f"the clock of this host is {abs(difference_s):.1f} s {direction} nats-server's. Timeouts go by "
        "nats-server's. Set up NTP on both hosts."
    )
