"""Everything on one machine: a nats-server, a simulated vCenter over HTTP, the bridge, and a task of every fate.

The tasks are asked for and followed as any user does it; what is scripted to happen to them stands in `ACTS`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..domain.events import Event, from_cloudevent
from ..domain.subjects import SubjectNames
from ..simulator import Script, SimulatedVCenter, scenarios
from .local_stack import run_local_stack

VCENTER = "demo"
DEADLINE_S = 30.0
NEXT_S = 2.0
QUICK = {"poll_min_s": 0.2, "poll_max_s": 0.5, "progress_interval_s": 0.4, "not_found_grace_s": 2.0}
"""The bridge looks often: nobody wants to wait for a demonstration."""
NAMES = SubjectNames("vcenter.tasks")


class DemoCase(NamedTuple):
    """A task, its fate, and how it must end.

    `timeout`: of its watch. `then`: what is done once the task is seen RUNNING. `shows`: whether its events show
    what they must besides the ending, which is `moral` in words.
    """

    title: str
    script: Script
    expected_kind: str
    must_show: str
    check: Callable[[Sequence[Event]], bool]
    by_api: bool = False
    timeout: str | None = None
    action: Literal["cancel", "forget"] | None = None


def _goes(*statuses: str) -> Callable[[Sequence[Event]], bool]:
    return lambda events: set(statuses) <= {event.data.status for event in events}


def _told_why(events: Sequence[Event]) -> bool:
    return events[-1].data.error is not None and bool(events[-1].data.error.message)


def _stored_2_mb(events: Sequence[Event]) -> bool:
    ref = events[-1].data.result_ref
    return events[-1].data.result_state == "stored" and ref is not None and ref.size >= 2_000_000


CASES = (
    DemoCase(
        "Succeeds quickly",
        scenarios.succeeds(2.0),
        "completed.succeeded",
        "a result",
        lambda e: len(e[-1].data.result) > 4,
    ),
    DemoCase(
        "Succeeds slowly",
        scenarios.succeeds(9.0, looks=18),
        "completed.succeeded",
        "progress",
        lambda events: sum(event.data.kind == "progress" for event in events) >= 4,
        by_api=True,
    ),
    DemoCase(
        "Is BLOCKED, goes on",
        scenarios.blocked_then_succeeds(3.0, 8.0),
        "completed.succeeded",
        "BLOCKED on the way",
        _goes("RUNNING", "BLOCKED", "SUCCEEDED"),
    ),
    DemoCase(
        "Fails with an error",
        scenarios.fails_with_error(6.0),
        "completed.failed",
        "the error",
        _told_why,
        by_api=True,
    ),
    DemoCase(
        "Fails by its result", scenarios.fails_by_result(7.0), "completed.failed", "an error made of it", _told_why
    ),
    DemoCase(
        "Is canceled",
        scenarios.runs_forever(cancel_takes_s=2.0),
        "completed.canceled",
        "the cancellation",
        _told_why,
        by_api=True,
        action="cancel",
    ),
    DemoCase(
        "Was over before",
        scenarios.succeeds_at_once(),
        "completed.succeeded",
        "watching and the end",
        lambda events: [event.data.kind for event in events] == ["watching", "completed"],
    ),
    DemoCase(
        "Vanishes", scenarios.succeeds(30.0), "abandoned.lost", "vCenter's last answer", _told_why, action="forget"
    ),
    DemoCase(
        "Has a result of 2 MB",
        scenarios.large_result(2_000_000, 3.0),
        "completed.succeeded",
        "2 MB in the object store",
        _stored_2_mb,
        by_api=True,
    ),
    DemoCase(
        "Outlasts its watch",
        scenarios.runs_forever(),
        "abandoned.watch_timed_out",
        "that it still runs",
        lambda events: events[-1].data.status == "RUNNING",
        timeout="8s",
    ),
)


@dataclass
class DemoRun:
    """One act being played: its task, and the events that were heard of it."""

    case: DemoCase
    task: str
    events: list[Event] = field(default_factory=list)
    action_started: bool = False

    @property
    def final_event(self) -> Event | None:
        return next((event for event in self.events if event.data.final), None)

    def describe_deviation(self) -> str | None:
        """What isn't as scripted."""
        end, act = self.final_event, self.case
        if end is None:
            return f"{act.title}: it didn't end; the last that was heard is {self._last()}, not {act.expected_kind}"
        if end.kind != act.expected_kind:
            return f"{act.title}: it ended as {end.kind}, not as {act.expected_kind}"
        numbers = [event.data.sequence for event in self.events]
        if numbers != list(range(1, len(numbers) + 1)):
            return f"{act.title}: its events are numbered {numbers}"
        return None if act.check(self.events) else f"{act.title}: its events don't show {act.must_show}"

    def _last(self) -> str:
        return self.events[-1].kind if self.events else "nothing"


