"""Several vCenters, odd ones and odd tasks behind one bridge: a real nats-server and real HTTP."""

from __future__ import annotations

import json
import signal
import time
from itertools import product

import pytest
from structlog.testing import capture_logs

from lab import PASSWORD, USERNAME, BridgeProcess, Lab, until
from task_bridge.simulator import Options, Script, SimulatedVCenter, Step, faults, scenarios
from task_bridge.simulator.faults import Effect
from task_bridge.simulator.options import Timestamps
from task_bridge.simulator.script import Flavour
from task_bridge.simulator.serve import serve_vcenter

FIELDS = [
    *("description", "target", "parent", "user", "cancelable", "progress", "error", "service", "operation"),
    *("start_time", "end_time", "notifications", "result"),
]
ODD = [
    *(b'""', b"{}", b"[]", b"true", b"-1", b"1e308", b"1" + b"0" * 400, b"[" * 300 + b"]" * 300),
    *(rb'"\ud800 \u0000 \r\n"', b'"9999-12-31T23:59:59.999999999+14:00"', b'"0000-00-00T00:00:00Z"'),
    b'{"completed":1' + b"0" * 400 + b',"total":-3,"message":[{"id":7}],"error_type":1,"messages":[[],{"args":3}]}',
]


async def test_whatever_a_field_of_a_task_holds_the_task_is_followed_to_its_end(lab: Lab) -> None:
    odd = list(product(FIELDS, ODD))

    def put_in(body: bytes) -> bytes:
        for number, (_, value) in enumerate(odd):
            body = body.replace(b'"odd-%d"' % number, value)
        return body

    lab.vcenter.faults.add(Effect(reshape=put_in), path="/tasks")
    tasks = [
        lab.vcenter.create(
            Script(
                (
                    Step(0.0, {"status": "RUNNING", field: f"odd-{number}"}),
                    Step(1.5, {"status": "FAILED" if number % 2 else "SUCCEEDED"}),
                )
            )
        )
        for number, (field, _) in enumerate(odd)
    ]
    with capture_logs() as logs:
        async with lab.bridge():
            await lab.listen()
            for task in tasks:
                await lab.publish(task)
            for number, task in enumerate(tasks):
                data = (await lab.ended(task))["data"]
                assert (data["kind"], data["outcome"]) == ("completed", "failed" if number % 2 else "succeeded")
                assert (data["error"] is not None) == bool(number % 2)
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_one_task_that_says_more_than_nats_takes_ends_too(lab: Lab) -> None:
    async with lab.bridge():
        await lab.listen()
        text = "x" * 3_000_000
        tasks = [
            lab.vcenter.create(Script((Step(0.0, {"status": "FAILED", **fields}),)))
            for fields in (
                {"description": {"id": "x", "default_message": text, "args": []}},
                {
                    "error": {
                        "error_type": "ERROR",
                        "messages": [{"id": "x", "default_message": text, "args": [text]}],
                    }
                },
                {"user": text},
            )
        ]
        for task in tasks:
            await lab.publish(task)
        for task in tasks:
            assert (await lab.ended(task))["data"]["outcome"] == "failed"


@pytest.mark.parametrize("skew_s", [-7_200.0, 7_200.0], ids=["behind", "ahead"])
async def test_a_vcenter_whose_clock_is_two_hours_off_is_as_good_as_any(lab: Lab, skew_s: float) -> None:
    lab.vcenter.options.timestamps = Timestamps(skew_s=skew_s, offset_minutes=120)
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds(after_s=1.0))
        began = time.time()
        await lab.publish({"task": task, "timeout": 30, "stalled_after": 20})
        final = await lab.ended(task)
        assert time.time() - began < 5
    kinds = [event["data"]["kind"] for event in lab.heard(task)]
    assert set(kinds) <= {"watching", "status", "progress", "completed"}
    assert final["data"]["outcome"] == "succeeded"
    assert final["data"]["duration_seconds"] == pytest.approx(0.9, abs=0.01)  # as RUNNING, which a tenth comes before


