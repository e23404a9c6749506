"""Demo: a nats-server, a simulated vCenter over HTTP, the bridge, and one task per case, all on one machine.

The demo requests its watches and follows their events as any user does. `CASES` contains what vCenter does with each
task, and the events that must result. Nobody requests those with a `machine`: a follow finds them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..domain.events import Event, from_cloudevent
from ..domain.subjects import SubjectNames
from ..simulator import Script, SimulatedTarget, SimulatedVCenter, scenarios
from .local_stack import run_local_stack

VCENTER = "demo"
DEADLINE_S = 30.0
NEXT_CASE_S = 2.0
FAST_SETTINGS: dict[str, Any] = {
    "poll_min_s": 0.2,
    "poll_max_s": 0.5,
    "progress_interval_s": 0.4,
    "not_found_grace_s": 2.0,
}
"""The bridge polls often, so that the demo is short."""
NAMES = SubjectNames("vcenter.tasks")
FOLLOW = "all"


class DemoCase(NamedTuple):
    """A task with its script, and how its watch must end.

    `check` returns whether the events also contain what `must_show` names. `by_api` requests the watch by the API,
    otherwise by a publish. `timeout` is the watch's. `action` is done once the task is RUNNING. `machine`: the task is
    a classic one, on a VM of that name, and `operation` is what somebody else does with it.
    """

    title: str
    script: Script
    expected_kind: str
    must_show: str
    check: Callable[[Sequence[Event]], bool]
    by_api: bool = False
    timeout: str | None = None
    action: Literal["cancel", "forget"] | None = None
    machine: str | None = None
    operation: str = ""


def _is_found_by_name(events: Sequence[Event]) -> bool:
    first, last = events[0].data, events[-1].data
    return first.watch.follow == FOLLOW and last.target is not None and bool(last.target.name)


def _has_error(events: Sequence[Event]) -> bool:
    return events[-1].data.error is not None and bool(events[-1].data.error.message)


def _has_stored_result(events: Sequence[Event]) -> bool:
    ref = events[-1].data.result_ref
    return events[-1].data.result_state == "stored" and ref is not None and ref.size >= 2_000_000


CASES = (
    DemoCase(
        "Succeeds quickly",
        scenarios.succeeds(2.0),
        "completed.succeeded",
        "a result",
        lambda events: len(events[-1].data.result) > 4,
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
        lambda events: {"RUNNING", "BLOCKED", "SUCCEEDED"} <= {event.data.status for event in events},
    ),
    DemoCase(
        "Fails with an error",
        scenarios.fails_with_error(6.0),
        "completed.failed",
        "the error",
        _has_error,
        by_api=True,
    ),
    DemoCase(
        "Fails by its result",
        scenarios.fails_by_result(7.0),
        "completed.failed",
        "an error made from the result",
        _has_error,
    ),
    DemoCase(
        "Is canceled",
        scenarios.runs_forever(cancel_takes_s=2.0),
        "completed.canceled",
        "the cancellation",
        _has_error,
        by_api=True,
        action="cancel",
    ),
    DemoCase(
        "Has already ended",
        scenarios.succeeds_at_once(),
        "completed.succeeded",
        "only watching and the end",
        lambda events: [event.data.kind for event in events] == ["watching", "completed"],
    ),
    DemoCase(
        "Vanishes",
        scenarios.succeeds(30.0),
        "abandoned.lost",
        "vCenter's last answer",
        _has_error,
        action="forget",
    ),
    DemoCase(
        "Has a result of 2 MB",
        scenarios.large_result(2_000_000, 3.0),
        "completed.succeeded",
        "2 MB in the object store",
        _has_stored_result,
        by_api=True,
    ),
    DemoCase(
        "Outlasts its watch",
        scenarios.runs_forever(),
        "abandoned.watch_timed_out",
        "that the task still runs",
        lambda events: events[-1].data.status == "RUNNING",
        timeout="8s",
    ),
    DemoCase(
        "Nobody asked: clone",
        scenarios.succeeds(5.0),
        "completed.succeeded",
        "the follow that found it, and the VM's name",
        _is_found_by_name,
        machine="web01",
        operation="clone",
    ),
    DemoCase(
        "Nobody asked: migrate",
        scenarios.fails_with_error(4.0),
        "completed.failed",
        "the follow that found it, and the VM's name",
        _is_found_by_name,
        machine="db02",
        operation="migrate",
    ),
)


@dataclass
class DemoRun:
    """One case in progress: its task, and the events received about it."""

    case: DemoCase
    task: str
    events: list[Event] = field(default_factory=list)
    action_started: bool = False

    @property
    def final_event(self) -> Event | None:
        return next((event for event in self.events if event.data.final), None)

    def describe_deviation(self) -> str | None:
        """Return how the run differs from its case, None if it doesn't."""
        final, case = self.final_event, self.case
        if final is None:
            last = self.events[-1].kind if self.events else "nothing"
            return f"{case.title}: it didn't end; the last event is {last}, not {case.expected_kind}"
        if final.kind != case.expected_kind:
            return f"{case.title}: it ended as {final.kind}, not as {case.expected_kind}"
        numbers = [event.data.sequence for event in self.events]
        if numbers != list(range(1, len(numbers) + 1)):
            return f"{case.title}: its events are numbered {numbers}, not from 1 without gaps"
        return None if case.check(self.events) else f"{case.title}: its events don't show {case.must_show}"


