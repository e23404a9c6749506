"""A replica that doesn't know a vCenter leaves its requests and watches to one that does."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from lab import PASSWORD, PREFIX, USERNAME, Lab, until
from task_bridge.jetstream import reported_vcenters
from task_bridge.simulator import scenarios

QUICK = {"ack_wait_s": 2.0}
SETTLE_S = 5.0
"""With this `ack_wait` a replica knows after a second whether it is alone."""


def vcenters(lab: Lab, *names: str) -> dict[str, Any]:
    login = {"url": lab.vcenter_url, "given_username": USERNAME, "given_password": PASSWORD}
    return {**QUICK, "vcenters": dict.fromkeys(names, login)}


def rejections(lab: Lab) -> list[dict[str, Any]]:
    return [body["data"] for subject, body in lab.live if subject == f"{PREFIX}.rejected"]


async def wait(seconds: float) -> None:
    over = time.monotonic() + seconds
    await until(lambda: time.monotonic() > over, within_s=seconds + 5)


async def test_a_lone_replica_rejects_at_once(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge(**QUICK):
        await wait(SETTLE_S + 0.5)
        began = time.monotonic()
        await lab.publish({"task": "a:b", "vcenter": "new"})
        (rejected,) = await until(lambda: rejections(lab))
        assert time.monotonic() - began < 1.0
    assert rejected["error"]["code"] == "unknown_vcenter"


async def test_a_name_that_no_vcenter_can_have_is_rejected_at_once(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge(**QUICK), lab.bridge(**QUICK):
        await lab.publish({"task": "a:b", "vcenter": "no name"})
        (rejected,) = await until(lambda: rejections(lab), within_s=5)
    assert rejected["error"]["code"] == "unknown_vcenter"


async def test_several_replicas_reject_only_after_the_time_in_which_none_reported_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reported_vcenters, "UNKNOWN_FOR_S", 4.0)
    await lab.listen()
    async with lab.bridge(**vcenters(lab, "a")), lab.bridge(**vcenters(lab, "b")):
        began = time.monotonic()
        await lab.publish({"task": "a:b", "vcenter": "new"})
        (rejected,) = await until(lambda: rejections(lab))
        assert time.monotonic() - began >= 4.0
    assert rejected["error"]["code"] == "unknown_vcenter"
    assert "a, b" in rejected["error"]["message"]


@pytest.mark.timeout(120)
async def test_a_rolling_change_of_settings_costs_no_request(lab: Lab) -> None:
    await lab.listen()
    tasks = [lab.vcenter.create(scenarios.succeeds_at_once()) for _ in range(40)]
    async with lab.bridge(**vcenters(lab, "old")) as first, lab.bridge(**vcenters(lab, "old")):
        for task in tasks:
            await lab.publish({"task": task, "vcenter": "new"})
        await wait(2 * SETTLE_S)
        assert first.status.health().held == 0
        async with lab.bridge(**vcenters(lab, "old", "new")):
            came = time.monotonic()
            for task in tasks:
                assert (await lab.ended(task))["data"]["vcenter"] == "new"
            assert time.monotonic() - came < 15
    assert rejections(lab) == []


async def test_a_replica_whose_neighbor_restarts_does_not_think_that_it_is_alone(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge(**QUICK):
        async with lab.bridge(**QUICK):
            await wait(2 * SETTLE_S)
        await lab.publish({"task": "a:b", "vcenter": "new"})
        await wait(3 * SETTLE_S)
        assert rejections(lab) == []


async def test_a_replica_of_the_release_before_is_a_neighbor_too(lab: Lab) -> None:
    await lab.listen()
    status = {"instance": "old-release", "held": 0, "capacity": 10, "absent": {}, "leaving": False}

    async def report() -> None:
        while True:
            await lab.client.publish(f"{PREFIX}.internal.replicas", json.dumps(status).encode())
            await asyncio.sleep(0.1)

    reporting = asyncio.create_task(report())
    async with lab.bridge(**QUICK):
        await lab.publish({"task": "a:b", "vcenter": "new"})
        await wait(4 * SETTLE_S)
        assert rejections(lab) == []
    reporting.cancel()


@pytest.mark.timeout(120)
async def test_an_unconfigured_watch_goes_to_a_replica_that_has_its_vcenter(lab: Lab) -> None:
    await lab.listen()
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(40)]
    unseen = lab.vcenter.create(scenarios.runs_forever())
    async with lab.bridge(**vcenters(lab, "new")):
        for task in tasks:
            await lab.publish({"task": task, "vcenter": "new"})
        await until(lambda: all(lab.heard(task) for task in tasks))
    await lab.publish({"task": unseen, "vcenter": "new"})
    async with lab.bridge(**vcenters(lab, "old")) as first, lab.bridge(**vcenters(lab, "old")) as second:
        await until(lambda: first.status.health().held + second.status.health().held == 40)
        async with lab.bridge(**vcenters(lab, "new")) as third:
            await until(lambda: third.status.health().held == 41, within_s=10)
            for task in [*tasks, unseen]:
                lab.vcenter.set(task, status="SUCCEEDED")
            for task in [*tasks, unseen]:
                assert (await lab.ended(task))["outcome"] == "succeeded"
    assert rejections(lab) == []


async def test_watches_stay_where_they_are_if_the_replica_with_their_vcenter_is_full(lab: Lab) -> None:
    await lab.listen()
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(6)]
    async with lab.bridge(**vcenters(lab, "new")):
        for task in tasks:
            await lab.publish({"task": task, "vcenter": "new"})
        await until(lambda: all(lab.heard(task) for task in tasks))
    async with lab.bridge(**vcenters(lab, "old")) as first:
        await until(lambda: first.status.health().held == 6)
        async with lab.bridge(**vcenters(lab, "new"), capacity=2) as second:
            await until(lambda: [b.status.health().held for b in (first, second)] == [4, 2])
            await wait(2.0)
            assert [b.status.health().held for b in (first, second)] == [4, 2]
