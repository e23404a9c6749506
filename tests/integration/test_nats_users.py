"""`deploy/nats`: each user does what it may, and fails at what it may not, on a real nats-server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import nats
import nats.errors
import nats.js.errors
import pytest
from nats.aio.client import Client
from structlog.testing import capture_logs

from commands import ran
from integration.test_examples import command, ended, started, workflows, working
from lab import EVENTS, BridgeProcess, Lab, NatsServer, as_user, guarded, until
from receiver import Receiver, Reply, receiving
from task_bridge.settings import DeliverySettings
from task_bridge.simulator import scenarios

DEPLOYED = Path(__file__).parents[2] / "deploy" / "nats"
USERS = ("bridge", "operator", "deliverer", "requester", "requester_lab", "consumer", "workflow")
REQUESTS = "VCENTER_TASKS_REQUESTS"
DOMAIN = "tasks"  # where the accounts of others see the bridge's JetStream
PUT = "vcenter.tasks.internal.put.lab.t.completed.succeeded"


@pytest.fixture
async def users(tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Users]:
    for user in USERS:
        monkeypatch.setenv(f"NATS_{user.upper()}_PASSWORD", f"{user}-secret")
    directory = tmp_path / "guarded"
    directory.mkdir()
    server = NatsServer(directory, "-c", str(DEPLOYED / "nats-server.conf"), "-m", "-1")
    server.start()
    users = Users(lab, server)
    try:
        yield users
    finally:
        await users.close()
        server.stop()


class Users:
    """Connections by user name, and what each was refused."""

    def __init__(self, lab: Lab, server: NatsServer) -> None:
        self.lab = lab
        self.server = server
        self.refused: list[str] = []
        self._clients: list[Client] = []

    def bridge(self, **more: Any) -> Any:
        login = {"urls": self.server.url, "user": "bridge", "given_password": "bridge-secret"}
        return self.lab.bridge(nats=login, **more)

    def environment(self, user: str) -> dict[str, str]:
        login = {"BRIDGE_NATS_USER": user, "BRIDGE_NATS_PASSWORD": f"{user}-secret"}
        domain = {} if user in ("operator", "deliverer") else {"BRIDGE_NATS_JS_DOMAIN": DOMAIN}
        return {"BRIDGE_NATS_URL": self.server.url, **login, **domain}

    async def connect(self, user: str) -> Client:
        async def refused(error: Exception) -> None:
            self.refused.append(str(error))

        login = {"user": user, "password": f"{user}-secret", "inbox_prefix": f"_INBOX_{user}"}
        client = await nats.connect(self.server.url, error_cb=refused, allow_reconnect=False, **login)
        self._clients.append(client)
        return client

    async def may_not(self, client: Client, subject: str, body: bytes = b"{}", reply: str = "") -> None:
        before = len(self.refused)
        await client.publish(subject, body, reply)
        await until(lambda: len(self.refused) > before)
        assert subject.lower() in self.refused[-1].lower()

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self._clients))


async def operator(users: Users) -> Callable[[], Any]:
    """How many events are stored, asked by who may."""
    client = await users.connect("operator")

    async def stored() -> int:
        return int((await client.jetstream().stream_info(EVENTS)).state.messages)

    return stored


async def test_the_bridge_does_all_of_its_work_and_is_refused_nothing(users: Users) -> None:
    large = users.lab.vcenter.create(scenarios.succeeds(0.2, result={"text": "x" * 400_000}))
    canceled = users.lab.vcenter.create(scenarios.runs_forever())
    async with users.bridge(allow_cancel=True) as bridge:
        workflow = await users.connect("workflow")
        asked = await workflow.request("vcenter.tasks.api.watch", json.dumps(large).encode(), timeout=10)
        final = await _final(workflow, json.loads(asked.data)["events"])
        result = await _result(workflow, final["result_ref"])
        for verb, body in (("watch", canceled), ("list", {}), ("get", canceled), ("cancel", canceled)):
            answer = await workflow.request(f"vcenter.tasks.api.{verb}", json.dumps(body).encode(), timeout=10)
            assert "error" not in json.loads(answer.data)
        await workflow.request("$SRV.PING.vcenter-task-bridge", timeout=5)
        async with httpx.AsyncClient() as http:
            await until_shown(http, f"http://127.0.0.1:{bridge.web.address.port}/", canceled)
        log = await users.connect("bridge")
    assert hashlib.sha256(result).hexdigest() == final["result_ref"]["sha256"]
    assert log.last_error is None
    assert users.refused == []
    assert "permissions violation" not in (users.server._directory / "nats.log").read_text().lower()


async def test_check_finds_that_the_bridges_user_may_do_all_it_needs(users: Users, tmp_path: Path) -> None:
    given = users.lab.environment(**{**users.environment("bridge"), "BRIDGE_NATS_JS_DOMAIN": ""})
    checked = await ran("check", directory=tmp_path, environment=given)
    again = await ran("check", directory=tmp_path, environment={**given, "BRIDGE_PROVISION": "verify"})
    assert checked.code == 0, checked.out
    assert "ok    permissions: may subscribe and publish as the bridge does" in checked.out
    assert not any(line.startswith("note  permissions") for line in checked.out)
    assert any("run `task-bridge provision`" in line for line in again.out)


def _hook(receiver: Receiver) -> dict[str, str]:
    return {"BRIDGE_DELIVERIES__HOOK__URL": receiver.url, "BRIDGE_DELIVERIES__HOOK__START": "all"}


@pytest.mark.parametrize("user", ["bridge", "deliverer"])
async def test_deliveries_work_as_the_bridges_user_and_as_one_of_their_own(
    users: Users, tmp_path: Path, user: str
) -> None:
    receiver, command = Receiver(), [sys.executable, "-m", "task_bridge", "deliver"]
    receiver.decide = lambda _headers, _body: Reply(200 if len(receiver.got) else 400)
    async with receiving(receiver):
        hook = DeliverySettings.model_validate({"name": "hook", "url": receiver.url, "start": "all"})
        given = {**users.environment("deliverer"), **_hook(receiver), "BRIDGE_HTTP_LISTEN": "off"}
        async with users.bridge(deliveries={"hook": hook} if user == "bridge" else {}):
            alone = BridgeProcess({"PATH": os.environ["PATH"], **given}, tmp_path, command)
            if user == "deliverer":
                await alone.start()
            try:
                task = users.lab.vcenter.create(scenarios.succeeds(0.1))
                workflow = await users.connect("workflow")
                await workflow.request("vcenter.tasks.api.watch", json.dumps(task).encode(), timeout=10)
                await until(lambda: len(receiver.got) == 1)
                async with asyncio.timeout(20):
                    while not (again := await ran("redeliver", "hook", directory=tmp_path, environment=given)).out:
                        assert again.code == 0, again
                await until(lambda: len(receiver.got) == 2)
                shown = await ran("deliveries", "--json", directory=tmp_path, environment=given)
                assert (shown.code, json.loads(shown.out[0])["state"]) == (0, "delivering"), shown
            finally:
                await alone.close()
        pruned = {**users.environment("deliverer"), "BRIDGE_HTTP_LISTEN": "off"}
        ended = await ran("deliveries", "--prune", directory=tmp_path, environment=pruned)
        assert ended.code == 0
        assert any("hook: removed" in line for line in ended.err)
    assert "permissions violation" not in (users.server._directory / "nats.log").read_text().lower()


async def test_check_names_what_deliveries_need(users: Users, tmp_path: Path) -> None:
    hook = {"BRIDGE_DELIVERIES__HOOK__URL": "https://127.0.0.1:1/", "BRIDGE_NATS_JS_DOMAIN": ""}
    given = users.lab.environment(**{**users.environment("bridge"), **hook})
    checked = await ran("check", directory=tmp_path, environment=given)
    assert "ok    permissions: may subscribe and publish as the bridge does" in checked.out
    other = {**given, "BRIDGE_NATS_USER": "operator", "BRIDGE_NATS_PASSWORD": "operator-secret"}
    lacking = await ran("check", directory=tmp_path, environment=other)
    assert any("publish to vcenter.tasks.undelivered.hook" in line for line in lacking.out), lacking.out


async def until_shown(http: httpx.AsyncClient, board: str, task: str, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while task.split(":")[0] not in (await http.get(board)).text:  # noqa: ASYNC110 - a line may break at the colon
            await asyncio.sleep(0.1)


async def _final(client: Client, subject: str) -> dict[str, Any]:
    js, sequence = client.jetstream(domain=DOMAIN), 1
    async with asyncio.timeout(15):
        while True:
            try:
                message = await js.get_msg(EVENTS, seq=sequence, subject=subject, next=True, direct=True)
            except nats.js.errors.NotFoundError:
                await asyncio.sleep(0.05)
                continue
            data = json.loads(message.data or b"")["data"]
            if data["final"]:
                return dict(data)
            sequence = (message.seq or 0) + 1


async def _result(client: Client, ref: dict[str, Any]) -> bytes:
    js, stream, prefix = client.jetstream(domain=DOMAIN), f"OBJ_{ref['bucket']}", f"$O.{ref['bucket']}"
    name = base64.urlsafe_b64encode(ref["name"].encode()).decode()
    about = json.loads((await js.get_last_msg(stream, f"{prefix}.M.{name}", direct=True)).data or b"")
    result, sequence = b"", 0
    for _ in range(about["chunks"]):
        subject = f"{prefix}.C.{about['nuid']}"
        chunk = await js.get_msg(stream, seq=sequence + 1, subject=subject, next=True, direct=True)
        result, sequence = result + (chunk.data or b""), chunk.seq or 0
    return result


async def test_who_asks_gets_answers_and_can_do_nothing_else(users: Users) -> None:
    async with users.bridge():
        stored = await operator(users)
        requester = await users.connect("requester")
        live = await (await users.connect("consumer")).subscribe("vcenter.tasks.events.>")
        task = users.lab.vcenter.create(scenarios.runs_forever())
        ack = await requester.request("vcenter.tasks.watch", json.dumps(task).encode(), timeout=10)
        assert json.loads(ack.data)["stream"] == "VCENTER_TASKS_REQUESTS"
        await live.next_msg(timeout=10)
        answer = await requester.request("vcenter.tasks.api.get", json.dumps(task).encode(), timeout=10)
        assert json.loads(answer.data)["watching"]
        count = await stored()
        for subject in (
            "vcenter.tasks.events.lab.t.completed.succeeded",
            "vcenter.tasks.rejected",
            PUT,
            "vcenter.tasks.internal.watches.lab.t",
            "vcenter.tasks.internal.follows.lab.all",
            "vcenter.tasks.follows.lab.all.gap",
            f"$JS.API.STREAM.DELETE.{EVENTS}",
            f"$JS.API.CONSUMER.CREATE.{EVENTS}",
            f"$JS.API.STREAM.MSG.GET.{EVENTS}",
            "$O.VCENTER_TASKS_RESULTS.C.x",
        ):
            await users.may_not(requester, subject)
        refused = len(users.refused)
        await requester.subscribe("vcenter.tasks.events.>")
        await until(lambda: len(users.refused) > refused)
        # A reply subject is checked by nobody: in the bridge's own account these would become events.
        for subject in ("vcenter.tasks.watch", "vcenter.tasks.follow", "vcenter.tasks.api.list", "$SRV.PING"):
            for reply in (PUT, "vcenter.tasks.follows.lab.all.gap"):
                await requester.publish(subject, json.dumps(task).encode(), reply=reply)
        await requester.request("vcenter.tasks.api.list", b"{}", timeout=10)
        async with asyncio.timeout(10):
            while await stored() < count + 2:  # noqa: ASYNC110 - an id is no request to follow: two rejections
                await asyncio.sleep(0.02)
        assert await stored() == count + 2


async def test_who_may_ask_for_one_vcenter_can_ask_for_no_other(users: Users) -> None:
    lab = users.lab.vcenter_settings()
    async with users.bridge(vcenters={"lab": lab, "other": lab}):
        requester = await users.connect("requester_lab")
        task = users.lab.vcenter.create(scenarios.runs_forever())
        ack = await requester.request("vcenter.tasks.watch.lab", task.encode(), timeout=10)
        assert json.loads(ack.data)["stream"] == "VCENTER_TASKS_VCENTER_REQUESTS"
        ack = await requester.request("vcenter.tasks.follow.lab", b'{"name": "clones"}', timeout=10)
        assert json.loads(ack.data)["stream"] == "VCENTER_TASKS_FOLLOW_REQUESTS"
        for verb, body in (("watch", {"task": task}), ("get", {"task": task}), ("list", {}), ("follows", {})):
            subject = f"vcenter.tasks.api.{verb}.lab"
            answer = json.loads((await requester.request(subject, json.dumps(body).encode(), timeout=10)).data)
            assert "error" not in answer
            named = json.dumps(body | {"vcenter": "other"}).encode()
            error = json.loads((await requester.request(subject, named, timeout=10)).data)["error"]
            assert (error["code"], error["details"][0]["field"]) == ("invalid_request", "vcenter")
            for other in (f"vcenter.tasks.api.{verb}", f"vcenter.tasks.api.{verb}.other"):
                await users.may_not(requester, other)
        for kind in ("watch", "follow"):
            for subject in (f"vcenter.tasks.{kind}", f"vcenter.tasks.{kind}.other"):
                await users.may_not(requester, subject)


async def test_who_reads_reads_and_can_do_nothing_else(users: Users) -> None:
    async with users.bridge():
        stored = await operator(users)
        consumer, requester = await users.connect("consumer"), await users.connect("requester")
        live = await consumer.subscribe("vcenter.tasks.events.>")
        await consumer.flush()
        task = users.lab.vcenter.create(scenarios.succeeds(0.1))
        await requester.publish("vcenter.tasks.watch", json.dumps(task).encode())
        assert json.loads((await live.next_msg(timeout=10)).data)["data"]["kind"] == "watching"
        assert (await _last_of(consumer)).startswith("vcenter.tasks.events.lab.")
        assert (await _final(consumer, "vcenter.tasks.events.>"))["task"] == task
        assert json.loads((await live.next_msg(timeout=15)).data)["data"]["final"]
        count = await stored()
        for subject in (
            "vcenter.tasks.watch",
            "vcenter.tasks.follow",
            "vcenter.tasks.follows.lab.all.gap",
            "vcenter.tasks.api.list",
            "vcenter.tasks.events.lab.t.completed.succeeded",
            PUT,
        ):
            await users.may_not(consumer, subject)
        for subject in (
            f"$JS.tasks.API.STREAM.DELETE.{EVENTS}",
            f"$JS.tasks.API.STREAM.PURGE.{EVENTS}",
            f"$JS.tasks.API.STREAM.MSG.DELETE.{EVENTS}",
            "$JS.tasks.API.STREAM.INFO.VCENTER_TASKS_WATCHES",
            "$JS.tasks.API.STREAM.INFO.VCENTER_TASKS_FOLLOWS",
            "$JS.tasks.API.CONSUMER.MSG.NEXT.VCENTER_TASKS_WATCHES.bridge",
            "$JS.tasks.API.CONSUMER.DELETE.VCENTER_TASKS_WATCHES.bridge",
            f"$JS.tasks.API.CONSUMER.DELETE.{EVENTS}.workflows",
            "$JS.tasks.API.STREAM.CREATE.KV_mine",
        ):
            with pytest.raises(nats.errors.NoRespondersError):
                await consumer.request(subject, b"{}", timeout=5)
        await consumer.publish(f"$JS.tasks.API.STREAM.INFO.{EVENTS}", b"", reply=PUT)
        await consumer.jetstream(domain=DOMAIN).stream_info(EVENTS)
        assert await stored() == count


CREATE = ("CREATE.{}", "CREATE.{}.mine", "CREATE.{}.mine.vcenter.tasks.events.lab.>", "DURABLE.CREATE.{}.mine")


@pytest.mark.parametrize("user", ["consumer", "workflow", "requester"])
@pytest.mark.parametrize("stream", [EVENTS, "OBJ_VCENTER_TASKS_RESULTS", "VCENTER_TASKS_REQUESTS"])
async def test_no_user_makes_a_consumer_that_delivers_events_as_requests(users: Users, user: str, stream: str) -> None:
    async with users.bridge():
        client, operator = await users.connect(user), await users.connect("operator")
        for form in CREATE:
            config = {"name": "mine", "deliver_subject": "vcenter.tasks.watch", "ack_policy": "none"}
            if "DURABLE" in form:
                config["durable_name"] = "mine"
            body = json.dumps({"stream_name": stream, "config": config}).encode()
            for prefix in ("$JS.tasks.API", "$JS.API"):
                subject = f"{prefix}.CONSUMER.{form.format(stream)}"
                with pytest.raises((nats.errors.NoRespondersError, nats.errors.TimeoutError)):
                    await client.request(subject, body, timeout=0.5)
        assert (await operator.jetstream().stream_info(stream)).state.consumer_count == (stream == REQUESTS)


async def test_answers_of_jetstream_never_become_requests_of_who_may_not_ask(users: Users) -> None:
    """A reply subject needs no permission."""
    async with users.bridge():
        consumer, workflow = await users.connect("consumer"), await users.connect("workflow")
        operator = await users.connect("operator")
        task = users.lab.vcenter.create(scenarios.succeeds(0.1))
        await workflow.request("vcenter.tasks.api.watch", json.dumps(task).encode(), timeout=10)
        await _final(workflow, "vcenter.tasks.events.>")
        everything = json.dumps({"seq": 1, "next_by_subj": "vcenter.tasks.events.>", "batch": 100}).encode()
        for reply in ("vcenter.tasks.watch", "vcenter.tasks.follow", "vcenter.tasks.api.watch"):
            await consumer.publish(f"$JS.tasks.API.DIRECT.GET.{EVENTS}", everything, reply=reply)
        await consumer.jetstream(domain=DOMAIN).stream_info(EVENTS)
        for stream in (REQUESTS, "VCENTER_TASKS_FOLLOW_REQUESTS"):
            assert (await operator.jetstream().stream_info(stream)).state.last_seq == 0


@pytest.mark.parametrize("requests", ["vcenter.tasks.watch", "vcenter.tasks.follow"])
@pytest.mark.parametrize("way", ["direct get", "pull"])
async def test_answers_of_jetstream_as_requests_of_who_may_ask_are_dropped(
    users: Users, way: str, requests: str
) -> None:
    async with users.bridge() as bridge:
        workflow, stored = await users.connect("workflow"), await operator(users)
        await (
            (await users.connect("operator"))
            .jetstream()
            .add_consumer(EVENTS, durable_name="d", ack_policy="explicit", filter_subject="vcenter.tasks.events.>")
        )
        task = users.lab.vcenter.create(scenarios.succeeds(0.1))
        await workflow.request("vcenter.tasks.api.watch", json.dumps(task).encode(), timeout=10)
        await _final(workflow, "vcenter.tasks.events.>")
        count = await stored()
        subject, body = {
            "direct get": (f"DIRECT.GET.{EVENTS}", {"seq": 1, "next_by_subj": "vcenter.tasks.events.>", "batch": 100}),
            "pull": (f"CONSUMER.MSG.NEXT.{EVENTS}.d", {"batch": 100, "expires": 10_000_000_000}),
        }[way]
        await workflow.publish(f"$JS.tasks.API.{subject}", json.dumps(body).encode(), reply=requests)
        sample = bridge.status.metrics().get_sample_value
        # JetStream itself refuses those that carry the fence of their publish.
        await until(lambda: (sample("task_bridge_requests_total", {"outcome": "dropped"}) or 0) >= 1)
        await workflow.request("vcenter.tasks.api.list", b"{}", timeout=10)
        assert await stored() - count <= 1  # the end of a direct get has no body, and is rejected


@pytest.mark.parametrize("user", USERS)
async def test_each_user_has_inboxes_that_no_other_user_hears(users: Users, user: str) -> None:
    client = await users.connect(user)
    await client.subscribe(f"_INBOX_{user}.>")
    await client.flush()
    assert users.refused == []
    for other in ["_INBOX.>", *(f"_INBOX_{one}.>" for one in USERS if one != user)]:
        refused = len(users.refused)
        await client.subscribe(other)
        await until(lambda: len(users.refused) > refused)  # noqa: B023 - it is called in this turn only


async def test_a_user_who_is_denied_inboxes_of_its_own_uses_those_of_the_last_release(lab: Lab, tmp_path: Path) -> None:
    with guarded(tmp_path, 'subscribe: {deny: ["_INBOX_u.>"]}') as server, capture_logs() as logs:
        async with lab.bridge(nats={"urls": server.url, "user": "u", "given_password": "p"}):
            task = lab.vcenter.create(scenarios.succeeds(0.1))
            watched = await ran("watch", task, directory=tmp_path, environment=as_user("u", server))
            assert (watched.code, watched.err) == (0, [])
    assert [log for log in logs if log["event"] in ("nats_forbids", "nats_error", "nats_away")] == []


async def test_a_consumer_works_on_a_durable_that_an_operator_made(users: Users, tmp_path: Path) -> None:
    words = ("provision", "--consumer", "mine", "--filter", "vcenter.tasks.events.*.*.completed.*")
    made = await ran(*words, directory=tmp_path, environment=users.environment("operator"))
    assert made.code == 0, made.err
    async with users.bridge():
        consumer, requester = await users.connect("consumer"), await users.connect("requester")
        events = await consumer.jetstream(domain=DOMAIN).pull_subscribe_bind("mine", EVENTS)
        task = users.lab.vcenter.create(scenarios.succeeds(0.1))
        await requester.publish("vcenter.tasks.watch", json.dumps(task).encode())
        (message,) = await events.fetch(1, timeout=10)
        assert json.loads(message.data)["subject"] == task
        await message.ack_sync()
        info = await consumer.jetstream(domain=DOMAIN).consumer_info(EVENTS, "mine")
    assert (info.num_ack_pending, info.ack_floor.consumer_seq if info.ack_floor else 0) == (0, 1)
    assert users.refused == []


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """The files with the looser variant, as accounts.conf says."""
    directory = tmp_path / "loose"
    shutil.copytree(DEPLOYED, directory)
    accounts = directory / "accounts.conf"
    text = accounts.read_text()
    assert text.count("#+ ") > 10
    accounts.write_text(text.replace("#+ ", ""))
    return directory


async def test_by_the_looser_variant_clients_make_consumers_and_a_loop_ends_at_the_bridge(
    users: Users, loose: Path
) -> None:
    users.server.stop()
    users.server = NatsServer(loose, "-c", str(loose / "nats-server.conf"), "-m", "-1")
    users.server.start()
    try:
        async with users.bridge() as bridge:
            consumer, workflow = await users.connect("consumer"), await users.connect("workflow")
            js = consumer.jetstream(domain=DOMAIN)
            pushed = await js.subscribe("vcenter.tasks.events.>", stream=EVENTS, ordered_consumer=True)
            looping = {"deliver_subject": "vcenter.tasks.watch", "ack_policy": "none"}
            body = json.dumps({"stream_name": EVENTS, "config": {"name": "loop", **looping}}).encode()
            made = await consumer.request(f"$JS.tasks.API.CONSUMER.CREATE.{EVENTS}.loop", body, timeout=5)
            assert "error" not in json.loads(made.data)
            large = users.lab.vcenter.create(scenarios.succeeds(0.2, result={"text": "x" * 400_000}))
            await workflow.request("vcenter.tasks.api.watch", json.dumps(large).encode(), timeout=10)
            events = [json.loads((await pushed.next_msg(timeout=10)).data)]
            while not events[-1]["data"]["final"]:
                events.append(json.loads((await pushed.next_msg(timeout=10)).data))
            ref = events[-1]["data"]["result_ref"]
            result = await (await js.object_store(ref["bucket"])).get(ref["name"])
            assert hashlib.sha256(result.data or b"").hexdigest() == ref["sha256"]
            sample = bridge.status.metrics().get_sample_value
            await until(lambda: (sample("task_bridge_requests_total", {"outcome": "dropped"}) or 0) >= 1)
            await workflow.request("vcenter.tasks.api.list", b"{}", timeout=10)
            assert (await js.stream_info(EVENTS)).state.messages == len(events)
            assert users.refused == []
    finally:
        await users.close()
        users.server.stop()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("language", ["python", "node", "shell"])
async def test_the_examples_work_as_these_users(users: Users, tmp_path: Path, language: str) -> None:
    filters = ("--filter", "vcenter.tasks.events.*.*.completed.*")
    by_operator = users.environment("operator")
    made = await ran("provision", "--consumer", "workflows", *filters, directory=tmp_path, environment=by_operator)
    assert made.code == 0, made.err
    await (await users.connect("operator")).jetstream().create_key_value(bucket="workflows_started", ttl=3600)
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    async with users.bridge(), workflows() as (taken, url):
        as_consumer = {**path, **users.environment("consumer"), "WORKFLOW_URL": url}
        work = ["sh", "-c", "cat >>work.jsonl"] if language == "shell" else []
        (tmp_path / "work.jsonl").touch()
        async with working([*command(language, "worker"), *work], tmp_path, as_consumer):
            task = users.lab.vcenter.create(scenarios.succeeds(0.3))
            if language == "shell":
                as_workflow = users.environment("workflow")
                assert (await ran("watch", task, directory=tmp_path, environment=as_workflow)).code == 0
                await until(lambda: (tmp_path / "work.jsonl").read_text())
            else:
                words = [*command(language, "wait"), task]
                code, out, err = await ended(await started(words, tmp_path, {**path, **users.environment("workflow")}))
                assert (code, json.loads(out or "{}").get("subject")) == (0, task), err
                await until(lambda: len(taken.started) == 1, 30)
    assert "permissions violation" not in (users.server._directory / "nats.log").read_text().lower()


async def _last_of(client: Client) -> str:
    message = await client.jetstream(domain=DOMAIN).get_last_msg(EVENTS, "vcenter.tasks.events.>")
    return message.subject or ""


async def test_an_operator_provisions_and_a_workflow_uses_the_commands(users: Users, tmp_path: Path) -> None:
    made = await ran("provision", directory=tmp_path, environment=users.environment("operator"))
    assert made.code == 0, made.err
    stranger = await users.connect("operator")
    await users.may_not(stranger, PUT)
    await users.may_not(stranger, "vcenter.tasks.events.lab.t.completed.succeeded")
    async with users.bridge(provision="verify"):
        task = users.lab.vcenter.create(scenarios.succeeds(0.1))
        watched = await ran("watch", task, directory=tmp_path, environment=users.environment("workflow"))
        assert watched.code == 0, watched.err
        read = await ran("events", "--json", directory=tmp_path, environment=users.environment("consumer"))
        assert [json.loads(line)["data"]["kind"] for line in read.out][-1] == "completed"


@pytest.mark.parametrize("provision", ["auto", "verify"])
async def test_tasks_are_followed_as_these_users(users: Users, tmp_path: Path, provision: str) -> None:
    if provision == "verify":
        made = await ran("provision", directory=tmp_path, environment=users.environment("operator"))
        assert made.code == 0, made.err
    async with users.bridge(provision=provision) as bridge:
        workflow, consumer = await users.connect("workflow"), await users.connect("consumer")
        requester = await users.connect("requester")
        live = await consumer.subscribe("vcenter.tasks.follows.>")
        await consumer.flush()
        assert (await _ask(workflow, "follow", name="all"))["outcome"] == "accepted"
        stored = await requester.request("vcenter.tasks.follow", b'{"name": "clones", "operations": ["clone"]}')
        assert json.loads(stored.data)["stream"] == "VCENTER_TASKS_FOLLOW_REQUESTS"
        begun = [json.loads((await live.next_msg(timeout=10)).data) for _ in range(2)]
        assert {event["data"]["name"] for event in begun} == {"all", "clones"}
        task = users.lab.vcenter.create(scenarios.succeeds(0.1), flavour="vim")
        final = await _final(consumer, "vcenter.tasks.events.>")
        assert (final["task"], final["watch"]["follow"]) == (task, "all")
        js = consumer.jetstream(domain=DOMAIN)
        last = await js.get_last_msg(EVENTS, "vcenter.tasks.follows.lab.clones.>", direct=True)
        assert json.loads(last.data or b"")["data"]["kind"] == "following"
        assert len((await _ask(workflow, "follows"))["follows"]) == 2
        for name in ("all", "clones"):
            assert (await _ask(workflow, "unfollow", name=name))["outcome"] == "unfollowed"
        async with httpx.AsyncClient() as http:
            health = (await http.get(f"http://127.0.0.1:{bridge.web.address.port}/readyz")).json()
        assert health["status"] == "ok", health
        log = await users.connect("bridge")
    assert log.last_error is None
    assert users.refused == []
    assert "permissions violation" not in (users.server._directory / "nats.log").read_text().lower()


async def _ask(client: Client, verb: str, **request: Any) -> dict[str, Any]:
    answer = await client.request(f"vcenter.tasks.api.{verb}", json.dumps(request).encode(), timeout=10)
    return dict(json.loads(answer.data))


@pytest.mark.parametrize("provision", ["auto", "verify"])
async def test_the_events_stream_of_release_1_0_stores_events_of_follows_when_they_are_needed(
    users: Users, tmp_path: Path, provision: str
) -> None:
    by_operator = users.environment("operator")
    made = await ran("provision", directory=tmp_path, environment=by_operator)
    assert made.code == 0, made.err
    operator = (await users.connect("operator")).jetstream()
    config = (await operator.stream_info(EVENTS)).config
    subjects = (config.subjects or [])[:2]
    await operator.update_stream(config.evolve(subjects=subjects))
    async with users.bridge(provision=provision):
        workflow = await users.connect("workflow")
        assert (await operator.stream_info(EVENTS)).config.subjects == subjects
        reply = await _ask(workflow, "follow", name="all")
        if provision == "verify":
            assert (reply["error"]["status"], "task-bridge provision" in reply["error"]["message"]) == (503, True)
            made = await ran("provision", directory=tmp_path, environment=by_operator)
            assert made.code == 0, made.err
            reply = await _ask(workflow, "follow", name="all")
        assert reply["outcome"] == "accepted"
        wanted = config.subjects if provision == "verify" else [*subjects, "vcenter.tasks.follows.>"]
        assert (await operator.stream_info(EVENTS)).config.subjects == wanted
    assert users.refused == []


async def test_each_request_that_changes_something_tells_the_log_who_asked(
    users: Users, capfd: pytest.CaptureFixture[str]
) -> None:
    task = users.lab.vcenter.create(scenarios.runs_forever())
    async with users.bridge(allow_cancel=True):
        requester = await users.connect("requester")
        for verb in ("list", "watch", "cancel", "unwatch"):
            for body in (json.dumps(task).encode(), b'{"task": 1}'):
                await requester.request(f"vcenter.tasks.api.{verb}", body, timeout=10)
    lines = [line for line in capfd.readouterr().out.splitlines() if " request " in line]
    for verb, outcome in (("watch", "accepted"), ("cancel", "cancel_requested"), ("unwatch", "unwatched")):
        good, bad = [line for line in lines if f"verb={verb}" in line]
        assert f"outcome={outcome}" in good
        assert task in good
        assert "outcome=invalid_request" in bad
    assert len(lines) == 6
    assert all("REQUESTERS" in line and "vcenter=lab" in line for line in lines)
