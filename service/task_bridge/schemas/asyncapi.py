"""One AsyncAPI 3.0 document: every subject, message, header, reply and error of a bridge. Pure.

It is built from `domain/subjects.py` and the schemas. FastStream's own generator would describe one subject only (its
broker consumes an inbox), without headers, replies and parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import __version__
from ..domain.events import SUBJECT_KINDS
from ..domain.subjects import SERVICE, VERBS, SubjectNames
from . import load_components, relocate_refs
from .descriptions import Schema

REQUESTS = dict.fromkeys(VERBS, "TaskRequest") | {
    "watch": "WatchRequest",
    "list": "ListRequest",
    "follow": "FollowRequest",
    "unfollow": "FollowNameRequest",
    "follows": "FollowsRequest",
}
_DESCRIPTION = (
    "Watches long-running vCenter tasks. Send it a task id over NATS; it publishes every status change, and exactly "
    f"one final event. The API is the NATS service `{SERVICE}`; it answers `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`. "
    "Consumers must name the stream, ignore keys, kinds and outcomes that they don't know, and decide by `final`."
)
VERB_DESCRIPTIONS = {
    "watch": "Starts a watch of a task. The reply has the subject filter of its events.",
    "get": "Returns the watch of a task and its newest event, whether the watch is active or ended.",
    "list": "Lists the active watches of all replicas.",
    "unwatch": "Ends a watch with a final event. The task continues.",
    "cancel": "Asks vCenter to cancel a task. Needs `BRIDGE_ALLOW_CANCEL=true`.",
    "follow": "Starts a follow: every task of a vCenter that matches is watched.",
    "unfollow": "Ends a follow with a final event. The watches that it started go on.",
    "follows": "Lists the follows of a vCenter, or of all, and how they do.",
}


def build_document(names: SubjectNames) -> dict[str, Any]:
    """Build the document of a bridge whose subjects begin with `names.prefix`."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": SERVICE,
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": dict(_build_channels(names)),
        "operations": dict(_build_operations()),
        "components": {"messages": dict(_build_messages(names)), "schemas": relocate_refs(load_components())},
    }


