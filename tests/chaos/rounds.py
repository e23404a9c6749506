"""Rounds of chaos: `make chaos ROUNDS=20 SEED=7 R=3`. Each prints its seed, which plays it again.

A round is some bridges, clients that ask, and seconds of troubles; then everything is brought back, every task
ends, and the checker judges what is stored. The same seed makes the same choices; the machine's pace is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from chaos.account import Account
from chaos.checker import violations
from chaos.clients import Clients, end
from chaos.servers import Servers
from chaos.troubles import Troubles
from chaos.world import BEGIN_S, Replica, World, killed, world
from lab import until

CHAOS_S = 6.0
SETTLE_S = 90.0
"""A task that vCenter forgot is given up after a minute of answers if no other of its provider was shown."""


class Verdict(NamedTuple):
    """What a round showed. `wrong` is empty when all promises held."""

    seed: int
    events: int
    watches: int
    requests: int
    swallowed: int
    seconds: float
    wrong: list[str]
    told: list[str]

    def __str__(self) -> str:
        numbers = f"{self.events} events, {self.watches} watches, {self.requests} stored requests"
        lost = f"{self.swallowed} confirmations lost"
        return f"seed {self.seed}: {numbers}, {lost}, {self.seconds:.1f} s, {len(self.wrong)} wrong"


async def played(servers: Servers, directory: Path, seed: int, chaos_s: float = CHAOS_S) -> Verdict:
    """One round."""
    chance, began = random.Random(seed), time.time()
    async with world(directory, servers, f"chaos.r{seed}") as here:
        capacity = chance.choice(["25", "50000"])
        await here.begin(chance.randint(2, 3), BRIDGE_CAPACITY=capacity)
        troubles = Troubles(here, chance, began)
        clients = Clients(here, chance, unknown=troubles.forgets)
        drawn = [(chance.uniform(0.2, chaos_s - 1), trouble) for trouble in troubles.drawn(chance.randint(4, 9))]
        await asyncio.gather(clients.run(chaos_s, 0.06), *(_later(when_s, trouble) for when_s, trouble in drawn))
        wrong = await _settled(here, clients)
        wrong += await _ended(here)
        account = await here.account()
        wrong += [f"{rule}: {where}" for rule, where in violations(account)]
        swallowed = sum(replica.proxy.swallowed for replica in here.replicas)
    return _verdict(seed, account, swallowed, time.time() - began, wrong, troubles.told)


def _verdict(seed: int, account: Account, swallowed: int, seconds: float, wrong: list[str], told: list[str]) -> Verdict:
    watches = {message.headers.get("Bridge-Watch") for message in account.stored}
    return Verdict(seed, len(account.stored), len(watches), len(account.asked), swallowed, seconds, wrong, told)


async def _later(after_s: float, trouble: Callable[[], Awaitable[None]]) -> None:
    await asyncio.sleep(after_s)
    await trouble()


async def _settled(here: World, clients: Clients) -> list[str]:
    """Everything is well again and every task ends: then nothing may be left to do."""
    for task in clients.tasks:
        end(here, task)
    deadline = time.monotonic() + SETTLE_S
    left = await here.left()
    while left != (0, 0) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        left = await here.left()
    return [] if left == (0, 0) else [f"settled: {left} requests and watches are left after {SETTLE_S} s"]


async def _ended(here: World) -> list[str]:
    """All bridges end; what is wrong with how they do."""
    await here.heard_everything()
    codes = here.book.codes

    async def ended(replica: Replica) -> None:
        await until(lambda: replica.process.hears_signals, BEGIN_S)
        codes[f"{replica.name} at the end"] = await killed(here, replica, signal.SIGTERM)

    await asyncio.gather(*map(ended, here.replicas))
    wrong = [f"exit code {code}: {which}" for which, code in codes.items() if code]
    return wrong + [f"{replica.name}: {line}" for replica in here.replicas for line in replica.complaints()]


async def run(directory: Path, seeds: list[int], replicas: int) -> list[Verdict]:
    """Rounds on the same nats-servers, told as they end."""
    servers, verdicts = Servers(directory, replicas), []
    servers.start()
    try:
        for number, seed in enumerate(seeds):
            home = directory / f"round-{number}"
            home.mkdir()
            verdict = await played(servers, home, seed)
            verdicts.append(verdict)
            print(f"R{replicas} {verdict}", flush=True)
            if verdict.wrong:
                print("\n".join([*verdict.told, *verdict.wrong, f"logs: {home}"]), flush=True)
    finally:
        servers.stop()
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS") or 10))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or secrets.randbelow(10**6)))
    parser.add_argument("--replicas", type=int, choices=(1, 3), default=int(os.environ.get("R") or 1))
    given = parser.parse_args()
    seeds = [given.seed + number for number in range(given.rounds)]
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    verdicts = asyncio.run(run(directory, seeds, given.replicas))
    sums = Counter[str]()
    for verdict in verdicts:
        sums.update(events=verdict.events, watches=verdict.watches, wrong=len(verdict.wrong))
    print(f"{len(verdicts)} rounds on R{given.replicas} from seed {given.seed}: {dict(sums)}")
    return 1 if sums["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
