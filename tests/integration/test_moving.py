"""Streams backed up from one NATS and restored into another, as `nats stream backup` and `restore` do it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from lab import EVENTS, PREFIX, Lab, NatsServer, until
from task_bridge.simulator import scenarios

STREAMS = (
    "VCENTER_TASKS_REQUESTS",
    "VCENTER_TASKS_WATCHES",
    "VCENTER_TASKS_FOLLOW_REQUESTS",
    "VCENTER_TASKS_FOLLOWS",
    EVENTS,
    "OBJ_VCENTER_TASKS_RESULTS",
)


async def backup(client: Client, stream: str) -> tuple[dict[str, Any], list[bytes]]:
    """A stream's configuration and state, and its snapshot in chunks, consumers included."""
    chunks: list[bytes] = []
    ended = asyncio.Event()

    async def take(message: Msg) -> None:
        if message.data:
            chunks.append(message.data)
            await client.publish(message.reply, b"")
        else:
            ended.set()

    inbox = client.new_inbox()
    heard = await client.subscribe(inbox, cb=take)
    answer = await asked(client, f"STREAM.SNAPSHOT.{stream}", {"deliver_subject": inbox, "no_consumers": False})
    await asyncio.wait_for(ended.wait(), 10)
    await heard.unsubscribe()
    return {"config": answer["config"], "state": answer["state"]}, chunks


async def restore(client: Client, stream: str, taken: tuple[dict[str, Any], list[bytes]]) -> None:
    about, chunks = taken
    answer = await asked(client, f"STREAM.RESTORE.{stream}", about)
    for chunk in chunks:
        await client.request(answer["deliver_subject"], chunk, timeout=10)
    done = json.loads((await client.request(answer["deliver_subject"], b"", timeout=10)).data)
    assert "error" not in done, done


async def asked(client: Client, subject: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = json.loads((await client.request(f"$JS.API.{subject}", json.dumps(body).encode(), timeout=10)).data)
    assert "error" not in answer, answer
    return dict(answer)


async def test_watches_go_on_in_another_nats_where_they_were(lab: Lab, tmp_path: Path) -> None:
    await lab.listen()
    quiet, busy = (lab.vcenter.create(scenarios.runs_forever()) for _ in range(2))
    async with lab.bridge(ack_wait_s=2.0):
        await lab.publish({"task": quiet, "labels": {"a": "b"}})
        await lab.publish(busy)
        await until(lambda: lab.heard(quiet) and lab.heard(busy))
    # By JetStream, whose answer confirms: a backup right behind a core publish may come before it is stored.
    await lab.js.publish(f"{PREFIX}.watch", json.dumps({"task": "of nobody", "vcenter": "other"}).encode())
    taken = {stream: await backup(lab.client, stream) for stream in STREAMS}
    lab.vcenter.set(busy, status="SUCCEEDED")
    (tmp_path / "other").mkdir()
    other = NatsServer(tmp_path / "other")
    other.start()
    client = await nats.connect(other.url)
    try:
        for stream in STREAMS:
            await restore(client, stream, taken[stream])
        events = await client.subscribe(f"{PREFIX}.events.>")
        rejected = await client.subscribe(f"{PREFIX}.rejected")
        async with lab.bridge(nats={"urls": other.url}, provision="verify", ack_wait_s=2.0) as bridge:
            ended = json.loads((await events.next_msg(timeout=15)).data)
            assert json.loads((await rejected.next_msg(timeout=15)).data)["data"]["task"] == "of nobody"
            await until(lambda: bridge.status.health().held == 1)
    finally:
        await client.close()
        other.stop()
    assert (ended["subject"], ended["data"]["kind"], ended["data"]["sequence"]) == (busy, "completed", 2)
