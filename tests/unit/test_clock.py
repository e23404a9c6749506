"""Time by nats-server's clock, from measurements that are good to their round trip."""

from __future__ import annotations

import pytest

from task_bridge.domain.clock import ServerClock, describe_difference

NOW = 1_764_000_000.0


class Host:
    """A host's two clocks, which a test sets."""

    def __init__(self) -> None:
        self.wall = NOW
        self.monotonic = 500.0
        self.clock = ServerClock(lambda: self.wall, lambda: self.monotonic)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def measure(self, server_ahead_s: float, *, there_s: float = 0.0, back_s: float = 0.0) -> None:
        """Ask a server whose clock is ahead of this host's true time by so much."""
        asked_at = self.monotonic
        self.wait(there_s)
        written_at = NOW + self.monotonic - 500.0 + server_ahead_s
        self.wait(back_s)
        self.clock.record_server_time(written_at, asked_at)


def test_before_a_measurement_the_hosts_clock_stands_in() -> None:
    host = Host()
    host.wait(10)
    assert (host.clock.now(), host.clock.difference_s) == (NOW + 10, None)


@pytest.mark.parametrize("step_s", [3_600.0, -3_600.0])
def test_a_step_of_the_hosts_clock_moves_only_the_difference(step_s: float) -> None:
    host = Host()
    host.measure(0.0)
    host.wall += step_s
    host.wait(5)
    assert host.clock.now() == NOW + 5
    assert host.clock.difference_s == 0.0  # until it is measured
    host.measure(0.0)
    assert (host.clock.now(), host.clock.difference_s) == (NOW + 5, step_s)


@pytest.mark.parametrize("ahead_s", [3_600.0, -3_600.0])
@pytest.mark.parametrize(("there_s", "back_s"), [(0.0, 0.0), (0.1, 0.1), (2.0, 0.0), (0.0, 2.0)])
def test_a_server_whose_clock_differs_is_followed_to_its_round_trip(
    ahead_s: float, there_s: float, back_s: float
) -> None:
    host = Host()
    host.measure(ahead_s, there_s=there_s, back_s=back_s)
    assert abs(host.clock.now() - host.wall - ahead_s) <= there_s + back_s
    host.measure(ahead_s)
    assert host.clock.now() == pytest.approx(host.wall + ahead_s, abs=1e-6)
    assert host.clock.difference_s == pytest.approx(-ahead_s, abs=1e-6)


@pytest.mark.parametrize(("there_s", "back_s"), [(4.0, 0.0), (0.0, 4.0), (0.5, 0.5)])
def test_a_slow_answer_undoes_no_quick_one(there_s: float, back_s: float) -> None:
    host = Host()
    host.measure(7.0)
    host.measure(7.0, there_s=there_s, back_s=back_s)
    assert host.clock.now() == host.wall + 7.0


@pytest.mark.parametrize(
    ("difference_s", "words"),
    [(None, None), (5.0, None), (-5.0, None), (5.1, "5.1 s ahead of nats-server's"), (-3_600.0, "3600.0 s behind")],
)
def test_operators_read_of_more_than_five_seconds(difference_s: float | None, words: str | None) -> None:
    reason = describe_difference(difference_s)
    assert reason is None if words is None else words in str(reason)
