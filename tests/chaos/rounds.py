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

from chaos.checker import violations
from chaos.clients import Clients, Starters
from chaos.servers import OLDEST, Servers
from chaos.troubles import CLOCKS_S, Troubles
from chaos.world import ANNEX, BEGIN_S, LAB, Replica, World, killed, world
from host_clock import LIBRARY
from lab import SERVER, until
from task_bridge.domain.subjects import CONSUMER

CHAOS_S = 6.0
SETTLE_S = 90.0
"""A task that vCenter forgot is given up after a minute of answers if no other of its provider was shown."""


class Verdict(NamedTuple):
    """What a round showed. `wrong` is empty when all promises held; with events `unknown` that isn't judged."""

    seed: int
    events: int
    watches: int
    requests: int
    swallowed: int
    seconds: float
    wrong: list[str]
    told: list[str]
    unknown: int

    def __str__(self) -> str:
        numbers = f"{self.events} events, {self.watches} watches, {self.requests} stored requests"
        lost = f"{self.swallowed} confirmations lost"
        judged = f"{self.unknown} unknown events, so not judged" if self.unknown else f"{len(self.wrong)} wrong"
        return f"seed {self.seed}: {numbers}, {lost}, {self.seconds:.1f} s, {judged}"


class Setup(NamedTuple):
    """What differs from the usual in a round: what each replica knows and is set to; clocks; old nats-servers.

    `followed`: nobody asks, but a follow finds all tasks.
    """

    replicas: list[tuple[set[str], dict[str, str]]]
    clocks_s: list[float] | None = None
    outdated: bool = False
    followed: bool = False

    @property
    def annex(self) -> bool:
        return any(ANNEX in vcenters for vcenters, _ in self.replicas)


def drawn_setup(chance: random.Random) -> Setup:
    """One in three rounds has replicas with different settings, one in three wrong clocks, one in three a follow.

    One in four has old servers.
    """
    settings = {"BRIDGE_CAPACITY": chance.choice(["25", "50000"]), "BRIDGE_VCENTERS__LAB__TIMEOUT": "3s"}
    replicas = [({LAB}, settings) for _ in range(chance.randint(2, 3))]
    if chance.random() < 1 / 3:
        replicas = [({LAB}, settings | _odd_settings(chance)) for _ in replicas]
        replicas[0][0].add(ANNEX)
    has_clocks, is_outdated = chance.random() < 1 / 3, chance.random() < 1 / 4
    clocks_s = [chance.choice(CLOCKS_S) for _ in replicas]
    is_followed = chance.random() < 1 / 3
    has_clocks, is_outdated = has_clocks and bool(LIBRARY), is_outdated and OLDEST is not None
    return Setup(replicas, clocks_s if has_clocks else None, is_outdated, is_followed)


def _odd_settings(chance: random.Random) -> dict[str, str]:
    return {
        "BRIDGE_CAPACITY": chance.choice(["10", "25", "50000"]),
        "BRIDGE_VCENTERS__LAB__TIMEOUT": chance.choice(["1s", "3s", "10s"]),
        "BRIDGE_POLL_MAX": chance.choice(["200ms", "500ms", "2s"]),
        "BRIDGE_ACK_WAIT": chance.choice(["2s", "3s"]),
        "BRIDGE_STALLED_AFTER": chance.choice(["0", "1s"]),
    }


