"""When tasks that push doesn't show are pulled beside it, and which."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from structlog.testing import capture_logs

from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.domain.task import Task
from task_bridge.vcenter.tracked_task import PARKED
from task_bridge.vcenter.vim.session import SessionEnded
from task_bridge.vcenter.vim.transport import TrackedVimTask
from task_bridge.vcenter.vim.unshown import DuePull, UnshownTaskPoller, find_due_pull

SILENCE_S = 5.0


def task(number: int, shown_at: float, **more: object) -> TrackedVimTask:
    tracked = TrackedVimTask(f"task-{number}", True, since=0.0, identity=None, shown_at=shown_at)
    for name, value in more.items():
        setattr(tracked, name, value)
    return tracked


def find(*tasks: TrackedVimTask, pulled_at: float = -math.inf) -> DuePull | None:
    return find_due_pull({one.id: one for one in tasks}, SILENCE_S, pulled_at)


@pytest.mark.parametrize(
    ("shown_at", "pulled_at", "at"),
    [
        ([100.0], -math.inf, 105.0),
        ([100.0, 103.0], -math.inf, 105.0),
        ([103.0, 100.0], -math.inf, 105.0),
        ([100.0], 100.0, 105.0),
        ([100.0], 102.0, 107.0),  # no more than a request in 5 s
        ([109.0], 102.0, 114.0),  # push shows it
    ],
)
def test_a_pull_is_due_when_the_first_task_has_not_been_shown_for_long(
    shown_at: list[float], pulled_at: float, at: float
) -> None:
    due = find(*(task(number, one) for number, one in enumerate(shown_at)), pulled_at=pulled_at)
    assert due is not None
    assert due.at == at


def test_it_takes_those_along_that_would_be_due_next() -> None:
    due = find(task(1, 103.0), task(2, 100.0), task(3, 101.0))
    assert due is not None
    assert [one.id for one in due.tasks] == ["task-2", "task-3", "task-1"]


@pytest.mark.parametrize(
    "waiting",
    [
        {"phase": PARKED},
        {"due": 3.0},  # polled by itself
        {"task": Task(status="SUCCEEDED")},
    ],
)
def test_a_task_that_push_need_not_show_is_left_out(waiting: dict[str, object]) -> None:
    assert find(task(1, 1.0, **waiting)) is None
    due = find(task(1, 1.0, **waiting), task(2, 100.0))
    assert due is not None
    assert (due.at, [one.id for one in due.tasks]) == (105.0, ["task-2"])


def test_without_tasks_there_is_nothing_to_pull() -> None:
    assert find() is None


@pytest.mark.parametrize(
    ("count", "interval_s"),
    [(1, 5.0), (500, 5.0), (501, 2.5), (1_000, 2.5), (1_001, 5 / 3), (5_000, 0.5), (50_000, 0.5)],
)
def test_tasks_beyond_500_are_pulled_in_turn_with_a_request_more_for_each_500(count: int, interval_s: float) -> None:
    due = find(*(task(number, 100.0) for number in range(count)))
    assert due is not None
    assert due.at == pytest.approx(100.0 + interval_s)
    assert len(due.tasks) == min(count, 500)


@pytest.mark.parametrize("count", [1, 499, 500, 501, 1_200, 2_500])
def test_each_task_is_pulled_once_in_five_seconds_and_no_request_too_many_is_sent(count: int) -> None:
    tasks = {one.id: one for one in (task(number, 0.0) for number in range(count))}
    pulled_at, requests, oldest_s = -math.inf, 0, 0.0
    while (due := find_due_pull(tasks, SILENCE_S, pulled_at)) is not None and due.at <= 60.0:
        pulled_at, requests = due.at, requests + 1
        oldest_s = max(oldest_s, due.at - min(one.shown_at for one in tasks.values()))
        for one in due.tasks:
            one.shown_at = due.at
    assert oldest_s <= SILENCE_S + 1e-6
    assert requests <= 60 / SILENCE_S * math.ceil(count / 500)


async def test_whatever_a_poll_ends_with_the_next_one_comes() -> None:
    outcomes = [None, SessionEnded("It ended."), VCenterUnavailable("It is away."), ZeroDivisionError()]
    told: list[str] = []
    done = asyncio.Event()

    async def poll(those: list[TrackedVimTask]) -> None:
        assert [one.id for one in those] == ["task-1"]
        if not outcomes:
            done.set()
        elif (error := outcomes.pop(0)) is not None:
            raise error

    one = task(1, time.monotonic() - 60.0)
    poller = UnshownTaskPoller(
        "lab",
        {one.id: one},
        0.01,
        may_poll=lambda: True,
        poll=poll,
        on_answer=lambda: told.append("answer"),
        on_failure=lambda error, _: told.append(str(error)),
        wake_up=lambda: told.append("wake"),
        clock=time.monotonic,
    )
    poller.loop.ensure_running()
    with capture_logs() as logs:
        async with asyncio.timeout(10):
            await done.wait()
    await poller.loop.stop()
    assert told[:6] == ["answer", "wake", "wake", "It is away.", "wake", "wake"]
    assert [log["event"] for log in logs] == ["look_failed"]
