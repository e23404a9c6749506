"""How often replicas may die while they read one result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from task_bridge import result_reads
from task_bridge.result_reads import ResultReads
from unit.fakes import FakeMarks


def forbidden() -> None:
    raise AssertionError("given up")


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not fact():  # noqa: ASYNC110 - the fakes tell nobody
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("readers", "is_given_up", "then"),
    [(0, False, 1), (1, False, 2), (2, True, 2), (3, True, 3)],
)
async def test_two_owners_that_never_took_their_mark_back_are_enough(
    readers: int, is_given_up: bool, then: int
) -> None:
    marks, given_up = FakeMarks({"w": readers}), asyncio.Event()
    reads = ResultReads(marks)
    reads.begin("w", had_owner=True, give_up=given_up.set)
    await until(lambda: given_up.is_set() or marks.readers["w"] != readers)
    assert (given_up.is_set(), marks.readers["w"]) == (is_given_up, then)


@pytest.mark.parametrize("before", [0, 1])
async def test_a_result_that_was_read_or_given_up_in_good_order_leaves_the_number_as_it_was(before: int) -> None:
    marks = FakeMarks({"a": before, "b": before})
    reads = ResultReads(marks)
    for watch_id in "ab":
        reads.begin(watch_id, had_owner=True, give_up=forbidden)
    await until(lambda: marks.readers == {"a": before + 1, "b": before + 1})
    reads.end("a")
    await until(lambda: marks.readers == {"a": before, "b": before + 1})
    await reads.close()
    assert marks.readers == {"a": before, "b": before}


async def test_of_many_results_that_are_there_at_once_only_the_first_is_marked() -> None:
    marks = FakeMarks()
    reads = ResultReads(marks)
    for number in range(100):
        reads.begin(str(number), had_owner=False, give_up=forbidden)
        reads.end(str(number))
    await reads.close()
    assert marks.readers == {"0": 0}


async def test_of_many_slow_results_some_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_reads, "SLOW_S", 0.05)
    marks = FakeMarks()
    reads = ResultReads(marks)
    for _ in range(2):  # those that are there make room for the next
        marks.readers.clear()
        for number in range(100):
            reads.begin(str(number), had_owner=False, give_up=forbidden)
        await until(lambda: len(marks.readers) == result_reads.SLOW_MARKS_MAX)
        await reads.close()
        assert set(marks.readers.values()) == {0}


async def test_without_nats_results_are_read_all_the_same() -> None:
    marks = FakeMarks({"w": 5})
    marks.is_away = True
    reads = ResultReads(marks)
    reads.begin("w", had_owner=True, give_up=forbidden)
    await reads.close()
    assert marks.readers == {"w": 5}


async def test_a_watch_is_begun_once_and_may_end_twice() -> None:
    marks = FakeMarks()
    reads = ResultReads(marks)
    for _ in range(3):
        reads.begin("w", had_owner=True, give_up=forbidden)
    await until(lambda: marks.readers == {"w": 1})
    reads.end("w")
    reads.end("w")
    await reads.close()
    assert marks.readers == {"w": 0}