async def played(
    servers: Servers,
    directory: Path,
    seed: int,
    chaos_s: float = CHAOS_S,
    *,
    setup: Setup | None = None,
    only: str | None = None,
) -> Verdict:
    """One round. `setup` and `only`, the one trouble that it has, aren't left to chance."""
    chance, began = random.Random(seed), time.time()
    setup = setup or drawn_setup(chance)
    if setup.outdated or servers.outdated:
        servers.start_anew(OLDEST if setup.outdated and OLDEST else SERVER)
    async with world(directory, servers, f"chaos.r{seed}") as here:
        await here.begin_with(setup.replicas, clocks_s=setup.clocks_s)
        troubles = Troubles(here, chance, began, is_followed=setup.followed)
        troubles.told.append(f"{setup}")
        clients: Clients | Starters = Clients(here, chance, unknown=troubles.forgets, annex=setup.annex)
        if setup.followed:
            await here.follow()
            clients = Starters(here, chance)
        drawn = [troubles.named(only)] * 2 if only else troubles.drawn(chance.randint(4, 9))
        later = [_later(chance.uniform(0.2, chaos_s - 1), trouble) for trouble in drawn]
        await asyncio.gather(clients.run(chaos_s, 0.06), *later)
        while servers.outdated:
            await troubles.upgrade_nats()
        wrong = await settle_world(here, clients)
        wrong += await end_replicas(here)
        account = await here.account()
        (directory / "history.txt").write_text(
            "\n".join(map(str, (*account.stored, *account.asked, *account.answered)))
        )
        if not here.unread:
            wrong += [f"{rule}: {where}" for rule, where in violations(account)]
        swallowed = sum(replica.proxy.swallowed for replica in here.replicas)
    watches = {message.headers.get("Bridge-Watch") for message in account.stored}
    counts = len(account.stored), len(watches), len(account.asked), swallowed
    return Verdict(seed, *counts, time.time() - began, wrong, troubles.told, here.unread)


async def _later(after_s: float, trouble: Callable[[], Awaitable[None]]) -> None:
    await asyncio.sleep(after_s)
    await trouble()


async def settle_world(here: World, clients: Clients | Starters) -> list[str]:
    """Everything is well again and every task ends: then nothing may be left to do.

    A nats-server that was ended without room on its disk may have a consumer that doesn't know of messages; the
    bridges say so after a minute, and the operator does what they say.
    """
    for task in clients.tasks:
        here.end_task(task)
    deadline, is_cured = time.monotonic() + SETTLE_S, False
    if isinstance(clients, Starters):
        await here.all_ended(clients.tasks, deadline)
    left = await here.left()
    while left != (0, 0) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        left = await here.left()
        if not is_cured and any(replica.count_logged("messages_unknown") for replica in here.replicas):
            deadline, is_cured = deadline + SETTLE_S, True
            for stream in (here.names.requests_stream, here.names.watches_stream):
                await here.js.delete_consumer(stream, CONSUMER)
    return [] if left == (0, 0) else [f"settled: {left} requests and watches are left after {SETTLE_S} s"]


async def end_replicas(here: World) -> list[str]:
    """All bridges end; what is wrong with how they do."""
    await here.heard_everything()
    codes = here.book.codes

    async def ended(replica: Replica) -> None:
        await until(lambda: replica.process.hears_signals, BEGIN_S)
        codes[f"{replica.name} at the end"] = await killed(here, replica, signal.SIGTERM)

    await asyncio.gather(*map(ended, here.replicas))
    wrong = [f"exit code {code}: {which}" for which, code in codes.items() if code]
    return wrong + [f"{replica.name}: {line}" for replica in here.replicas for line in replica.complaints()]


async def run(directory: Path, seeds: list[int], replicas: int, *, is_followed: bool = False) -> list[Verdict]:
    """Rounds on the same nats-servers, told as they end."""
    servers, verdicts = Servers(directory, replicas, own_disks=True), []
    servers.start()
    try:
        for number, seed in enumerate(seeds):
            home = directory / f"round-{number}"
            home.mkdir()
            setup = drawn_setup(random.Random(seed))._replace(followed=True) if is_followed else None
            verdict = await played(servers, home, seed, setup=setup)
            verdicts.append(verdict)
            print(f"R{replicas} {verdict}", flush=True)
            if verdict.wrong:
                print("\n".join([*verdict.told, *verdict.wrong, f"logs and history: {home}"]), flush=True)
    finally:
        servers.close()
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS") or 10))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or secrets.randbelow(10**6)))
    parser.add_argument("--followed", action="store_true", help="rounds with a follow alone")
    parser.add_argument("--replicas", type=int, choices=(1, 3), default=int(os.environ.get("R") or 1))
    given = parser.parse_args()
    seeds = [given.seed + number for number in range(given.rounds)]
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    verdicts = asyncio.run(run(directory, seeds, given.replicas, is_followed=given.followed))
    sums = Counter[str]()
    for verdict in verdicts:
        sums.update(events=verdict.events, watches=verdict.watches, wrong=len(verdict.wrong))
    print(f"{len(verdicts)} rounds on R{given.replicas} from seed {given.seed}: {dict(sums)}")
    return 1 if sums["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
