"""`make bench` measures everything, `make bench ONLY="looks memory"` some of it. `make soak` is apart."""

from __future__ import annotations

import asyncio
import sys

from bench import looks, memory, promptness, scale, soak, vim

PARTS = {
    "promptness": promptness.measure,
    "looks": looks.measure,
    "ten": scale.ten_thousand,
    "fifty": scale.fifty_thousand,
    "memory": memory.measure,
    "vim": vim.measure,
}


ON_DEMAND = {"soak": soak.measure}


async def main(only: list[str]) -> None:
    parts = PARTS | ON_DEMAND
    if unknown := set(only) - parts.keys():
        sys.exit(f"There is no {', '.join(unknown)}; there are {', '.join(parts)}.")
    print(f"{'':<46} {'measured':<50} {'goal':<24} load")
    for name in only or PARTS:
        async for row in parts[name]():
            print(row, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
