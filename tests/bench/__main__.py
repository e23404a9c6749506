"""`make bench` measures all parts, `make bench ONLY="looks memory"` two of them, `make soak` the soak.

Each part that ends is printed and written to docs/figures.md, which keeps the figures of the others.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from bench import deliver, figures, follow, history, looks, many_vcenters, memory, names, promptness, scale, soak, vim

PARTS = {
    "promptness": promptness.measure,
    "looks": looks.measure,
    "ten": scale.ten_thousand,
    "fifty": scale.fifty_thousand,
    "memory": memory.measure,
    "vim": vim.measure,
    "names": names.measure,
    "vcenters": many_vcenters.measure,
    "history": history.measure,
    "follow": follow.measure,
    "deliver": deliver.measure,
}


ON_DEMAND = {"soak": soak.measure}


async def main(only: list[str]) -> None:
    parts = PARTS | ON_DEMAND
    if unknown := set(only) - parts.keys():
        sys.exit(f"There is no {', '.join(unknown)}; there are {', '.join(parts)}.")
    print(f"{'':<46} {'measured':<50} {'goal':<24} load")
    for name in only or PARTS:
        rows = []
        async for row in parts[name]():
            print(row, flush=True)
            rows.append(figures.Figure(row.what, row.measured, row.goal))
        write(name, rows)


def write(name: str, rows: list[figures.Figure]) -> None:
    """Write the part that was measured to docs/figures.md. Of the soak only the last row is kept."""
    command = "`make soak`" if name in ON_DEMAND else f'`make bench ONLY="{name}"`'
    kept = rows[-1:] if name in ON_DEMAND else rows
    today, machine = datetime.now(UTC).date(), figures.describe_machine()
    figures.save(figures.record(figures.load(), name, kept, on=today, machine=machine, command=command))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
