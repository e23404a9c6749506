"""How many of its watches a replica should leave to others."""

from __future__ import annotations

import pytest

from task_bridge.jetstream.replicas import count_surplus

ROOM = 50_000


@pytest.mark.parametrize(
    ("held", "others", "more"),
    [
        (30, [], 0),
        (0, [(30, ROOM)], 0),
        (30, [(0, ROOM)], 14),
        (17, [(13, ROOM)], 1),
        (16, [(14, ROOM)], 0),
        (3, [(0, ROOM)], 0),
        (4, [(0, ROOM)], 1),
        (9_000, [(500, ROOM), (500, ROOM)], 5_333),
        (9_000, [(0, 100)], 100),
        (9_000, [(100, 100)], 0),
        (9_000, [(200, 100)], 0),
    ],
)
def test_more_than_a_tenth_above_the_mean_is_too_much_where_others_have_room(
    held: int, others: list[tuple[int, int]], more: int
) -> None:
    assert count_surplus(held, others) == more


def test_handing_the_surplus_over_ends_it_and_makes_nobody_else_have_one() -> None:
    held = [10_000, 0, 4_000]
    while more := count_surplus(held[0], [(held[1], ROOM), (held[2], ROOM)]):
        held[0] -= more
        held[1] += more
    assert count_surplus(held[1], [(held[0], ROOM), (held[2], ROOM)]) == 0
