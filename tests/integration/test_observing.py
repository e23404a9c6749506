"""What an operator sees: spans of a request, an outage told once, metrics without a task's id."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.testing import capture_logs

from lab import PASSWORD, USERNAME, BridgeProcess, Lab, until
from task_bridge.settings import DeliverySettings, Listen
from task_bridge.simulator import scenarios
from task_bridge.web.server import WebServer

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[Any]]]:
    """An OpenTelemetry collector's URL, and the spans that it was sent."""
    spans: list[Any] = []

    async def traces(request: Request) -> Response:
        sent = ExportTraceServiceRequest.FromString(await request.body())
        for resource in sent.resource_spans:
            for scope in resource.scope_spans:
                spans.extend(scope.spans)
        return Response(b"", media_type="application/x-protobuf")

    server = WebServer(Starlette(routes=[Route("/v1/traces", traces, methods=["POST"])]), Listen("127.0.0.1", 0))
    await server.start()
    try:
        assert server.address is not None
        yield f"http://127.0.0.1:{server.address.port}", spans
    finally:
        await server.stop()


async def test_a_requests_trace_goes_through_the_bridge_into_its_events(lab: Lab, tmp_path: Path) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.succeeds(0.3))
    async with collector() as (url, spans):
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        process = BridgeProcess(lab.environment(**otel), tmp_path)
        await process.start()
        try:
            await process.ready()
            await lab.publish(task, traceparent=TRACEPARENT)
            ended = await lab.ended(task)
            assert await process.end() == 0  # which sends what is left
        finally:
            await process.close()
    assert ended["traceparent"] == TRACEPARENT
    ours = {span.name for span in spans if span.trace_id.hex() == TRACE_ID}
    assert ours == {"accept watch", "publish watching", "publish completed.succeeded"} | (
        ours & {"publish status", "publish progress"}
    )
    assert {"vcenter login", "vcenter list"} <= {span.name for span in spans if span.trace_id.hex() != TRACE_ID}
    told = [json.loads(line) for line in process.log.read_text().splitlines()]
    over = next(line for line in told if line["event"] == "watch_over")
    assert (over["trace_id"], over["task"], over["vcenter"]) == (TRACE_ID, task, "lab")
    assert over["sequence"] == ended["data"]["sequence"]


async def test_a_collector_that_is_away_holds_nothing_up(lab: Lab, tmp_path: Path) -> None:
    await lab.listen()
    task = lab.vcenter.create(scenarios.succeeds(0.1))
    process = BridgeProcess(lab.environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1"), tmp_path)
    await process.start()
    try:
        await process.ready()
        await lab.publish(task)
        await lab.ended(task)
        assert await process.end(within_s=5) == 0
    finally:
        await process.close()


async def test_an_outage_of_nats_is_told_once_and_its_end_once(lab: Lab) -> None:
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(30)]
    await lab.listen()
    with capture_logs() as lines:
        async with lab.bridge() as bridge:
            for task in tasks:
                await lab.publish(task)
            await until(lambda: all(lab.heard(task) for task in tasks))
            lab.server.stop()
            await until(lambda: not bridge.status.health().nats.connected)
            for task in tasks:
                lab.vcenter.set(task, status="BLOCKED")
            await asyncio.sleep(3)  # many tries to connect, and of each event
            lab.server.start()
            await until(lambda: all(lab.heard(task)[-1]["data"]["status"] == "BLOCKED" for task in tasks))
    told = [line["event"] for line in lines if line["log_level"] != "debug"]
    during = told[told.index("nats_away") : told.index("nats_back") + 1]
    assert (during, told.count("nats_away"), told.count("nats_back")) == (["nats_away", "nats_back"], 1, 1)


