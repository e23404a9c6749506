"""A request that ends whoever serves it is put aside after five deliveries; one that only has to wait never is."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import Any

import pytest
from nats.aio.msg import Msg

from lab import PREFIX, BridgeProcess, Lab, until
from task_bridge.domain.watch import Watch
from task_bridge.jetstream.watch_store import Admission, WatchStore
from task_bridge.simulator import scenarios

REQUESTS, WATCHES = "VCENTER_TASKS_REQUESTS", "VCENTER_TASKS_WATCHES"
QUICK = {"ack_wait_s": 2.0}


def rejections(lab: Lab) -> list[dict[str, Any]]:
    return [body["data"] for subject, body in lab.live if subject == f"{PREFIX}.rejected"]


async def left(lab: Lab) -> int:
    return (await lab.js.stream_info(REQUESTS)).state.messages


async def until_none_is_left(lab: Lab, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while await left(lab):
        assert time.monotonic() < deadline, "a request is left"
        await asyncio.sleep(0.05)


async def until_it_is_kept(lab: Lab) -> None:
    deadline = time.monotonic() + 10
    while not (await lab.js.consumer_info(REQUESTS, "bridge")).num_ack_pending:
        assert time.monotonic() < deadline, "the request wasn't delivered"
        await asyncio.sleep(0.02)


async def redelivered(lab: Lab) -> int:
    return (await lab.js.consumer_info(REQUESTS, "bridge")).num_redelivered or 0


async def take(lab: Lab, times: int) -> None:
    """Be a replica that receives the request and never gets to an outcome."""
    pull = await lab.js.pull_subscribe_bind("bridge", REQUESTS)
    for _ in range(times):
        (message,) = await pull.fetch(1, timeout=5)
        await message.nak()
    await pull.unsubscribe()


@pytest.mark.parametrize(("deaths", "is_served"), [(4, True), (5, False)])
async def test_after_five_deliveries_without_an_outcome_a_request_is_rejected(
    lab: Lab, deaths: int, is_served: bool
) -> None:
    async with lab.bridge(**QUICK):
        pass
    await lab.listen()
    poison, good = (lab.vcenter.create(scenarios.succeeds_at_once()) for _ in range(2))
    await lab.publish({"task": poison, "labels": {"a": "b"}})
    await take(lab, deaths)
    await lab.publish(good)
    async with lab.bridge(**QUICK) as bridge:
        await lab.ended(good)
        if is_served:
            await lab.ended(poison)
            assert rejections(lab) == []
            return
        (rejected,) = await until(lambda: rejections(lab))
        counted = bridge.status.metrics().get_sample_value(
            "task_bridge_rejected_total", {"code": rejected["error"]["code"]}
        )
        await until_none_is_left(lab)
    assert (rejected["task"], rejected["labels"], counted) == (poison, {"a": "b"}, 1)
    assert "five times" in rejected["error"]["message"]
    assert lab.heard(poison) == [body for body in lab.heard(poison) if body["data"].get("error")]


@pytest.mark.timeout(90)
async def test_a_request_that_kills_its_replica_stops_doing_so(lab: Lab, process: BridgeProcess) -> None:
    """The killer here is the test, which ends the replica while it serves the request; WATCHES takes nothing."""
    await process.start()
    await process.ready()
    await lab.listen()
    config = (await lab.js.stream_info(WATCHES)).config
    await lab.js.update_stream(config.evolve(max_msg_size=10))
    await lab.publish(lab.vcenter.create(scenarios.succeeds_at_once()))
    for number in range(1, 6):
        await until(lambda number=number: process.log.read_text().count('"event": "requests_kept"') == number)  # type: ignore[misc]
        await process.end(signal.SIGKILL)
        await process.start()
        await process.ready()
    (rejected,) = await until(lambda: rejections(lab))
    assert "five times" in rejected["error"]["message"]


async def test_a_request_that_fails_in_an_unforeseen_way_is_rejected_at_the_fifth_time(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = WatchStore.admit
    tries: list[str] = []

    async def fail(self: WatchStore, watch: Watch) -> Admission:
        if watch.labels:
            tries.append(watch.task)
            raise KeyError("a bug")
        return await admit(self, watch)

    monkeypatch.setattr(WatchStore, "admit", fail)
    async with lab.bridge(**QUICK):
        await lab.listen()
        await lab.publish({"task": "a:poison", "labels": {"a": "b"}})
        good = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(good)
        await lab.ended(good)
        (rejected,) = await until(lambda: rejections(lab))
        await until_none_is_left(lab)
    assert (len(tries), rejected["task"]) == (5, "a:poison")
    assert "five times" in rejected["error"]["message"]


@pytest.mark.timeout(90)
async def test_requests_that_wait_for_jetstream_are_kept_and_served_not_delivered_again(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge(**QUICK), lab.bridge(**QUICK):
        config = (await lab.js.stream_info(WATCHES)).config
        await lab.js.update_stream(config.evolve(max_msg_size=10))
        tasks = [lab.vcenter.create(scenarios.succeeds_at_once()) for _ in range(20)]
        for task in tasks:
            await lab.publish(task)
        over = time.monotonic() + 8.0
        await until(lambda: time.monotonic() > over)
        assert await redelivered(lab) == 0
        await lab.js.update_stream(config)
        for task in tasks:
            await lab.ended(task)
    assert rejections(lab) == []


async def test_a_replica_that_stops_hands_the_requests_that_it_keeps_back(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge(**QUICK):
        config = (await lab.js.stream_info(WATCHES)).config
        await lab.js.update_stream(config.evolve(max_msg_size=10))
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        await until_it_is_kept(lab)
        leaving = time.monotonic()
    assert time.monotonic() - leaving < 2.0
    await lab.js.update_stream(config)
    async with lab.bridge(**QUICK):
        ready = time.monotonic()
        await lab.ended(task)
        assert time.monotonic() - ready < 1.5
    assert json.dumps(rejections(lab)) == "[]"


async def test_another_replica_may_be_slow_to_say_that_it_survived_a_request(lab: Lab) -> None:
    """It handed the request back, for example, and its connection to NATS stalls now."""
    async with lab.bridge(**QUICK):
        pass
    await lab.listen()
    task = lab.vcenter.create(scenarios.succeeds_at_once())
    await lab.publish(task)
    await take(lab, 6)
    questions: list[dict[str, Any]] = []

    async def answer_the_third(message: Msg) -> None:
        note = json.loads(message.data)
        if "request" in note and not note.get("survived"):
            questions.append(note)
            if len(questions) == 3:
                await lab.client.publish(message.subject, json.dumps({**note, "survived": True}).encode())

    await lab.client.subscribe(f"{PREFIX}.internal.replicas", cb=answer_the_third)
    async with lab.bridge(**QUICK):
        await lab.ended(task)
    assert (len(questions), rejections(lab)) == (3, [])


async def test_what_another_replica_survived_is_not_put_aside(lab: Lab) -> None:
    """Deliveries that were no deaths: of a request that a replica keeps, JetStream hands out copies."""
    await lab.listen()
    async with lab.bridge(**QUICK), lab.bridge(**QUICK):
        config = (await lab.js.stream_info(WATCHES)).config
        await lab.js.update_stream(config.evolve(max_msg_size=10))
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        await until_it_is_kept(lab)
        over = time.monotonic() + 1.5
        await until(lambda: time.monotonic() > over)
        # Naks by the message's ack subject, as a replica that hands it back sends them.
        for _ in range(8):
            info = await lab.js.consumer_info(REQUESTS, "bridge")
            assert info.delivered is not None
            delivered, consumer_seq = (info.num_redelivered or 0) + 1, info.delivered.consumer_seq
            await lab.client.publish(f"$JS.ACK.{REQUESTS}.bridge.{delivered}.1.{consumer_seq}.0.0", b"-NAK")
            await lab.client.flush()
            over = time.monotonic() + 0.1
            await until(lambda over=over: time.monotonic() > over)  # type: ignore[misc]
        await lab.js.update_stream(config)
        await lab.ended(task)
    assert rejections(lab) == []
