"""Trouble with sessions and passwords through the whole bridge: what it costs vCenter, and what it doesn't touch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from commands import ran
from lab import PASSWORD, USERNAME, BridgeProcess, Lab, until
from task_bridge.settings import VCenterSettings
from task_bridge.simulator import faults, scenarios
from task_bridge.simulator.faults import Effect
from task_bridge.simulator.script import Fields, Flavour, message, std_error
from task_bridge.vcenter import login_rules

REQUIRED = message("Authentication required.", id="com.vmware.vapi.endpoint.method.authentication.required")
ENDINGS: list[tuple[Flavour, Fields, str]] = [
    ("vlcm", std_error("UNAUTHENTICATED", REQUIRED, challenge="SIGN realm=x"), "UNAUTHENTICATED"),
    ("vlcm", std_error("ERROR", message("NotAuthenticated: The session is not authenticated."), REQUIRED), "ERROR"),
    ("appliance", std_error("UNAUTHORIZED", message("InvalidLogin", id="InvalidLogin")), "UNAUTHORIZED"),
    ("vim", {"fault": "NotAuthenticated", "message": "The session is not authenticated."}, "NotAuthenticated"),
    ("vim", {"fault": "InvalidLogin", "message": "Incorrect user name or password."}, "InvalidLogin"),
]


def with_vim(lab: Lab, way: str) -> dict[str, VCenterSettings]:
    given = {"name": "lab", "url": lab.vcenter_url, "username": USERNAME, "password": PASSWORD, "vim": way}
    return {"lab": VCenterSettings.model_validate(given)}


def logins(lab: Lab) -> dict[str, int]:
    return {api: counts.logins for api, counts in lab.vcenter.sessions.counts_of.items()}


@pytest.fixture(autouse=True)
def few_sessions(lab: Lab) -> Iterator[None]:
    """Whatever a test is about, no bridge leaves a session behind or has more than two of one kind."""
    yield
    assert lab.vcenter.sessions.live == []
    assert max(counts.most_live for counts in lab.vcenter.sessions.counts_of.values()) <= 2


class TestOwnFailures:
    """A task that ends because it isn't logged in somewhere says nothing about the bridge's session."""

    @pytest.mark.parametrize(("flavour", "error", "kind"), ENDINGS)
    @pytest.mark.parametrize("way", ["push, list", "pull, get"])
    async def test_they_are_reported_and_touch_no_session(
        self, lab: Lab, way: str, flavour: Flavour, error: Fields, kind: str
    ) -> None:
        lab.vcenter.options.list_enabled = "list" in way
        async with lab.bridge(vcenters=with_vim(lab, way[:4])) as bridge:
            await lab.listen()
            tasks = [
                lab.vcenter.create(scenarios.fails_with_error(after_s, error), flavour=flavour)
                for after_s in (0.0, 0.5, 0.5)
            ]
            others = [lab.vcenter.create(scenarios.succeeds(after_s=1.0), flavour=one) for one in ("vlcm", "vim")]
            for task in (*tasks, *others):
                await lab.publish(task)
            for task in tasks:
                data = (await lab.ended(task))["data"]
                assert (data["outcome"], data["error"]["type"]) == ("failed", kind)
            for task in others:
                assert (await lab.ended(task))["data"]["outcome"] == "succeeded"
            assert bridge.status.health().vcenters[0].state == "ok"
            assert logins(lab) == {"cis": 1, "vim": 1}

    @pytest.mark.parametrize("kind", ["NotAuthenticated", "InvalidLogin"])
    async def test_those_that_only_the_history_shows_neither(self, lab: Lab, kind: str) -> None:
        async with lab.bridge(vcenters=with_vim(lab, "pull")):
            await lab.listen()
            task = lab.vcenter.create(scenarios.runs_forever(), flavour="vim")
            await lab.publish(task)
            await until(lambda: lab.heard(task))
            lab.vcenter.set(task, status="FAILED", error={"fault": kind, "message": "No."})
            lab.vcenter.retire(task)
            data = (await lab.ended(task))["data"]
            assert (data["outcome"], data["error"]["type"]) == ("failed", kind)
            assert logins(lab)["vim"] == 1

    @pytest.mark.parametrize("withheld", ["a property", "a task"])
    async def test_what_vcenter_withholds_of_one_task_neither(self, lab: Lab, withheld: str) -> None:
        """As from somebody who isn't logged in, while other tasks are shown."""
        async with lab.bridge(vcenters=with_vim(lab, "pull")):
            await lab.listen()
            odd, other = (lab.vcenter.create(scenarios.runs_forever(), flavour="vim") for _ in range(2))
            for task in (odd, other):
                await lab.publish(task)
            await until(lambda: lab.heard(odd) and lab.heard(other))
            everything = withheld == "a task"
            properties = r".*?" if everything else r"<name>info\.entity.*?"
            effect = Effect(reshape=lambda body: withhold(body, odd, properties))
            with lab.vcenter.faults.during(effect, operation="RetrievePropertiesEx"):
                before = len(lab.vcenter.request_log.of("RetrievePropertiesEx"))
                await until(lambda: len(lab.vcenter.request_log.of("RetrievePropertiesEx")) > before + 2)
                lab.vcenter.set(other, status="SUCCEEDED")
                await lab.ended(other)
                if not everything:
                    lab.vcenter.set(odd, status="SUCCEEDED")
                    await lab.ended(odd)
            if everything:
                assert not lab.heard(odd)[-1]["data"]["final"]
                lab.vcenter.set(odd, status="SUCCEEDED")
            assert (await lab.ended(odd))["data"]["outcome"] == "succeeded"
            assert logins(lab)["vim"] == 1