async def test_metrics_name_no_task_and_stay_bounded(lab: Lab) -> None:
    await lab.listen()
    async with lab.bridge() as bridge:
        assert bridge.web.address is not None
        url = f"http://127.0.0.1:{bridge.web.address.port}/metrics"
        counts = []
        async with httpx.AsyncClient(trust_env=False) as http:
            for number in (1, 20):
                tasks = [lab.vcenter.create(scenarios.succeeds(0.1)) for _ in range(number)]
                await asyncio.gather(*map(lab.publish, tasks))
                for task in tasks:
                    await lab.ended(task)
                text = (await http.get(url)).text
                counts.append(len(re.findall(r"^task_bridge_", text, re.MULTILINE)))
                assert not any(task in text for task in tasks)
    assert counts[1] - counts[0] < 25  # other kinds and statuses, each once
    for name in ("publish_seconds_count", "vcenter_request_seconds_count", "heartbeat_lag_seconds", "capacity"):
        assert f"task_bridge_{name}" in text
    assert re.search(r'task_bridge_vcenter_budget_used_ratio\{vcenter="lab"\} [0-9.e-]+', text)


async def test_what_alerts_ask_the_growth_of_is_there_at_0_before_it_happens(lab: Lab) -> None:
    asked = re.findall(r"increase\(task_bridge_(\w+_total)", (GRAFANA / "alerts.yaml").read_text())
    assert len(asked) == 10
    chat = DeliverySettings(name="chat", url="https://chat.example.com/hook")
    async with lab.bridge(deliveries={"chat": chat}) as bridge, httpx.AsyncClient(trust_env=False) as http:
        assert bridge.web.address is not None
        text = (await http.get(f"http://127.0.0.1:{bridge.web.address.port}/metrics")).text
    for name in set(asked) - {"deliveries_total"}:  # of which a single one calls nobody
        assert f"\ntask_bridge_{name}" in text
    for series in (
        'vcenter_logins_total{result="refused",vcenter="lab"}',
        'vcenter_logins_total{result="session_limit",vcenter="lab"}',
        'events_total{kind="abandoned",outcome="lost",vcenter="lab"}',
        'events_total{kind="abandoned",outcome="denied",vcenter="lab"}',
        'follow_gaps_total{vcenter="lab"}',
        'undelivered_total{delivery="chat"}',
        'rejected_total{code="invalid_request"}',
        'rejected_total{code="unknown_vcenter"}',
    ):
        assert f"\ntask_bridge_{series} 0.0\n" in text


async def test_while_looks_get_rarer_for_the_budget_it_is_more_than_used(lab: Lab) -> None:
    await lab.listen()
    tasks = [lab.vcenter.create(scenarios.runs_forever()) for _ in range(50)]
    lab_settings = {"url": lab.vcenter_url, "given_username": USERNAME, "given_password": PASSWORD}
    few = {"lab": {**lab_settings, "max_requests_per_second": 2}}
    async with lab.bridge(vcenters=few, poll_min_s=0.01, poll_max_s=0.01) as bridge:

        def told(name: str) -> float:
            return bridge.status.metrics().get_sample_value(f"task_bridge_{name}", {"vcenter": "lab"}) or 0.0

        for task in tasks:
            await lab.publish(task)
        await until(lambda: all(lab.heard(task) for task in tasks) and told("vcenter_budget_used_ratio") > 2)
        looks, ratios = told("looks_total"), []

        def looked_at_all_four_times() -> bool:
            ratios.append(told("vcenter_budget_used_ratio"))
            return told("looks_total") >= looks + 4 * len(tasks)

        await until(looked_at_all_four_times)
    assert min(ratios) > 2


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json"])
async def test_every_metric_that_the_deployed_dashboard_and_alerts_name_is_there(lab: Lab, file: str) -> None:
    async with lab.bridge() as bridge, httpx.AsyncClient(trust_env=False) as http:
        assert bridge.web.address is not None
        text = (await http.get(f"http://127.0.0.1:{bridge.web.address.port}/metrics")).text
    there = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        there |= {f"{name}_{end}" for end in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    named = set(re.findall(r"\btask_bridge_\w+", (GRAFANA / file).read_text()))
    assert len(named) > 10
    assert named - there == set()
    assert re.search(r"^task_bridge_ready 1.0$", text, re.MULTILINE)
