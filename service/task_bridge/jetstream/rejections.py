"""Rejections: requests that can never be served, and stored watches that can't be read. Kept with the events."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from ..domain.durations import rfc3339
from ..domain.errors import Refused
from ..domain.events import CONTENT_TYPE, TYPE_PREFIX
from ..domain.replies import error_body
from ..domain.requests import VCenterRouting, describe_rejected_request, parse_trace_context
from ..domain.subjects import SERVICE, SubjectNames
from .streams import Streams


class Rejections:
    """Publishes rejections. JetStream stores a rejection once, however often it is published with the same id."""

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
        request_headers: Mapping[str, str] | None,
        known: Mapping[str, str] | None = None,
    ) -> None:
        """Store the rejection of a request with this body and these headers. Raises NatsUnavailable.

        `known`: its `vcenter` and `task`, where they are known from elsewhere than the body.
        """
        request = describe_rejected_request(body) | dict(known or {})
        if request["task"] is not None and request["vcenter"] is None:
            request["vcenter"] = self._routes.default
        traceparent, tracestate = parse_trace_context(request_headers)
        # An attribute of a CloudEvent must not contain control characters. `data` keeps the task as it was sent.
        subject = request["task"] if (request["task"] or "").isprintable() else None
        optional = {"subject": subject, "traceparent": traceparent, "tracestate": tracestate}
        event = {
            "specversion": "1.0",
            "id": rejection_id,
            "source": self._routes.urls.get(request["vcenter"] or "", f"/{SERVICE}"),
            "type": f"{TYPE_PREFIX}.request.rejected.v1",
            "time": rfc3339(self._clock()),
            "datacontenttype": "application/json",
            **{key: value for key, value in optional.items() if value},
            "data": {"error": error_body(refused), **request},
        }
        headers = {"Content-Type": CONTENT_TYPE, "Nats-Msg-Id": f"rejected-{rejection_id}"}
        stream = self._names.events_stream
        await self._streams.publish(stream, self._names.rejected, msgspec.json.encode(event), headers)
