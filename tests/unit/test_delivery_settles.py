"""A replica sends only while nats-server confirms that it holds all events of a delivery that are under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from task_bridge.delivery.deliverer import Deliverer, HeldEvent
from task_bridge.delivery.order import DeliveryOrder
from task_bridge.domain.errors import NatsUnavailable
from task_bridge.jetstream.delivery_consumer import ConsumerReport


def held(sequence: int) -> HeldEvent:
    return cast("HeldEvent", SimpleNamespace(sequence=sequence, task_key="t"))


def report(*, ack_pending: int, delivered: int, pinned: str | None = "mine") -> ConsumerReport:
    return ConsumerReport("deliver-x", ack_pending, 0, "", pinned, delivered)


def build(read: Callable[[], ConsumerReport | None]) -> Any:
    """A deliverer that holds event 6; `read` is what nats-server answers."""

    async def answer(_: str) -> ConsumerReport | None:
        return read()

    one: Any = Deliverer.__new__(Deliverer)
    one._held, one._is_settled, one._trouble, one._confirmed_at = DeliveryOrder(), False, None, float("-inf")
    one._settings, one._pull = SimpleNamespace(name="x"), SimpleNamespace(pin="mine")
    one._consumers = SimpleNamespace(read=answer)
    one._held.add(held(6))
    return one


@pytest.mark.parametrize(
    ("answer", "may"),
    [
        (report(ack_pending=1, delivered=6), True),
        (report(ack_pending=2, delivered=6), False),  # another replica holds one
        (report(ack_pending=1, delivered=6, pinned="other"), False),
        (report(ack_pending=1, delivered=6, pinned=None), False),
        (None, False),
    ],
)
async def test_it_sends_once_it_holds_all_that_is_under_way(answer: ConsumerReport | None, may: bool) -> None:
    assert await build(lambda: answer)._may_send() is may


async def test_an_event_that_comes_while_nats_answers_doesnt_hide_one_that_is_elsewhere() -> None:
    def read() -> ConsumerReport:
        one._held.add(held(7))  # stored and delivered after the report below was made
        return report(ack_pending=2, delivered=6)

    one = build(read)
    assert not await one._may_send()


async def test_what_isnt_confirmed_ends_with_the_lease() -> None:
    def read() -> ConsumerReport:
        raise NatsUnavailable("away")

    one = build(read)
    one._is_settled, one._confirmed_at = True, time.monotonic() - 3
    assert await one._may_send()
    one._confirmed_at = time.monotonic() - 6
    assert not await one._may_send()