def withhold(body: bytes, task: str, properties: str) -> bytes:
    """Withhold the matching properties of one task."""
    missing = b'<missingSet><path>x</path><fault><fault xsi:type="NotAuthenticated"/></fault></missingSet></objects>'

    def change(match: re.Match[bytes]) -> bytes:
        if f">{task}</obj>".encode() not in match[0]:
            return match[0]
        shown = re.sub(f"<propSet>{properties}</propSet>".encode(), b"", match[0])
        return shown.replace(b"</objects>", missing)

    return re.sub(rb"<objects>.*?</objects>", change, body)


class TestRejectedSessions:
    async def test_they_cost_few_logins_and_none_is_left_at_the_end(self, lab: Lab, process: BridgeProcess) -> None:
        lab.vcenter.options.refused_sessions = ("cis", "vim")
        task, classic = (lab.vcenter.create(scenarios.runs_forever(), flavour=one) for one in ("vlcm", "vim"))
        await process.start()
        await process.ready()
        for one in (task, classic):
            await lab.publish(one)
        await until(lambda: sum(logins(lab).values()) >= 4)
        assert len(lab.vcenter.sessions.live) <= 2
        assert await process.end() == 0
        assert lab.vcenter.sessions.counts.logouts == lab.vcenter.sessions.counts.logins

    async def test_tasks_are_followed_as_soon_as_sessions_are_accepted(self, lab: Lab) -> None:
        lab.vcenter.options.refused_sessions = ("cis", "vim")
        async with lab.bridge() as bridge:
            await lab.listen()
            tasks = [lab.vcenter.create(scenarios.runs_forever(), flavour=one) for one in ("vlcm", "vim")]
            for task in tasks:
                await lab.publish(task)
            await until(lambda: sum(logins(lab).values()) >= 3)
            assert "doesn't accept the session" in str(bridge.status.health().vcenters[0].reason)
            lab.vcenter.options.refused_sessions = ()
            lab.vcenter.sessions.set_state("good")
            await until(lambda: all(map(lab.heard, tasks)), 5)
            await until(lambda: bridge.status.health().vcenters[0].state == "ok")

    async def test_a_denied_check_of_the_session_is_none(self, lab: Lab) -> None:
        lab.vcenter.faults.add(faults.unauthorized(), operation="session")
        async with lab.bridge() as bridge:
            await until(lambda: bridge.status.health().vcenters[0].state == "ok")
            await lab.listen()
            denied, task = (lab.vcenter.create(scenarios.runs_forever()) for _ in range(2))
            lab.vcenter.deny(denied)
            for one in (denied, task):
                await lab.publish(one)
            await until(lambda: lab.heard(task))
            lab.vcenter.allow(denied)
            await until(lambda: lab.heard(denied))
        assert logins(lab) == {"cis": 1, "vim": 1}  # at /sdk for the names of targets


async def test_a_session_that_only_fails_is_replaced(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_rules, "FAILING_S", 2.0)
    async with lab.bridge() as bridge:
        await lab.listen()
        tasks = [lab.vcenter.create(scenarios.runs_forever(), flavour=one) for one in ("vlcm", "vim")]
        for task in tasks:
            await lab.publish(task)
        await until(lambda: all(map(lab.heard, tasks)))
        lab.vcenter.sessions.set_state("failing")
        for task in tasks:
            lab.vcenter.set(task, status="SUCCEEDED")
        for task in tasks:
            assert (await lab.ended(task))["data"]["outcome"] == "succeeded"
        await until(lambda: bridge.status.health().vcenters[0].state == "ok")
        assert logins(lab) == {"cis": 2, "vim": 2}