def _build_channels(names: SubjectNames) -> Iterator[tuple[str, Schema]]:
    yield (
        "watch",
        {
            "address": names.requests,
            "description": f"Stored in {names.requests_stream}, also while no bridge runs. A JetStream publish is "
            "answered by a PubAck, which confirms storage; a core publish isn't answered.",
            "messages": _message_refs("StoredWatchRequest"),
        },
    )
    yield (
        "watch.vcenter",
        {
            "address": f"{names.requests}.{{vcenter}}",
            "description": f"The same for one vCenter, stored in {names.vcenter_requests_stream}. {_BY_VCENTER}",
            "parameters": {"vcenter": _PARAMETERS["vcenter"]},
            "messages": _message_refs("StoredWatchRequest"),
        },
    )
    yield (
        "follow",
        {
            "address": names.follow_requests,
            "description": f"Stored in {names.follow_requests_stream}, also while no bridge runs.",
            "messages": _message_refs("StoredFollowRequest"),
        },
    )
    yield (
        "follow.vcenter",
        {
            "address": f"{names.follow_requests}.{{vcenter}}",
            "description": f"The same for one vCenter, stored in {names.follow_requests_stream}. {_BY_VCENTER}",
            "parameters": {"vcenter": _PARAMETERS["vcenter"]},
            "messages": _message_refs("StoredFollowRequest"),
        },
    )
    for verb in VERBS:
        yield (
            f"api.{verb}",
            {
                "address": f"{names.api}.{verb}",
                "description": VERB_DESCRIPTIONS[verb],
                "messages": _message_refs(f"{verb.title()}Request"),
            },
        )
        yield (
            f"api.{verb}.vcenter",
            {
                "address": f"{names.api}.{verb}.{{vcenter}}",
                "description": f"The same for one vCenter. {_BY_VCENTER}",
                "parameters": {"vcenter": _PARAMETERS["vcenter"]},
                "messages": _message_refs(f"{verb.title()}Request"),
            },
        )
        yield (
            f"api.{verb}.reply",
            {
                "address": None,
                "description": "The inbox that the request names.",
                "messages": _message_refs(f"{verb.title()}Reply", "ErrorReply"),
            },
        )
    for kind in SUBJECT_KINDS:
        yield (
            f"events.{kind}",
            {
                "address": f"{names.events}.{{vcenter}}.{{task}}.{kind}",
                "description": f"Stored in {names.events_stream}. Core subscribers receive the same messages.",
                "parameters": _PARAMETERS,
                "messages": _message_refs(_name_event_message(kind)),
            },
        )
    for kind in _FOLLOW_SUMMARIES:
        yield (
            f"follows.{kind}",
            {
                "address": f"{names.follows}.{{vcenter}}.{{name}}.{kind}",
                "description": f"Stored in {names.events_stream}. A core subscriber can receive one that isn't stored.",
                "parameters": {"vcenter": _PARAMETERS["vcenter"], "name": {"description": "The name of the follow."}},
                "messages": _message_refs(f"Follow{_name_event_message(kind)}"),
            },
        )
    yield (
        "rejected",
        {
            "address": names.rejected,
            "description": f"Stored in {names.events_stream}. A core subscriber can receive a rejection twice.",
            "messages": _message_refs("Rejection"),
        },
    )
    yield (
        "undelivered",
        {
            "address": f"{names.undelivered}.{{delivery}}",
            "description": f"Stored in {names.events_stream}. A core subscriber can receive a report twice.",
            "parameters": {"delivery": {"description": "The name of the delivery over HTTP."}},
            "messages": _message_refs("Undelivered"),
        },
    )


_BY_VCENTER = "Permissions by subject can so allow requests for one vCenter. A body that names another one is refused."
_PARAMETERS = {
    "vcenter": {"description": "The configured name of the vCenter."},
    "task": {
        "description": "The task id, percent-encoded as UTF-8 with upper-case hex. All but `A-Z a-z 0-9 - _ ~ :` is "
        "encoded, so a dot is `%2E`."
    },
}


