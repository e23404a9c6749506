"""Whether a cost got worse from one commit to another. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Verdict(NamedTuple):
    """The same cost of two commits, measured several times. `spread`: the wider range of the two."""

    base: float
    current: float
    spread: float
    is_worse: bool

    @property
    def change_percent(self) -> float:
        return 100 * (self.current / self.base - 1)


def judge(base: Sequence[float], current: Sequence[float], limit_percent: float) -> Verdict:
    """Compare medians. Worse is what grew by more than the limit, and by more than runs of one commit differ."""
    before, after = statistics.median(base), statistics.median(current)
    spread = max(max(base) - min(base), max(current) - min(current))
    is_worse = 100 * (after - before) > limit_percent * before and after - before > spread
    return Verdict(before, after, spread, is_worse)
