"""A long-lived pull request on a durable consumer: what arrives is handed over at once.

nats-py's own fetch holds a partial batch back until its timeout (a single request waited seconds), or costs a
round trip a message. Here messages arrive on an inbox as they are stored: 2 ms for one, 100 µs each for many.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import nats.errors
import structlog
from nats.aio.msg import Msg

from .streams import Streams

log = structlog.get_logger(__name__)

EXPIRES_S = 5.0
"""Who holds more than its share hands some back when its last pull has expired, so it isn't long."""
IDLE_HEARTBEAT_S = 2.0
SILENCE_S = 5.0
PAUSE_S = 1.0
_TEMPORARY = ("404", "408")


class PullConsumer:
    """Keeps up to `room()` messages asked for. Each message on the inbox goes through `takes_status` first."""

    def __init__(self, streams: Streams, stream: str, consumer: str, inbox: str, room: Callable[[], int]) -> None:
        self.inbox = inbox
        self._streams = streams
        self._subject = f"{streams.prefix}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self.name = f"{stream}/{consumer}"
        self._room = room
        self._open = 0
        self._heard_at = time.monotonic()
        self._wake = asyncio.Event()
        self._pause = False
        self.trouble: str | None = None

    def handle_status(self, message: Msg) -> bool:
        """Whether the message is JetStream's word about the pull itself; it is dealt with then."""
        self._heard_at = time.monotonic()
        status = (message.headers or {}).get("Status")
        if status is None:
            self.trouble = None
            self._open -= 1
            self._wake.set()
            return False
        if status in _TEMPORARY:
            self._open -= int((message.headers or {}).get("Nats-Pending-Messages", self._open))
        elif status != "100":
            # 409: consumer or leader gone, server shutting down; 503: nobody serves this consumer.
            told = (message.headers or {}).get("Description", "").splitlines()  # of 503 nats-py reads it wrongly
            self.trouble = (told and told[0]) or "no consumer answers"
            self._open, self._pause = 0, True
        else:
            self.trouble = None
        self._wake.set()
        return True

    @property
    def is_open(self) -> bool:
        """Whether messages may come still."""
        return self._open > 0

    def request_more(self) -> None:
        """There is room again, or the connection came back and what was asked may be lost."""
        self._wake.set()

    def reset(self) -> None:
        """The connection came back: what was asked for is gone."""
        self._open = 0
        self._wake.set()

    async def run(self) -> None:
        """Asks, without end."""
        while True:
            await self._ask()
            try:
                async with asyncio.timeout(IDLE_HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                if self._open and time.monotonic() - self._heard_at > SILENCE_S:
                    self._open, self._heard_at = 0, time.monotonic()
                    self.trouble = f"no answer to the pull on {self._subject}; may the bridge's user publish there?"
                    log.warning("pull_unanswered", consumer=self.name)
            self._wake.clear()
            if self._pause:
                self._pause = False
                log.warning("pull_interrupted", consumer=self.name, reason=self.trouble)
                await asyncio.sleep(PAUSE_S)

    async def _ask(self) -> None:
        wanted = self._room()
        self._open = max(0, self._open)
        missing = wanted - self._open
        if wanted <= 0 or missing < max(1, wanted // 2) or not self._streams.connection.is_connected:
            return
        request = {
            "batch": missing,
            "expires": int(EXPIRES_S * 1e9),
            "idle_heartbeat": int(IDLE_HEARTBEAT_S * 1e9),
        }
        try:
            await self._streams.connection.publish(self._subject, json.dumps(request).encode(), self.inbox)
        except nats.errors.Error as error:
            log.debug("pull_not_asked", consumer=self.name, reason=str(error))
            return
        self._open += missing
        self._heard_at = time.monotonic()
