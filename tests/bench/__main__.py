"""`make bench` measures everything, `make bench ONLY="looks memory"` some of it."""

from __future__ import annotations

import asyncio
import sys

from bench import looks, memory, promptness, scale

PARTS = {
    "promptness": promptness.measure,
    "looks": looks.measure,
    "ten": scale.ten_thousand,
    "fifty": scale.fifty_thousand,
    "memory": memory.measure,
}


async def main(only: list[str]) -> None:
    if unknown := set(only) - PARTS.keys():
        sys.exit(f"There is no {', '.join(unknown)}; there are {', '.join(PARTS)}.")
    print(f"{'':<46} {'measured':<50} {'goal':<24} load")
    for name in only or PARTS:
        async for row in PARTS[name]():
            print(row, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
