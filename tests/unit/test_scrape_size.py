"""How large a scrape of a replica with 200 vCenters is."""

from __future__ import annotations

import gzip

import pytest
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers

from task_bridge.metrics import Metrics
from task_bridge.web.scrape import build_scrape

OPERATIONS = ("login", "session", "list", "result", "names", "pull", "push", "modify", "wait")
"""What a vCenter is asked whose CIS tasks and classic tasks are watched."""
KINDS = (("watching", ""), ("status", ""), ("progress", ""), ("completed", "succeeded"), ("completed", "failed"))


@pytest.fixture(scope="module")
def registry() -> CollectorRegistry:
    """The metrics of a replica after work of each kind on each of 200 vCenters, with values that all differ."""
    metrics, names = Metrics(), [f"vcenter-{number:03}" for number in range(200)]
    metrics.create_alert_counters(names)
    for number, name in enumerate(names):
        for status in ("RUNNING", "PENDING"):
            metrics.watches.labels(name, status).set(3 + number)
        for kind, outcome in KINDS:
            metrics.events.labels(name, kind, outcome).inc(1_000 + number)
        for api in ("cis", "vim"):
            metrics.last_look_age.labels(name, api).set(0.0123456789 * (number + 1))
        metrics.vcenter_logins.labels(name, "ok").inc(2)
        metrics.looks.labels(name).inc(12_345 + number)
        metrics.budget_used.labels(name).set(0.00123456789 * (number + 1))
        metrics.vcenter_requests.labels(name, "login", "201").inc()
        for place, operation in enumerate(OPERATIONS):
            metrics.vcenter_requests.labels(name, operation, "200").inc(100 + number * place)
            for step in range(10):
                seconds = 0.0037 * (step + 1) * (number + 1) * (place + 1) % 7
                metrics.vcenter_seconds.labels(name, operation).observe(seconds)
    return metrics.registry


def test_a_scrape_of_200_vcenters_takes_less_than_300_kb(registry: CollectorRegistry) -> None:
    answer = build_scrape(registry, Headers({"Accept-Encoding": "gzip"}))
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < 300_000
    assert gzip.decompress(answer.body) == build_scrape(registry, Headers({})).body


def test_a_scrape_of_200_vcenters_has_less_than_a_hundred_series_for_each(registry: CollectorRegistry) -> None:
    answer = build_scrape(registry, Headers({}))
    assert "content-encoding" not in answer.headers
    lines = bytes(answer.body).decode().splitlines()
    series = [line for line in lines if not line.startswith("#")]
    assert len(series) < 200 * 100
    assert not [line for line in series if "_created" in line]
