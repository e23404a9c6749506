"""Memory over 100,000 watches that come and go, ten thousand at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator

from bench.stage import Row, stage

WAVES, WAVE = 10, 10_000


async def measure() -> AsyncIterator[Row]:
    sizes = []
    async with stage() as it:
        before = it.rss_mb()
        for number in range(1, WAVES + 1):
            await it.watch(await it.create(WAVE, fate="succeeds", **{"with": {"after_s": 5.0, "looks": 1}}))
            await it.has("detection_seconds_count", number * WAVE)
            sizes.append(it.rss_mb())
    words = f"{before:.0f} MB, after each 20,000: {', '.join(f'{size:.0f}' for size in sizes[1::2])}"
    grown = (sizes[-1] - sizes[1]) * 1e6 / (WAVE * (WAVES - 2))
    yield Row(f"{WAVES * WAVE:,} watches that come and go", f"{words} ({grown:+.0f} bytes each)", "flat")
