"""`make bench-compare BASE=<commit>`: do this checkout's bridge and that of another commit cost the same?

Both are measured by this checkout's benches, in turn (base, current, current, base, …), because a busy machine slows
down whatever runs at the moment. Only CPU and memory are judged, never times.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import vim
from bench.looks import EVERY_2_S
from bench.stage import OPTIONS, staged
from bench.verdict import judge

ROOT = Path(__file__).parents[2]
ENDING, IDLE, POLLED, CLASSIC = 2_000, 1_000, 10_000, 1_000
WINDOW_S = 15.0
MAKES = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "PYTHONPATH")
"""Variables that would bring settings of this `make` into that of the other checkout."""


async def main(base: str, rounds: int, limit_percent: float) -> int:
    """Print the table; return 1 if a cost got worse."""
    costs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with checked_out(base) as python:
        interpreters = {"base": str(python), "current": sys.executable}
        for number in range(rounds):
            for side in ("base", "current") if number % 2 == 0 else ("current", "base"):
                measured = await measure([interpreters[side], "-m", "task_bridge", "serve"])
                words = ", ".join(f"{value:.2f} {what}" for what, value in measured.items())
                print(f"round {number + 1}, {side}: {words}", flush=True)
                for what, value in measured.items():
                    costs[what][side].append(value)
    verdicts = {what: judge(sides["base"], sides["current"], limit_percent) for what, sides in costs.items()}
    print(f"\n{'medians of ' + str(rounds) + ' runs':<36} {base[:10]:>10} {'current':>10} {'change':>8} {'spread':>8}")
    for what, verdict in verdicts.items():
        numbers = (
            f"{verdict.base:>10.2f} {verdict.current:>10.2f} {verdict.change_percent:>+7.1f}% {verdict.spread:>8.2f}"
        )
        print(f"{what:<36} {numbers} {'worse' if verdict.is_worse else ''}")
    return int(any(verdict.is_worse for verdict in verdicts.values()))


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Return the Python of an environment that has the bridge of `commit` and the dependencies that it locked."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "base"
        _run(ROOT, "git", "worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            _run(tree, "make", "setup", f"PYTHON={sys.executable}")
            yield tree / ".venv" / "bin" / "python"
        finally:
            _run(ROOT, "git", "worktree", "remove", "--force", str(tree))


def _run(folder: Path, *command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in MAKES}
    subprocess.run(command, cwd=folder, env=environment, check=True)


async def measure(serve: list[str]) -> dict[str, float]:
    """Return each cost of the bridge that `serve` runs."""
    return {**await _events_and_idle(serve), **await _polls(serve), **await _classic(serve)}


async def _events_and_idle(serve: list[str]) -> dict[str, float]:
    async with staged({}, OPTIONS, serve) as it:
        tasks = await it.create(ENDING, fate="succeeds", **{"with": {"after_s": 2.0, "looks": 1}})
        before = await it.used()
        await it.watch(tasks)
        await it.has("detection_seconds_count", ENDING)
        ended = before.until(await it.used())
        await it.watch(await it.create(IDLE, fate="stays_pending"))
        await it.has("watching", ENDING + IDLE)
        await asyncio.sleep(5.0)
        idle = await it.used_in(WINDOW_S)
        return {
            "CPU µs per event": 1e6 * ended.cpu_s / ended.events,
            f"CPU % of {IDLE:,} idle watches": idle.core_percent,
            "MB": it.rss_mb(),
        }


async def _polls(serve: list[str]) -> dict[str, float]:
    async with staged(EVERY_2_S, OPTIONS, serve) as it:
        await it.watch(await it.create(POLLED, fate="runs_forever"))
        await it.has("watching", POLLED)
        await asyncio.sleep(4.0)
        return {"CPU µs per poll": (await it.used_in(WINDOW_S)).us_a_look}


async def _classic(serve: list[str]) -> dict[str, float]:
    async with staged({}, OPTIONS, serve) as it:
        _, _, a_task_ms = await vim.follow_to_end(it, CLASSIC)
        return {"CPU ms per classic task": a_task_ms}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the commit to compare with: make bench-compare BASE=main")
    given_rounds, given_limit = int(os.environ.get("ROUNDS") or 3), float(os.environ.get("LIMIT") or 15)
    sys.exit(asyncio.run(main(sys.argv[1], given_rounds, given_limit)))