class DemoAddresses(NamedTuple):
    """Addresses of the running parts, for a user who wants to look at them."""

    http: str
    nats: str
    vcenter: str
    log: Path


class DemoView(Protocol):
    """Shows the demo to the user."""

    def show_addresses(self, addresses: DemoAddresses) -> None: ...
    def show_start(self, run: DemoRun) -> None: ...
    def show_event(self, run: DemoRun, event: Event) -> None: ...
    def show_results(self, runs: Sequence[DemoRun]) -> None: ...


class DemoRunner:
    """Starts cases in `vcenter`, requests their watches over `client`, and passes their events to `view`."""

    def __init__(self, vcenter: SimulatedVCenter, client: Client, view: DemoView) -> None:
        self._vcenter = vcenter
        self._client = client
        self._view = view
        self._runs: dict[str, DemoRun] = {}
        self._ended = asyncio.Condition()
        self._actions: set[asyncio.Task[None]] = set()

    async def subscribe(self) -> None:
        """Subscribe to all events with a plain subscription, as any user may."""
        await self._client.subscribe(f"{NAMES.events}.>", cb=self._receive)
        await self._client.flush()

    async def follow(self) -> None:
        """Follow the classic tasks of vCenter, as any user may."""
        await self._client.request(f"{NAMES.api}.follow", json.dumps({"name": FOLLOW}).encode(), timeout=10)

    async def start(self, case: DemoCase) -> DemoRun:
        """Start the case's task in vCenter, and request a watch of it if no follow finds it."""
        run = DemoRun(case, self._create_task(case))
        self._runs[run.task] = run
        self._view.show_start(run)
        if case.machine is not None:
            return run
        # A bare id is a request too: vCenter's answer to `?vmw-task=true`.
        body = json.dumps({"task": run.task, "timeout": case.timeout} if case.timeout else run.task).encode()
        if case.by_api:
            await self._client.request(f"{NAMES.api}.watch", body, timeout=10)
        else:
            await self._client.publish(NAMES.requests, body)
        # nats-py's request uses `wait_for`, which loses a cancellation that comes with the reply (until Python 3.12).
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError
        return run

    def _create_task(self, case: DemoCase) -> str:
        if case.machine is None:
            return self._vcenter.create(case.script, description=case.title)
        vm = SimulatedTarget("VirtualMachine", f"vm-{sum(map(ord, case.machine))}")
        self._vcenter.entities.put(vm, case.machine)
        return self._vcenter.create(case.script, flavour="vim", operation=case.operation, target=vm)

    async def wait_until_ended(self, runs: Sequence[DemoRun], within_s: float) -> None:
        """Wait until all runs have ended, at most `within_s`."""
        async with self._ended:
            try:
                await asyncio.wait_for(self._ended.wait_for(lambda: all(run.final_event for run in runs)), within_s)
            except TimeoutError:
                return

    async def _receive(self, message: Msg) -> None:
        event = from_cloudevent(message.data, stalled_reported=False)
        run = self._runs.get(event.data.task) if event else None
        if event is None or run is None:
            return
        run.events.append(event)
        self._view.show_event(run, event)
        if run.case.action and not run.action_started and event.data.status == "RUNNING":
            run.action_started = True
            action = asyncio.create_task(self._do_action(run))
            self._actions.add(action)
            action.add_done_callback(self._actions.discard)
        if event.data.final:
            async with self._ended:
                self._ended.notify_all()

    async def _do_action(self, run: DemoRun) -> None:
        if run.case.action == "cancel":
            body = json.dumps({"task": run.task}).encode()
            await self._client.request(f"{NAMES.api}.cancel", body, timeout=10)
        else:
            self._vcenter.forget(run.task)


async def run_demo(view: DemoView, directory: Path, *, keep: bool) -> list[DemoRun]:
    """Run every case and return the runs. With `keep`, start the cases again and again until it is canceled.

    `directory` is for the data of all parts. Raises CannotStart.
    """
    async with run_local_stack(directory, VCENTER, **FAST_SETTINGS) as stack:
        http = stack.bridge.web.address
        pages = f"http://{http.host}:{http.port}" if http else "off"
        view.show_addresses(DemoAddresses(pages, stack.nats_url, stack.vcenter_url, directory / "bridge.log"))
        client = await nats.connect(stack.nats_url)
        try:
            runner = DemoRunner(stack.vcenter, client, view)
            await runner.subscribe()
            await runner.follow()
            runs = [await runner.start(case) for case in CASES]
            await runner.wait_until_ended(runs, DEADLINE_S)
            view.show_results(runs)
            for case in itertools.cycle(CASES) if keep else ():
                await runner.start(case)
                await asyncio.sleep(NEXT_CASE_S)
        finally:
            await client.close()
    return runs
