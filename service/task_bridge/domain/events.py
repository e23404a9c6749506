"""Events of watches, and their encoding as CloudEvents. Pure.

The last stored event of a task is also the bridge's memory of it. So what this module encodes it also decodes, in
this release, the one before and the one after: unknown keys are ignored, missing ones are None.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .durations import parse_time, rfc3339
from .json_size import replace_surrogates
from .task import Initiator, Progress, Result, Target, TaskError

TYPE_PREFIX = "io.vcenter-task-bridge"
CONTENT_TYPE = "application/cloudevents+json"
UNDELIVERED_TYPE = f"{TYPE_PREFIX}.delivery.undelivered.v1"
KINDS = ("watching", "status", "progress", "stalled")
FINAL_OUTCOMES = {
    "completed": ("succeeded", "failed", "canceled"),
    "abandoned": ("lost", "denied", "watch_timed_out", "unwatched"),
}
FINAL_KINDS = tuple(FINAL_OUTCOMES)
SUBJECT_KINDS = (*KINDS, *(f"{kind}.{outcome}" for kind in FINAL_KINDS for outcome in FINAL_OUTCOMES[kind]))
"""Kinds as subjects end with them."""
INLINE_MAX_BYTES = 262_144

NULL = msgspec.Raw(b"null")


class WatchRef(msgspec.Struct, frozen=True, gc=False):
    """The watch as its events and replies show it: id, start, timeout, labels, the follow that started it."""

    id: str
    since: str
    timeout_at: str | None = None
    labels: dict[str, str] = {}
    follow: str | None = None


class ResultRef(msgspec.Struct, frozen=True, gc=False):
    """Reference to a large result in the object store, with its size in bytes and its SHA-256 in hex."""

    bucket: str
    name: str
    size: int
    sha256: str


class EventData(msgspec.Struct, frozen=True, gc=False):
    """`data` of an event. All keys are always present, in this order."""

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
    root: str | None = None
    user: str | None = None
    initiator: Initiator | None = None
    cancelable: bool | None = None
    cancel_requested: bool | None = None
    progress: Progress | None = None
    error: TaskError | None = None
    result: msgspec.Raw = msgspec.field(default_factory=lambda: NULL)  # a bare default has no JSON Schema
    result_state: str = "none"
    result_ref: ResultRef | None = None
    extra: Any = None
    queued_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    duration_seconds: float | None = None
    unchanged_since: str | None = None


class CloudEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A CloudEvent 1.0 in structured mode. Extension attributes without a value are absent."""

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
    """An event with its envelope. `time` is when the bridge saw it, in Unix seconds.

    `stalled_reported`: the present standstill has been reported. It is stored as a header, since a restated status
    would otherwise hide it from the next owner.
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
    def is_stalled(self) -> bool:
        """Whether the task stands still, also if a later event only restated its status."""
        return not self.data.final and (self.data.kind == "stalled" or self.stalled_reported)

    @property
    def unchanged_since(self) -> float:
        return parse_time(self.data.unchanged_since) or self.time


def to_cloudevent(event: Event) -> bytes:
    """Encode the event as it is stored: a CloudEvent in structured-mode JSON."""
    data = event.data
    envelope = CloudEvent(
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
    try:
        body = _encoder.encode(envelope)
    except UnicodeEncodeError:
        body = _encoder.encode(_without_surrogates(envelope))
    return _FIXED + body[1:]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(CloudEvent)
_FIXED = b'{"specversion":"1.0","datacontenttype":"application/json",'


class _CloudEventType(msgspec.Struct):
    specversion: str
    type: str


_type_decoder = msgspec.json.Decoder(_CloudEventType)


def _without_surrogates(event: CloudEvent) -> dict[str, Any]:
    """Replace lone surrogates, which vCenter's JSON may escape: an event is always published."""
    plain = msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, result=NULL))
    built: dict[str, Any] = replace_surrogates(msgspec.to_builtins(plain, enc_hook=lambda _: None))
    built["data"]["result"] = event.data.result
    return built


def from_cloudevent(body: bytes, *, stalled_reported: bool) -> Event | None:
    """Decode a stored event; None if its body can't be read (its headers then keep its place)."""
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


def renumber(event: Event, unix_s: float) -> Event:
    """Return the event with a number that its watch can't have used: Unix time in milliseconds.

    A watch has less than one event a millisecond, so numbers counted from 1, or on from an earlier such number, are
    lower.
    """
    number = max(int(unix_s * 1000), event.data.sequence + 1)
    return msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, sequence=number))


def attach_result(event: Event, result: Result, ref: ResultRef | None = None) -> Event:
    """Return the event with its result: inline, or by `ref` if it was stored."""
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
    """Return the event cut to `max_bytes`. Its result is in the object store by now.

    It loses what it can be understood without, in this order: `extra`; the error's data and all messages but the
    first; all messages and the ends of long texts.
    """
    for data in _shrink_steps(event.data):
        event = msgspec.structs.replace(event, data=data)
        if len(to_cloudevent(event)) <= max_bytes:
            break
    return event


def _shrink_steps(data: EventData) -> list[EventData]:
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
        target=data.target and Target(_cut(data.target.type), _cut(data.target.id), _cut(data.target.name)),
        initiator=data.initiator and Initiator(data.initiator.type[:500], _cut(data.initiator.name)),
        **{name: _cut(getattr(data, name)) for name in _WORDS},
    )
    return [without_extra, without_stack, short]


_WORDS = ("status", "previous_status", "service", "operation", "parent", "root", "user")


def _cut(text: str | None, length: int = 500) -> str | None:
    return text and text[:length]