def _message_refs(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _build_operations() -> Iterator[tuple[str, Schema]]:
    """Yield the operations from the bridge's side, as AsyncAPI requires: it receives requests and sends events."""
    for request in ("watch", "watch.vcenter", "follow", "follow.vcenter"):
        yield request, {"action": "receive", "channel": _channel_ref(request)}
    for verb in VERBS:
        for request in (f"api.{verb}", f"api.{verb}.vcenter"):
            reply = {"channel": _channel_ref(f"api.{verb}.reply")}
            yield request, {"action": "receive", "channel": _channel_ref(request), "reply": reply}
    for kind in SUBJECT_KINDS:
        yield f"events.{kind}", {"action": "send", "channel": _channel_ref(f"events.{kind}")}
    for kind in _FOLLOW_SUMMARIES:
        yield f"follows.{kind}", {"action": "send", "channel": _channel_ref(f"follows.{kind}")}
    for report in ("rejected", "undelivered"):
        yield report, {"action": "send", "channel": _channel_ref(report)}


def _channel_ref(name: str) -> Schema:
    return {"$ref": f"#/channels/{name}"}


def _name_event_message(kind: str) -> str:
    return kind.title().replace(".", "").replace("_", "")


def _build_messages(names: SubjectNames) -> Iterator[tuple[str, Schema]]:
    stored = {**_TRACE, "Nats-Msg-Id": _text("An id of your own, so that a repeated publish is stored once.")}
    yield "StoredWatchRequest", _build_message("A watch request, stored", "WatchRequest", stored)
    yield "StoredFollowRequest", _build_message("A request to follow tasks, stored", "FollowRequest", stored)
    for verb in VERBS:
        headers = _TRACE if verb in ("watch", "follow") else {}
        yield f"{verb.title()}Request", _build_message(f"A request to {verb}", REQUESTS[verb], headers)
        yield f"{verb.title()}Reply", _build_message(f"The answer of {verb}", f"{verb.title()}Reply", {})
    yield "ErrorReply", _build_message("A refusal", "ErrorReply", _ERROR_HEADERS, required=list(_ERROR_HEADERS))
    for kind in SUBJECT_KINDS:
        yield (
            _name_event_message(kind),
            {
                **_build_message(
                    _EVENT_SUMMARIES[kind], "CloudEvent", _EVENT_HEADERS, required=list(_EVENT_HEADERS)[:5]
                ),
                "contentType": "application/cloudevents+json",
            },
        )
    content_type = {"Content-Type": _EVENT_HEADERS["Content-Type"]}
    for kind, summary in _FOLLOW_SUMMARIES.items():
        message = _build_message(summary, "FollowCloudEvent", content_type, required=["Content-Type"])
        name = f"Follow{_name_event_message(kind)}"
        yield name, {**message, "contentType": "application/cloudevents+json"}
    for name, summary in _REPORT_SUMMARIES.items():
        message = _build_message(summary, name, content_type, required=["Content-Type"])
        yield name, {**message, "contentType": "application/cloudevents+json"}


def _build_message(summary: str, payload: str, headers: Schema, *, required: list[str] | None = None) -> Schema:
    message: Schema = {"summary": summary, "payload": {"$ref": f"#/components/schemas/{payload}"}}
    if headers:
        message["headers"] = {"type": "object", "properties": headers, "required": required or []}
    return message


def _text(description: str, **bounds: Any) -> Schema:
    return {"type": "string", "description": description, **bounds}


_TRACE = {
    "traceparent": _text("The W3C trace context. Every event of the watch carries it."),
    "tracestate": _text("The `tracestate` that belongs to it."),
}
_ERROR_HEADERS = {
    "Nats-Service-Error": _text("The code and the message in one line of ASCII."),
    "Nats-Service-Error-Code": _text("The status in digits, like 404.", pattern="^[0-9]{3}$"),
}
_EVENT_HEADERS = {
    "Content-Type": _text("The structured mode of CloudEvents.", const="application/cloudevents+json"),
    "Nats-Msg-Id": _text("Starts with the id of the event."),
    "Bridge-Watch": _text("The id of the watch, as in the body."),
    "Bridge-Sequence": _text("The number of the event in its watch, as in the body."),
    "Bridge-Kind": _text("The end of the subject: the kind and, on final events, the outcome."),
    "Bridge-Instance": _text("The replica that wrote the event. Not for users."),
    "Bridge-Stalled": _text("Present if the current standstill has been published. Not for users."),
}
_EVENT_SUMMARIES = {
    "watching": "The watch starts: the first state seen in vCenter",
    "status": "The status changed, or a quiet watch is restated",
    "progress": "The progress, `cancelable` or, where requested, the partial result or `extra` changed",
    "stalled": "Nothing changed for the watch's `stalled_after`",
    "completed.succeeded": "The task succeeded (final)",
    "completed.failed": "The task failed (final)",
    "completed.canceled": "The task was canceled (final)",
    "abandoned.lost": "vCenter no longer knows the task (final)",
    "abandoned.denied": "vCenter refuses to show the task (final)",
    "abandoned.watch_timed_out": "The watch's timeout passed (final)",
    "abandoned.unwatched": "The watch was ended on request (final)",
}
_REPORT_SUMMARIES = {
    "Rejection": "A stored request that can never be served",
    "Undelivered": "An event that a delivery over HTTP couldn't deliver",
}
_FOLLOW_SUMMARIES = {
    "following": "A follow started, was resumed or replaced, or stored its place again",
    "gap": "A span of time for which completeness can't be shown",
    "unfollowed": "The follow was ended on request (final)",
}
