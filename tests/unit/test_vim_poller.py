"""What follows from each answer and update about classic tasks. Over a scripted session, by a clock that is set."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from lxml import etree
from structlog.testing import capture_logs

from task_bridge.domain.durations import parse_time, rfc3339
from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.domain.ports import UNCHANGED, PollResult
from task_bridge.domain.task import Progress, Result, Target, Task, TaskIdentity
from task_bridge.domain.watch import Absence
from task_bridge.metrics import Metrics
from task_bridge.vcenter.health import ApiHealthTracker
from task_bridge.vcenter.http import AnswerTooLarge, NoAnswer
from task_bridge.vcenter.policy import PollPolicy, Timeouts, VimTimeouts
from task_bridge.vcenter.shared import ResultQueue
from task_bridge.vcenter.tracked_task import FORGOTTEN, PARKED, WAITING, TaskTracker
from task_bridge.vcenter.vim.answers import ObjectState, Page
from task_bridge.vcenter.vim.poller import VimPoller
from task_bridge.vcenter.vim.soap import Ref, SoapFault, UnreadableXml, XmlOutOfBounds
from task_bridge.vcenter.vim.taskinfo import Info, Question
from task_bridge.vcenter.vim.transport import TrackedVimTask, VimTransport
from virtual_time import run_in_virtual_time

NOW = 1_764_024_000.0
POLICY = PollPolicy(poll_min_s=1.0, poll_max_s=15.0, not_found_grace_s=30.0)
TIMEOUTS = VimTimeouts()
QUEUED = {"queueTime": rfc3339(NOW - 10), "descriptionId": "Task.x", "key": "task-1"}
RUNNING: Info = {"state": "running", **QUEUED}
ENDED: Info = {"state": "success", **QUEUED}
ON_VM: Info = {**RUNNING, "entity": Ref("VirtualMachine", "vm-1")}
QUESTION = Question("7", "Really?")
MADE = etree.fromstring(b'<x xmlns="urn:vim25"><returnval type="T">made-1</returnval></x>')
A, B = "task-1", "task-2"


def fault(kind: str) -> SoapFault:
    return SoapFault(f"vCenter refuses it ({kind}).", kind, "no")


class ScriptedSession:
    """What vCenter shows: objects by id. `errors`: raised by requests for these ids, unless it is called off."""

    def __init__(self) -> None:
        self.number = 1
        self.objects: dict[str, ObjectState] = {}
        self.errors: dict[str, Exception] = {}
        self.error_of_values: Exception | None = None
        self.readable_without: tuple[str, ...] = ()
        self.asked: list[list[str]] = []
        self.limits: list[Any] = []
        self.history: list[Info] = []
        self.history_error: Exception | None = None
        self.history_filters: list[str] = []
        self.on_read: Callable[[], None] = lambda: None
        self._unread: list[Info] = []

    def show(self, task: str, info: Info, **more: Any) -> None:
        self.objects[task] = ObjectState(Ref("Task", task), info, **more)

    def show_question(self, vm: str, question: Question | None) -> None:
        state = ObjectState(Ref("VirtualMachine", vm), {}, has_question_field=True, question=question)
        self.objects[vm] = state

    async def ensure_logged_in(self) -> Any:
        return SimpleNamespace(collector=Ref("PropertyCollector", "c"), tasks=Ref("TaskManager", "t"))

    def record_good_answer(self, *_: object) -> None:
        """A session that works."""

    async def handle_refusal(self, *_: object) -> VCenterUnavailable:
        return VCenterUnavailable("it withholds all")

    async def read(self, operation: str, method: str, this: Ref, inner: str, read: Any, limits: Any = None) -> Any:
        if method == "ReadNextTasks":
            page, self._unread = self._unread, []
            return page
        ids = re.findall(r'<obj type="(?:Task|VirtualMachine)">([^<]+)</obj>', inner)
        self.asked.append(ids)
        self.limits.append(limits)
        self.on_read()
        without = [field for field in ("result", "error") if f"info.{field}<" not in inner]
        for one in ids:
            if one in self.errors and not (self.readable_without and set(self.readable_without) <= set(without)):
                raise self.errors[one]
        return Page([self._keep_requested(self.objects[one], inner) for one in ids if one in self.objects], None)

    @staticmethod
    def _keep_requested(shown: ObjectState, inner: str) -> ObjectState:
        requested = re.findall(r"<pathSet>info\.(\w+)<", inner)
        return shown._replace(info={field: value for field, value in shown.info.items() if field in requested})

    async def call(self, operation: str, method: str, this: Ref | None, inner: str = "") -> Any:
        if method == "CreateCollectorForTasks":
            self.history_filters.append(inner)
            if self.history_error is not None:
                raise self.history_error
        if method in ("CreateCollectorForTasks", "RewindCollector"):
            self._unread = list(self.history)
        return MADE


class Desk:
    def __init__(self) -> None:
        self.now = 1_000.0
        clock = lambda: self.now  # noqa: E731 - the time as it is when asked
        self.queue = ResultQueue()
        self.transport = VimTransport("lab", POLICY, clock)
        self.tracker: TaskTracker[TrackedVimTask] = TaskTracker(
            "lab", POLICY, Timeouts(), self.transport, self.queue, clock, random.Random(1)
        )
        self.session = ScriptedSession()
        self.health = ApiHealthTracker("lab", "vim", clock)
        self.metrics = Metrics()
        session: Any = self.session
        self.poller = VimPoller(
            self.tracker, self.transport, session, self.health, TIMEOUTS, self.metrics, lambda: NOW + self.now
        )

    def track(self, *tasks: str, seen: bool = False, **more: Any) -> list[TrackedVimTask]:
        made = []
        for task in tasks:
            given = {"since": NOW, "identity": None, "shown_at": self.now, **more}
            one = TrackedVimTask(task, seen, **given)
            self.tracker.track(one)
            made.append(one)
        self.transport.view.take()
        return made

    def poll(self, *those: TrackedVimTask) -> list[tuple[str, PollResult]]:
        run_in_virtual_time(self.poller.poll(list(those)))
        return self.take()

    def poll_beside(self, *those: TrackedVimTask) -> list[tuple[str, PollResult]]:
        run_in_virtual_time(self.poller.poll_beside_push(list(those)))
        return self.take()

    def update(self, *objects: str, asked_at: float | None = None) -> list[tuple[str, PollResult]]:
        shown = [self.session.objects[one] for one in objects]
        self.poller.apply_updates(shown, self.now if asked_at is None else asked_at)
        return self.take()

    def take(self) -> list[tuple[str, PollResult]]:
        async def batch() -> list[tuple[str, PollResult]]:
            return await anext(self.queue.batches()) if len(self.queue) else []

        return run_in_virtual_time(batch())

    def show(self, info: Info = RUNNING, *tasks: str, **more: Any) -> list[TrackedVimTask]:
        """Track these tasks, report them as vCenter shows them, and resume them."""
        made = self.track(*(tasks or (A,)), **more)
        for one in made:
            self.session.show(one.id, info)
        self.update(*(one.id for one in made))
        for one in made:
            self.tracker.resume(one.id, quiet_until=0.0)
        return made

    @property
    def polled(self) -> float:
        return self.metrics.registry.get_sample_value("task_bridge_looks_total", {"vcenter": "lab"}) or 0.0


@pytest.fixture
def desk() -> Desk:
    return Desk()


def statuses(results: list[tuple[str, PollResult]]) -> dict[str, str | None]:
    return {task: result.status if isinstance(result, Task) else type(result).__name__ for task, result in results}


# Updates


def test_an_update_is_reported_and_counted_as_a_good_poll(desk: Desk) -> None:
    one, _ = desk.track(A, B)
    desk.session.show(A, RUNNING)
    assert statuses(desk.update(A, asked_at=990.0)) == {A: "RUNNING"}
    assert (one.updated_at, one.shown_at, one.phase) == (1_000.0, 1_000.0, PARKED)
    assert (desk.polled, desk.health.last_good_poll_at) == (1, 1_000.0)
    assert A not in desk.tracker.absences


def test_an_update_shows_a_task_as_of_when_it_was_asked_for(desk: Desk) -> None:
    (one,) = desk.show()
    desk.now += 20
    desk.update(A, asked_at=1_015.0)
    assert (one.updated_at, one.shown_at) == (1_020.0, 1_015.0)


def test_what_an_update_does_not_show_is_unchanged_which_is_told_once_in_a_while(desk: Desk) -> None:
    one, other = desk.show(RUNNING, A, B)
    desk.track("task-3")
    assert desk.update() == []
    desk.now += 14.9
    assert desk.update() == []
    desk.now += 0.1
    assert dict(desk.update()) == {A: UNCHANGED, B: UNCHANGED}
    assert desk.update() == []
    desk.now += 15
    one.due = desk.now + 1
    other.phase = PARKED
    assert desk.update() == []


def test_a_task_that_push_can_not_show_is_polled_by_itself(desk: Desk) -> None:
    (one,) = desk.show()
    desk.session.show(A, {}, is_gone=True)
    assert desk.update(A) == []
    assert one.due == desk.now


def test_objects_that_nobody_tracks_are_nothing(desk: Desk) -> None:
    desk.session.show("task-9", RUNNING)
    assert desk.update("task-9") == []


def test_changes_of_a_parked_task_are_reported_later(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.session.show(A, RUNNING)
    desk.update(A)
    desk.session.show(A, {"progress": 7}, is_complete=False)
    assert desk.update(A) == []
    assert one.info == {**RUNNING, "progress": 7}


def test_tasks_that_the_view_could_not_list_are_polled(desk: Desk) -> None:
    one, other = desk.show(RUNNING, A, B)
    desk.poller.poll_refs([Ref("VirtualMachine", B), Ref("Task", A), Ref("Task", "task-9")])
    assert (one.due, other.due) == (desk.now, None)


def test_all_can_be_polled(desk: Desk) -> None:
    one, other = desk.show(RUNNING, A, B)
    desk.poller.poll_all()
    assert (one.due, other.due) == (desk.now, desk.now)


# Polls


def test_a_poll_reports_what_changed_and_leaves_the_rest_to_push(desk: Desk) -> None:
    one, other = desk.show(RUNNING, A, B)
    desk.session.show(A, {**RUNNING, "progress": 7})
    desk.now += 1
    assert statuses(desk.poll(one, other)) == {A: "RUNNING", B: "Unchanged"}
    assert (one.due, other.due, one.shown_at) == (None, None, desk.now)
    assert desk.polled == 2 + 2
    assert desk.poller.first_pulled_end_at == math.inf
    assert desk.poll(one) == []  # it is parked


def test_whatever_happens_a_task_is_polled_again(desk: Desk) -> None:
    (one,) = desk.show()
    desk.session.errors[A] = VCenterUnavailable("away")
    with pytest.raises(VCenterUnavailable):
        desk.poll(one)
    assert one.due == desk.now + 1.0


def test_an_answer_that_an_update_overtook_is_not_applied(desk: Desk) -> None:
    (one,) = desk.show()
    newer = ObjectState(Ref("Task", A), {**RUNNING, "progress": 50})

    def overtake() -> None:
        desk.now += 1
        desk.poller.apply_updates([newer], desk.now)
        desk.tracker.resume(A, quiet_until=0.0)

    desk.session.on_read = overtake
    desk.session.show(A, {**RUNNING, "progress": 20})
    ((_, task),) = desk.poll(one)
    assert isinstance(task, Task)
    assert task.progress is not None
    assert task.progress.percent == 50
    assert one.info["progress"] == 50
    assert A not in desk.tracker.absences


def test_an_end_is_applied_though_an_update_overtook_it(desk: Desk) -> None:
    (one,) = desk.show()

    def overtake() -> None:
        desk.now += 1
        desk.poller.apply_updates([ObjectState(Ref("Task", A), {"progress": 50}, is_complete=False)], desk.now)
        desk.tracker.resume(A, quiet_until=0.0)

    desk.session.on_read = overtake
    desk.session.show(A, ENDED)
    assert desk.poll(one)[-1][1].status == "SUCCEEDED"  # type: ignore[union-attr]


def test_an_update_of_the_moment_of_the_request_does_not_overtake_it(desk: Desk) -> None:
    (one,) = desk.show()
    desk.session.show(A, {**RUNNING, "progress": 20})
    assert statuses(desk.poll(one)) == {A: "RUNNING"}


def test_ends_that_push_does_not_show_are_remembered_until_it_does(desk: Desk) -> None:
    one, other = desk.show(RUNNING, A, B)
    for task in (A, B):
        desk.session.show(task, ENDED)
    desk.now += 1
    desk.poll(one)
    desk.now += 1
    desk.poll(other)
    assert desk.poller.first_pulled_end_at == 1_001.0
    desk.poll(one)  # it is no new end
    desk.update(A)
    assert desk.poller.first_pulled_end_at == 1_002.0
    desk.poller.forget_pulled_ends()
    assert desk.poller.first_pulled_end_at == math.inf


def test_an_end_of_a_task_that_the_view_does_not_list_yet_is_no_fault_of_push(desk: Desk) -> None:
    (one,) = desk.show()
    desk.transport.view.add(one.ref)
    desk.session.show(A, ENDED)
    desk.poll(one)
    assert desk.poller.first_pulled_end_at == math.inf


def test_the_identity_of_a_task_is_what_vcenter_shows_now(desk: Desk) -> None:
    assert run_in_virtual_time(desk.poller.fetch_identity(A)) is None
    desk.session.show(A, {})
    assert run_in_virtual_time(desk.poller.fetch_identity(A)) is None
    desk.session.show(A, RUNNING)
    assert run_in_virtual_time(desk.poller.fetch_identity(A)) == TaskIdentity(NOW - 10, "Task.x")


# Polls beside push


def test_a_poll_beside_push_leaves_vms_out(desk: Desk) -> None:
    (one,) = desk.show(ON_VM)
    assert one.vm == "vm-1"
    assert desk.poll_beside(one) == [(A, UNCHANGED)]
    assert desk.session.asked == [[A]]
    assert one.due is None


def test_a_change_of_a_task_with_a_vm_waits_for_the_question(desk: Desk) -> None:
    (one,) = desk.show(ON_VM)
    desk.session.show(A, {**ON_VM, "progress": 7})
    assert desk.poll_beside(one) == []
    assert (one.awaits_question, one.due) == (True, desk.now)
    desk.session.show_question("vm-1", QUESTION)
    assert statuses(desk.poll(one)) == {A: "BLOCKED"}
    assert (one.awaits_question, desk.session.asked[-1]) == (False, [A, "vm-1"])


def test_an_end_waits_for_no_question(desk: Desk) -> None:
    (one,) = desk.show(ON_VM)
    desk.session.show(A, {**ON_VM, "state": "success"})
    assert statuses(desk.poll_beside(one)) == {A: "SUCCEEDED"}
    assert (one.awaits_question, one.vm) == (False, None)


def test_a_poll_beside_push_asks_for_all_of_a_task_whose_state_changed(desk: Desk) -> None:
    one, other = desk.show(RUNNING, A, B)
    result = Result(b"7")
    desk.session.show(A, {**ENDED, "progress": 100, "result": result})
    (unchanged, (_, task)) = desk.poll_beside(one, other)
    assert isinstance(task, Task)
    assert (task.status, task.result, unchanged) == ("SUCCEEDED", result, (B, UNCHANGED))
    assert desk.session.asked == [[A, B], [A]]


def test_a_poll_beside_push_asks_for_all_of_a_task_that_was_not_shown_before(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.tracker.resume(A, quiet_until=0.0)
    desk.session.show(A, ON_VM)
    desk.poll_beside(one)
    assert desk.session.asked == [[A], [A]]
    assert one.info == {field: value for field, value in ON_VM.items() if field != "key"}


def test_what_a_poll_beside_push_does_not_ask_for_is_kept(desk: Desk) -> None:
    (one,) = desk.show({**RUNNING, "entityName": "web", "entity": Ref("HostSystem", "host-1"), "progress": 5})
    desk.session.show(A, {**RUNNING, "progress": 7, "description": "Copying", "cancelled": True})
    ((_, task),) = desk.poll_beside(one)
    assert isinstance(task, Task)
    assert task.progress == Progress(7, 100, 7.0, "Copying")
    assert (task.target, task.cancel_requested) == (Target("HostSystem", "host-1", "web"), True)
    assert desk.session.asked == [[A]]


def test_a_poll_beside_push_shows_what_a_task_has_no_more(desk: Desk) -> None:
    (one,) = desk.show({**RUNNING, "progress": 5, "description": "Copying"})
    desk.session.show(A, {**RUNNING, "progress": 5})
    ((_, task),) = desk.poll_beside(one)
    assert isinstance(task, Task)
    assert task.progress == Progress(5, 100, 5.0)


def test_a_task_that_an_answer_shows_twice_is_one_task(desk: Desk) -> None:
    one, other = desk.show(RUNNING, A, B)
    desk.session.objects[B] = desk.session.objects[A]
    assert {task for task, _ in desk.poll_beside(one, other)} == {A}
    assert (one.due, other.due) == (None, desk.now)


def test_a_poll_beside_push_tells_another_task_with_the_same_id(desk: Desk) -> None:
    (one,) = desk.show()
    desk.session.show(A, {**RUNNING, "queueTime": rfc3339(NOW + 60)})
    assert desk.poll_beside(one) == []
    assert (one.is_other, one.due) == (True, desk.now)


def test_a_task_that_a_poll_beside_push_does_not_show_is_polled_by_itself(desk: Desk) -> None:
    one, other = desk.show(RUNNING, A, B)
    del desk.session.objects[A]
    assert desk.poll_beside(one, other) == [(B, UNCHANGED)]
    assert (one.due, other.due) == (desk.now, None)
    assert A not in desk.tracker.absences


def test_a_parked_task_is_not_reported_beside_push(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.session.show(A, RUNNING)
    desk.update(A)
    assert desk.poll_beside(one) == []


# Questions of VMs


def test_a_question_and_its_answer_change_the_tasks_on_the_vm(desk: Desk) -> None:
    desk.show(ON_VM, A, B)
    desk.session.show_question("vm-1", QUESTION)
    assert statuses(desk.update("vm-1")) == {A: "BLOCKED", B: "BLOCKED"}
    for task in (A, B):
        desk.tracker.resume(task, quiet_until=0.0)
    desk.session.show_question("vm-1", None)
    desk.poller.apply_questions([desk.session.objects["vm-1"]])
    assert statuses(desk.take()) == {A: "RUNNING", B: "RUNNING"}


def test_an_update_without_the_question_changes_none(desk: Desk) -> None:
    desk.show(ON_VM)
    desk.session.show_question("vm-1", QUESTION)
    desk.update("vm-1")
    desk.tracker.resume(A, quiet_until=0.0)
    desk.session.objects["vm-1"] = ObjectState(Ref("VirtualMachine", "vm-1"), {})
    assert desk.update("vm-1") == []


def test_a_task_that_was_reported_before_waits_for_its_question(desk: Desk) -> None:
    (one,) = desk.track(A, awaits_question=True)
    desk.session.show(A, ON_VM)
    assert desk.update(A) == []
    assert (one.awaits_question, one.due) == (True, desk.now)


def test_a_poll_that_first_shows_the_vm_is_followed_by_one_with_its_question(desk: Desk) -> None:
    (one,) = desk.track(A, awaits_question=True)
    desk.session.show(A, ON_VM)
    desk.session.show_question("vm-1", QUESTION)
    assert desk.poll(one) == []
    assert one.due == desk.now
    assert statuses(desk.poll(one)) == {A: "BLOCKED"}
    assert desk.session.asked == [[A], [A, "vm-1"]]


def test_a_task_without_a_vm_waits_for_none(desk: Desk) -> None:
    (one,) = desk.track(A, awaits_question=True)
    desk.session.show(A, RUNNING)
    assert statuses(desk.update(A)) == {A: "RUNNING"}
    assert not one.awaits_question


def test_nobody_waits_for_questions_that_are_polled_separately(desk: Desk) -> None:
    desk.transport.separate_questions = True
    (one,) = desk.track(A, awaits_question=True)
    desk.session.show(A, ON_VM)
    assert statuses(desk.update(A)) == {A: "RUNNING"}
    desk.poll(one)
    assert desk.session.asked == [[A]]


def test_a_vm_that_delays_the_answer_is_left_out(desk: Desk) -> None:
    (one,) = desk.show(ON_VM)
    desk.session.errors["vm-1"] = NoAnswer("nothing came")
    assert desk.poll(one) == [(A, UNCHANGED)]
    assert desk.transport.separate_questions
    assert desk.session.asked == [[A, "vm-1"], [A]]
    assert [limits.read_timeout_s for limits in desk.session.limits] == [3.0, None]


# Answers that can't be read


@pytest.mark.parametrize("error", [UnreadableXml("cut off"), AnswerTooLarge("too large"), fault("RuntimeFault")])
def test_the_task_that_is_to_blame_is_found_by_halves(desk: Desk, error: Exception) -> None:
    those = desk.show(RUNNING, *(f"task-{number}" for number in range(8)))
    desk.session.errors["task-5"] = error
    polled = desk.polled
    assert set(statuses(desk.poll(*those))) == {f"task-{number}" for number in range(8)} - {"task-5"}
    bad = those[5]
    assert (bad.failures, bad.phase, bad.is_logged) == (1, WAITING, True)
    assert 0.5 <= (bad.due or 0.0) - desk.now <= 1.0
    assert "task-5" not in desk.tracker.absences
    assert desk.polled == polled + 7
    assert [len(asked) for asked in desk.session.asked][:4] == [8, 4, 4, 2]


@pytest.mark.parametrize(("count", "requests"), [(1, 1), (8, 11)])
def test_if_nothing_can_be_read_that_is_vcenter_s_trouble(desk: Desk, count: int, requests: int) -> None:
    those = desk.show(RUNNING, *(f"task-{number}" for number in range(count)))
    desk.session.errors = {one.id: UnreadableXml("cut off") for one in those}
    if count == 1:
        desk.poll(*those)
    else:
        with pytest.raises(UnreadableXml):
            desk.poll(*those)
    assert len(desk.session.asked) == requests


@pytest.mark.parametrize("error", [XmlOutOfBounds("too deep."), AnswerTooLarge("too large.")])
@pytest.mark.parametrize("without", [("result",), ("result", "error")])
def test_a_task_whose_values_are_too_large_is_shown_without_them(
    desk: Desk, error: Exception, without: tuple[str, ...]
) -> None:
    (one,) = desk.show()
    desk.session.show(A, {"state": "error", **QUEUED})
    desk.session.errors[A] = error
    desk.session.readable_without = without
    polled = desk.polled
    ((_, task),) = desk.poll(one)
    assert isinstance(task, Task)
    assert task.result is not None
    assert (task.status, task.result.available, task.result.reason) == ("FAILED", False, str(error).removesuffix("."))
    assert task.error is not None
    assert ("too large for the bridge" in task.error.message) is ("error" in without)
    assert (len(desk.session.asked), desk.polled, one.failures) == (1 + len(without), polled + 1, 0)


def test_a_task_whose_state_can_not_be_read_either_is_unreadable(desk: Desk) -> None:
    (one,) = desk.show()
    desk.session.errors[A] = XmlOutOfBounds("too deep")
    assert desk.poll(one) == []
    assert (one.failures, len(desk.session.asked)) == (1, 3)


def test_a_task_that_is_gone_is_missing_though_its_values_were_too_large(desk: Desk) -> None:
    (one,) = desk.show()
    desk.session.errors[A] = XmlOutOfBounds("too deep")
    desk.session.readable_without = ("result",)
    desk.session.show(A, {}, is_gone=True)
    desk.poll(one)
    assert A in desk.tracker.absences


def test_a_withheld_task_among_others_is_unreadable(desk: Desk) -> None:
    one, other = desk.show(RUNNING, A, B)
    desk.session.show(A, {}, is_withheld=True)
    assert statuses(desk.poll(one, other)) == {B: "Unchanged"}
    assert (one.failures, A in desk.tracker.absences) == (1, False)
    desk.session.show(A, RUNNING)
    assert statuses(desk.poll(one)) == {A: "Unchanged"}
    assert (one.failures, one.is_logged) == (0, False)


def test_a_task_without_a_state_is_unreadable(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.session.show(A, QUEUED)
    assert desk.poll(one) == []
    assert (one.failures, one.phase) == (1, WAITING)
    assert one.due is not None
    assert "task-1 as what can't be read: it has no state" in (desk.health.reason or "")


# Absent tasks


def poll_until_reported(desk: Desk, one: TrackedVimTask, within_s: float) -> tuple[float, list[PollResult]]:
    """Poll the task every half second. Return after how many seconds something is reported, and what."""
    began = desk.now
    while desk.now < began + within_s:
        if results := [result for _, result in desk.poll(one)]:
            return desk.now - began, results
        desk.now += 0.5
    return within_s, []


def test_a_task_that_vcenter_never_shows_is_lost_after_the_grace_period(desk: Desk) -> None:
    (one,) = desk.track(A)
    after_s, (absence,) = poll_until_reported(desk, one, 40)
    assert isinstance(absence, Absence)
    assert (absence.outcome, after_s) == ("lost", 30.0)
    assert len(desk.session.history_filters) >= 1
    assert one.task is None


def test_a_denied_task_is_denied_and_not_searched_in_the_history(desk: Desk) -> None:
    (one,) = desk.show(seen=True)
    desk.session.show(A, {}, denied="NoPermission")
    _, (absence,) = poll_until_reported(desk, one, 70)
    assert isinstance(absence, Absence)
    assert absence.outcome == "denied"
    assert absence.answer.type == "NoPermission"
    assert not desk.session.history_filters


def test_an_end_that_only_the_history_shows_is_reported(desk: Desk) -> None:
    (one,) = desk.show(ON_VM)
    del desk.session.objects[A]
    desk.session.history = [{**ENDED, "key": A}]
    _, (task,) = poll_until_reported(desk, one, 70)
    assert isinstance(task, Task)
    assert (task.status, one.due, one.history_read) == ("SUCCEEDED", None, True)
    assert A not in desk.tracker.absences


def test_a_history_in_which_the_task_runs_is_no_end(desk: Desk) -> None:
    (one,) = desk.show()
    del desk.session.objects[A]
    desk.session.history = [{**RUNNING, "key": A}]
    _, (absence,) = poll_until_reported(desk, one, 70)
    assert isinstance(absence, Absence)


def test_the_history_is_searched_once_before_the_task_is_given_up_and_then_again(desk: Desk) -> None:
    (one,) = desk.show()
    del desk.session.objects[A]
    poll_until_reported(desk, one, 70)
    assert len(desk.session.history_filters) == 2


def search(desk: Desk, *those: TrackedVimTask) -> tuple[float, float]:
    desk.poll(*those)
    begin, end = re.findall(r"<(?:beginTime|endTime)>([^<]+)<", desk.session.history_filters[-1])
    return parse_time(begin) or 0.0, parse_time(end) or 0.0


def test_the_history_is_searched_around_when_the_tasks_were_queued(desk: Desk) -> None:
    one, other = desk.track(A, B, seen=True)
    one.identity, other.identity = TaskIdentity(NOW - 500, "x"), TaskIdentity(NOW - 100, "x")
    assert search(desk, one, other) == (NOW - 560, NOW - 40)


def test_a_task_that_was_never_seen_is_searched_from_a_day_before_its_watch(desk: Desk) -> None:
    one, other = desk.track(A, B)
    other.identity = TaskIdentity(NOW - 100, "x")
    assert search(desk, one, other) == (NOW - 86_400 - 60, NOW + desk.now + 3_600)


@pytest.mark.parametrize("kind", ["NoPermission", "RestrictedByAdministrator", "NotSupported"])
def test_a_history_that_nobody_may_read_delays_nothing(desk: Desk, kind: str) -> None:
    (one,) = desk.show(RUNNING, A, seen=True)
    del desk.session.objects[A]
    desk.session.history_error = fault(kind)
    with capture_logs() as logs:
        after_s, (absence,) = poll_until_reported(desk, one, 200)
    assert isinstance(absence, Absence)
    assert after_s <= 61
    assert [log["event"] for log in logs].count("history_unavailable") == 1


def test_a_history_that_can_not_be_read_now_is_asked_for_a_minute(desk: Desk) -> None:
    (one,) = desk.show(RUNNING, A, B)[:1]
    del desk.session.objects[A]
    desk.poll(desk.tracker.tasks[B])
    desk.session.history_error = fault("RuntimeFault")
    after_s, (absence,) = poll_until_reported(desk, one, 200)
    assert isinstance(absence, Absence)
    assert after_s == 60.0


def test_a_task_that_was_never_seen_waits_for_no_history(desk: Desk) -> None:
    (one,) = desk.track(A)
    desk.session.history_error = fault("RuntimeFault")
    after_s, (absence,) = poll_until_reported(desk, one, 100)
    assert isinstance(absence, Absence)
    assert after_s == 30.0


def test_a_history_that_comes_back_shows_the_end(desk: Desk) -> None:
    (one,) = desk.show()
    del desk.session.objects[A]
    desk.session.history_error = fault("RuntimeFault")
    with capture_logs() as logs:
        desk.poll(one)
        assert one.history_refused_at == desk.now
        desk.now += 1
        desk.poll(one)
        assert one.history_refused_at == desk.now - 1
        desk.session.history_error, desk.session.history = None, [{**ENDED, "key": A}]
        desk.now += 1
        assert statuses(desk.poll(one)) == {A: "SUCCEEDED"}
    assert one.history_refused_at is None
    assert [log["event"] for log in logs if "history" in log["event"]] == [
        "history_unavailable",
        "history_available_again",
    ]


def test_another_task_with_the_id_is_no_sign_of_this_one(desk: Desk) -> None:
    (one,) = desk.show()
    desk.session.show(A, {**RUNNING, "queueTime": rfc3339(NOW + 500)})
    ((_, absence),) = desk.poll(one)
    assert isinstance(absence, Absence)
    assert absence.outcome == "lost"
    assert "another task" in absence.answer.message


def test_a_task_that_is_shown_again_is_listed_again(desk: Desk) -> None:
    (one,) = desk.show()
    shown = desk.session.objects.pop(A)
    desk.poll(one)
    assert A in desk.tracker.absences
    desk.session.objects[A] = shown
    assert desk.poll(one) == [(A, UNCHANGED)]
    assert A not in desk.tracker.absences
    assert one.ref in desk.transport.view.to_add


def test_tasks_that_vanish_together_are_told_to_the_health(desk: Desk) -> None:
    those = desk.show(RUNNING, A, B, "task-3")
    shown, desk.session.objects = desk.session.objects, {}
    desk.poll(*those)
    assert "3 tasks" in (desk.health.vanished_reason or "")
    desk.session.objects = shown
    desk.poll(*those)
    assert desk.health.vanished_reason is None


def test_a_task_that_was_forgotten_meanwhile_is_not_missing(desk: Desk) -> None:
    (one,) = desk.show()
    del desk.session.objects[A]

    def forget() -> None:
        desk.tracker.forget(A)

    desk.session.on_read = forget
    assert desk.poll(one) == []
    assert one.phase == FORGOTTEN
    assert A not in desk.tracker.absences
    assert not desk.session.history_filters


# Tasks as a history showed them


def test_a_found_end_needs_no_poll(desk: Desk) -> None:
    (one,) = desk.track(A)
    one.due = desk.now
    desk.poller.apply_found(one, ENDED)
    assert statuses(desk.take()) == {A: "SUCCEEDED"}
    assert one.due is None
    assert one.seen


def test_a_found_task_that_runs_is_polled_as_others_are(desk: Desk) -> None:
    (one,) = desk.track(A)
    one.due = desk.now
    desk.poller.apply_found(one, RUNNING)
    assert statuses(desk.take()) == {A: "RUNNING"}
    assert one.due == desk.now


@pytest.mark.parametrize("info", [{}, {**ENDED, "queueTime": rfc3339(NOW + 500)}])
def test_what_is_not_this_task_is_not_reported(desk: Desk, info: Info) -> None:
    (one,) = desk.track(A, identity=TaskIdentity(NOW - 10, "Task.x"))
    desk.poller.apply_found(one, info)
    assert (desk.take(), one.seen) == ([], False)


def test_a_found_task_that_is_forgotten_or_parked_is_not_reported(desk: Desk) -> None:
    one, other = desk.track(A, B)
    desk.tracker.forget(A)
    desk.poller.apply_found(one, ENDED)
    other.phase = PARKED
    desk.poller.apply_found(other, ENDED)
    assert desk.take() == []
    assert (one.seen, other.seen) == (False, True)
