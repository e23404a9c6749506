"""What is told to end ends, also where a library swallows the word."""

from __future__ import annotations

import asyncio

from task_bridge.jetstream.nats_py_workarounds import cancel_and_wait


async def answering(answer: asyncio.Future[None], began: asyncio.Event) -> None:
    """Asks without end, as whoever looks after JetStream does; `wait_for` is what nats-py's requests stand on."""
    while True:
        began.set()
        await asyncio.wait_for(asyncio.shield(answer), 5)
        answer = asyncio.get_running_loop().create_future()


async def test_a_cancellation_that_meets_an_answer_ends_the_task_all_the_same() -> None:
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    began = asyncio.Event()
    task = asyncio.create_task(answering(answer, began))
    await began.wait()
    await asyncio.sleep(0)
    answer.set_result(None)  # in the same turn of the loop as the cancellation
    async with asyncio.timeout(5):
        await cancel_and_wait(task)
    assert task.done()


async def test_what_ends_by_a_failure_of_its_own_says_nothing_any_more() -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise OSError("on the way out")

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await cancel_and_wait(task)
    assert isinstance(task.exception(), OSError)
