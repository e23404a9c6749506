"""A bridge on a NATS that was prepared for release 1.0: watches work, follows are off, say why, and turn on later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
from structlog.testing import capture_logs

from commands import Ended, ran
from lab import EVENTS, PREFIX, Lab, NatsServer, until
from task_bridge.app import Bridge
from task_bridge.checks import expected_jetstream
from task_bridge.domain.subjects import VERBS
from task_bridge.jetstream import follow_setup
from task_bridge.jetstream.provision import JetStreamConfig, provision
from task_bridge.jetstream.streams import Streams
from task_bridge.simulator import scenarios

QUEUES = ("VCENTER_TASKS_REQUESTS", "VCENTER_TASKS_WATCHES")
FOLLOW_QUEUES = ("VCENTER_TASKS_VCENTER_REQUESTS", "VCENTER_TASKS_FOLLOW_REQUESTS", "VCENTER_TASKS_FOLLOWS")
WATCHES, FOLLOWS, OBJECTS = QUEUES[1], FOLLOW_QUEUES[2], "OBJ_VCENTER_TASKS_RESULTS"
SUBJECTS_OF_1_0 = [f"{PREFIX}.internal.put.>", f"{PREFIX}.rejected"]
CREATE = ["$JS.API.STREAM.CREATE.*", *(f"$JS.API.CONSUMER.DURABLE.CREATE.{queue}.bridge" for queue in QUEUES)]
PUBLISH = [
    f"{PREFIX}.internal.>",
    f"{PREFIX}.rejected",
    "_R_.>",
    "_INBOX.>",
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.CONSUMER.INFO.*.bridge",
    *(f"$JS.API.CONSUMER.MSG.NEXT.{queue}.bridge" for queue in QUEUES),
    *(f"$JS.ACK.{queue}.bridge.>" for queue in QUEUES),
    *(f"$JS.API.STREAM.MSG.GET.{stream}" for stream in (WATCHES, EVENTS, OBJECTS)),
    *(f"$JS.API.DIRECT.GET.{stream}{end}" for stream in (WATCHES, EVENTS) for end in ("", ".>")),
    f"$JS.API.STREAM.MSG.DELETE.{WATCHES}",
    f"$JS.API.STREAM.PURGE.{OBJECTS}",
    f"$JS.API.DIRECT.GET.{OBJECTS}.>",
    "$O.VCENTER_TASKS_RESULTS.>",
]
SUBSCRIBE = ["_INBOX_bridge.>", f"{PREFIX}.api.*", f"{PREFIX}.events.>", "$SRV.>", f"{PREFIX}.internal.replicas"]
CREATE_FOLLOWS = [
    *(f"$JS.API.CONSUMER.DURABLE.CREATE.{queue}.bridge" for queue in FOLLOW_QUEUES),
    f"$JS.API.STREAM.UPDATE.{EVENTS}",
]
PUBLISH_FOLLOWS = [
    f"{PREFIX}.follows.>",
    *(f"$JS.API.CONSUMER.MSG.NEXT.{queue}.bridge" for queue in FOLLOW_QUEUES),
    *(f"$JS.ACK.{queue}.bridge.>" for queue in FOLLOW_QUEUES),
    *(f"$JS.API.{verb}.{FOLLOWS}" for verb in ("STREAM.MSG.GET", "STREAM.MSG.DELETE", "DIRECT.GET")),
]
SUBSCRIBE_FOLLOWS = [f"{PREFIX}.follows.>", f"{PREFIX}.api.*.*"]


class Guarded(Lab):
    """A lab whose bridge is a user with permissions; `client` may do everything."""

    config: Path

    def permit(self, publish: list[str], subscribe: list[str]) -> None:
        """Let the bridge do this, and from now on only this."""
        self.config.write_text(render(publish, subscribe))
        self.server.reload()

    def served(self, **more: Any) -> Any:
        login = {"urls": self.server.url, "user": "bridge", "given_password": "p"}
        return self.bridge(nats=login, **more)

    def violations(self) -> list[str]:
        """What nats-server has refused so far."""
        log = (self.config.parent / "nats.log").read_text()
        return [line for line in log.splitlines() if "Permissions Violation" in line or "Violation -" in line]


def render(publish: list[str], subscribe: list[str]) -> str:
    def quoted(subjects: list[str]) -> str:
        return "[" + ", ".join(f'"{subject}"' for subject in subjects) + "]"

    permissions = f"{{publish: {quoted(publish)}, subscribe: {quoted(subscribe)}}}"
    users = f"[{{user: bridge, password: p, permissions: {permissions}}}, {{user: operator, password: p}}]"
    return f"accounts: {{BRIDGE: {{jetstream: enabled, users: {users}}}}}\n"


@asynccontextmanager
async def guarded(lab: Lab, directory: Path, publish: list[str], subscribe: list[str]) -> AsyncIterator[Guarded]:
    directory = directory / "guarded"
    directory.mkdir()
    config = directory / "nats.conf"
    config.write_text(render(publish, subscribe))
    server = NatsServer(directory, "-c", str(config))
    server.start()
    client = await nats.connect(server.url, user="operator", password="p")
    try:
        made = Guarded(server, client, lab.vcenter, lab.vcenter_url)
        made.config = config
        yield made
    finally:
        await client.close()
        server.stop()


@pytest.fixture
async def prepared(lab: Lab, tmp_path: Path) -> AsyncIterator[Guarded]:
    """A NATS with the permissions of release 1.0."""
    async with guarded(lab, tmp_path, [*PUBLISH, *CREATE], SUBSCRIBE) as made:
        yield made


@pytest.fixture
async def open_lab(lab: Lab, tmp_path: Path) -> AsyncIterator[Guarded]:
    """A NATS whose bridge may do everything."""
    async with guarded(lab, tmp_path, [">"], [">"]) as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_setup, "RECHECK_S", 2.0)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


def said(lines: list[Any], event: str) -> list[Any]:
    return [line for line in lines if line["event"] == event]


async def readiness(bridge: Bridge) -> dict[str, Any]:
    assert bridge.web.address
    async with httpx.AsyncClient() as http:
        return dict((await http.get(f"http://127.0.0.1:{bridge.web.address.port}/readyz")).json())


async def shows(bridge: Bridge, is_shown: Callable[[dict[str, Any]], bool], within_s: float = 20.0) -> dict[str, Any]:
    deadline = time.monotonic() + within_s
    while not is_shown(body := await readiness(bridge)):
        assert time.monotonic() < deadline, body
        await asyncio.sleep(0.05)
    return body


async def watches_work(lab: Lab) -> None:
    await lab.listen()
    stored, asked = (lab.vcenter.create(scenarios.succeeds_at_once()) for _ in range(2))
    await lab.publish(stored)
    assert (await lab.ask("watch", asked))["outcome"] == "accepted"
    assert (await lab.ended(stored))["data"]["status"] == "SUCCEEDED"
    assert (await lab.ended(asked))["data"]["status"] == "SUCCEEDED"


async def follows_work(lab: Lab) -> None:
    assert (await lab.ask("follow", {"name": "all"}))["outcome"] == "accepted"
    deadline = time.monotonic() + 20
    while (await lab.ask("follows"))["follows"][0]["state"] != "following":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    await lab.listen()
    task = lab.vcenter.create(scenarios.succeeds_at_once(), flavour="vim")
    assert (await lab.ended(task))["data"]["watch"]["follow"] == "all"


async def follows_are_refused(lab: Lab, cure: str) -> None:
    for verb, body in (("follow", {"name": "all"}), ("follows", None), ("unfollow", {"name": "all"})):
        error = (await lab.ask(verb, body))["error"]
        assert (error["status"], error["code"]) == (503, "unavailable"), verb
        assert error["message"].startswith("Follows are off: "), error
        assert cure in error["message"]


async def prepare_as_1_0(lab: Lab) -> JetStreamConfig:
    """Creates the streams of release 1.0."""
    config = expected_jetstream(lab.settings()).without_follows()
    *queues, (events, _) = config.streams
    before = config._replace(streams=(*queues, (events.evolve(subjects=SUBJECTS_OF_1_0), None)))
    await provision(Streams(lab.client), before, create=True)
    return before


async def test_permissions_of_1_0_are_enough_for_watches_and_follows_are_off(
    prepared: Guarded, logged: list[Any]
) -> None:
    async with prepared.served() as bridge:
        body = await readiness(bridge)
        assert body["status"] == "ok"
        assert PREFIX in body["follows_reason"]
        assert "accounts.conf" in body["follows_reason"]
        assert [one["name"] for one in body["streams"]] == [*QUEUES, EVENTS, "VCENTER_TASKS_RESULTS"]
        assert [one["name"] for one in body["consumers"]] == [f"{queue}/bridge" for queue in QUEUES]
        await watches_work(prepared)
        await follows_are_refused(prepared, "accounts.conf")
    assert len(said(logged, "follows_off")) == 1
    assert not said(logged, "nats_forbids")


async def test_what_nats_forbids_is_tried_seldom_and_neither_unready_nor_reconnected(
    prepared: Guarded, logged: list[Any]
) -> None:
    async with prepared.served() as bridge:
        connection, reconnects = bridge.status.connection, []
        assert connection
        connection.on_reconnect(lambda: reconnects.append(1))
        begin, before = time.monotonic(), len(prepared.violations())
        while time.monotonic() - begin < 9.0:
            assert (await readiness(bridge))["status"] == "ok"
            await asyncio.sleep(0.05)
        count = len(prepared.violations()) - before
        assert 1 <= count <= 6, prepared.violations()  # one each two seconds here, one each 15 s without the patch
        assert not reconnects
    assert len(said(logged, "follows_off")) == 1
    assert [line["event"] for line in logged if line["log_level"] in ("warning", "error")] == ["follows_off"]


async def test_follows_turn_on_by_themselves_after_the_permissions_were_added(
    prepared: Guarded, logged: list[Any]
) -> None:
    async with prepared.served() as bridge:
        await watches_work(prepared)
        prepared.permit([*PUBLISH, *CREATE, *PUBLISH_FOLLOWS, *CREATE_FOLLOWS], [*SUBSCRIBE, *SUBSCRIBE_FOLLOWS])
        await shows(bridge, lambda body: body["follows_reason"] is None)
        await follows_work(prepared)
        body = await shows(bridge, lambda body: body["status"] == "ok")
        assert f"{FOLLOWS}/bridge" in [one["name"] for one in body["consumers"]]
    assert len(said(logged, "follows_off")) == len(said(logged, "follows_on")) == 1
    assert not said(logged, "nats_forbids")


@pytest.mark.parametrize(
    "lacking",
    [
        f"$JS.API.CONSUMER.DURABLE.CREATE.{FOLLOW_QUEUES[0]}.bridge",
        f"$JS.API.CONSUMER.MSG.NEXT.{FOLLOWS}.bridge",
        f"$JS.API.CONSUMER.MSG.NEXT.{FOLLOW_QUEUES[0]}.bridge",
    ],
)
async def test_one_permission_that_only_follows_need_turns_them_off_until_it_is_added(
    lab: Lab, tmp_path: Path, lacking: str
) -> None:
    every = [*PUBLISH, *CREATE, *PUBLISH_FOLLOWS, *CREATE_FOLLOWS]
    subscribe = [*SUBSCRIBE, *SUBSCRIBE_FOLLOWS]
    denied = [one for one in every if one != lacking]
    async with guarded(lab, tmp_path, denied, subscribe) as made, made.served() as bridge:
        body = await shows(bridge, lambda body: lacking.lower() in str(body["follows_reason"]).lower())
        assert body["status"] == "ok"
        await watches_work(made)
        await follows_are_refused(made, "accounts.conf")
        made.permit(every, subscribe)
        await shows(bridge, lambda body: body["follows_reason"] is None)
        await follows_work(made)


@pytest.mark.parametrize("lacking", [f"$JS.API.STREAM.UPDATE.{EVENTS}", f"{PREFIX}.follows.>"])
async def test_a_permission_that_the_first_follow_needs_turns_follows_off_when_it_is_missed(
    lab: Lab, tmp_path: Path, lacking: str
) -> None:
    every = [*PUBLISH, *CREATE, *PUBLISH_FOLLOWS, *CREATE_FOLLOWS]
    subscribe = [*SUBSCRIBE, *SUBSCRIBE_FOLLOWS]
    async with guarded(lab, tmp_path, [one for one in every if one != lacking], subscribe) as made:
        await prepare_as_1_0(made)
        async with made.served() as bridge:
            await made.client.publish(f"{PREFIX}.follow", b'{"name": "stored"}')
            await shows(bridge, lambda body: lacking.lower() in str(body["follows_reason"]).lower())
            await watches_work(made)
            await follows_are_refused(made, "accounts.conf")
            assert len(made.violations()) < 20, made.violations()
            made.permit(every, subscribe)
            await shows(bridge, lambda body: [one["state"] for one in body["follows"]] == ["following"])
            assert (await readiness(bridge))["status"] == "ok"


async def test_verbs_that_a_user_may_not_offer_are_offered_once_he_may(lab: Lab, tmp_path: Path) -> None:
    *others, _ = verbs = [f"{PREFIX}.api.{verb}" for verb in VERBS]
    subscribe = [one for one in SUBSCRIBE if one != f"{PREFIX}.api.*"] + SUBSCRIBE_FOLLOWS
    publish = [*PUBLISH, *CREATE, *PUBLISH_FOLLOWS, *CREATE_FOLLOWS]
    async with guarded(lab, tmp_path, publish, [*subscribe, *others]) as made, made.served() as bridge:
        await shows(bridge, lambda body: verbs[-1] in str(body["follows_reason"]))
        await watches_work(made)
        made.permit(publish, [*subscribe, *verbs])
        await shows(bridge, lambda body: body["follows_reason"] is None and body["status"] == "ok")
        await follows_work(made)


async def test_permissions_that_are_taken_away_turn_follows_off_without_a_restart(open_lab: Guarded) -> None:
    async with open_lab.served() as bridge:
        await follows_work(open_lab)
        await until(lambda: bridge.status.monitor and bridge.status.monitor.stored_follows)
        open_lab.permit([*PUBLISH, *CREATE], SUBSCRIBE)
        body = await shows(bridge, lambda body: "follows are off" in str(body["follows_reason"]))
        assert body["status"] == "degraded", "there is a follow"
        await watches_work(open_lab)
        await follows_are_refused(open_lab, "accounts.conf")
        open_lab.permit([">"], [">"])
        await shows(bridge, lambda body: [one["state"] for one in body["follows"]] == ["following"])


async def test_who_has_configured_a_follow_sees_that_it_is_off(prepared: Guarded, logged: list[Any]) -> None:
    vcenters = {"lab": prepared.vcenter_settings(follow="all")}
    async with prepared.served(vcenters=vcenters) as bridge:
        assert (await readiness(bridge))["status"] == "degraded"
        prepared.permit([*PUBLISH, *CREATE, *PUBLISH_FOLLOWS, *CREATE_FOLLOWS], [*SUBSCRIBE, *SUBSCRIBE_FOLLOWS])
        body = await shows(bridge, lambda body: body["status"] == "ok" and len(body["follows"]) == 1)
        assert body["follows"][0]["name"] == "config"
    assert not said(logged, "configured_follows_not_started")


async def test_with_verify_and_the_streams_of_1_0_follows_turn_on_when_theirs_are_created(
    open_lab: Guarded, logged: list[Any]
) -> None:
    await prepare_as_1_0(open_lab)
    async with open_lab.served(provision="verify") as bridge:
        body = await readiness(bridge)
        assert body["status"] == "ok"
        assert FOLLOWS in body["follows_reason"]
        assert "task-bridge provision" in body["follows_reason"]
        await watches_work(open_lab)
        await follows_are_refused(open_lab, "task-bridge provision")
        whole = expected_jetstream(open_lab.settings())
        await provision(Streams(open_lab.client), whole.only_follows(), create=True)
        await open_lab.js.update_stream(whole.streams[-1][0])
        await shows(bridge, lambda body: body["follows_reason"] is None)
        await follows_work(open_lab)
    assert len(said(logged, "follows_off")) == len(said(logged, "follows_on")) == 1


async def test_with_verify_a_deleted_stream_of_follows_ends_follows_and_no_watch(open_lab: Guarded) -> None:
    whole = expected_jetstream(open_lab.settings())
    await provision(Streams(open_lab.client), whole, create=True)
    async with open_lab.served(provision="verify") as bridge:
        await follows_work(open_lab)
        await open_lab.js.delete_stream(FOLLOWS)
        await shows(bridge, lambda body: "is missing" in str(body["follows_reason"]))
        await asyncio.sleep(6.0)  # longer than a stream of watches may be missing
        await watches_work(open_lab)
        await provision(Streams(open_lab.client), whole, create=True)
        await shows(bridge, lambda body: body["follows_reason"] is None)


async def test_a_bridge_that_nobody_asked_to_follow_leaves_the_streams_of_1_0_as_they_were(open_lab: Guarded) -> None:
    async def configurations() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for info in await open_lab.js.streams_info():
            name = str(info.config.name)
            found[name] = [info.config, [one.config for one in await open_lab.js.consumers_info(name)]]
        return found

    await prepare_as_1_0(open_lab)
    before = await configurations()
    async with open_lab.served():
        await watches_work(open_lab)
        assert (await open_lab.ask("follows"))["follows"] == []
        assert (await open_lab.ask("unfollow", {"name": "all"}))["error"]["code"] == "not_following"
        after = await configurations()
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == sorted(FOLLOW_QUEUES)
    assert before[EVENTS][0].subjects == SUBJECTS_OF_1_0


async def check(lab: Lab, directory: Path, **more: str) -> tuple[Ended, list[str], list[str]]:
    """Run `task-bridge check` as the bridge's user. Return its end, failures and notes on what NATS lacks."""
    given = {"BRIDGE_NATS_USER": "bridge", "BRIDGE_NATS_PASSWORD": "p", **more}
    ended = await ran("check", directory=directory, environment=lab.environment(**given))
    notes = [line for line in ended.out if line.startswith(("note  streams", "note  permissions"))]
    return ended, [line for line in ended.out if line.startswith("FAIL")], notes


