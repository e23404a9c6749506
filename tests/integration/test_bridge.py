"""A request in, every change and exactly one ending out: through a real nats-server and real HTTP."""

from __future__ import annotations

import hashlib
import json

import pytest

from lab import EVENTS, PASSWORD, PREFIX, USERNAME, Lab, until
from task_bridge.simulator import Script, Step, faults, scenarios

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_published_task_id_is_followed_from_watching_to_its_end(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds(after_s=1.0))
        await lab.publish(task, traceparent=TRACE)
        final = await lab.ended(task)
        events = await lab.events(task)
    assert [event["data"]["sequence"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["data"]["kind"] for event in events]
    assert (kinds[0], kinds[-1]) == ("watching", "completed")
    assert set(kinds[1:-1]) == {"status", "progress"}
    assert {event["traceparent"] for event in events} == {TRACE}
    assert (final["outcome"], final["data"]["outcome"], final["data"]["result"]) == (
        "succeeded",
        "succeeded",
        scenarios.GOOD_RESULT,
    )
    assert final["source"] == lab.vcenter_url


async def test_core_subscribers_see_exactly_what_is_stored_under_the_same_subjects(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.fails_with_error(after_s=0.5))
        await lab.publish({"task": task, "labels": {"workflow": "patch-42"}})
        await lab.ended(task)
        stored = await lab.stored()
    assert [(message.subject, body) for message, body in stored] == lab.live
    token = task.replace(".", "%2E")
    assert lab.live[-1][0] == f"{PREFIX}.events.lab.{token}.completed.failed"
    assert {json.dumps(body["data"]["watch"]["labels"]) for _, body in stored} == {'{"workflow": "patch-42"}'}


@pytest.mark.parametrize(
    ("script", "subject", "error_type"),
    [
        (scenarios.succeeds(after_s=0.3), "completed.succeeded", None),
        (scenarios.blocked_then_succeeds(blocked_s=0.3, after_s=0.6), "completed.succeeded", None),
        (scenarios.fails_with_error(after_s=0.3), "completed.failed", "INTERNAL_SERVER_ERROR"),
        (scenarios.fails_by_result(after_s=0.3), "completed.failed", None),
        (scenarios.fails_silently(after_s=0.3), "completed.failed", None),
        (scenarios.canceled(after_s=0.3), "completed.canceled", "CANCELED"),
        (scenarios.succeeds_at_once(), "completed.succeeded", None),
        (scenarios.bare_success(), "completed.succeeded", None),
    ],
    ids=["succeeds", "blocked", "error", "result", "silently", "canceled", "at-once", "bare"],
)
@pytest.mark.parametrize("rendering", ["api", "rest"])
async def test_every_fate_ends_as_vcenter_tells_it_in_both_renderings(
    lab: Lab, script: Script, subject: str, error_type: str | None, rendering: str
) -> None:
    lab.vcenter.options.renderings = rendering  # type: ignore[assignment]
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(script)
        await lab.publish(task)
        final = await lab.ended(task)
    assert f"{final['data']['kind']}.{final['data']['outcome']}" == subject
    error = final["data"]["error"]
    assert (error is None) == (subject == "completed.succeeded")
    if error is not None:
        assert (error["type"], bool(error["message"])) == (error_type, True)
    assert lab.heard(task)[0]["data"]["kind"] == "watching"
    statuses = [event["data"]["status"] for event in lab.heard(task)]
    assert ("BLOCKED" in statuses) == any(step.changes.get("status") == "BLOCKED" for step in script.steps)


async def test_a_large_result_lies_in_the_object_store_before_its_event(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.large_result(size=2_000_000, after_s=0.1))
        await lab.publish(task)
        data = (await lab.ended(task))["data"]
        stored = await (await lab.js.object_store(data["result_ref"]["bucket"])).get(data["result_ref"]["name"])
    assert (data["result"], data["result_state"]) == (None, "stored")
    body = stored.data or b""
    assert (len(body), hashlib.sha256(body).hexdigest()) == (
        data["result_ref"]["size"],
        data["result_ref"]["sha256"],
    )
    assert len(json.dumps(json.loads(body))) > 2_000_000


@pytest.mark.parametrize(("size", "state"), [(262_144, "inline"), (262_145, "stored")])
async def test_a_result_is_inline_up_to_its_limit_in_compact_utf8(lab: Lab, size: int, state: str) -> None:
    text = "é" * ((size - 2) // 2) + "x" * (size % 2)
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(Script((Step(0, {"status": "SUCCEEDED", "result": text}),)))
        await lab.publish(task)
        data = (await lab.ended(task))["data"]
    assert data["result_state"] == state
    assert data["result"] == (text if state == "inline" else None)


async def test_a_timeout_ends_the_watch_and_not_the_task(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        await lab.publish({"task": task, "timeout": 0.5})
        final = await lab.ended(task)
        assert (final["data"]["kind"], final["data"]["outcome"]) == ("abandoned", "watch_timed_out")
        assert final["data"]["status"] == "RUNNING"
        assert lab.vcenter.history(task)[-1].status == "RUNNING"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (faults.service_unavailable(), "SERVICE_UNAVAILABLE"),
        (faults.resource_inaccessible(), "RESOURCE_INACCESSIBLE"),
        (faults.bad_gateway(), None),
        (faults.connection_reset(), None),
    ],
)
async def test_a_timeout_in_an_outage_carries_what_vcenter_answered_last(
    lab: Lab, fault: faults.Effect, kind: str | None
) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        await lab.publish({"task": task, "timeout": 1.5})
        await until(lambda: lab.heard(task))
        lab.vcenter.faults.add(fault, path="/tasks")
        error = (await lab.ended(task))["data"]["error"]
    assert error["type"] == kind
    assert ("vCenter's last answer" in error["message"]) is (fault != faults.connection_reset())


async def test_a_task_that_vanishes_alone_is_lost_and_one_never_there_too(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        other = lab.vcenter.create(scenarios.runs_forever())
        task = lab.vcenter.create(scenarios.runs_forever())
        for one in (other, task, "no-such-task:x"):
            await lab.publish(one)
        await until(lambda: lab.heard(task))
        lab.vcenter.forget(task)
        seen, unseen = await lab.ended(task), await lab.ended("no-such-task:x")
        assert seen["data"]["outcome"] == unseen["data"]["outcome"] == "lost"
        assert (seen["data"]["status"], unseen["data"]["status"]) == ("RUNNING", None)
        assert unseen["data"]["error"]["type"] == "NOT_FOUND"
        assert len(lab.heard("no-such-task:x")) == 1


async def test_tasks_that_vanish_together_are_not_given_up(lab: Lab) -> None:
    async with lab.bridge() as bridge:
        await lab.listen()
        tasks = [lab.vcenter.create(scenarios.succeeds(after_s=60)) for _ in range(5)]
        for task in tasks:
            await lab.publish(task)
        await until(lambda: len({body["subject"] for _, body in lab.live}) == 5)
        for task in tasks:
            lab.vcenter.hide(task)
        reason = await until(lambda: bridge.status.health().vcenters[0].reason)
        assert "5" in reason or "tasks" in reason
        for task in tasks:
            lab.vcenter.unhide(task)
            lab.vcenter.set(task, status="SUCCEEDED")
        for task in tasks:
            assert (await lab.ended(task))["data"]["outcome"] == "succeeded"


async def test_an_outage_invents_nothing_and_shows_in_readiness(lab: Lab) -> None:
    async with lab.bridge() as bridge:
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        await lab.publish(task)
        await until(lambda: lab.heard(task))
        with lab.vcenter.faults.during(faults.gateway_unavailable()):
            await until(lambda: bridge.status.health().status == "degraded")
            before = len(lab.heard(task))
            lab.vcenter.set(task, status="SUCCEEDED")
        final = await lab.ended(task)
        assert final["data"]["outcome"] == "succeeded"
        assert {event["data"]["status"] for event in lab.heard(task)[before:]} == {"SUCCEEDED"}
        await until(lambda: bridge.status.health().status == "ok")


async def test_a_request_becomes_a_watching_event_at_once_and_a_second_one_changes_nothing(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.runs_forever())
        first = await lab.ask("watch", {"task": task, "labels": {"a": "1"}})
        await until(lambda: lab.heard(task))
        second = await lab.ask("watch", {"task": task, "labels": {"b": "2"}})
        assert (first["outcome"], second["outcome"]) == ("accepted", "already_watching")
        assert first["watch"] == second["watch"] == lab.heard(task)[0]["data"]["watch"]
        assert first["last_event"] is None
        assert second["last_event"]["id"].startswith(first["watch"]["id"] + "/")
        assert first["stream"] == EVENTS
        assert first["events"] == f"{PREFIX}.events.lab.{task.replace('.', '%2E')}.>"


@pytest.mark.parametrize(("names", "sessions"), [(False, 1), (True, 2)])
async def test_there_is_one_session_for_each_api_in_use_and_none_after_the_bridge(
    lab: Lab, names: bool, sessions: int
) -> None:
    login = {"given_username": USERNAME, "given_password": PASSWORD}
    async with lab.bridge(vcenters={"lab": {"url": lab.vcenter_url, "names": names, **login}}):
        await lab.listen()
        tasks = [lab.vcenter.create(scenarios.succeeds(after_s=0.3)) for _ in range(20)]
        for task in tasks:
            await lab.publish(task)
        for task in tasks:
            await lab.ended(task)
        assert lab.vcenter.sessions.counts.most_live == sessions
    assert (lab.vcenter.sessions.counts.logins, len(lab.vcenter.sessions.live)) == (sessions, 0)


async def test_a_vcenter_without_watches_is_asked_once_and_then_a_minute_later(lab: Lab) -> None:
    async with lab.bridge() as bridge:
        await until(lambda: bridge.status.health().vcenters[0].state == "ok")
        await lab.ask("list")
        await lab.ask("list")
        assert len(lab.vcenter.request_log.of("session")) == 1
