"""`deploy/nats/cluster.conf`: three servers of which one may be away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg

from integration.test_nats_users import DEPLOYED, USERS
from lab import EVENTS, Lab, NatsServer, free_ports, until
from task_bridge.simulator import scenarios

NAMES = ("nats-0", "nats-1", "nats-2")


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, NatsServer]]:
    """One by name."""
    monkeypatch.setenv("NATS_ROUTE_PASSWORD", "route-secret")
    for user in USERS:
        monkeypatch.setenv(f"NATS_{user.upper()}_PASSWORD", f"{user}-secret")
    ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
    routes = [f"nats://route:route-secret@127.0.0.1:{port}" for port in ports.values()]
    monkeypatch.setenv("NATS_ROUTES", json.dumps(routes))
    started = {}
    for name in NAMES:
        monkeypatch.setenv("NATS_SERVER_NAME", name)
        home = tmp_path / name
        shutil.copytree(DEPLOYED, home)
        configure(home, ports[name])
        started[name] = NatsServer(home, "-c", str(home / "nats-server.conf"), "-m", "-1")
        started[name].start()
    yield started
    for server in started.values():
        server.stop()


def configure(home: Path, port: int) -> None:
    """The files as they are, but that the cluster's is included and listens at another address."""
    for file, before, after in (
        ("nats-server.conf", "# include ./cluster.conf", "include ./cluster.conf"),
        ("cluster.conf", "0.0.0.0:6222", f"127.0.0.1:{port}"),
    ):
        text = (home / file).read_text()
        assert before in text
        (home / file).write_text(text.replace(before, after))


@pytest.mark.timeout(120)
async def test_three_servers_by_these_files_serve_while_one_is_away(servers: dict[str, NatsServer], lab: Lab) -> None:
    urls = [server.url for server in servers.values()]
    login = {"urls": ",".join(urls), "user": "bridge", "given_password": "bridge-secret"}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(lab.bridge(nats=login, stream_replicas=3))
        operator, workflow = [
            await stack.enter_async_context(
                await nats.connect(
                    urls, user=user, password=f"{user}-secret", inbox_prefix=f"_INBOX_{user}", error_cb=ignored
                )
            )
            for user in ("operator", "workflow")
        ]
        outcomes: list[str] = []

        async def hear(message: Msg) -> None:
            outcomes.append(json.loads(message.data)["outcome"])

        await workflow.subscribe("vcenter.tasks.events.*.*.completed.*", cb=hear)
        task = lab.vcenter.create(scenarios.succeeds(2.0))
        asked = await workflow.request("vcenter.tasks.api.watch", json.dumps(task).encode(), timeout=15)
        assert json.loads(asked.data)["outcome"] == "accepted"
        info = await operator.jetstream(timeout=10).stream_info(EVENTS)
        assert info.config.num_replicas == len(NAMES)
        assert info.cluster
        assert info.cluster.leader in servers
        servers[info.cluster.leader].stop()
        await until(lambda: outcomes, within_s=60)
        assert outcomes == ["succeeded"]


async def ignored(_: Exception) -> None:
    """One server is away, as is meant."""