async def test_check_only_notes_the_permissions_of_follows_while_there_are_none(
    prepared: Guarded, tmp_path: Path
) -> None:
    await prepare_as_1_0(prepared)
    ended, failures, notes = await check(prepared, tmp_path)
    assert (ended.code, failures) == (0, []), ended.out
    streams, permissions = notes
    assert f"stream {FOLLOWS}" in streams
    assert "run `task-bridge provision` as a user who may create them" in streams
    assert "No bridge of release 1.0 starts after that." in streams
    assert f"subscribe to {PREFIX}.follows.>" in permissions
    assert "deploy/nats" in permissions
    assert all("Only follows and subjects for one vCenter need it" in note for note in notes)
    assert any(line.startswith("ok    streams: all that watches need exist") for line in ended.out)
    assert any(line.startswith("ok    permissions") for line in ended.out)


async def test_check_only_notes_the_streams_of_follows_with_verify_while_there_are_none(
    open_lab: Guarded, tmp_path: Path
) -> None:
    await prepare_as_1_0(open_lab)
    ended, failures, notes = await check(open_lab, tmp_path, BRIDGE_PROVISION="verify")
    assert (ended.code, failures) == (0, []), ended.out
    streams, subjects = sorted(notes, key=lambda note: "subjects is" in note)
    assert f"{PREFIX}.follows.>" in subjects
    assert "see `task-bridge provision --check`" in subjects
    assert f"stream {FOLLOWS}" in streams
    assert "run `task-bridge provision`. No bridge of release 1.0 starts after that." in streams
    await provision(Streams(open_lab.client), expected_jetstream(open_lab.settings()), create=True)
    await open_lab.js.update_stream(expected_jetstream(open_lab.settings()).streams[-1][0])
    assert (await check(open_lab, tmp_path, BRIDGE_PROVISION="verify"))[1:] == ([], [])


