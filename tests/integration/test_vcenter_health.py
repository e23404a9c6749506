"""Health by API through the whole bridge: what one API answers says nothing about the other."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from lab import Lab, until
from task_bridge.app import Bridge
from task_bridge.simulator import faults, scenarios
from task_bridge.web.health import build_readiness


def readiness(bridge: Bridge) -> dict[str, Any]:
    """What `/readyz` says of the only vCenter."""
    (vcenter,) = build_readiness(bridge.status.health())["vcenters"]
    return vcenter  # type: ignore[no-any-return]


def look_ages(bridge: Bridge) -> dict[str, float]:
    samples = [one for metric in bridge.status.metrics().collect() for one in metric.samples]
    return {one.labels["api"]: one.value for one in samples if one.name == "task_bridge_last_look_age_seconds"}


async def follow_both(lab: Lab) -> tuple[str, str]:
    classic = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
    modern = lab.vcenter.create(scenarios.runs_forever())
    for task in (classic, modern):
        await lab.publish(task)
    await until(lambda: lab.heard(classic) and lab.heard(modern))
    return classic, modern


@pytest.mark.parametrize(("path", "dead", "alive"), [("/sdk", "vim", "cis"), ("/api", "cis", "vim")])
async def test_an_api_that_is_dead_is_seen_while_the_other_is_polled(
    lab: Lab, path: str, dead: str, alive: str
) -> None:
    async with lab.bridge() as bridge:
        await lab.listen()
        await follow_both(lab)
        await until(lambda: readiness(bridge)["state"] == "ok")
        lab.vcenter.faults.add(faults.gateway_unavailable(), path=path)
        if dead == "vim":
            lab.vcenter.sessions.invalidate(lambda session: session in classic_sessions(lab))
        await until(lambda: readiness(bridge)["state"] == "degraded")
        whole = await until(lambda: (one := readiness(bridge))["apis"][dead]["last_good_look_age_seconds"] > 2 and one)
        apis = whole["apis"]
        assert (apis[dead]["state"], apis[alive]["state"]) == ("degraded", "ok")
        assert whole["reason"] == apis[dead]["reason"]
        assert apis[alive]["reason"] is None
        assert whole["last_good_look_age_seconds"] == apis[dead]["last_good_look_age_seconds"]
        assert apis[alive]["last_good_look_age_seconds"] < apis[dead]["last_good_look_age_seconds"]
        assert (apis[dead]["watches"], apis[alive]["watches"]) == (1, 1)
        ages = look_ages(bridge)
        assert ages[dead] > 2 > ages[alive]
        lab.vcenter.faults.clear()
        await until(lambda: readiness(bridge)["state"] == "ok")


def classic_sessions(lab: Lab) -> list[object]:
    """The sessions by which somebody waits for updates."""
    ids = {request.session for request in lab.vcenter.request_log.of("WaitForUpdatesEx")}
    return [one for one in lab.vcenter.sessions.live if one.id in ids]


async def test_an_api_without_watches_has_no_say_and_no_metric(lab: Lab) -> None:
    async with lab.bridge() as bridge:
        await lab.listen()
        await until(lambda: readiness(bridge)["state"] == "ok")
        assert set(look_ages(bridge)) == {"cis"}
        assert [api["in_use"] for api in readiness(bridge)["apis"].values()] == [True, False]
        lab.vcenter.faults.add(faults.gateway_unavailable(), path="/sdk")
        modern = lab.vcenter.create(scenarios.runs_forever())
        await lab.publish(modern)
        await until(lambda: lab.heard(modern))
        assert (readiness(bridge)["state"], readiness(bridge)["apis"]["vim"]["state"]) == ("ok", "unknown")
        assert set(look_ages(bridge)) == {"cis"}


async def test_vanished_classic_tasks_are_held_whatever_cis_tasks_are_polled(lab: Lab) -> None:
    with capture_logs() as logs:
        async with lab.bridge() as bridge:
            await lab.listen()
            _, modern = await follow_both(lab)
            tasks = [lab.vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(4)]
            for task in tasks:
                await lab.publish(task)
            await until(lambda: all(map(lab.heard, tasks)))
            for task in tasks:
                lab.vcenter.hide(task)
            held = await until(lambda: (one := readiness(bridge))["apis"]["vim"]["held_back"] == 4 and one)
            lists = len(lab.vcenter.request_log.of("list"))
            await until(lambda: len(lab.vcenter.request_log.of("list")) >= lists + 3)
            assert readiness(bridge)["apis"]["vim"]["held_back"] == 4
            assert not [log for log in logs if log["event"] == "tasks_vanished_together_over"]
            assert (held["apis"]["cis"]["reason"], held["apis"]["cis"]["held_back"]) == (None, 0)
            assert held["reason"] == held["apis"]["vim"]["reason"]
            assert "vanished together" in held["reason"]
            lab.vcenter.set(modern, status="SUCCEEDED")
            await lab.ended(modern)
            for task in tasks:
                lab.vcenter.unhide(task)
            await until(lambda: not readiness(bridge)["apis"]["vim"]["held_back"])
    told = [log["event"] for log in logs if log["event"].startswith("tasks_vanished")]
    assert told == ["tasks_vanished_together", "tasks_vanished_together_over"]
