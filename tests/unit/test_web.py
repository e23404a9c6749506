"""The pages: what probes, Prometheus and people see."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from task_bridge import __version__
from task_bridge.errors import CannotStart
from task_bridge.metrics import Metrics
from task_bridge.settings import Listen
from task_bridge.web.board import page
from task_bridge.web.health import Check, Health, NatsHealth, VCenterHealth
from task_bridge.web.routes import build_web
from task_bridge.web.server import WebServer

PATHS = ["/", "/livez", "/readyz", "/metrics", "/asyncapi.json", "/nowhere", "/readyz/"]
ANY_PORT = Listen("127.0.0.1", 0)

HEALTHY = Health(
    nats=NatsHealth(connected=True),
    streams=(Check("VCENTER_TASKS_EVENTS", ok=True),),
    consumers=(Check("bridge", ok=True),),
    vcenters=(VCenterHealth("lab", "ok", last_good_look_age_s=1.26, watches=3),),
    held=3,
    waiting=1,
    capacity=50_000,
    loop_lag_s=0.00149,
)
AWAY = VCenterHealth("old", "degraded", "no answer within 10 s", 61.0, 2)


class FakeState:
    def __init__(self) -> None:
        self.now = HEALTHY
        self.document = b'{"asyncapi":"3.0.0"}'
        self.counted = Metrics()

    def health(self) -> Health:
        return self.now

    def metrics(self) -> CollectorRegistry:
        self.counted.nats_connected.set(self.now.nats.connected)
        return self.counted.registry

    def asyncapi(self) -> bytes:
        return self.document


@pytest.fixture
def state() -> FakeState:
    return FakeState()


@pytest.fixture
async def web(state: FakeState) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_web(state))
    async with httpx.AsyncClient(transport=transport, base_url="http://bridge") as client:
        yield client


async def test_the_process_is_alive_while_it_answers(web: httpx.AsyncClient) -> None:
    answer = await web.get("/livez")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_readiness_tells_everything_it_rests_on(web: httpx.AsyncClient) -> None:
    answer = await web.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "version": __version__,
        "stopping": False,
        "nats": {"connected": True, "reason": None},
        "streams": [{"name": "VCENTER_TASKS_EVENTS", "ok": True, "reason": None}],
        "consumers": [{"name": "bridge", "ok": True, "reason": None}],
        "vcenters": [
            {"name": "lab", "state": "ok", "reason": None, "last_good_look_age_seconds": 1.3, "watches": 3}
        ],
        "held": 3,
        "waiting": 1,
        "capacity": 50_000,
        "event_loop_lag_seconds": 0.001,
    }


@pytest.mark.parametrize(
    ("change", "code", "status"),
    [
        ({"vcenters": (AWAY, *HEALTHY.vcenters)}, 200, "degraded"),
        ({"vcenters": (VCenterHealth("new", "unknown"),)}, 200, "ok"),
        ({"vcenters": (VCenterHealth("gone", "unconfigured", watches=1),)}, 200, "ok"),
        ({"vcenters": ()}, 200, "ok"),
        ({"nats": NatsHealth(connected=False, reason="no connection")}, 503, "unready"),
        ({"streams": (Check("EVENTS", ok=False, reason="differs"),)}, 503, "unready"),
        ({"streams": ()}, 503, "unready"),  # not looked for yet
        ({"consumers": (Check("a", ok=True), Check("b", ok=False))}, 503, "unready"),
        ({"stopping": True}, 503, "unready"),
    ],
)
async def test_only_what_stops_the_service_makes_it_unready(
    web: httpx.AsyncClient, state: FakeState, change: dict[str, Any], code: int, status: str
) -> None:
    state.now = replace(HEALTHY, **change)
    answer = await web.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (code, status)


async def test_metrics_are_those_of_the_moment_in_the_form_that_is_asked_for(
    web: httpx.AsyncClient, state: FakeState
) -> None:
    answer = await web.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "task_bridge_nats_connected 1.0" in answer.text
    assert f'task_bridge_build_info{{version="{__version__}"}} 1.0' in answer.text
    state.now = replace(HEALTHY, nats=NatsHealth(connected=False))
    answer = await web.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "task_bridge_nats_connected 0.0" in answer.text


async def test_the_asyncapi_document_is_passed_on_as_it_is(web: httpx.AsyncClient, state: FakeState) -> None:
    answer = await web.get("/asyncapi.json")
    assert (answer.content, answer.headers["content-type"]) == (state.document, "application/json")


async def test_the_page_tells_what_readiness_tells(web: httpx.AsyncClient, state: FakeState) -> None:
    state.now = replace(HEALTHY, vcenters=(AWAY, *HEALTHY.vcenters))
    answer = await web.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for text in (__version__, "degraded", "connected", "VCENTER_TASKS_EVENTS", "old", "61 s ago", "within 10 s"):
        assert text in answer.text
    for path in ("/readyz", "/livez", "/metrics", "/asyncapi.json"):
        assert f'href="{path}"' in answer.text


def test_everything_on_the_page_is_escaped() -> None:
    evil = "<script>alert('1')</script>"
    text = page(
        Health(
            nats=NatsHealth(connected=False, reason=evil),
            streams=(Check(evil, ok=False, reason=evil),),
            vcenters=(VCenterHealth(evil, "degraded", evil),),
        )
    )
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&#x27;1&#x27;)") == 5


async def test_the_page_needs_nothing_from_outside_and_its_policy_allows_nothing_else(
    web: httpx.AsyncClient,
) -> None:
    answer = await web.get("/")
    (style,) = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
    of_style = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{of_style}'" in answer.headers["content-security-policy"]
    assert not re.search(r"src=|url\(|@import|https?://|style=|<script|<link", answer.text)
    assert "color-scheme: light dark" in style


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_every_answer_is_guarded_and_nothing_can_be_changed(
    web: httpx.AsyncClient, path: str, method: str
) -> None:
    answer = await web.request(method, path)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    if path in ("/nowhere", "/readyz/"):
        assert answer.status_code == 404
    elif method not in ("GET", "HEAD"):
        assert answer.status_code == 405


async def test_a_page_that_fails_tells_nothing_about_why(state: FakeState) -> None:
    class Broken(FakeState):
        def health(self) -> Health:
            raise RuntimeError("secret")

    transport = httpx.ASGITransport(build_web(Broken()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://bridge") as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_it_serves_on_the_port_it_picked_and_stops(state: FakeState) -> None:
    server = WebServer(build_web(state), ANY_PORT)
    await server.start()
    assert server.address
    url = f"http://127.0.0.1:{server.address.port}/livez"
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(url)).json() == {"status": "ok"}
        answer = await client.head(url)
        assert (answer.status_code, answer.content, answer.headers.get("server")) == (200, b"", None)
        await server.stop()  # with a connection that is kept alive
        assert server.address is None
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


async def test_a_name_and_an_ipv6_address_can_be_listened_on(state: FakeState) -> None:
    for host, found in (("localhost", "127.0.0.1"), ("::1", "::1")):
        server = WebServer(build_web(state), Listen(host, 0))
        await server.start()
        assert server.address
        assert server.address.host == found
        await server.stop()


async def test_signals_stay_with_the_process(state: FakeState) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    server = WebServer(build_web(state), ANY_PORT)
    await server.start()
    async with httpx.AsyncClient(trust_env=False) as client:
        assert server.address
        await client.get(f"http://127.0.0.1:{server.address.port}/livez")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    await server.stop()


async def test_off_listens_nowhere(state: FakeState) -> None:
    server = WebServer(build_web(state), None)
    await server.start()
    assert server.address is None
    await server.stop()


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("127.0.0.1", "is taken; end what listens there or set another port"),
        ("192.0.2.1", "is no address of this machine"),
        ("no-such-host.invalid", "can't be listened on"),
    ],
)
async def test_an_address_that_cannot_be_had_stops_the_start_with_one_line(
    state: FakeState, host: str, told: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart) as stop:
            await WebServer(build_web(state), Listen(host, port)).start()
    (line,) = stop.value.lines
    assert stop.value.exit_code == 1
    assert line.startswith(f"BRIDGE_HTTP_LISTEN: {host}:{port} {told}")


async def test_a_client_that_never_finishes_does_not_hold_up_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await asyncio.Event().wait()

    asked = asyncio.Event()
    server = WebServer(never, ANY_PORT)
    await server.start()
    assert server.address
    _, writer = await asyncio.open_connection("127.0.0.1", server.address.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asked.wait()
    with caplog.at_level(logging.CRITICAL):  # uvicorn tells that it cuts somebody off
        await asyncio.wait_for(server.stop(), 4)
    writer.close()
