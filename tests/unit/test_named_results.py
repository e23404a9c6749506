"""What a source found, on its way to the watcher: with names as they are known, and without waiting for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from task_bridge.domain.errors import VCenterUnavailable
from task_bridge.domain.ports import UNCHANGED, PollResult, TargetNamed, Unanswered
from task_bridge.domain.task import NO_RESULT, Target, Task, TaskError
from task_bridge.vcenter.name_lookup import NameLookup
from task_bridge.vcenter.named_results import NamedResults
from task_bridge.vcenter.shared import ResultQueue
from task_bridge.vcenter.vim.inventory import Entity
from task_bridge.vcenter.vim.soap import Ref

TARGET = Target("VirtualMachine", "vm-7")
NAMED = Target("VirtualMachine", "vm-7", "web", "/web")
RUNNING = Task("RUNNING", target=TARGET)
ENDED = Task("SUCCEEDED", target=TARGET, result=NO_RESULT)


class Inventory:
    """Answers when a test lets it; `asked` are the batches."""

    def __init__(self) -> None:
        self.asked: list[list[Ref]] = []
        self.answers = asyncio.Event()
        self.error: Exception | None = None

    async def prepare_lookup(self) -> None:
        """There is a session."""

    async def fetch_entities(self, refs: list[Ref], take_turn: Callable[[], Awaitable[None]]) -> dict[Ref, Entity]:
        self.asked.append(refs)
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        root = Ref("Folder", "group-d1")
        return {root: Entity("Datacenters", None, False), **{ref: Entity("web", root, True) for ref in refs}}


class Stage:
    def __init__(self) -> None:
        self.inventory = Inventory()
        self.queue = ResultQueue()
        self.now = 0.0
        self.lookup = NameLookup("lab", self.inventory, lambda: self.now)
        self.results = NamedResults(self.queue, self.lookup)
        self._batches = self.results.batches()

    async def name(self, *results: PollResult, task: str = "t") -> list[PollResult]:
        for result in results:
            self.queue.put(task, result)
        return await self.next_batch()

    async def next_batch(self) -> list[PollResult]:
        async with asyncio.timeout(5):
            return [result for _, result in await anext(self._batches)]

    async def answer(self) -> None:
        self.inventory.answers.set()
        assert self.lookup._running is not None
        await asyncio.wait_for(self.lookup._running, 5)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    await stage.lookup.stop()
    stage.results.forget("t")


def named(task: Task) -> Task:
    return Task(task.status, target=NAMED, result=task.result)


async def test_a_result_goes_out_without_names_and_they_follow_by_themselves(stage: Stage) -> None:
    assert await stage.name(RUNNING) == [RUNNING]
    assert await stage.name(UNCHANGED) == [UNCHANGED]
    await stage.answer()
    assert await stage.next_batch() == [TargetNamed(NAMED)]
    assert await stage.name(RUNNING) == [named(RUNNING)]
    assert stage.inventory.asked == [[Ref("VirtualMachine", "vm-7")]]


async def test_known_names_are_added_before_a_task_is_kept_and_it_is_not_copied_again(stage: Stage) -> None:
    assert stage.results.add_known_names(RUNNING) is RUNNING
    await stage.answer()
    kept = stage.results.add_known_names(RUNNING)
    assert kept == named(RUNNING)
    (passed_on,) = await stage.name(kept)
    assert passed_on is kept


async def test_what_has_a_name_and_path_or_no_target_is_left_alone(stage: Stage) -> None:
    others = [named(RUNNING), Task("RUNNING"), Task("RUNNING", target=Target("com.example.Thing", "x-1"))]
    assert await stage.name(*others) == others
    assert stage.inventory.asked == []


async def test_a_last_result_is_first_passed_on_as_if_it_were_not_there_and_comes_with_its_names(stage: Stage) -> None:
    assert await stage.name(ENDED) == [Task("SUCCEEDED", target=TARGET)]
    await stage.answer()
    assert await stage.next_batch() == [named(ENDED)]


async def test_a_last_result_waits_half_a_second_and_only_once(stage: Stage) -> None:
    loop = asyncio.get_running_loop()
    await stage.name(ENDED)
    began = loop.time()
    assert await stage.next_batch() == [ENDED]
    assert 0.45 <= loop.time() - began <= 1.0
    assert await stage.name(ENDED) == [ENDED]
    stage.results.forget("t")
    assert await stage.name(ENDED) == [Task("SUCCEEDED", target=TARGET)]


async def test_a_last_result_does_not_wait_where_no_answer_comes_soon(stage: Stage) -> None:
    stage.inventory.error = VCenterUnavailable("away")
    stage.inventory.answers.set()
    await stage.name(RUNNING)
    await asyncio.sleep(0.05)
    assert await stage.name(ENDED) == [ENDED]


async def test_an_ended_task_whose_result_is_still_fetched_does_not_wait(stage: Stage) -> None:
    still_fetched = Task("SUCCEEDED", target=TARGET)
    assert await stage.name(still_fetched) == [still_fetched]
    assert await stage.name(Unanswered()) == [Unanswered()]


async def test_a_newer_last_result_replaces_the_one_that_waits(stage: Stage) -> None:
    await stage.name(ENDED)
    newer = Task("FAILED", target=TARGET, result=NO_RESULT)
    assert await stage.name(newer) == [newer]
    await stage.answer()
    stage.queue.put("other", UNCHANGED)
    assert await stage.next_batch() == [TargetNamed(NAMED), UNCHANGED]


async def test_nothing_is_kept_of_a_task_that_is_forgotten(stage: Stage) -> None:
    await stage.name(ENDED)
    stage.results.forget("t")
    await stage.answer()
    assert await stage.name(UNCHANGED) == [UNCHANGED]
    assert not any((stage.results._unnamed, stage.results._tasks_on, stage.results._held))


async def test_an_object_that_a_task_misses_is_looked_up_again(stage: Stage) -> None:
    await stage.name(RUNNING)
    await stage.answer()
    failed = Task("FAILED", target=TARGET, error=TaskError("ManagedObjectNotFound", "It has gone."))
    _, result = await stage.name(failed)  # the first is what the answer brought
    assert isinstance(result, Task)
    assert result.target == NAMED
    stage.now = 10.0
    assert await stage.name(RUNNING) == [RUNNING]
