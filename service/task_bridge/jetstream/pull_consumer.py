"""A long-lived pull request on a durable consumer, whose messages are handled as they arrive.

nats-py's `fetch` (2.16) delivers a lone message as promptly, but it hands a batch over only as a whole, after some
three turns of the event loop for each message. Measured on two shared cores, fetch against this:

* A bridge restarted with 20,000 watches holds all after 9.2 s against 6.0 to 8.0 s, with 5.1 to 5.4 against 2.7 to
  3.4 s of CPU; 3,500 to 5,000 watches came twice, because they waited in a batch beyond `ack_wait`, without heartbeat.
* 3,000 messages in an event loop whose turns take 4 ms: 40 s against 0.2 s.
* After a restart of nats-server a fetch waits until its timeout (2.3 s of 5), since it doesn't learn of the reconnect.
* While the consumer is missing, a loop of fetches sends some 500 requests a second and never learns why (409).
* A fetch swallowed the cancellation (as `asyncio.wait_for` of Python 3.11 does), so a bridge told to stop went on.
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
"""Short, because a replica with more than its share hands watches back only after its last pull has expired."""
IDLE_HEARTBEAT_S = 2.0
SILENCE_S = 5.0
PAUSE_S = 1.0
_EXPIRED = ("404", "408")
_WRONG_PIN = "423"


class PullConsumer:
    """Keeps pull requests open for up to `free_capacity()` messages.

    The owner subscribes to `inbox` and passes each message to `handle_status` first. `trouble` says why no messages
    come, None while JetStream answers.

    `group`: the priority group of a consumer that serves one of its clients at a time, the pinned one. `pin` is this
    client's, None while another may be pinned.
    """

    def __init__(
        self,
        streams: Streams,
        stream: str,
        consumer: str,
        inbox: str,
        free_capacity: Callable[[], int],
        *,
        group: str | None = None,
    ) -> None:
        self.inbox = inbox
        self._streams = streams
        self._subject = f"{streams.prefix}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self.name = f"{stream}/{consumer}"
        self._free_capacity = free_capacity
        self._requested = 0
        self._answered_at = time.monotonic()
        self._wake = asyncio.Event()
        self._must_pause = False
        self.trouble: str | None = None
        self._group = group
        self.pin: str | None = None

    def handle_status(self, message: Msg) -> bool:
        """Record what arrived. Return whether `message` is JetStream's status of the pull, not a stored message."""
        self._answered_at = time.monotonic()
        headers = message.headers or {}
        status = headers.get("Status")
        # A stored message can carry any headers, also those of a status, but only it has something to acknowledge.
        if status is None or message.reply.startswith("$JS.ACK."):
            self.trouble = None
            self._requested -= 1
            self.pin = headers.get("Nats-Pin-Id", self.pin)
            self._wake.set()
            return False
        if status == _WRONG_PIN:
            self._requested, self.pin = 0, None
        elif status in _EXPIRED:
            self._requested -= int(headers.get("Nats-Pending-Messages", self._requested))
        elif status != "100":
            # 409: consumer or leader gone, server shutting down; 503: nobody serves this consumer.
            lines = headers.get("Description", "").splitlines()  # nats-py parses that of a 503 wrongly
            self.trouble = (lines and lines[0]) or "no consumer answers"
            self._requested, self._must_pause = 0, True
        else:
            self.trouble = None
        self._wake.set()
        return True

    @property
    def is_open(self) -> bool:
        """Return whether requested messages may still come."""
        return self._requested > 0

    def request_more(self) -> None:
        """Wake the pull, because capacity has become free."""
        self._wake.set()

    def reset(self) -> None:
        """Request again after the connection was lost, since nats-server has forgotten the open request."""
        self._requested = 0
        self._wake.set()

    async def run(self) -> None:
        """Send pull requests as capacity becomes free, without end."""
        self._requested, self.trouble = 0, None
        while True:
            await self._send_request()
            try:
                async with asyncio.timeout(IDLE_HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                if self._requested and time.monotonic() - self._answered_at > SILENCE_S:
                    self._requested, self._answered_at = 0, time.monotonic()
                    self.trouble = f"no answer to the pull on {self._subject}; may the bridge's user publish there?"
                    log.warning("pull_unanswered", consumer=self.name)
            self._wake.clear()
            if self._must_pause:
                self._must_pause = False
                log.warning("pull_interrupted", consumer=self.name, reason=self.trouble)
                await asyncio.sleep(PAUSE_S)

    async def _send_request(self) -> None:
        """Request the missing messages, if at least half of the free capacity isn't requested."""
        capacity = self._free_capacity()
        self._requested = max(0, self._requested)
        missing = capacity - self._requested
        if capacity <= 0 or missing < max(1, capacity // 2) or not self._streams.connection.is_connected:
            return
        request = {
            "batch": missing,
            "expires": int(EXPIRES_S * 1e9),
            "idle_heartbeat": int(IDLE_HEARTBEAT_S * 1e9),
            **({"group": self._group} if self._group else {}),
            **({"id": self.pin} if self.pin else {}),
        }
        try:
            await self._streams.connection.publish(self._subject, json.dumps(request).encode(), self.inbox)
        except nats.errors.Error as error:
            log.debug("pull_not_asked", consumer=self.name, reason=str(error))
            return
        self._requested += missing
        self._answered_at = time.monotonic()
