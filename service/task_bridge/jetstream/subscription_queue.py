"""The messages of a subscription, one after the other.

`next_msg` of nats-py makes a task of each, so that in a busy event loop a thousand that have arrived take seconds
(2.16, measured).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

_IN_A_ROW = 64


class SubscriptionQueue:
    """What `hearing` yields."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Msg] = asyncio.Queue()
        self._taken = 0

    async def hear(self, message: Msg) -> None:
        self._messages.put_nowait(message)

    async def next(self, within_s: float) -> Msg:
        """The next message. Raises TimeoutError."""
        self._taken += 1
        if self._messages.empty():
            async with asyncio.timeout(within_s):  # wait_for of 3.11 may swallow a cancellation
                return await self._messages.get()
        if self._taken % _IN_A_ROW == 0:
            await asyncio.sleep(0)  # others have work too
        return self._messages.get_nowait()


@asynccontextmanager
async def queued_subscription(client: Client, subject: str) -> AsyncIterator[SubscriptionQueue]:
    """Subscribed to `subject` meanwhile."""
    heard = SubscriptionQueue()
    subscription = await client.subscribe(subject, cb=heard.hear)
    try:
        yield heard
    finally:
        with suppress(nats.errors.Error):
            await subscription.unsubscribe()
