"""The durable consumer of a delivery, which serves one replica at a time.

nats-server pins one client of the consumer's priority group (`pinned_client`, since 2.11) and gives it all messages,
redelivered ones too. If that client is silent for `PIN_TIMEOUT_S`, another one is pinned.
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

import msgspec
import nats.errors

from ..domain.durations import rfc3339
from ..domain.errors import NatsUnavailable
from ..domain.subjects import SubjectNames
from .provision import add_late_subject, delivery_subjects
from .request_mux import REQUEST_TIMEOUT_S
from .streams import Streams

GROUP = "deliver"
WINDOW = 256
"""Events that are held at most: being sent, or waiting for their next try."""
PIN_TIMEOUT_S = 10.0
"""Above the 5 s after which a client asks again, so that one that lives keeps its pin."""
_NOT_FOUND = (10014, 10059)


class ConsumerReport(NamedTuple):
    """The state of a delivery's consumer: events that were delivered to a replica and not acknowledged, and the rest.

    `created`: when it was made, RFC 3339. `pinned`: the pin of the replica that was given an event and hasn't been
    silent since, None if there is none. `delivered`: the sequence in the stream up to which events were delivered.
    """

    name: str
    ack_pending: int
    pending: int
    created: str
    pinned: str | None
    delivered: int


class ConsumerStart(NamedTuple):
    """Where a new durable begins: with `new` events, with `all`, at a time (Unix s), or at a sequence of the stream."""

    policy: Literal["new", "all", "by_start_time", "by_start_sequence"]
    at: float = 0

    def build(self) -> dict[str, Any]:
        """Return it as the configuration of a consumer has it."""
        if self.policy == "by_start_time":
            return {"deliver_policy": self.policy, "opt_start_time": rfc3339(self.at)}
        if self.policy == "by_start_sequence":
            return {"deliver_policy": self.policy, "opt_start_seq": int(self.at)}
        return {"deliver_policy": self.policy}


class DeliveryConsumers:
    """The durables of deliveries on the events stream. Every method raises NatsUnavailable."""

    def __init__(self, streams: Streams, names: SubjectNames) -> None:
        self._streams = streams
        self._names = names
        self._stream = names.events_stream

    def name_consumer(self, delivery: str) -> str:
        return f"deliver-{delivery}"

    async def prepare(
        self, delivery: str, filters: list[str], *, ack_wait_s: float, start: ConsumerStart, create: bool
    ) -> ConsumerReport:
        """Make the durable unless it exists, give it these filters, and let the stream store what deliveries report.

        `start` counts only when the durable is made. Without `create` nothing is made.
        """
        for subject in delivery_subjects(self._names):
            await add_late_subject(self._streams, self._stream, subject, create=create)
        wanted = sorted([*filters, f"{self._names.redeliveries}.{delivery}"])
        name = self.name_consumer(delivery)
        found = await self._request(f"CONSUMER.INFO.{self._stream}.{name}")
        if "error" in found and found["error"].get("err_code") not in _NOT_FOUND:
            raise NatsUnavailable(f"consumer {name}: {found['error'].get('description')}")
        config = found.get("config")
        if config is None:
            if not create:
                raise NatsUnavailable(f"consumer {name} is missing: run `task-bridge provision` with these deliveries")
            config = build_consumer(name, start)
        if config.get("filter_subjects") != wanted or config.get("ack_wait") != int(ack_wait_s * 1e9):
            config |= {"filter_subjects": wanted, "ack_wait": int(ack_wait_s * 1e9)}
            config.pop("filter_subject", None)
            subject = f"CONSUMER.DURABLE.CREATE.{self._stream}.{name}"
            found = await self._request(subject, {"stream_name": self._stream, "config": config})
            if "error" in found:
                raise NatsUnavailable(f"consumer {name}: {found['error'].get('description')}")
        return _build_report(found)

    async def read(self, delivery: str) -> ConsumerReport | None:
        """Return the state of a delivery's consumer, None if there is none."""
        info = await self._request(f"CONSUMER.INFO.{self._stream}.{self.name_consumer(delivery)}")
        if "error" in info:
            if info["error"].get("err_code") in _NOT_FOUND:
                return None
            raise NatsUnavailable(f"consumer of {delivery}: {info['error'].get('description')}")
        return _build_report(info)

    async def list_all(self) -> dict[str, ConsumerReport]:
        """Return the state of the consumers of all deliveries, configured or not, by delivery."""
        reports: dict[str, ConsumerReport] = {}
        offset = 0
        while True:
            page = await self._request(f"CONSUMER.LIST.{self._stream}", {"offset": offset})
            if "error" in page:
                raise NatsUnavailable(f"{self._stream}: {page['error'].get('description')}")
            consumers = page.get("consumers") or []
            for info in consumers:
                if str(info["name"]).startswith("deliver-"):
                    reports[str(info["name"]).removeprefix("deliver-")] = _build_report(info)
            offset += len(consumers)
            if not consumers or offset >= page.get("total", 0):
                return reports

    async def delete(self, delivery: str) -> None:
        await self._request(f"CONSUMER.DELETE.{self._stream}.{self.name_consumer(delivery)}")

    async def unpin(self, delivery: str) -> None:
        """Let another replica go on at once."""
        subject = f"CONSUMER.UNPIN.{self._stream}.{self.name_consumer(delivery)}"
        await self._request(subject, {"group": GROUP})

    async def _request(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        payload = b"" if body is None else json.dumps(body).encode()
        try:
            answer = await self._streams.connection.request(
                f"{self._streams.prefix}.{subject}", payload, timeout=REQUEST_TIMEOUT_S
            )
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise NatsUnavailable(f"{subject}: {error or type(error).__name__}") from error
        return msgspec.json.decode(answer.data, type=dict[str, Any])


def build_consumer(name: str, start: ConsumerStart) -> dict[str, Any]:
    """Return the configuration of a new durable, without its filters and `ack_wait`."""
    return {
        "durable_name": name,
        "description": "Events that are delivered over HTTP",
        "ack_policy": "explicit",
        "max_deliver": -1,
        "max_ack_pending": WINDOW,
        "priority_groups": [GROUP],
        "priority_policy": "pinned_client",
        "priority_timeout": int(PIN_TIMEOUT_S * 1e9),
        **start.build(),
    }


def _build_report(info: dict[str, Any]) -> ConsumerReport:
    return ConsumerReport(
        str(info.get("name")),
        int(info.get("num_ack_pending", 0)),
        int(info.get("num_pending", 0)),
        str(info.get("created", "")),
        next(filter(None, (group.get("pinned_client_id") for group in info.get("priority_groups") or ())), None),
        int((info.get("delivered") or {}).get("stream_seq", 0)),
    )
