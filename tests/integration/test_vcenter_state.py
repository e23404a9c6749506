"""Replies say why nothing comes: the state of the vCenter, whichever replica answers and whichever polls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lab import PASSWORD, USERNAME, Lab, until
from task_bridge.simulator import faults, scenarios

WELL = {"state": "ok", "reason": None, "since": None}


async def until_state(read: Callable[[], Awaitable[dict[str, Any]]], state: str) -> dict[str, Any]:
    """The vCenter's state in a reply, as soon as it is this one."""
    deadline = time.monotonic() + 15
    found: dict[str, Any] = {}
    while (found := (await read())["vcenter_state"])["state"] != state:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)
    return found


async def test_a_vcenter_that_answers_is_ok_in_every_reply(lab: Lab) -> None:
    task = lab.vcenter.create(scenarios.succeeds(after_s=30))
    async with lab.bridge():
        assert (await lab.ask("watch", task))["vcenter_state"] == WELL
        assert (await lab.ask("get", task))["vcenter_state"] == WELL
        assert [one["vcenter_state"] for one in (await lab.ask("list"))["watches"]] == [WELL]


@pytest.mark.parametrize("task", ["52f9:com.vmware.a", "task-7"])
async def test_a_refused_password_is_in_every_reply_and_in_the_ending(lab: Lab, task: str) -> None:
    lab.vcenter.options.password = "another"
    async with lab.bridge() as bridge:
        await lab.listen()
        await lab.ask("watch", {"task": task, "timeout": 2})
        state = await until_state(lambda: lab.ask("get", task), "refused")
        (listed,) = (await lab.ask("list"))["watches"]
        again = await lab.ask("watch", task)
        (health,) = bridge.status.health().vcenters
        ending = (await lab.ended(task))["data"]
    assert state["reason"] == health.reason
    assert "refuses the user name or the password" in state["reason"]
    assert state["since"].endswith("Z")
    assert listed["vcenter_state"] == again["vcenter_state"] == state
    assert ending["outcome"] == "watch_timed_out"
    assert ending["error"]["message"].endswith(state["reason"])


async def test_a_vcenter_that_can_not_be_reached_is_so_until_it_answers(lab: Lab) -> None:
    task = lab.vcenter.create(scenarios.succeeds(after_s=30))
    login = {"given_username": USERNAME, "given_password": PASSWORD}
    away = {"url": "http://127.0.0.1:9", **login}
    async with lab.bridge(vcenters={"lab": lab.vcenter_settings(), "away": away}, default_vcenter="lab"):
        await lab.ask("watch", {"task": task, "vcenter": "away"})
        await lab.ask("watch", task)
        state = await until_state(lambda: lab.ask("get", {"task": task, "vcenter": "away"}), "unreachable")
        assert "refuses the connection" in state["reason"]
        states = {one["vcenter"]: one["vcenter_state"]["state"] for one in (await lab.ask("list"))["watches"]}
        assert states == {"lab": "ok", "away": "unreachable"}


async def test_a_vcenter_that_answers_with_errors_is_degraded_and_then_ok_again(lab: Lab) -> None:
    task = lab.vcenter.create(scenarios.succeeds(after_s=30))
    async with lab.bridge():
        await lab.ask("watch", task)
        await until_state(lambda: lab.ask("get", task), "ok")
        fault = lab.vcenter.faults.add(faults.gateway_unavailable(), path="/tasks")
        await until_state(lambda: lab.ask("get", task), "degraded")
        lab.vcenter.faults.clear(fault)
        assert await until_state(lambda: lab.ask("get", task), "ok") == WELL


async def test_the_replica_that_polls_is_believed_whichever_answers(lab: Lab) -> None:
    lab.vcenter.options.password = "another"
    lab_only = {"vcenters": {"lab": lab.vcenter_settings()}}
    other = {"vcenters": {"other": {"url": "http://127.0.0.1:9", "given_username": "u", "given_password": "p"}}}
    async with lab.bridge(**lab_only), lab.bridge(**other):
        await lab.publish({"task": "a:b", "vcenter": "lab"})
        await until_state(lambda: get(lab, "a:b"), "refused")
        replies = [await get(lab, "a:b") for _ in range(30)]
        lists = [(await lab.ask("list"))["watches"][0] for _ in range(10)]
    assert {reply["vcenter_state"]["state"] for reply in replies} == {"refused"}
    assert {reply["vcenter_state"]["reason"] for reply in replies} == {replies[0]["vcenter_state"]["reason"]}
    assert [(one["vcenter_state"]["state"], one["unconfigured"]) for one in lists] == [("refused", False)] * 10


async def get(lab: Lab, task: str) -> dict[str, Any]:
    """The reply of `get`, asked until there is a watch."""
    reply = await lab.ask("get", {"task": task, "vcenter": "lab"})
    return reply if "error" not in reply else {"vcenter_state": {"state": reply["error"]["code"]}}


async def test_a_vcenter_that_left_the_settings_is_unconfigured(lab: Lab) -> None:
    task = lab.vcenter.create(scenarios.succeeds(after_s=30))
    other = {"other": {"url": lab.vcenter_url, "given_username": USERNAME, "given_password": PASSWORD}}
    async with lab.bridge():
        await lab.listen()
        await lab.ask("watch", {"task": task, "timeout": 3})
        await until(lambda: lab.heard(task))
    async with lab.bridge(vcenters=other):
        state = (await lab.ask("get", {"task": task, "vcenter": "lab"}))["vcenter_state"]
        (listed,) = (await lab.ask("list"))["watches"]
        ending = (await lab.ended(task))["data"]
    assert state["state"] == "unconfigured"
    assert (listed["unconfigured"], listed["vcenter_state"]) == (True, state)
    assert "isn't in the settings" in ending["error"]["message"]
