"""Requests on the subject of one vCenter: they mean that vCenter and no other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab import PASSWORD, PREFIX, USERNAME, Lab, until
from task_bridge.simulator import scenarios


def two(lab: Lab) -> dict[str, Any]:
    login = {"url": lab.vcenter_url, "given_username": USERNAME, "given_password": PASSWORD}
    return {"vcenters": {"lab": login, "other": login}}


async def ask(lab: Lab, subject: str, body: object = None) -> dict[str, Any]:
    reply = await lab.client.request(f"{PREFIX}.{subject}", b"" if body is None else json.dumps(body).encode(), 15)
    return json.loads(reply.data)  # type: ignore[no-any-return]


@pytest.mark.parametrize("body", [b"%s", b'"%s"', b'{"task": "%s"}', b'{"task": "%s", "vcenter": "lab"}'])
async def test_a_stored_request_is_for_the_vcenter_of_its_subject(lab: Lab, body: bytes) -> None:
    task = lab.vcenter.create(scenarios.succeeds(after_s=0.3))
    async with lab.bridge(**two(lab)):
        await lab.listen()
        await lab.js.publish(f"{PREFIX}.watch.lab", body % task.encode())
        assert (await lab.ended(task))["data"]["vcenter"] == "lab"


async def test_a_stored_request_that_names_another_vcenter_is_rejected(lab: Lab) -> None:
    async with lab.bridge(**two(lab)):
        await lab.listen()
        await lab.js.publish(f"{PREFIX}.watch.lab", b'{"task": "a:b", "vcenter": "other"}')
        await lab.js.publish(f"{PREFIX}.follow.lab", b'{"name": "all", "vcenter": "other"}')
        rejected = await until(lambda: [one["data"] for subject, one in lab.live if subject.endswith("rejected")][1:])
        assert all(one["data"]["error"]["code"] == "invalid_request" for _, one in lab.live)
        assert rejected[0]["vcenter"] == "lab"


async def test_requests_of_both_streams_get_ids_of_their_own(lab: Lab) -> None:
    """Both streams count from 1, and two requests may be stored in the same millisecond."""
    tasks = [lab.vcenter.create(scenarios.succeeds(after_s=30)) for _ in range(40)]
    async with lab.bridge():
        for number, task in enumerate(tasks):
            await lab.client.publish(f"{PREFIX}.watch" + (".lab" if number % 2 else ""), task.encode())
        listed: list[Any] = []
        while len(listed) < len(tasks):
            listed = (await lab.ask("list"))["watches"]
    assert {one["task"] for one in listed} == set(tasks)
    assert len({one["watch"]["id"] for one in listed}) == len(tasks)


async def test_every_verb_of_the_api_has_a_subject_for_each_vcenter(lab: Lab) -> None:
    task = lab.vcenter.create(scenarios.succeeds(after_s=30))
    async with lab.bridge(**two(lab)):
        for vcenter in ("lab", "other"):
            assert (await ask(lab, f"api.watch.{vcenter}", task))["vcenter"] == vcenter
            assert (await ask(lab, f"api.get.{vcenter}", {"task": task}))["vcenter"] == vcenter
            assert [one["vcenter"] for one in (await ask(lab, f"api.list.{vcenter}"))["watches"]] == [vcenter]
        assert (await ask(lab, "api.unwatch.lab", task))["vcenter"] == "lab"
        assert [one["vcenter"] for one in (await ask(lab, "api.list"))["watches"]] == ["other"]
        assert (await ask(lab, "api.follow.lab", {"name": "all"}))["vcenter"] == "lab"
        assert [one["vcenter"] for one in (await ask(lab, "api.follows.lab"))["follows"]] == ["lab"]
        assert (await ask(lab, "api.follows.other"))["follows"] == []
        assert (await ask(lab, "api.unfollow.lab", {"name": "all"}))["vcenter"] == "lab"
        assert (await ask(lab, "api.cancel.lab", task))["error"]["code"] == "forbidden"


@pytest.mark.parametrize("verb", ["watch", "get", "list", "unwatch", "cancel", "follow", "unfollow", "follows"])
async def test_a_body_that_names_another_vcenter_is_refused_by_every_verb(lab: Lab, verb: str) -> None:
    body = {"vcenter": "other"}
    body |= {"task": "a:b"} if verb in ("watch", "get", "unwatch", "cancel") else {}
    body |= {"name": "all"} if verb in ("follow", "unfollow") else {}
    async with lab.bridge(**two(lab)):
        error = (await ask(lab, f"api.{verb}.lab", body))["error"]
        assert (error["status"], error["details"][0]["field"]) == (400, "vcenter")
        error = (await ask(lab, f"api.{verb}.gone", body | {"vcenter": "gone"}))["error"]
        assert error["code"] == "unknown_vcenter"


async def test_the_streams_of_release_1_0_stay_as_they_are(lab: Lab) -> None:
    """That release starts only on a requests stream with the one subject that it knows."""
    async with lab.bridge():
        info = await lab.js.stream_info("VCENTER_TASKS_REQUESTS")
        assert info.config.subjects == [f"{PREFIX}.watch"]
        events = await lab.js.stream_info("VCENTER_TASKS_EVENTS")
        assert f"{PREFIX}.watch.*" not in (events.config.subjects or [])
