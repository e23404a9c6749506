"""What can never be served, told and kept with the events: requests, and stored watches that nobody can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..domain.durations import rfc3339
from ..domain.errors import Refused
from ..domain.events import CONTENT_TYPE, TYPE_PREFIX
from ..domain.requests import VCenterRouting, describe_rejected_request, error_body, parse_trace_context
from ..domain.subjects import SERVICE, SubjectNames
from .streams import Streams


class Rejections:
    """Publishes rejections. One that is published again with the same id is stored once."""

    def __init__(
        self, streams: Streams, names: SubjectNames, routes: VCenterRouting, clock: Callable[[], float]
    ) -> None:
        self._streams = streams
        self._names = names
        self._routes = routes
        self._clock = clock

    async def publish(
        self,
        rejection_id: str,
        refused: Refused,
        body: bytes,
        sent: Mapping[str, str] | None,
        known: Mapping[str, str] | None = None,
    ) -> None:
        """Stores the rejection of `body`, which came with the headers `sent`. Raises NatsUnavailable.

        `known`: what is known of it (`vcenter`, `task`) besides what its body tells.
        """
        told = describe_rejected_request(body) | dict(known or {})
        if told["task"] is not None and told["vcenter"] is None:
            told["vcenter"] = self._routes.default
        event = self._event(rejection_id, told, {"error": error_body(refused), **told}, sent)
        headers = {"Content-Type": CONTENT_TYPE, "Nats-Msg-Id": f"rejected-{rejection_id}"}
        stream = self._names.events_stream
        await self._streams.publish(stream, self._names.rejected, msgspec.json.encode(event), headers)

    def _event(
        self, rejection_id: str, told: Mapping[str, Any], data: Mapping[str, Any], sent: Mapping[str, str] | None
    ) -> dict[str, Any]:
        traceparent, tracestate = parse_trace_context(sent)
        # An attribute of a CloudEvent holds no control characters; what the request said stands in its data.
        subject = told["task"] if (told["task"] or "").isprintable() else None
        optional = {"subject": subject, "traceparent": traceparent, "tracestate": tracestate}
        return {
            "specversion": "1.0",
            "id": rejection_id,
            "source": self._routes.urls.get(told["vcenter"] or "", f"/{SERVICE}"),
            "type": f"{TYPE_PREFIX}.request.rejected.v1",
            "time": rfc3339(self._clock()),
            "datacontenttype": "application/json",
            **{key: value for key, value in optional.items() if value},
            "data": data,
        }
