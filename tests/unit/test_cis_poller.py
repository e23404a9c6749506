"""What follows from each answer about CIS tasks. Over a scripted API, by a clock that is set."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.domain.ports import UNCHANGED, PollResult, Unanswered
from task_bridge.domain.task import UNAVAILABLE, Target, Task, TaskError
from task_bridge.domain.watch import Absence
from task_bridge.metrics import Metrics
from task_bridge.vcenter.backoff import Outage
from task_bridge.vcenter.cis.api import (
    BadAnswer,
    FetchedTask,
    Listing,
    ListMissing,
    ListUnavailable,
    MissingTask,
    TaskAnswerTooLarge,
    UnreadableAnswer,
)
from task_bridge.vcenter.cis.poller import CisPoller
from task_bridge.vcenter.cis.renderings import Refusal
from task_bridge.vcenter.cis.schedule import PollAgenda, PollGroup, TrackedCisTask
from task_bridge.vcenter.cis.transport import CisTransport
from task_bridge.vcenter.health import ApiHealthTracker
from task_bridge.vcenter.http import AmbiguousFailure, RequestBudget
from task_bridge.vcenter.policy import PollPolicy, Timeouts
from task_bridge.vcenter.shared import ResultQueue
from task_bridge.vcenter.tracked_task import FORGOTTEN, PARKED, POLLING, QUEUED, WAITING, TaskTracker
from virtual_time import run_in_virtual_time

RUNNING = {"status": "RUNNING"}
BLOCKED = {"status": "BLOCKED"}
SUCCEEDED = {"status": "SUCCEEDED", "result": 7}
NO_TASK = TaskError("NOT_FOUND", "No such task.")
NOT_NOW = TaskError("SERVICE_UNAVAILABLE", "Not now.")
POLICY = PollPolicy(poll_min_s=1.0, poll_max_s=15.0, not_found_grace_s=30.0)
TIMEOUTS = Timeouts()
A, B, C = "a:p", "b:p", "c:p"


def missing(refusal: Refusal = Refusal.TASK, *, denied: bool = False) -> MissingTask:
    return MissingTask(denied, NO_TASK, refusal)


class ScriptedApi:
    """Answers of vCenter: `tasks` by id, shown or raised. `list_error` is raised by lists of more than `lists_of`."""

    list_max = 500

    def __init__(self) -> None:
        self.tasks: dict[str, Any] = {}
        self.unlisted: set[str] = set()
        self.list_error: Exception | None = None
        self.lists_of = 0
        self.can_forgo = False
        self.forgone: list[str] = []
        self.asked: list[tuple[str, list[str], bool, bool]] = []
        self.on_request: Callable[[], None] = lambda: None

    async def list_tasks(self, tasks: list[str], *, with_result: bool, return_all: bool) -> Listing:
        self.asked.append(("list", tasks, with_result, return_all))
        self.on_request()
        if self.list_error is not None and len(tasks) > self.lists_of:
            raise self.list_error
        shown = [one for one in tasks if one in self.tasks and one not in self.unlisted]
        for one in shown:
            if isinstance(self.tasks[one], Exception):
                raise self.tasks[one]
        return Listing({one: self._raw(one, with_result) for one in shown}, "api")

    async def get_task(self, task: str, *, with_result: bool, return_all: bool) -> FetchedTask | MissingTask:
        self.asked.append(("get", [task], with_result, return_all))
        self.on_request()
        shown = self.tasks.get(task, missing())
        if isinstance(shown, Exception):
            raise shown
        return shown if isinstance(shown, MissingTask) else FetchedTask(self._raw(task, with_result), "api")

    def _raw(self, task: str, with_result: bool) -> msgspec.Raw:
        shown = {key: value for key, value in self.tasks[task].items() if with_result or key != "result"}
        return msgspec.Raw(json.dumps(shown).encode())

    def forgo_return_all(self, task: str, reason: str) -> bool:
        self.forgone.append(task)
        return self.can_forgo


class Desk:
    def __init__(self, **timeouts: Any) -> None:
        self.now = 1_000.0
        clock = lambda: self.now  # noqa: E731 - the time as it is when asked
        rng = random.Random(1)
        self.timeouts = TIMEOUTS._replace(**timeouts)
        self.agenda = PollAgenda(POLICY.poll_min_s, 4)
        self.transport = CisTransport(self.agenda, POLICY, clock, rng)
        self.queue = ResultQueue()
        self.tracker: TaskTracker[TrackedCisTask] = TaskTracker(
            "lab", POLICY, self.timeouts, self.transport, self.queue, clock, rng
        )
        self.api = ScriptedApi()
        self.health = ApiHealthTracker("lab", "cis", clock)
        self.outage = Outage(POLICY, rng)
        self.outage.record_answer(self.now)
        self.metrics = Metrics()
        self.budget = RequestBudget(100.0, clock)
        api: Any = self.api
        self.poller = CisPoller(
            self.tracker, self.transport, api, self.health, self.outage, self.metrics, self.timeouts, self.budget
        )
        self.results: list[tuple[str, PollResult]] = []

    def track(self, *tasks: str, seen: bool = True, age_s: float = 3_600.0, **wishes: bool) -> list[TrackedCisTask]:
        made = [
            TrackedCisTask.with_age(task, age_s, self.now, seen=seen, **{"with_result": False, **wishes})
            for task in tasks
        ]
        for one in made:
            self.tracker.track(one)
        return made

    async def poll_in_loop(self) -> PollGroup | None:
        """Send the request that is due now, if one is. Return its group."""
        self.agenda.queue_due(self.now)
        group = self.agenda.next_group(results_first=False)
        if group is not None:
            await self.poller.poll(group, self.agenda.take(group, self.poller.max_tasks(group)))
            assert group.in_flight == 0
        return group

    def poll(self, *, after_s: float = 0.0) -> list[tuple[str, PollResult]]:
        """Poll once, and return what came of it. What was reported before is polled again when it is due."""
        self.now += after_s
        run_in_virtual_time(self.poll_in_loop())
        return self.take()

    def take(self) -> list[tuple[str, PollResult]]:
        async def batch() -> list[tuple[str, PollResult]]:
            return await anext(self.queue.batches()) if len(self.queue) else []

        return run_in_virtual_time(batch())

    def show(self, *tasks: str, info: object = RUNNING) -> None:
        """Poll these tasks once, as vCenter shows them, and resume them."""
        for task in tasks:
            self.api.tasks[task] = info
        self.poll()
        for task in tasks:
            self.tracker.resume(task, quiet_until=0.0)
        self.api.asked.clear()

    @property
    def polled(self) -> float:
        return self.metrics.registry.get_sample_value("task_bridge_looks_total", {"vcenter": "lab"}) or 0.0

    def asked(self) -> list[tuple[str, list[str]]]:
        asked, self.api.asked = [one[:2] for one in self.api.asked], []
        return asked


@pytest.fixture
def desk() -> Desk:
    return Desk()


def statuses(results: list[tuple[str, PollResult]]) -> dict[str, str | None]:
    return {task: result.status if isinstance(result, Task) else type(result).__name__ for task, result in results}


# By list


def test_all_tasks_of_a_provider_are_listed_and_reported(desk: Desk) -> None:
    one, other = desk.track(A, B)
    desk.api.tasks = {A: RUNNING, B: BLOCKED}
    assert statuses(desk.poll()) == {A: "RUNNING", B: "BLOCKED"}
    assert desk.api.asked == [("list", [A, B], False, False)]
    assert one.phase == other.phase == PARKED
    assert (desk.polled, desk.health.state, desk.health.last_good_poll_at) == (2, "ok", 1_000.0)


def test_a_task_that_is_as_before_is_unchanged_and_goes_on(desk: Desk) -> None:
    one, _ = desk.track(A, B)
    desk.show(A, B)
    assert dict(desk.poll(after_s=20)) == {A: UNCHANGED, B: UNCHANGED}
    assert one.phase == WAITING
    assert desk.now + 10 < one.due <= desk.now + 15


def test_a_task_is_kept_and_compared_with_the_names_that_are_known(desk: Desk) -> None:
    (one,) = desk.track(A)
    target = Target("VirtualMachine", "vm-1", "web", "/DC/vm/web")
    desk.tracker.add_known_names = lambda task: msgspec.structs.replace(task, target=target)
    desk.show(A)
    assert one.task is not None
    assert one.task.target == target
    desk.api.tasks[A] = {"status": "RUNNING", "result": None}
    assert desk.poll(after_s=20) == [(A, UNCHANGED)]


def test_other_json_of_the_same_task_is_unchanged_too(desk: Desk) -> None:
    desk.track(A)
    desk.show(A)
    desk.api.tasks[A] = {"status": "RUNNING", "result": None}
    assert desk.poll(after_s=20) == [(A, UNCHANGED)]


def test_a_task_that_was_absent_is_seen_again(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.show(A)
    desk.api.unlisted = {A}
    desk.api.tasks[A] = VCenterUnavailable("no")
    desk.poll(after_s=20)
    assert A in desk.tracker.absences
    desk.api.unlisted, desk.api.tasks[A] = set(), RUNNING
    one.by_get = False
    desk.now += 20
    desk.poll()
    assert A not in desk.tracker.absences


def test_a_task_that_is_forgotten_while_it_is_listed_is_not_reported(desk: Desk) -> None:
    desk.track(A, B)
    desk.show(A, B)

    def forget() -> None:
        desk.tracker.forget(A)

    desk.api.on_request = forget
    assert desk.poll(after_s=20) == [(B, UNCHANGED)]


# Lists that fail


def test_a_list_that_shows_nothing_lets_one_task_be_asked_for_alone_and_the_others_wait(desk: Desk) -> None:
    first, *others = desk.track(A, B, C)
    desk.tracker.poll_now(B)
    desk.tracker.poll_now(A)
    desk.outage.record_failure(VCenterUnavailable("x"), desk.now, desk.now)
    desk.api.list_error = BadAnswer("no lists now", answer=NOT_NOW)
    assert desk.poll() == [(B, Unanswered(NOT_NOW))]
    assert (first.phase, first.by_get) == (QUEUED, True)
    assert desk.health.reason == "no lists now"
    assert desk.tracker.last_refusal == NOT_NOW
    assert not desk.outage.is_down
    group = first.home
    assert group is not None
    assert group.failures == 1
    assert all(desk.now + 0.5 <= one.due <= desk.now + 1 for one in others if one.phase == WAITING)


def test_a_list_that_fails_again_waits_longer(desk: Desk) -> None:
    one, *_ = desk.track(A, B, C)
    desk.api.list_error = BadAnswer("no lists now")
    desk.api.tasks = dict.fromkeys((A, B, C), BadAnswer("nor these"))
    waits = []
    for number in range(1, 5):
        desk.now += 100
        while one.home is None or one.home.failures < number:
            desk.poll()
        waits.append(max(other.due for other in desk.tracker.tasks.values() if other.phase == WAITING) - desk.now)
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2 <= waits[2] <= 4 <= waits[3] <= 8


def test_a_get_that_works_where_no_list_does_ends_lists_of_this_provider_for_a_while(desk: Desk) -> None:
    first, other = desk.track(A, B)
    desk.api.list_error = BadAnswer("no lists now")
    desk.api.tasks = {A: RUNNING, B: RUNNING}
    desk.poll()
    assert statuses(desk.poll()) == {A: "RUNNING"}
    group = first.home
    assert group is not None
    assert (group.failures, group.listable_from) == (0, desk.now + 600)
    assert desk.health.state == "ok"
    desk.asked()
    desk.poll(after_s=2)
    assert desk.asked() == [("get", [B])]
    assert other.by_get is False


def test_a_task_that_lists_can_not_show_is_asked_for_alone_for_a_while(desk: Desk) -> None:
    bad, good = desk.track(A, B)
    desk.api.tasks = {A: BadAnswer("not this one"), B: RUNNING}
    assert statuses(desk.poll()) == {B: "RUNNING"}
    assert (bad.by_get, bad.listable_from, good.listable_from) == (True, desk.now + 600, 0.0)
    assert desk.health.state == "ok"


def test_a_single_task_whose_list_fails_is_asked_for_alone(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.api.list_error = BadAnswer("no lists now")
    desk.poll()
    assert (one.by_get, one.listable_from) == (True, desk.now + 600)
    assert desk.health.reason is None


def test_a_list_that_is_gone_now_says_nothing_of_its_task(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.api.list_error = ListMissing("nothing answers here now")
    desk.poll()
    assert (one.by_get, one.listable_from) == (True, 0.0)


def test_a_vcenter_without_lists_is_asked_for_each_task(desk: Desk) -> None:
    desk.track(A, B)
    desk.api.list_error = ListUnavailable("it has no list")
    desk.api.tasks = {A: RUNNING, B: RUNNING}
    desk.poll()
    assert statuses(desk.poll() + desk.poll(after_s=5)) == {A: "RUNNING", B: "RUNNING"}
    assert desk.asked()[1:] == [("get", [A]), ("get", [B])]
    assert desk.agenda.lists_from == desk.now - 5 + 600


def test_a_list_that_works_again_is_no_missing_list(desk: Desk) -> None:
    desk.track(A, B)
    desk.api.list_error = ListUnavailable("it has no list")
    desk.api.tasks = {A: missing(Refusal.ROUTER), B: missing(Refusal.ROUTER)}
    desk.poll()
    desk.poll()
    desk.poll()
    desk.api.list_error, desk.api.tasks = None, {A: RUNNING, B: RUNNING}
    desk.track(C)
    desk.poll(after_s=20)
    desk.tracker.resume(A, quiet_until=0.0)
    desk.api.unlisted = {A}
    desk.poll(after_s=20)
    desk.poll()
    assert desk.agenda.lists_from == 0.0


def test_a_failed_list_interrupts_the_absence_of_its_tasks(desk: Desk) -> None:
    desk.track(A, B, C)
    desk.show(A, B, C)
    desk.api.tasks = {}
    desk.poll(after_s=20)
    absences = desk.tracker.absences
    assert [absences.is_only_unlisted(one) for one in (A, B, C)] == [True] * 3
    desk.agenda.queue_due(desk.now)
    for one in desk.tracker.tasks.values():
        one.by_get = False
        desk.agenda.schedule(one, desk.now, desk.now)
    desk.api.list_error = BadAnswer("no lists now")
    desk.poll()
    assert [absences.is_only_unlisted(one) for one in (A, B, C)] == [False] * 3


# Failures that may be vCenter's


def test_a_failure_of_vcenter_is_passed_on_and_its_tasks_are_polled_again_soon(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.api.list_error = VCenterUnavailable("it is away", answer=NOT_NOW)
    with pytest.raises(VCenterUnavailable):
        desk.poll()
    assert (one.phase, one.due) == (WAITING, desk.now + 1.0)
    assert desk.tracker.last_refusal == NOT_NOW
    desk.api.list_error = VCenterUnavailable("it is still away")
    with pytest.raises(VCenterUnavailable):
        desk.poll(after_s=2)
    assert desk.tracker.last_refusal == NOT_NOW


def test_a_list_without_an_answer_is_first_taken_for_a_trouble_of_its_tasks(desk: Desk) -> None:
    desk.track(A, B)
    desk.api.list_error = AmbiguousFailure("no answer")
    desk.poll()
    assert desk.health.reason == "no answer"
    assert not desk.outage.is_down
    with pytest.raises(AmbiguousFailure):
        desk.poll(after_s=20)  # nothing has answered for longer than the longest interval


def test_a_provider_whose_lists_hang_while_others_answer_is_told_after_three(desk: Desk) -> None:
    one, _ = desk.track(A, B)
    desk.api.list_error = AmbiguousFailure("no answer")
    waits = []
    with capture_logs() as logs:
        for number in range(1, 4):
            desk.poll()
            assert one.home is not None
            assert one.home.failures == number
            waits.append(one.due - desk.now)
            assert len([log for log in logs if log["event"] == "vcenter_unavailable"]) == (number == 3)
            desk.now = one.due
            desk.outage.record_answer(desk.now)
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2 <= waits[2] <= 4


def test_a_get_without_an_answer_is_told_after_three(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.api.list_error = ListUnavailable("none")
    desk.api.tasks[A] = AmbiguousFailure("no answer")
    desk.poll()
    with capture_logs() as logs:
        for number in range(1, 4):
            desk.outage.record_answer(desk.now)
            one.by_get = True
            desk.poll()
            assert one.failures == number
            assert len([log for log in logs if log["event"] == "task_not_readable"]) == (number == 3)
            desk.now = one.due
    assert desk.health.reason == "no answer"


# Absent tasks


def test_an_unlisted_task_is_asked_for_alone_before_it_is_given_up(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.show(A)
    del desk.api.tasks[A]
    assert desk.poll(after_s=20) == []
    assert (one.phase, one.by_get) == (QUEUED, True)
    desk.poll()
    assert desk.asked() == [("list", [A]), ("get", [A])]
    assert 0 < one.due - desk.now <= 6


def test_a_lost_task_is_reported_with_what_vcenter_says(desk: Desk) -> None:
    _, other = desk.track(A, B)
    desk.show(A, B)
    del desk.api.tasks[A]
    results: list[tuple[str, PollResult]] = []
    for _ in range(40):
        results += [one for one in desk.poll(after_s=0.5) if one[0] == A]
    assert results == [(A, Absence("lost", NO_TASK))]
    assert other.phase == WAITING


def test_a_denied_task_is_reported_as_such(desk: Desk) -> None:
    desk.track(A, B)
    desk.show(A, B)
    desk.api.unlisted, desk.api.tasks[A] = {A}, missing(denied=True)
    results: list[tuple[str, PollResult]] = []
    for _ in range(40):
        results += [one for one in desk.poll(after_s=0.5) if one[0] == A]
    assert results == [(A, Absence("denied", NO_TASK))]


def test_an_urgent_task_that_is_not_shown_is_unanswered_with_what_vcenter_says(desk: Desk) -> None:
    desk.track(A, B)
    desk.show(A, B)
    del desk.api.tasks[A]
    desk.tracker.poll_now(A)
    assert statuses(desk.poll()) == {}
    assert desk.poll() == [(A, Unanswered(NO_TASK))]


def test_a_task_that_only_gets_show_is_no_longer_listed(desk: Desk) -> None:
    one, _ = desk.track(A, B)
    desk.show(A, B)
    desk.api.unlisted = {A}
    desk.poll(after_s=20)
    assert desk.poll() == [(A, UNCHANGED)]
    assert one.listable_from == desk.now + 600


def test_an_answer_that_is_none_of_the_service_counts_as_no_absence(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.api.list_error = ListUnavailable("none")
    desk.api.tasks[A] = missing(Refusal.ROUTER)
    desk.poll()
    desk.outage.record_failure(VCenterUnavailable("x"), desk.now, desk.now)
    desk.tracker.poll_now(A)
    with capture_logs() as logs:
        assert desk.poll() == [(A, Unanswered(NO_TASK))]
        assert A not in desk.tracker.absences
        assert not desk.outage.is_down
        assert "doesn't offer this task's service" in (desk.health.reason or "")
        for _ in range(2):
            desk.tracker.resume(A, quiet_until=0.0)
            one.by_get = True
            desk.agenda.queue(one, desk.now, before_others=True)
            desk.poll()
    assert one.failures == 3
    assert len([log for log in logs if log["event"] == "task_not_readable"]) == 1


# Other tasks when one vanishes


def vanish(desk: Desk, others: int, of_provider: str = "p") -> list[str]:
    """Let one of several tasks vanish while the others wait. Return those that are polled at once then."""
    tasks = [f"{number}:{of_provider}" for number in range(others)]
    desk.track("gone:p", seen=True)
    desk.show("gone:p")
    desk.now += 15
    desk.track(*tasks)
    for one in desk.tracker.tasks.values():
        if one.id != "gone:p":
            desk.agenda.schedule(one, desk.now, desk.now + 100)
    del desk.api.tasks["gone:p"]
    desk.poll()
    return [one.id for one in desk.tracker.tasks.values() if one.phase == WAITING and one.due == desk.now]


@pytest.mark.parametrize(("others", "polled"), [(3, 3), (200, 200), (250, 200)])
def test_when_a_list_misses_a_task_others_are_polled_at_once(desk: Desk, others: int, polled: int) -> None:
    assert len(vanish(desk, others)) == polled


def test_others_of_the_same_provider_come_first(desk: Desk) -> None:
    desk.track(*(f"x{number}:q" for number in range(100)))
    for one in desk.tracker.tasks.values():
        desk.agenda.schedule(one, desk.now, desk.now + 100)
    assert {one.partition(":")[2] for one in vanish(desk, 200)} == {"p"}


def test_others_are_polled_once_in_a_while(desk: Desk) -> None:
    assert len(vanish(desk, 3)) == 3
    for one in desk.tracker.tasks.values():
        desk.agenda.schedule(one, desk.now, desk.now + 100)
    desk.now += 2.4
    desk.poller.poll_others_now("p")
    assert not [one for one in desk.tracker.tasks.values() if one.due == desk.now]
    desk.now += 0.1
    desk.poller.poll_others_now("p")
    assert len([one for one in desk.tracker.tasks.values() if one.due == desk.now]) == 4


def test_a_task_whose_result_is_fetched_is_not_polled_for_others(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.agenda.schedule(one, desk.now, desk.now + 100)
    one.awaits_result = True
    desk.poller.poll_others_now("p")
    assert one.due == desk.now + 100


# Ends and results


def end(desk: Desk, info: object = SUCCEEDED, **wishes: bool) -> TrackedCisTask:
    (one,) = desk.track(A, **wishes)
    desk.api.tasks[A] = info
    return one


def test_an_end_is_reported_at_once_and_its_result_when_it_is_there(desk: Desk) -> None:
    one = end(desk)
    ((_, first),) = desk.poll()
    assert isinstance(first, Task)
    assert (first.status, first.result, one.awaits_result) == ("SUCCEEDED", None, True)
    assert one.due == desk.now
    ((_, second),) = desk.poll()
    assert isinstance(second, Task)
    assert second.result is not None
    assert second.result.json == b"7"
    assert desk.api.asked == [("list", [A], False, False), ("list", [A], True, True)]
    assert desk.polled == 1


def test_results_are_gathered_when_requests_are_scarce(desk: Desk) -> None:
    one = end(desk)
    for _ in range(60):
        desk.budget.spend()
    desk.poll()
    assert one.due == desk.now + 0.2


def test_a_result_that_comes_with_all_details_needs_no_fetch(desk: Desk) -> None:
    one = end(desk, with_result=True, with_details=True)
    ((_, task),) = desk.poll()
    assert isinstance(task, Task)
    assert task.result is not None
    assert (one.phase, one.awaits_result) == (PARKED, False)


def test_a_result_that_does_not_come_in_time_is_unavailable(desk: Desk) -> None:
    end(desk)

    async def wait() -> None:
        await desk.poll_in_loop()
        desk.api.list_error = BadAnswer("no results now")
        desk.api.tasks[A] = BadAnswer("no results now")
        await desk.poll_in_loop()
        await asyncio.sleep(29.9)
        assert len(desk.queue) == 1
        await asyncio.sleep(0.2)

    with capture_logs() as logs:
        run_in_virtual_time(wait())
    (_, first), (_, last) = desk.take()
    assert isinstance(first, Task)
    assert isinstance(last, Task)
    assert (first.result, last.result) == (None, UNAVAILABLE)
    assert [log["reason"] for log in logs if log["event"] == "result_unavailable"] == [
        "vCenter didn't show it in time."
    ]


@pytest.mark.parametrize("is_too_large", [True, False])
def test_a_result_that_can_not_be_had_is_unavailable_at_once(desk: Desk, is_too_large: bool) -> None:
    one = end(desk)
    desk.poll()
    desk.api.unlisted = {A}
    desk.api.tasks[A] = TaskAnswerTooLarge("too large") if is_too_large else missing()
    assert desk.poll() == []
    ((_, task),) = desk.poll()
    assert isinstance(task, Task)
    assert (task.status, task.result, one.phase) == ("SUCCEEDED", UNAVAILABLE, PARKED)
    assert one.failures == 0
    assert A not in desk.tracker.absences


def test_a_result_is_fetched_again_while_no_service_answers(desk: Desk) -> None:
    one = end(desk)
    desk.poll()
    desk.api.list_error, desk.api.tasks[A] = ListUnavailable("none"), missing(Refusal.ROUTER)
    desk.poll()
    assert desk.poll() == []
    assert (one.phase, one.awaits_result, one.failures) == (WAITING, True, 0)
    assert 0.5 <= one.due - desk.now <= 1.0


def test_a_task_that_seems_to_run_again_is_asked_again_for_its_result(desk: Desk) -> None:
    one = end(desk)
    desk.poll()
    desk.api.tasks[A] = RUNNING
    assert desk.poll() == []
    assert (one.phase, one.awaits_result, one.failures) == (WAITING, True, 1)


# Answers that can't be read


def test_a_task_that_can_not_be_read_is_seen_and_polled_less_and_less_often(desk: Desk) -> None:
    one, _ = desk.track(A, B, seen=False)
    desk.api.tasks = {A: {"no": "status"}, B: RUNNING}
    with capture_logs() as logs:
        desk.poll()
        assert (one.seen, one.failures, one.phase) == (True, 1, WAITING)
        assert 0.5 <= one.due - desk.now <= 1.0
        desk.poll(after_s=2)
        assert 1.0 <= one.due - desk.now <= 2.0
        desk.poll(after_s=3)
        assert 2.0 <= one.due - desk.now <= 4.0
        desk.api.tasks[A] = RUNNING
        assert statuses(desk.poll(after_s=5)) == {A: "RUNNING"}
    assert [log["event"] for log in logs] == ["task_not_readable", "task_readable_again"]
    assert one.failures == 0


def test_one_unreadable_task_of_several_does_not_degrade_vcenter(desk: Desk) -> None:
    desk.track(A, B)
    desk.api.tasks = {A: {"no": "status"}, B: RUNNING}
    desk.poll()
    assert desk.health.state == "ok"


@pytest.mark.parametrize(
    ("bad", "good", "state"), [(2, 2, "ok"), (3, 2, "degraded"), (20, 30, "ok"), (21, 30, "degraded")]
)
def test_most_tasks_or_twenty_in_a_row_degrade_it(desk: Desk, bad: int, good: int, state: str) -> None:
    desk.track(*(f"bad{number}:p" for number in range(bad)))
    desk.track(*(f"good{number}:p" for number in range(good)))
    desk.api.tasks = {one: RUNNING if one.startswith("good") else {"no": "status"} for one in desk.tracker.tasks}
    desk.poll()
    assert desk.health.state == state
    assert len([one for one in desk.tracker.tasks.values() if one.failures]) == bad


def test_a_good_poll_begins_the_row_of_bad_ones_again(desk: Desk) -> None:
    desk.track(A, B, C)
    desk.api.list_error = ListUnavailable("none")
    desk.api.tasks = {A: BadAnswer("no"), B: RUNNING, C: BadAnswer("no")}
    for _ in range(4):
        desk.poll()
    assert desk.health.state == "ok"


def test_details_that_can_not_be_read_are_forgone_for_the_task(desk: Desk) -> None:
    (one,) = desk.track(A, with_details=True)
    desk.api.tasks[A] = {"no": "status"}
    desk.api.can_forgo = True
    desk.poll()
    assert (desk.api.forgone, one.phase, one.by_get, one.failures) == ([A], QUEUED, True, 0)
    desk.api.can_forgo = False
    desk.poll()
    assert (one.phase, one.failures, one.with_details) == (WAITING, 1, True)


def test_a_task_without_details_has_none_to_forgo(desk: Desk) -> None:
    desk.track(A)
    desk.api.tasks[A] = {"no": "status"}
    desk.api.can_forgo = True
    desk.poll()
    assert desk.api.forgone == []


@pytest.mark.parametrize(
    ("wishes", "events"),
    [
        ({"with_result": True}, ["partial_results_stopped"]),
        ({"with_details": True}, ["details_stopped"]),
        ({"with_result": True, "with_details": True}, ["partial_results_stopped", "details_stopped"]),
        ({}, []),
    ],
)
def test_of_a_task_that_is_too_large_less_is_asked_for(desk: Desk, wishes: dict[str, bool], events: list[str]) -> None:
    (one,) = desk.track(A, **wishes)
    desk.api.list_error = ListUnavailable("none")
    desk.api.tasks[A] = TaskAnswerTooLarge("too large")
    desk.poll()
    with capture_logs() as logs:
        desk.poll()
    assert [log["event"] for log in logs if log["event"].endswith("_stopped")] == events
    assert (one.with_result, one.with_details, one.home is None) == (False, False, bool(wishes))
    assert one.phase == WAITING


@pytest.mark.parametrize("answer", [missing(), missing(Refusal.ROUTER), UnreadableAnswer("cut off"), RUNNING])
def test_nothing_follows_for_a_task_that_was_forgotten_meanwhile(desk: Desk, answer: Any) -> None:
    (one,) = desk.track(A, with_details=True)
    one.by_get = True
    desk.api.tasks[A] = answer

    def forget() -> None:
        desk.tracker.forget(A)

    desk.api.on_request = forget
    assert desk.poll() == []
    assert (one.phase, one.failures, one.seen) == (FORGOTTEN, isinstance(answer, Exception), True)
    assert desk.api.forgone == []
    assert A not in desk.tracker.absences
    assert desk.agenda.first_due() == float("inf")


def test_of_a_task_that_can_not_be_read_three_times_less_is_asked_for(desk: Desk) -> None:
    (one,) = desk.track(A, with_result=True)
    desk.api.tasks[A] = {"no": "status"}
    for number in (1, 2, 3):
        desk.poll(after_s=10)
        assert one.with_result is (number < 3)


def test_a_bug_over_one_task_keeps_none_of_the_others(desk: Desk) -> None:
    one, _ = desk.track(A, B)
    desk.api.tasks = {A: RUNNING, B: RUNNING}

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    note_change = desk.transport.note_change
    desk.transport.note_change = lambda tracked, task: (fail if tracked is one else note_change)(tracked, task)  # type: ignore[method-assign]
    with capture_logs() as logs:
        assert statuses(desk.poll()) == {B: "RUNNING"}
        assert (one.failures, one.phase) == (1, WAITING)
        for _ in range(2):
            one.by_get = True
            desk.poll(after_s=10)
    assert (one.failures, one.phase) == (3, WAITING)
    assert [log["task"] for log in logs if log["event"] == "look_failed"] == [A]
    assert desk.now + 2 <= one.due <= desk.now + 4


def test_a_bug_over_a_whole_list_is_passed_on(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.api.list_error = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        desk.poll()
    assert (one.phase, one.due) == (WAITING, desk.now + 1.0)


def test_what_vcenter_answers_ends_an_outage(desk: Desk) -> None:
    desk.track(A)
    desk.outage.record_failure(VCenterUnavailable("x"), desk.now, desk.now)
    desk.tracker.last_refusal = NOT_NOW
    desk.show(A)
    assert not desk.outage.is_down
    assert desk.tracker.last_refusal is None
    assert desk.tracker.tasks[A].phase != POLLING


def test_a_task_that_is_as_before_its_failure_is_readable_again(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.show(A)
    one.by_get = True
    desk.api.tasks[A] = BadAnswer("not now")
    with capture_logs() as logs:
        desk.poll(after_s=20)
        assert one.failures == 1
        desk.api.tasks[A] = RUNNING
        assert desk.poll(after_s=20) == [(A, UNCHANGED)]
    assert one.failures == 0
    assert [log["event"] for log in logs] == ["task_not_readable", "task_readable_again"]


def test_an_urgent_task_that_vcenter_refuses_to_show_is_unanswered_with_the_refusal(desk: Desk) -> None:
    (one,) = desk.track(A, with_details=True)
    one.by_get = True
    desk.tracker.poll_now(A)
    desk.api.tasks[A] = BadAnswer("not now", answer=NOT_NOW)
    assert desk.poll() == [(A, Unanswered(NOT_NOW))]
    assert desk.api.forgone == []  # the answer isn't unreadable
    assert desk.polled == 0


def test_a_get_counts_as_a_poll_but_that_of_a_result_does_not(desk: Desk) -> None:
    one = end(desk)
    one.by_get = True
    desk.poll()
    assert desk.polled == 1
    one.by_get = True
    desk.poll()
    assert desk.polled == 1


def test_other_work_goes_on_while_a_long_list_is_read_and_may_forget_its_tasks(desk: Desk) -> None:
    many = [f"{number}:p" for number in range(8)]
    desk.track(A, *many)
    desk.show(A, *many)
    for task in many:
        desk.api.tasks[task] = {"status": "RUNNING", "notes": "x" * 10_000}  # 80 kB in all

    def forget_soon() -> None:
        asyncio.get_running_loop().call_soon(desk.tracker.forget, A)

    desk.api.on_request = forget_soon
    assert set(dict(desk.poll(after_s=20))) == set(many)
