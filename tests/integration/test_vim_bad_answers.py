"""What vCenter must not answer at `/sdk`, through the whole bridge: that look fails, and nothing else does."""

from __future__ import annotations

import itertools

import pytest

from lab import Lab, until
from task_bridge.settings import VCenterSettings
from task_bridge.simulator import faults, scenarios
from task_bridge.simulator.faults import Effect
from unit.test_vim_soap import entities, enveloped

XML = "text/xml"
BAD = {
    "bomb": faults.answer(200, enveloped("<a>&e9;</a>", entities()).decode(), XML),
    "entity": faults.answer(
        200, enveloped("<a>&f;</a>", '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]>').decode(), XML
    ),
    "fault": faults.soap_fault(kind="", said=""),
    "odd-fault": faults.soap_fault(kind="OfALaterVersion"),
    "cut": faults.truncated_json(),
    "huge": faults.huge_body(20_000_000),
    "bodiless": faults.answer(200, enveloped("").decode(), XML),
    "other": faults.answer(200, enveloped("<LogoutResponse xmlns='urn:vim25'/>").decode(), XML),
    "html": faults.gateway_unavailable(),
    "reset": faults.connection_reset(),
    "nameless": Effect(reshape=lambda body: body.replace(b"<obj ", b"<other ").replace(b"</obj>", b"</other>")),
}


@pytest.fixture
def scheme() -> str:
    return "https"


def by(lab: Lab, way: str) -> dict[str, VCenterSettings]:
    return {"lab": lab.vcenter_settings(vim=way)}


PUSH, PULL = "WaitForUpdatesEx", "RetrievePropertiesEx"


@pytest.mark.parametrize(
    ("method", "bad", "scheme"),
    [
        *((PUSH, bad, "https") for bad in BAD),
        *((PULL, bad, "https") for bad in ("bomb", "fault", "cut", "huge")),
        (PUSH, "reset", "http"),
        (PULL, "reset", "http"),
        (PULL, "reset", "https"),
    ],
)
async def test_a_bad_answer_fails_a_look_and_no_task(lab: Lab, method: str, bad: str) -> None:
    way = "push" if method == PUSH else "pull"
    async with lab.bridge(vcenters=by(lab, way)) as bridge:
        await lab.listen()
        classic = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
        modern = lab.vcenter.create(scenarios.runs_forever())
        for task in (classic, modern):
            await lab.publish(task)
        await until(lambda: lab.heard(classic) and lab.heard(modern))
        fault = lab.vcenter.faults.add(BAD[bad], operation=method)
        done = itertools.count()

        def told() -> str | None:
            # A wait that meets the fault answers when something changes, and one under way didn't meet it.
            lab.vcenter.set(classic, progress={"total": 10_000, "completed": next(done)})
            return bridge.status.health().vcenters[0].reason

        reason = await until(told)
        lab.vcenter.set(modern, status="SUCCEEDED")
        await lab.ended(modern)
        assert {event["data"]["status"] for event in lab.heard(classic)} == {"RUNNING"}
        lab.vcenter.faults.clear(fault)
        lab.vcenter.set(classic, status="SUCCEEDED")
        assert (await lab.ended(classic))["data"]["outcome"] == "succeeded"
        await until(lambda: bridge.status.health().vcenters[0].state == "ok")
    assert "lab" in reason
    assert lab.vcenter.sessions.live == []


async def test_what_spoils_an_answer_is_found_and_left_aside(lab: Lab) -> None:
    async with lab.bridge(vcenters=by(lab, "pull")) as bridge:
        await lab.listen()
        tasks = [lab.vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(9)]
        for task in tasks:
            await lab.publish(task)
        await until(lambda: all(map(lab.heard, tasks)))
        bad, *others = tasks
        with lab.vcenter.faults.during(BAD["cut"], operation=PULL, task=bad):
            await until(lambda: bad in (bridge.status.health().vcenters[0].reason or ""))
            for task in tasks:
                lab.vcenter.set(task, status="SUCCEEDED")
            for task in others:
                assert (await lab.ended(task))["data"]["outcome"] == "succeeded"
            assert not lab.heard(bad)[-1]["data"]["final"]
        assert (await lab.ended(bad))["data"]["outcome"] == "succeeded"


@pytest.mark.parametrize("method", ["WaitForUpdatesEx", "CreateListView", "CreateFilter"])
async def test_where_push_fails_again_and_again_tasks_are_pulled(lab: Lab, method: str) -> None:
    async with lab.bridge():
        await lab.listen()
        lab.vcenter.faults.add(faults.soap_fault(), operation=method)
        task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
        await lab.publish(task)
        await until(lambda: lab.heard(task) and len(lab.vcenter.request_log.of(method)) == 3)
        lab.vcenter.set(task, status="SUCCEEDED")
        assert (await lab.ended(task))["data"]["outcome"] == "succeeded"
        asked = len(lab.vcenter.request_log.of(method))
    assert asked == 3
    assert lab.vcenter.sessions.live == []


@pytest.mark.parametrize(("refusals", "views"), [(1, 1), (2, 2)], ids=["an-object", "the-view"])
async def test_an_unknown_object_that_spoils_a_change_of_the_view_is_left_aside(
    lab: Lab, refusals: int, views: int
) -> None:
    async with lab.bridge(vcenters=by(lab, "push")):
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
        refused = faults.soap_fault("ManagedObjectNotFound")
        lab.vcenter.faults.add(refused, operation="ModifyListView", times=refusals)
        await lab.publish(task)
        await lab.publish("task-9")
        await until(lambda: lab.heard(task))
        assert (await lab.ended("task-9"))["data"]["outcome"] == "lost"
        lab.vcenter.set(task, status="SUCCEEDED")
        await lab.ended(task)
        assert len(lab.vcenter.request_log.of("CreateListView")) == views


async def test_a_vcenter_of_which_only_sdk_answers_is_well_while_classic_tasks_are_followed(lab: Lab) -> None:
    for path in ("/api", "/rest"):
        lab.vcenter.faults.add(faults.route_not_found(), path=path)
    async with lab.bridge() as bridge:
        await lab.listen()
        await until(lambda: bridge.status.health().vcenters[0].state == "degraded")
        task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
        await lab.publish(task)
        await until(lambda: bridge.status.health().vcenters[0].state == "ok")
        lab.vcenter.set(task, status="SUCCEEDED")
        await lab.ended(task)


async def test_a_login_whose_answer_is_cut_leaves_no_session_behind(lab: Lab) -> None:
    lab.vcenter.faults.add(BAD["cut"], operation="Login", times=2)
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        await lab.publish(task)
        assert (await lab.ended(task))["data"]["outcome"] == "succeeded"
        assert len(lab.vcenter.sessions.live) == 2  # one for each kind
    assert lab.vcenter.sessions.live == []
    assert len(lab.vcenter.request_log.of("Login")) == 3