async def test_check_only_notes_that_the_streams_of_follows_may_not_be_read(lab: Lab, tmp_path: Path) -> None:
    publish = [one for one in [*PUBLISH, *CREATE] if one != "$JS.API.STREAM.INFO.*"]
    publish += [f"$JS.API.STREAM.INFO.{one}" for one in (*QUEUES, EVENTS, OBJECTS)]
    async with guarded(lab, tmp_path, publish, SUBSCRIBE) as made:
        await prepare_as_1_0(made)
        ended, failures, notes = await check(made, tmp_path)
    assert (ended.code, failures) == (0, []), ended.out
    assert any(f"publish to $JS.API.STREAM.INFO.{FOLLOWS}" in note for note in notes)


async def test_check_leaves_it_to_serve_to_add_the_streams_of_follows_where_it_may(
    open_lab: Guarded, tmp_path: Path
) -> None:
    await prepare_as_1_0(open_lab)
    ended, failures, notes = await check(open_lab, tmp_path)
    assert (ended.code, failures, notes) == (0, [], []), ended.out
    (missing,) = [line for line in ended.out if line.startswith("ok    streams: missing")]
    assert f"stream {FOLLOWS}" in missing
    assert missing.endswith("`serve` will create them")


@pytest.mark.parametrize("more", [{}, {"BRIDGE_PROVISION": "verify"}], ids=["auto", "verify"])
async def test_check_fails_for_what_a_configured_follow_lacks(
    prepared: Guarded, tmp_path: Path, more: dict[str, str]
) -> None:
    await prepare_as_1_0(prepared)
    ended, failures, notes = await check(prepared, tmp_path, BRIDGE_VCENTERS__LAB__FOLLOW="all", **more)
    assert (ended.code, notes) == (1, [])
    assert any(FOLLOWS in failure and "run `task-bridge provision`" in failure for failure in failures)
    assert any(failure.startswith("FAIL  permissions: not allowed: ") for failure in failures)
    assert all(failure.endswith("Follows and subjects for one vCenter need it.") for failure in failures)


