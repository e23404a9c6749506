"""What operators see of follows: readiness, metrics, the board, `check` and the commands."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from commands import Ended, ran
from lab import PASSWORD, PREFIX, USERNAME, Lab
from task_bridge.app import Bridge
from task_bridge.simulator import SimulatedTarget, faults, scenarios

CIS_ONLY = '{"apis": ["cis"], "services": ["com.vmware.esx.settings.clusters.software"]}'


async def page(bridge: Bridge, path: str) -> httpx.Response:
    assert bridge.web.address
    async with httpx.AsyncClient() as http:
        return await http.get(f"http://127.0.0.1:{bridge.web.address.port}{path}")


async def readiness(bridge: Bridge) -> dict[str, Any]:
    return dict((await page(bridge, "/readyz")).json())


async def until_shown(bridge: Bridge, is_shown: Callable[[dict[str, Any]], bool], within_s: float = 20.0) -> Any:
    """`/readyz`, as soon as it says that."""
    deadline = time.monotonic() + within_s
    while not is_shown(body := await readiness(bridge)):
        assert time.monotonic() < deadline, body
        await asyncio.sleep(0.02)
    return body


async def until_true(fact: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not await fact():
        assert time.monotonic() < deadline, fact
        await asyncio.sleep(0.02)


def state_of(body: dict[str, Any], name: str = "all") -> str | None:
    return next((one["state"] for one in body["follows"] if one["name"] == name), None)


async def test_readiness_and_the_board_say_of_a_follow_what_it_does_and_how_far_it_is(lab: Lab) -> None:
    async with lab.bridge() as bridge:
        assert (await readiness(bridge))["follows"] == []
        await lab.ask("follow", {"name": "all"})
        await until_shown(bridge, lambda body: state_of(body) == "following")
        task = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        body = await until_shown(bridge, lambda body: bool(body["follows"][0]["last_task_at"]))  # it is noted last
        (follow,) = body["follows"]
        assert follow["started_watches"] == 1
        assert (body["status"], follow["reason"], follow["gaps"], follow["here"]) == ("ok", None, 0, True)
        assert follow["last_read_age_seconds"] < 5.0
        assert follow["since"] < follow["last_task_at"], task
        board = (await page(bridge, "/")).text
        section = board.partition('<section id="follows"')[2].partition("</section>")[0]
        assert "yes, nothing is missing" in section
        await lab.ask("unfollow", {"name": "all"})
        await until_shown(bridge, lambda body: body["follows"] == [], within_s=5.0)

        async def is_board_empty() -> bool:
            return "Nothing is followed." in (await page(bridge, "/")).text

        await until_true(is_board_empty)  # the streams are read every 2 s


async def test_a_follow_that_waits_degrades_its_replica_and_says_why_until_it_reads_again(
    lab: Lab, tmp_path: Path
) -> None:
    async with lab.bridge() as bridge:
        denied = faults.soap_fault("NoPermission", "Permission to perform this operation was denied.")
        with lab.vcenter.faults.during(denied, operation="CreateCollectorForTasks"):
            await lab.ask("follow", {"name": "all"})
            body = await until_shown(bridge, lambda body: state_of(body) == "waiting")
            assert body["status"] == "degraded"
            assert re.match("waits until vCenter can be read: .*denied", body["follows"][0]["reason"])
            shown = await ran("follows", directory=tmp_path, environment=lab.environment())
            assert shown.out[0] == "all on lab: waiting, nothing read yet"
            assert "denied" in shown.out[1]
            (listed,) = (await lab.ask("follows", {}))["follows"]
            assert "denied" in listed["reason"]
        body = await until_shown(bridge, lambda body: state_of(body) == "following")
        assert (body["status"], body["follows"][0]["reason"]) == ("ok", None)


async def test_a_flood_shows_as_slowed_and_a_purged_history_as_a_gap(lab: Lab) -> None:
    async with lab.bridge(follow_max_rate=50) as bridge:
        await lab.ask("follow", {"name": "all"})
        await until_shown(bridge, lambda body: state_of(body) == "following")
        for _ in range(200):
            lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        body = await until_shown(bridge, lambda body: state_of(body) == "slowed")
        assert body["status"] == "degraded"
        assert "BRIDGE_FOLLOW_MAX_RATE" in body["follows"][0]["reason"]
        await until_shown(bridge, lambda body: body["follows"][0]["started_watches"] == 200)
        sample = bridge.status.metrics().get_sample_value
        await until_shown(bridge, lambda body: body["status"] == "ok")
        assert sample("task_bridge_follow_found_total", {"vcenter": "lab"}) == 200
        assert sample("task_bridge_follow_watches_total", {"vcenter": "lab"}) == 200
        assert sample("task_bridge_follow_gaps_total", {"vcenter": "lab"}) == 0
    lab.vcenter.options.history_retention_s = 0.0
    async with lab.bridge() as bridge:
        body = await until_shown(bridge, lambda body: bool(body["follows"] and body["follows"][0]["gaps"]))
        assert body["follows"][0]["reason"].startswith("1 gap, in which tasks may be missing")
        assert bridge.status.metrics().get_sample_value("task_bridge_follow_gaps_total", {"vcenter": "lab"}) == 1


async def test_metrics_count_follows_by_state_and_show_the_age_of_their_last_read(lab: Lab) -> None:
    async with lab.bridge() as bridge:

        def sample(name: str, **labels: str) -> float | None:
            return bridge.status.metrics().get_sample_value(f"task_bridge_{name}", {"vcenter": "lab"} | labels)

        assert sample("follow_gaps_total") == 0
        for name in ("all", "clones"):
            await lab.ask("follow", {"name": name})
        await until_shown(bridge, lambda body: state_of(body) == state_of(body, "clones") == "following")
        assert sample("follows", state="following") == 2
        assert 0 <= (sample("follow_read_age_seconds", follow="clones") or 0.0) < 5
        await lab.ask("unfollow", {"name": "clones"})
        await until_shown(bridge, lambda body: len(body["follows"]) == 1)
        assert sample("follows", state="following") == 1
        assert sample("follow_read_age_seconds", follow="clones") is None


async def test_every_replica_lists_the_follows_of_all_and_those_that_nobody_runs(lab: Lab) -> None:
    other = {"url": lab.vcenter_url, "given_username": USERNAME, "given_password": PASSWORD}
    async with lab.bridge() as one, lab.bridge(vcenters={"other": other}) as two:
        await lab.js.publish(f"{PREFIX}.follow", b'{"name": "all", "vcenter": "lab"}')
        bodies = [await until_shown(bridge, lambda body: state_of(body) == "following") for bridge in (one, two)]
        assert [body["follows"][0]["here"] for body in bodies] == [True, False]
        names = ("vcenter", "name", "state", "since")
        first, second = ([body["follows"][0][name] for name in names] for body in bodies)
        assert first == second
        for _ in range(4):  # whichever replica answers
            (listed,) = (await lab.ask("follows", {}))["follows"]
            assert (listed["state"], listed["gaps"]) == ("following", 0)


async def test_a_follow_that_no_replica_runs_is_told(lab: Lab) -> None:
    async with lab.bridge() as bridge:
        assert bridge.status.monitor is not None
        bridge.status.monitor._count_held_follows = lambda: 0  # as if its owner had gone
        await lab.ask("follow", {"name": "all"})
        body = await until_shown(bridge, lambda body: body["follows_reason"] is not None)
        assert body["follows_reason"].startswith("1 follow is stored and run by no replica")
        assert "run by no replica" in (await page(bridge, "/")).text
        assert bridge.status.metrics().get_sample_value("task_bridge_follows_unheld") == 1


class TestCheck:
    async def test_it_opens_the_history_reads_a_task_and_leaves_nothing_behind(self, lab: Lab, tmp_path: Path) -> None:
        lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
        checked = await ran("check", directory=tmp_path, environment=lab.environment())
        (line,) = [line for line in checked.out if "follows" in line]
        assert line.startswith("ok    vCenter lab follows: ")
        assert "System.View" in line
        operations = [one.operation for one in lab.vcenter.request_log.requests]
        wanted = ["CreateCollectorForTasks", "ReadNextTasks", "DestroyCollector"]
        assert [one for one in operations if one in wanted] == wanted
        assert lab.vcenter.sessions.live == []

    @pytest.mark.parametrize("method", ["CreateCollectorForTasks", "ReadNextTasks"])
    @pytest.mark.parametrize(
        ("setting", "word", "code"),
        [({}, "note", 0), ({"FOLLOW": "all"}, "FAIL", 1), ({"FOLLOW": CIS_ONLY}, "note", 0)],
        ids=["not followed", "followed", "other tasks followed"],
    )
    async def test_it_names_the_privilege_that_is_missing(
        self, lab: Lab, tmp_path: Path, method: str, setting: dict[str, str], word: str, code: int
    ) -> None:
        denied = faults.soap_fault("NoPermission", "Permission to perform this operation was denied.")
        lab.vcenter.faults.add(denied, operation=method)
        more = {f"BRIDGE_VCENTERS__LAB__{name}": value for name, value in setting.items()}
        checked = await ran("check", directory=tmp_path, environment=lab.environment(**more))
        (line,) = [line for line in checked.out if "lab follows" in line]
        assert (line[:4], checked.code) == (word, code)
        assert "Permission to perform this operation was denied" in line
        assert "System.View" in line
        assert "Read-only" in line


class TestCommands:
    async def test_follow_list_and_unfollow_as_people_do(self, lab: Lab, tmp_path: Path) -> None:
        async def run(*words: str) -> Ended:
            return await ran(*words, directory=tmp_path, environment=lab.environment())

        vm = SimulatedTarget("VirtualMachine", "vm-7")
        async with lab.bridge() as bridge:
            assert (await run("follows")).out == ["Nothing is followed."]
            begun = await run("follow", "vms", "--service", "VirtualMachine", "--label", "team=platform")
            assert (begun.code, begun.err) == (0, [])
            assert begun.out[0] == "vms follows classic tasks of VirtualMachine on lab."
            again = await run("follow", "vms", "--service", "VirtualMachine", "--label", "team=platform")
            assert again.out[0] == "vms already follows classic tasks of VirtualMachine on lab."
            await until_shown(bridge, lambda body: state_of(body, "vms") == "following")
            task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim", target=vm, target_name="web01")
            await until_shown(bridge, lambda body: bool(body["follows"][0]["started_watches"]))
            shown = await run("follows")
            assert re.match(r"vms on lab: following, complete since \S+Z$", shown.out[0])
            assert "1 watch started, last task " in shown.out[1]
            below = ("--entity", "group-v3", "--recursive")
            operations = ("--operation", "clone*", "--operation", "!reconfigure", "--endings")
            changed = await run("follow", "vms", "--user", r"VSPHERE.LOCAL\deploy", *below, *operations)
            assert changed.out[0] == (
                r"vms now follows classic tasks with operation clone* without operation reconfigure "
                r"by VSPHERE.LOCAL\deploy on group-v3 and below, endings only on lab."
            )
            listed = await run("list", "-o", "wide")
            assert any(" vms " in line and "team=platform" in line for line in listed.out), listed.out
            assert any(" vms " in line for line in (await run("get", task, "-o", "wide")).out)
            events = await run("events")
            assert any(task in line and "web01" in line for line in events.out), events.out
            await until_shown(bridge, lambda body: state_of(body, "vms") == "following")
            as_json = await run("follows", "--json")
            assert json.loads(as_json.out[0])["follows"][0]["name"] == "vms"
            ended = await run("unfollow", "vms")
            assert (ended.code, ended.out) == (0, ["vms on lab starts no more watches; those that run go on."])
            missing = await run("unfollow", "vms")
            assert (missing.code, len(missing.err)) == (1, 1)
            assert "'vms'" in missing.err[0]

    async def test_what_happened_to_follows_is_printed_with_their_gaps(self, lab: Lab, tmp_path: Path) -> None:
        async with lab.bridge() as bridge:
            await lab.ask("follow", {"name": "all"})
            await until_shown(bridge, lambda body: state_of(body) == "following")
            lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
            await until_shown(bridge, lambda body: bool(body["follows"][0]["started_watches"]))
        lab.vcenter.options.history_retention_s = 0.0
        async with lab.bridge() as bridge:
            await until_shown(bridge, lambda body: bool(body["follows"] and body["follows"][0]["gaps"]))
            told = await ran("follows", "--events", directory=tmp_path, environment=lab.environment())
            assert [line.partition(" all on lab: ")[2].split()[0] for line in told.out] == [
                "following", "following", "gap",
            ]  # fmt: skip
            assert re.search(r"gap from \S+Z to \S+Z: vCenter's history no longer has task-", told.out[-1])
            listed = await ran("follows", directory=tmp_path, environment=lab.environment())
            assert "1 gap, in which tasks may be missing" in listed.out[0]
            raw = await ran("follows", "--events", "--json", directory=tmp_path, environment=lab.environment())
            kinds = [json.loads(line)["type"] for line in raw.out]
            assert kinds[-1] == "io.vcenter-task-bridge.follow.gap.v1"
            wrong = await ran(
                "follows", "--events", "--vcenter", "a.b", directory=tmp_path, environment=lab.environment()
            )
            assert (wrong.code, wrong.out) == (2, [])

    async def test_who_has_no_bridge_is_told(self, lab: Lab, tmp_path: Path) -> None:
        told = await ran("follow", "all", directory=tmp_path, environment=lab.environment())
        assert (told.code, told.err) == (4, [f"No bridge answers on {PREFIX}.api.follow."])
