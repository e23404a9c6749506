"""`deploy/nats`: each user does what it may, and fails at what it may not, on a real nats-server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from commands import ran
from lab import EVENTS, Lab, NatsServer, until
from task_bridge.simulator import scenarios

DEPLOYED = Path(__file__).parents[2] / "deploy" / "nats"
USERS = ("bridge", "operator", "requester", "consumer", "workflow")
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
        domain = {} if user == "operator" else {"BRIDGE_NATS_JS_DOMAIN": DOMAIN}
        return {"BRIDGE_NATS_URL": self.server.url, **login, **domain}

    async def connect(self, user: str) -> Client:
        async def refused(error: Exception) -> None:
            self.refused.append(str(error))

        client = await nats.connect(
            self.server.url, user=user, password=f"{user}-secret", error_cb=refused, allow_reconnect=False
        )
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
        events = await workflow.jetstream(domain=DOMAIN).pull_subscribe(
            "", "mine", stream=EVENTS, config=ConsumerConfig(filter_subject=json.loads(asked.data)["events"])
        )
        final = await _final(events)
        result = await (await workflow.jetstream(domain=DOMAIN).object_store(final["result_ref"]["bucket"])).get(
            final["result_ref"]["name"]
        )
        for verb, body in (("watch", canceled), ("list", {}), ("get", canceled), ("cancel", canceled)):
            answer = await workflow.request(f"vcenter.tasks.api.{verb}", json.dumps(body).encode(), timeout=10)
            assert "error" not in json.loads(answer.data)
        await workflow.request("$SRV.PING.vcenter-task-bridge", timeout=5)
        async with httpx.AsyncClient() as http:
            await until_shown(http, f"http://127.0.0.1:{bridge.web.address.port}/", canceled)
        log = await users.connect("bridge")
    assert len(result.data or b"") > 400_000
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


async def until_shown(http: httpx.AsyncClient, board: str, task: str, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while task.split(":")[0] not in (await http.get(board)).text:  # noqa: ASYNC110 - a line may break at the colon
            await asyncio.sleep(0.1)


async def _final(events: Any) -> dict[str, Any]:
    while True:
        for message in await events.fetch(1, timeout=10):
            await message.ack()
            data = json.loads(message.data)["data"]
            if data["final"]:
                return dict(data)


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
        for subject in ("vcenter.tasks.watch", "vcenter.tasks.api.list", "$SRV.PING"):
            await requester.publish(subject, json.dumps(task).encode(), reply=PUT)
        await requester.request("vcenter.tasks.api.list", b"{}", timeout=10)
        assert await stored() == count


async def test_who_reads_reads_and_can_do_nothing_else(users: Users) -> None:
    async with users.bridge():
        stored = await operator(users)
        consumer, requester = await users.connect("consumer"), await users.connect("requester")
        live = await consumer.subscribe("vcenter.tasks.events.>")
        await consumer.flush()
        task = users.lab.vcenter.create(scenarios.succeeds(0.1))
        await requester.publish("vcenter.tasks.watch", json.dumps(task).encode())
        assert json.loads((await live.next_msg(timeout=10)).data)["data"]["kind"] == "watching"
        pushed = await consumer.jetstream(domain=DOMAIN).subscribe("vcenter.tasks.events.>", stream=EVENTS)
        first = await pushed.next_msg(timeout=10)
        assert (await _last_of(consumer)).startswith("vcenter.tasks.events.lab.")
        assert json.loads(first.data)["subject"] == task
        assert json.loads((await live.next_msg(timeout=15)).data)["data"]["final"]
        count = await stored()
        for subject in (
            "vcenter.tasks.watch",
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
            "$JS.tasks.API.CONSUMER.MSG.NEXT.VCENTER_TASKS_WATCHES.bridge",
            "$JS.tasks.API.CONSUMER.DELETE.VCENTER_TASKS_WATCHES.bridge",
        ):
            with pytest.raises(nats.errors.NoRespondersError):
                await consumer.request(subject, b"{}", timeout=5)
        await consumer.publish(f"$JS.tasks.API.STREAM.INFO.{EVENTS}", b"", reply=PUT)
        await consumer.jetstream(domain=DOMAIN).stream_info(EVENTS)
        assert await stored() == count


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


async def test_a_cancel_tells_the_log_who_asked(users: Users, capfd: pytest.CaptureFixture[str]) -> None:
    task = users.lab.vcenter.create(scenarios.runs_forever())
    async with users.bridge(allow_cancel=True):
        requester = await users.connect("requester")
        for body in (json.dumps(task).encode(), b'{"task": 1}'):
            await requester.request("vcenter.tasks.api.cancel", body, timeout=10)
    lines = [line for line in capfd.readouterr().out.splitlines() if " cancel " in line]
    assert len(lines) == 2
    assert "cancel_requested" in lines[0]
    assert "invalid_request" in lines[1]
    assert all("REQUESTERS" in line for line in lines)