@pytest.mark.parametrize("subject", ["follow", "watch.lab", "internal.follows.lab.all"])
async def test_check_fails_for_what_a_stored_follow_or_request_lacks(
    prepared: Guarded, tmp_path: Path, subject: str
) -> None:
    await provision(Streams(prepared.client), expected_jetstream(prepared.settings()), create=True)
    before, failures_before, notes_before = await check(prepared, tmp_path)
    await prepared.js.publish(f"{PREFIX}.{subject}", b"{}")
    ended, failures, notes = await check(prepared, tmp_path)
    assert (before.code, failures_before, len(notes_before)) == (0, [], 1)
    assert (ended.code, len(failures), notes) == (1, 1, [])


async def test_check_fails_with_verify_for_what_deliveries_lack_until_it_is_provisioned(
    open_lab: Guarded, tmp_path: Path
) -> None:
    await prepare_as_1_0(open_lab)
    hook = {"BRIDGE_DELIVERIES__HOOK__URL": "https://127.0.0.1:1/", "BRIDGE_PROVISION": "verify"}
    ended, failures, _ = await check(open_lab, tmp_path, **hook)
    assert ended.code == 1
    assert any(f"missing: consumer {EVENTS}/deliver-hook; run `task-bridge provision`" in one for one in failures)
    assert any(f"{PREFIX}.undelivered.*" in one for one in failures)
    operator = {"BRIDGE_NATS_URL": open_lab.server.url, "BRIDGE_NATS_USER": "operator", "BRIDGE_NATS_PASSWORD": "p"}
    assert (await ran("provision", directory=tmp_path, environment={**operator, **hook})).code == 0
    assert (await check(open_lab, tmp_path, **hook))[1:] == ([], [])