async def test_a_vcenter_that_hangs_and_one_that_is_down_cost_a_third_nothing(lab: Lab) -> None:
    login = {"given_username": USERNAME, "given_password": PASSWORD}
    slow = SimulatedVCenter(Options(username=USERNAME, password=PASSWORD, latency_s=30.0))
    async with serve_vcenter(slow) as slow_url:
        urls = {"lab": lab.vcenter_url, "slow": slow_url, "down": "http://127.0.0.1:9"}
        vcenters = {name: {"url": url, **login} for name, url in urls.items()}
        async with lab.bridge(vcenters=vcenters) as bridge:
            await lab.listen()
            stuck = [slow.create(scenarios.runs_forever()) for _ in range(20)]
            for number, task in enumerate(stuck):
                await lab.publish({"task": task, "vcenter": "slow" if number % 2 else "down"})
            tasks = [lab.vcenter.create(scenarios.succeeds(after_s=1.0 + number / 20)) for number in range(20)]
            for task in tasks:
                await lab.publish({"task": task, "vcenter": "lab"})
            for task in tasks:
                final = await lab.ended(task)
                assert final["data"]["outcome"] == "succeeded"
                ended_at = lab.vcenter.history(task)[-1].at
                assert lab.heard_at[task] - ended_at < 5.0
            states = {vcenter.name: vcenter.state for vcenter in bridge.status.health().vcenters}
            assert states == {"lab": "ok", "slow": "unknown", "down": "degraded"}
            assert not any(lab.heard(task) for task in stuck)
        assert lab.vcenter.sessions.counts.logins == 2  # the other one is for names
    assert (len(lab.vcenter.sessions.live), len(slow.sessions.live)) == (0, 0)


@pytest.mark.parametrize(("flavour", "path"), [("vlcm", "/tasks"), ("vim", "/sdk")], ids=["cis", "classic"])
async def test_each_vcenter_has_its_own_time_for_an_answer(lab: Lab, flavour: Flavour, path: str) -> None:
    login = {"given_username": USERNAME, "given_password": PASSWORD}
    hasty = SimulatedVCenter(Options(username=USERNAME, password=PASSWORD))
    async with serve_vcenter(hasty) as hasty_url:
        vcenters = {
            "hasty": {"url": hasty_url, "timeout_s": 1.0, **login},
            "patient": {"url": lab.vcenter_url, "timeout_s": 5.0, **login},
        }
        for vcenter in (hasty, lab.vcenter):
            vcenter.faults.add(faults.delayed(1.2), path=path)
        async with lab.bridge(vcenters=vcenters) as bridge:
            await lab.listen()
            unseen = hasty.create(scenarios.succeeds_at_once(), flavour=flavour)
            task = lab.vcenter.create(scenarios.succeeds_at_once(), flavour=flavour)
            await lab.publish({"task": unseen, "vcenter": "hasty"})
            await lab.publish({"task": task, "vcenter": "patient"})
            assert (await lab.ended(task))["data"]["outcome"] == "succeeded"
            health = {vcenter.name: vcenter for vcenter in bridge.status.health().vcenters}
            assert health["patient"].state == "ok"
            assert "doesn't answer in time" in str(health["hasty"].reason)
            assert {event["data"]["vcenter"] for _, event in lab.live} == {"patient"}


async def test_vcenters_that_all_hang_hold_up_no_stop(lab: Lab) -> None:
    login = {"url": lab.vcenter_url, "given_username": USERNAME, "given_password": PASSWORD}
    vcenters = dict.fromkeys(("a", "b", "c", "d"), login)
    async with lab.bridge(vcenters=vcenters):
        await lab.listen()
        for name in vcenters:
            task = lab.vcenter.create(scenarios.runs_forever())
            await lab.publish({"task": task, "vcenter": name})
            await until(lambda task=task: lab.heard(task))  # type: ignore[misc]
        lab.vcenter.options.latency_s = 30.0
        left = time.monotonic()
    assert time.monotonic() - left < 4.5


async def test_a_result_that_is_gone_by_now_still_ends_in_completed(lab: Lab) -> None:
    lab.vcenter.faults.add(faults.delayed(0.0), operation="list", times=1)  # the look
    lab.vcenter.faults.add(faults.internal_server_error(), operation="list")
    lab.vcenter.faults.add(faults.task_not_found(), operation="get")
    async with lab.bridge():
        await lab.listen()
        task = lab.vcenter.create(scenarios.succeeds_at_once())
        await lab.publish(task)
        data = (await lab.ended(task))["data"]
    assert (data["kind"], data["outcome"], data["result_state"]) == ("completed", "succeeded", "unavailable")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_leaves_no_session_behind(lab: Lab, process: BridgeProcess, number: int) -> None:
    await process.start()
    await process.ready()
    await lab.listen()
    task = lab.vcenter.create(scenarios.runs_forever())
    await lab.publish(task)
    await until(lambda: lab.heard(task))
    lab.vcenter.options.latency_s = 0.2  # requests are under way when the signal comes
    await until(lambda: lab.vcenter.request_log.in_flight)
    assert await process.end(number, within_s=5) == 0
    assert (lab.vcenter.sessions.counts.logins, len(lab.vcenter.sessions.live)) == (2, 0)
    assert [line for line in process.log.read_text().splitlines() if json.loads(line)["level"] == "error"] == []
