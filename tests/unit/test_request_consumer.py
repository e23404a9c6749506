"""What consuming a request leaves behind."""

from __future__ import annotations

import gc
import weakref

from faststream.nats.message import NatsMessage
from nats.aio.client import Client
from nats.aio.msg import Msg

from task_bridge.jetstream.request_consumer import keep_raw_message


async def test_a_request_does_not_keep_itself_alive() -> None:
    raw = Msg(Client(), subject="vcenter.tasks.watch", data=b'"task-1"')
    message = NatsMessage(raw_message=raw, body=raw.data)
    message.set_decoder(keep_raw_message)
    assert await message.decode() is raw
    kept = weakref.ref(message)
    gc.disable()
    try:
        del message
        assert kept() is None
    finally:
        gc.enable()
