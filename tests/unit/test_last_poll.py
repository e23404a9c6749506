"""How long the last poll of a watch at its deadline may take."""

from __future__ import annotations

import pytest

from task_bridge.domain.watch import LAST_POLL_S, LATE_POLL_S, last_poll_until
from unit.builders import NOW, a_watch


@pytest.mark.parametrize(
    ("late_s", "until_s"),
    [
        (0.0, LAST_POLL_S),
        (LAST_POLL_S - LATE_POLL_S, LAST_POLL_S),
        (LAST_POLL_S, LAST_POLL_S + LATE_POLL_S),
        (3_600.0, 3_600.0 + LATE_POLL_S),
    ],
)
def test_a_replica_that_comes_late_to_the_deadline_still_gets_a_poll(late_s: float, until_s: float) -> None:
    watch = a_watch(timeout_at=NOW)
    assert last_poll_until(watch, NOW + late_s) == NOW + until_s
