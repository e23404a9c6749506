"""The rule by which `make bench-compare` calls a cost worse."""

from __future__ import annotations

import pytest

from bench.verdict import judge


@pytest.mark.parametrize(
    ("base", "current", "is_worse"),
    [
        ([100, 100, 100], [115, 115, 115], False),  # exactly the limit
        ([100, 100, 100], [116, 116, 116], True),
        ([100, 100, 100], [80, 80, 80], False),
        ([90, 100, 120], [128, 130, 132], False),  # 30 more, but runs of the base differ by 30
        ([90, 100, 120], [129, 131, 132], True),
        ([100, 100, 100], [110, 130, 145], False),  # 30 more, but runs of the current one differ by 35
        ([100, 101, 102], [100, 101, 300], False),  # one slow run
        ([100], [116], True),
    ],
)
def test_a_cost_is_worse_beyond_the_limit_and_beyond_the_spread(
    base: list[float], current: list[float], is_worse: bool
) -> None:
    assert judge(base, current, 15).is_worse is is_worse


def test_a_verdict_has_medians_the_wider_spread_and_the_change() -> None:
    verdict = judge([1.0, 2.0, 9.0], [3.0, 2.0, 4.0], 15)
    assert (verdict.base, verdict.current, verdict.spread, verdict.change_percent) == (2.0, 3.0, 8.0, 50.0)