@pytest.mark.parametrize("refusing", ["cis", "vim"])
async def test_a_false_refusal_by_one_api_stops_only_that_one(lab: Lab, refusing: str) -> None:
    async with lab.bridge() as bridge:
        await lab.listen()
        tasks = {api: lab.vcenter.create(scenarios.runs_forever(), flavour=one) for api, one in FLAVOURS.items()}
        for task in tasks.values():
            await lab.publish(task)
        await until(lambda: all(map(lab.heard, tasks.values())))
        lab.vcenter.options.false_refusals = {refusing: 1}  # type: ignore[dict-item]
        lab.vcenter.sessions.invalidate()
        await until(lambda: lab.vcenter.sessions.counts.failed_logins)
        (other,) = [api for api in FLAVOURS if api != refusing]
        lab.vcenter.set(tasks[other], status="SUCCEEDED")
        await lab.ended(tasks[other])
        refused = await until(lambda: re.search(r"after (\d+) minutes", reason(bridge) or ""))
        assert int(refused[1]) in (3, 4)
        assert logins(lab) == {refusing: 1, other: 2}
    assert lab.vcenter.sessions.counts.failed_logins == 1


async def test_a_password_that_worked_is_tried_again_after_a_false_refusal(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_rules, "REFUSED_PAUSES_S", (1.0,))
    async with lab.bridge() as bridge:
        await lab.listen()
        tasks = [lab.vcenter.create(scenarios.runs_forever(), flavour=one) for one in FLAVOURS.values()]
        for task in tasks:
            await lab.publish(task)
        await until(lambda: all(map(lab.heard, tasks)))
        lab.vcenter.options.false_refusals = {"cis": 1, "vim": 1}
        lab.vcenter.sessions.invalidate()
        await until(lambda: lab.vcenter.sessions.counts.failed_logins == 2)
        for task in tasks:
            lab.vcenter.set(task, status="SUCCEEDED")
        for task in tasks:
            await lab.ended(task)
        await until(lambda: bridge.status.health().vcenters[0].state == "ok")
        assert logins(lab) == {"cis": 2, "vim": 2}


FLAVOURS: dict[str, Flavour] = {"cis": "vlcm", "vim": "vim"}


def reason(bridge: Any) -> str | None:
    text: str | None = bridge.status.health().vcenters[0].reason
    return text


class TestSchemes:
    """vCenter says how its users log in, and the bridge can't do that."""

    @pytest.mark.parametrize("empty", [False, True], ids=["body", "header"])
    async def test_they_are_named_by_readiness_log_and_check(self, lab: Lab, tmp_path: Path, empty: bool) -> None:
        effect = faults.unauthenticated(empty=empty, challenge='SIGN realm=x,sts="https://x/y", Bearer')
        lab.vcenter.faults.add(effect, operation="login")
        with capture_logs() as logs:
            async with lab.bridge() as bridge:
                told = await until(lambda: reason(bridge))
        assert "wants SIGN or Bearer, and the bridge speaks only Basic" in told
        (warning,) = [line for line in logs if line["event"] == "vcenter_unavailable"]
        assert "SIGN or Bearer" in warning["reason"]
        checked = await ran("check", directory=tmp_path, environment=lab.environment())
        (failed,) = [line for line in checked.out if "SIGN or Bearer" in line]
        assert failed.startswith("FAIL  vCenter lab login:")
        assert "PASSWORD" not in failed
        assert checked.code == 1

    async def test_they_are_named_for_classic_tasks_too(self, lab: Lab) -> None:
        effect = faults.unauthenticated(empty=True, challenge="Negotiate")
        lab.vcenter.faults.add(effect, operation="Login")
        async with lab.bridge() as bridge:
            await lab.publish(lab.vcenter.create(scenarios.runs_forever(), flavour="vim"))
            await until(lambda: "wants Negotiate" in (reason(bridge) or ""))
        assert len(lab.vcenter.request_log.of("Login")) == 1

    async def test_where_basic_is_among_them_the_password_is_wrong(self, lab: Lab) -> None:
        lab.vcenter.options.password = "another"
        async with lab.bridge() as bridge:
            told = await until(lambda: reason(bridge))
        assert "refuses the user name or the password" in told
        assert "speaks only" not in told
