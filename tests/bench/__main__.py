"""`make bench` measures everything, `make bench ONLY="looks memory"` some of it; both update docs/figures.md.

`make soak` is apart.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

from bench import figures, looks, memory, promptness, scale, soak, vim
from bench.stage import Row
from lab import SERVER

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
    machine = figures.describe_machine(nats_version())
    print(f"{'':<46} {'measured':<50} {'goal':<24} load")
    for name in only or PARTS:
        rows: list[Row] = []
        async for row in parts[name]():
            print(row, flush=True)
            rows.append(row)
        figures.FILE.write_text(figures.update(figures.FILE.read_text(), name, rows, machine, parts))


def nats_version() -> str:
    done = subprocess.run([str(SERVER), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1].removeprefix("v")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
