"""A delivery of two replicas while they are killed, cut off from NATS and hung, NATS restarts, and the target fails."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time

import pytest

from chaos.world import World, killed
from lab import until
from receiver import Receiver, Reply, check_order, receiving
from task_bridge.simulator import scenarios

TASKS, ROUNDS = 60, 5
SEEDS = (7, 11)


async def trouble(here: World, receiver: Receiver, chance: random.Random, kind: str) -> None:
    """Make a trouble, and end it."""
    replica = chance.choice(here.replicas)
    if kind == "kill":
        await killed(here, replica)
        await replica.process.start()
        await replica.process.ready(60)
    elif kind == "cut off":  # it still reaches the target
        replica.proxy.stall()
        await asyncio.sleep(chance.uniform(1.0, 15.0))
        replica.proxy.resume()
    elif kind == "hang":
        replica.process.send(signal.SIGSTOP)
        await asyncio.sleep(chance.uniform(1.0, 8.0))
        replica.process.send(signal.SIGCONT)
    elif kind == "restart of NATS":
        here.servers.stop()
        await asyncio.sleep(chance.uniform(0.1, 1.0))
        here.servers.start()
        await here.servers.ready(here.client)
    else:
        receiver.decide = lambda *_: Reply(chance.choice((200, 500, 503, 429, 0)), delay_s=chance.uniform(0.0, 0.2))
        await asyncio.sleep(3)
        receiver.decide = lambda *_: Reply(delay_s=0.03)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", SEEDS)
async def test_each_event_is_delivered_and_none_out_of_order(here: World, seed: int) -> None:
    chance, receiver = random.Random(seed), Receiver()
    receiver.decide = lambda *_: Reply(delay_s=0.03)
    kinds = ["kill", "cut off", "hang", "restart of NATS", "target"]
    async with receiving(receiver):
        settings = {"URL": receiver.url, "EVENTS": "watching,status,progress,completed,abandoned", "TIMEOUT": "1s"}
        await here.begin(2, **{f"BRIDGE_DELIVERIES__HOOK__{key}": value for key, value in settings.items()})
        tasks = [here.vcenter.create(scenarios.runs_forever()) for _ in range(TASKS)]
        batches = [tasks[number::ROUNDS] for number in range(ROUNDS)]
        for batch, kind in zip(batches, chance.sample(kinds, ROUNDS), strict=True):
            await asyncio.gather(*(here.store({"task": one}, one, at=time.time()) for one in batch))
            await trouble(here, receiver, chance, kind)
            for one in batch:
                here.vcenter.set(one, status="SUCCEEDED")
        await until(lambda: len(finals(receiver)) == TASKS, within_s=150)
        await here.archive.read()
        stored = {json.loads(one.body)["id"] for one in here.archive.messages if ".events." in one.subject}
        await until(lambda: stored <= {one.event_id for one in receiver.delivered()}, within_s=60)
        check_order(receiver)
        await asyncio.gather(*(killed(here, one, signal.SIGTERM) for one in here.replicas))


def finals(receiver: Receiver) -> set[str]:
    return {one.json["data"]["task"] for one in receiver.delivered() if one.json["data"]["final"]}
