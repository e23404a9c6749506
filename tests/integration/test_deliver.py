"""Deliveries over HTTP: a real nats-server, a bridge, and a target that answers everything a target can."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from lab import EVENTS, PREFIX, BridgeProcess, Lab, free_ports, until
from receiver import Receiver, Reply, check_order, receiving
from task_bridge.settings import DeliverySettings
from task_bridge.simulator import scenarios

KEY = base64.b64encode(b"a key of twenty-four byte").decode()
ALL_KINDS = "watching,status,progress,stalled,completed,abandoned"


def delivery(receiver: Receiver, **more: Any) -> dict[str, DeliverySettings]:
    """The settings of one delivery, `hook`."""
    return {"hook": DeliverySettings.model_validate({"name": "hook", "url": receiver.url, "events": ALL_KINDS} | more)}


async def end_tasks(lab: Lab, count: int, prefix: str = "") -> list[str]:
    """Tasks that come and end; returns their ids once all have ended."""
    tasks = [lab.vcenter.create(scenarios.succeeds(after_s=0.3)) for _ in range(count)]
    for task in tasks:
        await lab.publish({"task": task})
    for task in tasks:
        await lab.ended(task)
    return tasks


async def undelivered(lab: Lab) -> list[dict[str, Any]]:
    return [event for message, event in await lab.stored() if str(message.subject) == f"{PREFIX}.undelivered.hook"]


async def final_ids(lab: Lab) -> set[str]:
    return {
        event["id"]
        for message, event in await lab.stored()
        if str(message.subject).startswith(f"{PREFIX}.events.") and event["data"]["final"]
    }


def finals(receiver: Receiver) -> Counter[str]:
    return Counter(one.event_id for one in receiver.delivered() if one.json["data"]["final"])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    check_order(one)


async def test_every_event_is_delivered_in_order_with_its_id(lab: Lab, receiver: Receiver) -> None:
    async with receiving(receiver), lab.bridge(deliveries=delivery(receiver)):
        await lab.listen()
        await end_tasks(lab, 10)
        wanted = await final_ids(lab)
        await until(lambda: finals(receiver).keys() >= wanted)
    stored = {event["id"]: event for message, event in await lab.stored() if ".events." in str(message.subject)}
    assert {one.event_id for one in receiver.got} == stored.keys()
    for one in receiver.got:
        assert one.json == stored[one.event_id]
        assert one.headers["idempotency-key"] == one.event_id
        assert one.headers["content-type"].startswith("application/cloudevents+json")


async def test_what_fails_is_tried_again_and_later_events_of_its_task_wait(lab: Lab, receiver: Receiver) -> None:
    failures = iter([Reply(500), Reply(503, (("Retry-After", "2"),)), Reply(429), Reply(0)])
    receiver.decide = lambda _headers, _body: next(failures, Reply())
    async with receiving(receiver), lab.bridge(deliveries=delivery(receiver)):
        await lab.listen()
        (task,) = await end_tasks(lab, 1)
        await until(lambda: [one for one in receiver.delivered() if one.json["data"]["final"]], 30)
    tries = [one for one in receiver.got if one.event_id == receiver.got[0].event_id]
    assert [one.status for one in tries] == [500, 503, 429, 0, 200]
    pauses = [later.began - earlier.ended for earlier, later in itertools.pairwise(tries)]
    assert 0.85 < pauses[0] < 2
    assert 1.9 < pauses[1] < 4
    assert 3.5 < pauses[2] < 6
    assert not await undelivered(lab)
    assert task


@pytest.mark.parametrize(
    ("reply", "reason"),
    [(Reply(400), "400"), (Reply(404), "404"), (Reply(302, (("Location", "https://elsewhere/"),)), "redirects")],
)
async def test_an_answer_that_is_final_is_reported_and_can_be_sent_again(
    lab: Lab, receiver: Receiver, reply: Reply, reason: str, tmp_path: Path
) -> None:
    receiver.decide = lambda _headers, _body: reply
    async with receiving(receiver), lab.bridge(deliveries=delivery(receiver, events="completed")):
        await lab.listen()
        (task,) = await end_tasks(lab, 1)
        await until_async(lambda: undelivered(lab))
        (report,) = await undelivered(lab)
        assert report["type"] == "io.vcenter-task-bridge.delivery.undelivered.v1"
        assert (report["data"]["delivery"], report["data"]["tries"]) == ("hook", 1)
        assert reason in report["data"]["reason"]
        assert report["data"]["event"]["data"]["task"] == task
        assert "query-secret" not in json.dumps(report)
        assert (await show(lab, receiver, tmp_path))["undelivered"] == 1
        receiver.decide = lambda _headers, _body: Reply()
        ran = await run_command(lab, receiver, tmp_path, "redeliver", "hook")
        assert ran[0] == 0, ran
        await until(lambda: finals(receiver))
        assert receiver.delivered()[0].json == report["data"]["event"]
        assert (await run_command(lab, receiver, tmp_path, "redeliver", "hook"))[2] == "Nothing is undelivered.\n"
        assert (await show(lab, receiver, tmp_path))["undelivered"] == 0
    assert len(receiver.got) == 2


async def test_a_target_that_is_gone_pauses_its_delivery_and_no_other(lab: Lab, receiver: Receiver) -> None:
    other = Receiver()
    receiver.decide = lambda _headers, _body: Reply(410)
    async with receiving(receiver), receiving(other):
        deliveries = delivery(receiver, events="completed", max_in_flight=1) | {
            "other": DeliverySettings.model_validate({"name": "other", "url": other.url})
        }
        with capture_logs() as logs:
            async with lab.bridge(deliveries=deliveries):
                await lab.listen()
                await end_tasks(lab, 3)
                await until(lambda: len(finals(other)) == 3)
        assert len(receiver.got) == 1
        assert [line["log_level"] for line in logs if line["event"] == "delivery_paused"] == ["error"]
        assert len(await undelivered(lab)) == 1
        # A restart goes on where it was.
        receiver.decide = lambda _headers, _body: Reply()
        async with lab.bridge(deliveries=deliveries):
            await until(lambda: len(finals(receiver)) == 2, 60)


async def test_what_waited_while_the_target_was_away_comes_whole_and_in_order(lab: Lab, receiver: Receiver) -> None:
    async with receiving(receiver):
        pass  # the port is known, and nobody listens
    async with lab.bridge(deliveries=delivery(receiver)):
        await lab.listen()
        await end_tasks(lab, 300)
        async with receiving(receiver):
            wanted = await final_ids(lab)
            await until(lambda: finals(receiver).keys() >= wanted, 60)
    assert len(wanted) == 300
    assert not await undelivered(lab)


async def test_a_killed_replica_loses_nothing_and_breaks_no_order(lab: Lab, receiver: Receiver, tmp_path: Path) -> None:
    receiver.decide = lambda _headers, _body: Reply(delay_s=0.05)
    async with receiving(receiver):
        environment = lab.environment(
            BRIDGE_DELIVERIES__HOOK__URL=receiver.url,
            BRIDGE_DELIVERIES__HOOK__EVENTS=ALL_KINDS,
            BRIDGE_DELIVERIES__HOOK__TIMEOUT="1s",
        )
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        first = BridgeProcess(environment, tmp_path / "first")
        second = BridgeProcess(environment, tmp_path / "second")
        await asyncio.gather(first.start(), second.start())
        try:
            await asyncio.gather(first.ready(), second.ready())
            await lab.listen()
            tasks = [lab.vcenter.create(scenarios.succeeds(after_s=2.0)) for _ in range(60)]
            for task in tasks:
                await lab.publish({"task": task})
            await until(lambda: len(receiver.got) > 40, 30)
            await first.end(signal.SIGKILL)  # one of the two is the one that sends
            await first.start()
            count = len(receiver.got)
            await until(lambda: len(receiver.got) > count + 20, 60)
            await second.end(signal.SIGKILL)
            for task in tasks:
                await lab.ended(task, 30)
            wanted = await final_ids(lab)
            await until(lambda: finals(receiver).keys() >= wanted, 60)
        finally:
            await asyncio.gather(first.close(), second.close())
    assert len(wanted) == 60


async def until_async(fact: Any, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not await fact():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.05)


async def run_command(lab: Lab, receiver: Receiver, directory: Path, *words: str) -> tuple[int, str, str]:
    environment = lab.environment(BRIDGE_DELIVERIES__HOOK__URL=receiver.url)
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("task-bridge"),
        *words,
        env=environment,
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def show(lab: Lab, receiver: Receiver, directory: Path) -> dict[str, Any]:
    code, out, err = await run_command(lab, receiver, directory, "deliveries", "--json")
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


async def test_readiness_and_metrics_show_a_target_that_fails(lab: Lab, receiver: Receiver) -> None:
    receiver.decide = lambda *_: Reply(503)
    async with receiving(receiver), lab.bridge(deliveries=delivery(receiver)) as bridge, httpx.AsyncClient() as http:
        assert bridge.web.address is not None
        page = f"http://127.0.0.1:{bridge.web.address.port}"
        await lab.listen()
        await end_tasks(lab, 1)
        await until(lambda: bridge.status.health().deliveries[0].state == "failing")
        ready = await http.get(f"{page}/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        (shown,) = ready.json()["deliveries"]
        assert (shown["name"], shown["target"]) == ("hook", f"http://127.0.0.1:{receiver.port}")
        assert (shown["state"], shown["reason"]) == ("failing", "the target answered 503 Service Unavailable")
        assert shown["oldest_seconds"] >= 0
        metrics = (await http.get(f"{page}/metrics")).text
        assert 'task_bridge_deliveries_total{code="503",delivery="hook"}' in metrics
        assert 'task_bridge_delivery_oldest_seconds{delivery="hook"}' in metrics
        assert 'task_bridge_undelivered_total{delivery="hook"} 0.0' in metrics


async def test_deliver_alone_needs_no_vcenter_and_serves_its_own_pages(
    lab: Lab, receiver: Receiver, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    async with receiving(receiver):
        given = {
            "PATH": os.environ["PATH"],
            "BRIDGE_NATS_URL": lab.server.url,
            "BRIDGE_SUBJECT_PREFIX": PREFIX,
            "BRIDGE_HTTP_LISTEN": f"127.0.0.1:{port}",
            "BRIDGE_DELIVERIES": json.dumps({"hook": {"url": receiver.url, "start": "all"}}),
        }
        alone = BridgeProcess(given, tmp_path, [sys.executable, "-m", "task_bridge", "deliver"])
        async with lab.bridge(), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            await alone.start()
            try:
                await alone.ready()
                await lab.listen()
                await end_tasks(lab, 1)
                await until(lambda: finals(receiver))
                assert (await http.get("/livez")).status_code == 200
                await until_async(lambda: is_ready(http))
                metrics = (await http.get("/metrics")).text
                assert 'task_bridge_deliveries_total{code="200",delivery="hook"} 1.0' in metrics
            finally:
                assert await alone.end(signal.SIGTERM) == 0
    assert '"event": "stopped"' in alone.log.read_text()
    assert "query-secret" not in alone.log.read_text()


async def is_ready(http: httpx.AsyncClient) -> bool:
    body = (await http.get("/readyz")).json()
    return (body["status"], body["deliveries"][0]["state"]) == ("ok", "delivering")


async def test_the_commands_show_how_deliveries_are(lab: Lab, receiver: Receiver, tmp_path: Path) -> None:
    async with receiving(receiver), lab.bridge(deliveries=delivery(receiver, events="completed")):
        await lab.listen()
        await end_tasks(lab, 1)
        await until(lambda: finals(receiver))
        code, out, err = await run_command(lab, receiver, tmp_path, "deliveries", "--json")
        assert code == 0, err
        (row,) = map(json.loads, out.splitlines())
        assert (row["delivery"], row["state"], row["pending"], row["undelivered"]) == ("hook", "delivering", 0, 0)
        assert row["last_answer"] == "the target answered 200 OK"
        assert row["target"] == f"http://127.0.0.1:{receiver.port}"
        code, out, err = await run_command(lab, receiver, tmp_path, "deliver", "--test", "hook")
        assert (code, out) == (0, f"http://127.0.0.1:{receiver.port}: the target answered 200 OK\nok\n"), err
    receiver.got.pop()  # the sample
    consumers = [info.name for info in await lab.js.consumers_info(EVENTS)]
    assert "deliver-hook" in consumers