class DemoAddresses(NamedTuple):
    """Where one can look around meanwhile."""

    http: str
    nats: str
    vcenter: str
    log: Path


class DemoView(Protocol):
    """Who makes it seen."""

    def show_addresses(self, addresses: DemoAddresses) -> None: ...
    def show_start(self, run: DemoRun) -> None: ...
    def show_event(self, run: DemoRun, event: Event) -> None: ...
    def show_results(self, runs: Sequence[DemoRun]) -> None: ...


class DemoRunner:
    """The stage: `vcenter` has the tasks, `client` is a user's connection, `plays` is what goes on, by task."""

    def __init__(self, vcenter: SimulatedVCenter, client: Client, show: DemoView) -> None:
        self._vcenter = vcenter
        self._client = client
        self._show = show
        self._plays: dict[str, DemoRun] = {}
        self._ended = asyncio.Condition()
        self._doing: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """A plain subscription, as anybody may have it."""
        await self._client.subscribe(f"{NAMES.events}.>", cb=self._heard)
        await self._client.flush()

    async def begin(self, act: DemoCase) -> DemoRun:
        """Starts the act's task in vCenter and asks for a watch of it, one way or the other."""
        play = DemoRun(act, self._vcenter.create(act.script, description=act.title))
        self._plays[play.task] = play
        self._show.show_start(play)
        # A bare id is a request too: what vCenter answers to `?vmw-task=true`.
        body = json.dumps({"task": play.task, "timeout": act.timeout} if act.timeout else play.task).encode()
        if act.by_api:
            await self._client.request(f"{NAMES.api}.watch", body, timeout=10)
        else:
            await self._client.publish(NAMES.requests, body)
        # `wait_for`, which nats-py asks with, loses a cancellation that comes with the answer (until Python 3.12).
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError
        return play

    async def finale(self, plays: Sequence[DemoRun], within_s: float) -> None:
        """Until all have ended, or the time is over."""
        async with self._ended:
            try:
                await asyncio.wait_for(self._ended.wait_for(lambda: all(play.final_event for play in plays)), within_s)
            except TimeoutError:
                return

    async def _heard(self, message: Msg) -> None:
        event = from_cloudevent(message.data, stalled_reported=False)
        play = self._plays.get(event.data.task) if event else None
        if event is None or play is None:
            return
        play.events.append(event)
        self._show.show_event(play, event)
        if play.case.action and not play.action_started and event.data.status == "RUNNING":
            play.action_started = True
            doing = asyncio.create_task(self._act(play))
            self._doing.add(doing)
            doing.add_done_callback(self._doing.discard)
        if event.data.final:
            async with self._ended:
                self._ended.notify_all()

    async def _act(self, play: DemoRun) -> None:
        if play.case.action == "cancel":
            body = json.dumps({"task": play.task}).encode()
            await self._client.request(f"{NAMES.api}.cancel", body, timeout=10)
        else:
            self._vcenter.forget(play.task)


async def run_demo(show: DemoView, directory: Path, *, keep: bool) -> list[DemoRun]:
    """Plays every act and returns how they went; with `keep` it goes on until it is canceled.

    `directory` is for whatever the parts keep. Raises CannotStart.
    """
    async with _stage(show, directory) as demo:
        plays = [await demo.begin(act) for act in CASES]
        await demo.finale(plays, DEADLINE_S)
        show.show_results(plays)
        for act in itertools.cycle(CASES) if keep else ():
            await demo.begin(act)
            await asyncio.sleep(NEXT_S)
    return plays


@asynccontextmanager
async def _stage(show: DemoView, directory: Path) -> AsyncIterator[DemoRunner]:
    async with run_local_stack(directory, VCENTER, **QUICK) as stage:
        http = stage.bridge.web.address
        page = f"http://{http.host}:{http.port}" if http else "off"
        show.show_addresses(DemoAddresses(page, stage.nats_url, stage.vcenter_url, directory / "bridge.log"))
        client = await nats.connect(stage.nats_url)
        try:
            demo = DemoRunner(stage.vcenter, client, show)
            await demo.listen()
            yield demo
        finally:
            await client.close()
