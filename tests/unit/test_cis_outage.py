"""What the source of CIS tasks does while vCenter doesn't answer, and while nobody takes its results."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from task_bridge.domain.ports import UNCHANGED
from task_bridge.metrics import Metrics
from task_bridge.simulator.app import SimulatedVCenter
from task_bridge.vcenter.cis import CisSource
from task_bridge.vcenter.policy import Timeouts
from vcenter_lab import POLICY, SHORT_TIMEOUTS, Given, Lab

RUNNING = {"status": "RUNNING"}
NOT_FOUND = {"error_type": "NOT_FOUND", "messages": [{"id": "x", "default_message": "No."}]}
RESULTS_MAX = 100_000
"""With more results than these that nobody has taken, polling pauses."""


class Clock:
    """Monotonic seconds; `jump` lets some pass."""

    def __init__(self) -> None:
        self._jumped_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._jumped_s

    def jump(self, seconds: float) -> None:
        self._jumped_s += seconds


class Vcenter:
    """Shows every task as running but the `gone` ones. While it is `down`, no request for tasks is answered."""

    def __init__(self) -> None:
        self.down = False
        self.gone: set[str] = set()
        self.polled: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/api/session":
            return httpx.Response(201, json="token")
        if not path.startswith("/api/cis/tasks"):
            return httpx.Response(404, text="404 page not found")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request, path.removeprefix("/api/cis/tasks").removeprefix("/"))
        finally:
            self.in_flight -= 1

    async def _answer(self, request: httpx.Request, task: str) -> httpx.Response:
        asked = [task] if task else json.loads(request.content)["filter_spec"]["tasks"]
        self.polled += asked
        await asyncio.sleep(0.02)  # long enough for others to be in flight too
        if self.down:
            raise httpx.ConnectError("nobody is there", request=request)
        if task:
            return httpx.Response(404, json=NOT_FOUND) if task in self.gone else httpx.Response(200, json=RUNNING)
        return httpx.Response(200, json={one: RUNNING for one in asked if one not in self.gone})

    def polls(self, task: str) -> int:
        return self.polled.count(task)


@asynccontextmanager
async def polling(vcenter: Vcenter, *, takes: bool = True, **given: Any) -> AsyncIterator[Lab]:
    """A source in front of this vCenter. Unless it `takes`, the test must take the results itself."""
    metrics = Metrics()
    handler = httpx.MockTransport(vcenter)
    more = {"timeouts": SHORT_TIMEOUTS, **given}
    source = CisSource(Given("https://vcenter.test"), POLICY, metrics, http_transport=handler, **more)
    async with source:
        it = Lab(SimulatedVCenter(), source, metrics, "")
        taking = asyncio.create_task(it.take()) if takes else None
        yield it
        if taking is not None:
            taking.cancel()


async def test_one_request_at_a_time_asks_whether_vcenter_is_back() -> None:
    vcenter = Vcenter()
    tasks = [f"{number}:{provider}" for number in range(5) for provider in "pqrs"]
    async with polling(vcenter) as it:
        it.follow(*tasks)
        await it.shown(*tasks)
        vcenter.down = True
        await it.until(lambda: it.source.health.state == "degraded" and not vcenter.in_flight)
        vcenter.most_in_flight, before = 0, len(vcenter.polled)
        await it.until(lambda: len(vcenter.polled) >= before + 4 * 5 and not vcenter.in_flight)
        assert vcenter.most_in_flight == 1
        vcenter.down = False
        await it.until(lambda: it.source.health.state == "ok")
        await it.until(lambda: vcenter.most_in_flight > 1)


async def test_the_time_of_an_outage_ends_no_watch_of_tasks_that_vanished_together() -> None:
    vcenter, clock = Vcenter(), Clock()
    vanished = ["0:p", "1:p", "2:p"]
    timeouts: Timeouts = SHORT_TIMEOUTS._replace(vanished_hold_s=30.0)
    async with polling(vcenter, monotonic=clock, timeouts=timeouts) as it:
        it.follow(*vanished, "other:p")
        await it.shown(*vanished, "other:p")
        vcenter.gone.update(vanished)
        await it.until(lambda: it.source.health.vanished_reason is not None)
        vcenter.down = True
        await it.until(lambda: it.source.health.state == "degraded" and not vcenter.in_flight)
        clock.jump(40.0)  # more than what they are held back for, less than what two answers may be apart
        vcenter.down = False
        await it.until(lambda: it.source.health.state == "ok")
        before = {task: vcenter.polls(task) for task in vanished}
        await it.until(lambda: all(vcenter.polls(task) >= before[task] + 2 for task in vanished))
        assert it.source.health.vanished_reason is not None
        assert not any(it.is_gone(task) for task in vanished)
        clock.jump(40.0)  # while it answers
        for task in vanished:
            await it.gone(task)


async def test_no_poll_goes_out_while_too_many_results_wait_to_be_taken() -> None:
    vcenter = Vcenter()
    async with polling(vcenter, takes=False) as it:
        results = it.source.shared.results
        results.put_all([("old:p", UNCHANGED)] * (RESULTS_MAX + 1))
        it.follow("new:p")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await it.until(lambda: vcenter.polled)
        batches = it.source.poll_results()
        assert len(await anext(batches)) == RESULTS_MAX + 1
        await it.until(lambda: "new:p" in vcenter.polled)
