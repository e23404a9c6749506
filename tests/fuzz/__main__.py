"""`make fuzz`: 100,000 hostile requests, told as they go. COUNT and SEED say otherwise."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from fuzz.run import Attack
from fuzz.stage import attacked

BATCH = 5_000


async def main(count: int, seed: int) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="task-bridge-fuzz-") as name:
        async with attacked(Path(name), seed) as attack:
            for done in range(0, count, BATCH):
                await attack.make(min(BATCH, count - done))
                await attack.make_raw(min(BATCH, count - done) // 5)
                spent_s = time.monotonic() - began
                print(f"{min(done + BATCH, count):>7,} of {count:,} after {spent_s:.0f} s", flush=True)
            await attack.settled(within_s=600)
            await attack.make_http(count // 20)
            await attack.crowd(2_000)
            await attack.nothing_leaked()
    tell(attack)


def tell(attack: Attack) -> None:
    print(f"Each was answered or rejected; the slowest answer took {attack.slowest_s:.2f} s.")
    for outcome, number in sorted(attack.outcomes.items()):
        print(f"{number:>9,} {outcome}")


if __name__ == "__main__":
    asyncio.run(main(int(os.environ.get("COUNT") or 100_000), int(os.environ.get("SEED") or 1)))
