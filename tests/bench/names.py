"""What names of targets cost: classic tasks, each on a VM of its own, without lookups and with them, in turn.

Another checkout of the bridge takes part if `BEFORE` names the directory of its package.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from bench.stage import Row, stage
from bench.vim import PER_SECOND, follow_to_end

SIZE, ROUNDS = 2_000, 3
NAMES = "BRIDGE_VCENTERS__LAB__NAMES"
WAYS = {"without names": {NAMES: "false"}, "with names": {NAMES: "true"}}
BEFORE = os.environ.get("BEFORE")


async def measure() -> AsyncIterator[Row]:
    ways = ({"before": {"PYTHONPATH": BEFORE}} if BEFORE else {}) | WAYS
    costs: dict[str, list[float]] = {way: [] for way in ways}
    requests: dict[str, list[float]] = {way: [] for way in ways}
    noticed = dict.fromkeys(ways, "")
    for _ in range(ROUNDS):
        for way, environment in ways.items():
            async with stage(**environment) as it:
                noticed[way], requests_a_s, a_task_ms = await follow_to_end(it, SIZE)
            costs[way].append(a_task_ms)
            requests[way].append(requests_a_s)
    for way in ways:
        what = f"{SIZE:,} classic tasks, {PER_SECOND} end per second, {way}"
        used = f"CPU per task {_range(costs[way], 2)} ms; {_range(requests[way], 1)} requests/s"
        yield Row(what, f"{used}; {noticed[way]}")
    more = min(costs["with names"]) / min(costs["without names"]) - 1
    yield Row("   CPU that names cost", f"{100 * more:+.0f} %", "≤ 15 %")


def _range(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
