"""A simulated vCenter over real HTTP with a `CisSource` in front of it, and waiting for what it finds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import Any, Literal, TypeVar

from credentials import suite_authority, suite_server
from task_bridge.domain.ports import PollResult, Unanswered, Unchanged
from task_bridge.domain.task import Task
from task_bridge.domain.watch import Absence
from task_bridge.metrics import Metrics
from task_bridge.simulator.app import SimulatedVCenter
from task_bridge.simulator.serve import serve_vcenter
from task_bridge.vcenter.cis import CisSource, PollPolicy
from task_bridge.vcenter.policy import Timeouts

POLICY = PollPolicy(poll_min_s=0.05, poll_max_s=0.3, not_found_grace_s=0.4)
SHORT_TIMEOUTS = Timeouts(
    confirm_s=0.15,
    uninterrupted_s=0.6,
    vanished_hold_s=0.8,
    gather_s=0.01,
    gather_results_s=0.02,
    result_s=8.0,
    ping_s=0.2,
    relist_s=0.5,
)
DEADLINE_S = 15.0

T = TypeVar("T")


@dataclass
class Given:
    """Settings of a vCenter as the bridge hands them to the client."""

    url: str
    name: str = "lab"
    ca_file: Path | None = field(default_factory=lambda: suite_authority().file)
    verify_tls: bool = True
    proxy: str | None = None
    max_concurrent_requests: int = 4
    max_requests_per_second: float = 1_000.0
    timeout_s: float = 30.0
    api: Literal["auto", "api", "rest"] = "auto"
    user: str = "administrator@vsphere.local"
    secret: Callable[[], str] = field(default=lambda: "simulated")

    def username(self) -> str:
        return self.user

    def password(self) -> str:
        return self.secret()


@dataclass
class Found:
    at: float
    task: str
    standing: PollResult


class Lab:
    """What was found so far; a task is asked for again as soon as it was taken in, unless `parks`."""

    def __init__(self, vcenter: SimulatedVCenter, source: CisSource, metrics: Metrics, url: str) -> None:
        self.vcenter = vcenter
        self.source = source
        self.metrics = metrics
        self.url = url
        self.found: list[Found] = []
        self.parks = False
        self._news = asyncio.Condition()

    def follow(
        self,
        *tasks: str,
        seen: bool = False,
        with_result: bool = False,
        with_details: bool = False,
        age_s: float = 0.0,
    ) -> None:
        for task in tasks:
            since = time.time() - age_s
            self.source.track(task, since, seen=seen, with_result=with_result, with_details=with_details)

    async def take(self) -> None:
        async for batch in self.source.poll_results():
            async with self._news:
                for task, standing in batch:
                    self.found.append(Found(time.monotonic(), task, standing))
                    if not self.parks and not isinstance(standing, Unchanged):
                        self.source.resume(task, quiet_until=0.0)
                self._news.notify_all()

    async def until(self, fact: Callable[[], T | None]) -> T:
        """Waits until `fact` is true, which is asked whenever something was found, and now and then."""
        deadline = time.monotonic() + DEADLINE_S
        while not (truth := fact()):
            assert time.monotonic() < deadline, "it didn't come true in time"
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02), self._news:
                    await self._news.wait()
        return truth

    def standings(self, task: str) -> list[PollResult]:
        """What was found of a task, without the looks that found nothing new."""
        return [f.standing for f in self.found if f.task == task and not isinstance(f.standing, Unchanged)]

    def statuses(self, task: str) -> list[str]:
        """The statuses that it was found with, each once in a row."""
        found = [standing.status for standing in self.standings(task) if isinstance(standing, Task)]
        return [status for number, status in enumerate(found) if number == 0 or found[number - 1] != status]

    def looks(self, task: str) -> int:
        return sum(1 for found in self.found if found.task == task)

    async def shown(self, *tasks: str) -> None:
        """Waits until each was seen in vCenter."""
        await self.until(lambda: all(self.standings(task) for task in tasks))

    async def ended(self, task: str) -> Task:
        """Waits until the task is told with its result, or that this can't be had."""

        def last() -> Task | None:
            found = [s for s in self.standings(task) if isinstance(s, Task) and s.ended and s.result is not None]
            return found[-1] if found else None

        return await self.until(last)

    async def gone(self, task: str) -> Absence:
        def absence() -> Absence | None:
            return next((s for s in self.standings(task) if isinstance(s, Absence)), None)

        return await self.until(absence)

    def is_gone(self, task: str) -> bool:
        return any(isinstance(standing, Absence) for standing in self.standings(task))

    def unanswered(self, task: str) -> list[Unanswered]:
        return [standing for standing in self.standings(task) if isinstance(standing, Unanswered)]

    async def more_looks(self, task: str, count: int = 3) -> None:
        """Waits until the task was looked at so many times more."""
        before = self.looks(task)
        await self.until(lambda: self.looks(task) >= before + count)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"task_bridge_{name}", labels) or 0.0


def tls(scheme: str) -> SSLContext | None:
    """What `serve_vcenter` takes to serve by this scheme, with a certificate that every `Given` trusts."""
    return suite_server() if scheme == "https" else None


@asynccontextmanager
async def lab(
    vcenter: SimulatedVCenter | None = None,
    *,
    scheme: str = "https",
    ssl: SSLContext | None = None,
    **looking: Any,
) -> AsyncIterator[Lab]:
    """The simulated vCenter, served, and a source that looks at it. `ssl`: with a certificate of its own."""
    vcenter, ssl = vcenter or SimulatedVCenter(), ssl or tls(scheme)
    async with serve_vcenter(vcenter, ssl=ssl) as url, looking_at(vcenter, url, **looking) as it:
        yield it
    for counts in vcenter.sessions.counts_of.values():  # whatever the trouble was
        assert counts.logins <= 20
        assert counts.most_live <= 2


@asynccontextmanager
async def looking_at(
    vcenter: SimulatedVCenter,
    url: str,
    *,
    policy: PollPolicy = POLICY,
    timeouts: Timeouts = SHORT_TIMEOUTS,
    **given: Any,
) -> AsyncIterator[Lab]:
    """A source that looks at a vCenter which is served at `url`, or isn't."""
    metrics = Metrics()
    source = CisSource(Given(**{"url": url, **given}), policy, metrics, timeouts=timeouts)
    async with source:
        it = Lab(vcenter, source, metrics, url)
        taking = asyncio.create_task(it.take())
        try:
            yield it
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
