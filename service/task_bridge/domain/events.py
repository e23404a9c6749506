"""An event of a watch, and how it looks as a CloudEvent. Pure.

The last stored event of a task is also the bridge's memory of it, so what is written here is read back here,
by this release, the one before and the one after: unknown keys are ignored, missing ones are None.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .durations import parse_time, rfc3339
from .task import Progress, Result, Target, TaskError, replace_surrogates

TYPE_PREFIX = "io.vcenter-task-bridge"
CONTENT_TYPE = "application/cloudevents+json"
FINAL_KINDS = ("completed", "abandoned")
INLINE_MAX_BYTES = 262_144

NULL = msgspec.Raw(b"null")


class WatchRef(msgspec.Struct, frozen=True, gc=False):
    """The watch as its events and replies show it: whose labels and timeout they are."""

    id: str
    since: str
    timeout_at: str | None = None
    labels: dict[str, str] = {}


class ResultRef(msgspec.Struct, frozen=True, gc=False):
    """Where a large result lies in the object store: its size in bytes and its SHA-256 in hex."""

    bucket: str
    name: str
    size: int
    sha256: str


class EventData(msgspec.Struct, frozen=True, gc=False):
    """`data` of an event, its keys in the order of the contract. Every key is always there."""

    vcenter: str
    api: str
    task: str
    watch: WatchRef
    kind: str
    outcome: str | None
    final: bool
    sequence: int
    status: str | None = None
    previous_status: str | None = None
    service: str | None = None
    operation: str | None = None
    description: str | None = None
    target: Target | None = None
    parent: str | None = None
    user: str | None = None
    cancelable: bool | None = None
    progress: Progress | None = None
    error: TaskError | None = None
    result: msgspec.Raw = msgspec.field(default_factory=lambda: NULL)  # a bare default has no JSON Schema
    result_state: str = "none"
    result_ref: ResultRef | None = None
    extra: Any = None
    started_at: str | None = None
    ended_at: str | None = None
    duration_seconds: float | None = None
    unchanged_since: str | None = None


class CloudEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """CloudEvents 1.0, structured mode. The extension attributes are absent where there is nothing to say."""

    id: str
    source: str
    type: str
    subject: str
    time: str
    data: EventData
    outcome: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event with what stands around it. `time` is when the bridge saw it, in Unix seconds.

    `stalled_reported` goes in a header: whether the present standstill has been told already, which a restated
    status would otherwise hide from the next owner.
    """

    source: str
    time: float
    data: EventData
    traceparent: str | None = None
    tracestate: str | None = None
    stalled_reported: bool = False

    @property
    def id(self) -> str:
        return f"{self.data.watch.id}/{self.data.sequence}"

    @property
    def kind(self) -> str:
        """The `<kind>` of the subject: `progress`, `completed.failed`."""
        return f"{self.data.kind}.{self.data.outcome}" if self.data.outcome else self.data.kind

    @property
    def unchanged_since(self) -> float:
        return parse_time(self.data.unchanged_since) or self.time


def to_cloudevent(event: Event) -> bytes:
    """The body as it is stored: structured-mode JSON."""
    data = event.data
    return _stored(
        CloudEvent(
            id=event.id,
            source=event.source,
            type=f"{TYPE_PREFIX}.task.{data.kind}.v1",
            subject=data.task,
            time=rfc3339(event.time),
            outcome=data.outcome,
            traceparent=event.traceparent,
            tracestate=event.tracestate,
            data=data,
        )
    )


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(CloudEvent)


class _CloudEventType(msgspec.Struct):
    specversion: str
    type: str


_type_decoder = msgspec.json.Decoder(_CloudEventType)


def _stored(event: CloudEvent) -> bytes:
    fixed = b'{"specversion":"1.0","datacontenttype":"application/json",'
    try:
        body = _encoder.encode(event)
    except UnicodeEncodeError:
        body = _encoder.encode(_encodable(event))
    return fixed + body[1:]


def _encodable(event: CloudEvent) -> dict[str, Any]:
    """The event without lone surrogates, which vCenter's JSON may escape: an event is always published."""
    plain = msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, result=NULL))
    built: dict[str, Any] = replace_surrogates(msgspec.to_builtins(plain, enc_hook=lambda _: None))
    built["data"]["result"] = event.data.result
    return built


def from_cloudevent(body: bytes, *, stalled_reported: bool) -> Event | None:
    """An event as it was stored, None when its body can't be read (its headers then keep its place)."""
    try:
        stored = _decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    return Event(
        source=stored.source,
        time=parse_time(stored.time) or 0.0,
        data=stored.data,
        traceparent=stored.traceparent,
        tracestate=stored.tracestate,
        stalled_reported=stalled_reported,
    )


def is_own_event(body: bytes) -> bool:
    """Return whether the body is a CloudEvent of the bridge, in the form in which events and rejections are stored."""
    try:
        return _type_decoder.decode(body).type.startswith(f"{TYPE_PREFIX}.")
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        return False


def attach_result(event: Event, result: Result, ref: ResultRef | None = None) -> Event:
    """The event with its result in its place: inline, or by `ref` where it was stored."""
    if ref is not None:
        fields: dict[str, Any] = {"result_state": "stored", "result_ref": ref}
    elif not result.available:
        fields = {"result_state": "unavailable"}
    elif result.json:
        fields = {"result_state": "inline", "result": msgspec.Raw(result.json)}
    else:
        return event
    return msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, **fields))


def shrink_to_fit(event: Event, max_bytes: int) -> Event:
    """The event within what the server takes. Its result is in the object store by now; what goes is what an
    event can be understood without, the largest first: extra, the error's data and stack, then long texts."""
    data = event.data
    for smaller in _smaller(data):
        event = msgspec.structs.replace(event, data=smaller)
        if len(to_cloudevent(event)) <= max_bytes:
            break
    return event


def _smaller(data: EventData) -> list[EventData]:
    replace = msgspec.structs.replace
    without_extra = replace(data, extra=None)
    error = data.error and replace(data.error, data=None, messages=data.error.messages[:1])
    without_stack = replace(without_extra, error=error)
    progress = data.progress and replace(data.progress, message=_cut(data.progress.message, 2_000))
    short = replace(
        without_stack,
        error=error and replace(error, type=_cut(error.type), message=error.message[:2_000], messages=()),
        progress=progress,
        description=_cut(data.description, 2_000),
        target=data.target and replace(data.target, type=_cut(data.target.type), id=_cut(data.target.id)),
        **{name: _cut(getattr(data, name)) for name in _WORDS},
    )
    return [without_extra, without_stack, short]


_WORDS = ("status", "previous_status", "service", "operation", "parent", "user")


def _cut(text: str | None, length: int = 500) -> str | None:
    return text and text[:length]
