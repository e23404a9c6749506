"""One AsyncAPI 3.0 document: every subject, message, header, reply and error of a bridge. Pure.

FastStream's own generator would tell of one subject (its broker consumes an inbox) without headers, replies and
parameters, so the document is made of `subjects.py` and the schemas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import __version__
from ..domain.subjects import SERVICE, VERBS, SubjectNames
from . import load_schema
from .descriptions import FINAL_OUTCOMES, KINDS, Schema

FINAL_KINDS = tuple(f"{kind}.{outcome}" for kind, outcomes in FINAL_OUTCOMES.items() for outcome in outcomes)
_REQUESTS = dict.fromkeys(VERBS, "TaskRequest") | {"watch": "WatchRequest", "list": "ListRequest"}
_DESCRIPTION = (
    "Watches vCenter tasks for everybody: a request over NATS in, every change of status and exactly one ending "
    f"out. The API is the NATS service `{SERVICE}` and answers `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`. "
    "Consumers name the stream; they ignore keys, kinds and outcomes that they don't know and go by `final`."
)
_SAID = {
    "watch": "Watches a task until it ends; the answer tells its events.",
    "get": "Tells how a task stands, watched or ended.",
    "list": "Tells the active watches of all replicas.",
    "unwatch": "Ends a watch with its final event; the task goes on.",
    "cancel": "Asks vCenter to cancel a task; needs `BRIDGE_ALLOW_CANCEL=true`.",
}


def build_document(names: SubjectNames) -> dict[str, Any]:
    """The document of a bridge whose subjects begin with `names.prefix`."""
    schemas = {
        name: part for file in ("request", "reply", "event") for name, part in load_schema(file)["$defs"].items()
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": SERVICE,
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": dict(_channels(names)),
        "operations": dict(_operations()),
        "components": {"messages": dict(_messages(names)), "schemas": _relocated(schemas)},
    }


def _relocated(value: Any) -> Any:
    """The same with every `$ref` pointing to where AsyncAPI keeps components."""
    if isinstance(value, dict):
        moved = {key: _relocated(item) for key, item in value.items()}
        if isinstance(at := value.get("$ref"), str):
            moved["$ref"] = at.replace("#/$defs/", "#/components/schemas/")
        return moved
    return [_relocated(item) for item in value] if isinstance(value, list) else value


def _channels(names: SubjectNames) -> Iterator[tuple[str, Schema]]:
    yield (
        "watch",
        {
            "address": names.requests,
            "description": f"Kept in the stream {names.requests_stream}, also while no bridge runs. A JetStream "
            "publish is answered by NATS's PubAck, which confirms storage; a core publish isn't answered.",
            "messages": _one("StoredWatchRequest"),
        },
    )
    for verb in VERBS:
        yield (
            f"api.{verb}",
            {
                "address": f"{names.api}.{verb}",
                "description": _SAID[verb],
                "messages": _one(f"{verb.title()}Request"),
            },
        )
        yield (
            f"api.{verb}.reply",
            {
                "address": None,
                "description": "The inbox that the request names.",
                "messages": _one(f"{verb.title()}Reply", "ErrorReply"),
            },
        )
    for kind in (*KINDS, *FINAL_KINDS):
        yield (
            f"events.{kind}",
            {
                "address": f"{names.events}.{{vcenter}}.{{task}}.{kind}",
                "description": f"Kept in the stream {names.events_stream}; core subscribers see the same.",
                "parameters": _PARAMETERS,
                "messages": _one(_event_name(kind)),
            },
        )
    yield (
        "rejected",
        {
            "address": names.rejected,
            "description": f"Kept in the stream {names.events_stream}. A core subscriber may see one twice.",
            "messages": _one("Rejection"),
        },
    )


_PARAMETERS = {
    "vcenter": {"description": "The configured name of the vCenter."},
    "task": {
        "description": "The task id, percent-encoded as UTF-8 with upper-case hex: everything but "
        "`A-Z a-z 0-9 - _ ~ :`, so a dot is `%2E`."
    },
}


def _one(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _operations() -> Iterator[tuple[str, Schema]]:
    """From the bridge's side, as AsyncAPI wants it: it receives requests and sends events."""
    yield "watch", {"action": "receive", "channel": _channel("watch")}
    for verb in VERBS:
        yield (
            f"api.{verb}",
            {
                "action": "receive",
                "channel": _channel(f"api.{verb}"),
                "reply": {"channel": _channel(f"api.{verb}.reply")},
            },
        )
    for kind in (*KINDS, *FINAL_KINDS):
        yield f"events.{kind}", {"action": "send", "channel": _channel(f"events.{kind}")}
    yield "rejected", {"action": "send", "channel": _channel("rejected")}


def _channel(name: str) -> Schema:
    return {"$ref": f"#/channels/{name}"}


def _event_name(kind: str) -> str:
    return kind.title().replace(".", "").replace("_", "")


def _messages(names: SubjectNames) -> Iterator[tuple[str, Schema]]:
    stored = {**_TRACE, "Nats-Msg-Id": _text("Yours, if you want a repeated publish to be stored once.")}
    yield "StoredWatchRequest", _message("A watch request, stored", "WatchRequest", stored)
    for verb in VERBS:
        headers = _TRACE if verb == "watch" else {}
        yield f"{verb.title()}Request", _message(f"A request to {verb}", _REQUESTS[verb], headers)
        yield f"{verb.title()}Reply", _message(f"The answer of {verb}", f"{verb.title()}Reply", {})
    yield "ErrorReply", _message("A refusal", "ErrorReply", _ERROR_HEADERS, required=list(_ERROR_HEADERS))
    for kind in (*KINDS, *FINAL_KINDS):
        yield (
            _event_name(kind),
            {
                **_message(_TOLD[kind], "CloudEvent", _EVENT_HEADERS, required=list(_EVENT_HEADERS)[:5]),
                "contentType": "application/cloudevents+json",
            },
        )
    content_type = {"Content-Type": _EVENT_HEADERS["Content-Type"]}
    yield (
        "Rejection",
        {
            **_message(
                "A stored request that can never be served", "Rejection", content_type, required=["Content-Type"]
            ),
            "contentType": "application/cloudevents+json",
        },
    )


def _message(summary: str, payload: str, headers: Schema, *, required: list[str] | None = None) -> Schema:
    message: Schema = {"summary": summary, "payload": {"$ref": f"#/components/schemas/{payload}"}}
    if headers:
        message["headers"] = {"type": "object", "properties": headers, "required": required or []}
    return message


def _text(description: str, **bounds: Any) -> Schema:
    return {"type": "string", "description": description, **bounds}


_TRACE = {
    "traceparent": _text("W3C trace context; comes back in every event of the watch."),
    "tracestate": _text("Goes with it."),
}
_ERROR_HEADERS = {
    "Nats-Service-Error": _text("Code and message in one line of ASCII."),
    "Nats-Service-Error-Code": _text("The status in digits, like 404.", pattern="^[0-9]{3}$"),
}
_EVENT_HEADERS = {
    "Content-Type": _text("Structured mode of CloudEvents.", const="application/cloudevents+json"),
    "Nats-Msg-Id": _text("Begins with the event's id."),
    "Bridge-Watch": _text("The watch's id, as in the body."),
    "Bridge-Sequence": _text("The number of the event in its watch, as in the body."),
    "Bridge-Kind": _text("The end of the subject: the kind and, on final events, the outcome."),
    "Bridge-Instance": _text("Which replica wrote it; not for users."),
    "Bridge-Stalled": _text("There when the present standstill has been told; not for users."),
}
_TOLD = {
    "watching": "The watch is taken up: the first state seen in vCenter",
    "status": "The status changed, or a quiet watch is stated again",
    "progress": "Progress, cancelable or, where asked for, the partial result changed",
    "stalled": "Nothing changed for as long as the watch said",
    "completed.succeeded": "The task succeeded (final)",
    "completed.failed": "The task failed (final)",
    "completed.canceled": "The task was canceled (final)",
    "abandoned.lost": "vCenter no longer knows the task (final)",
    "abandoned.denied": "vCenter refuses to show the task (final)",
    "abandoned.watch_timed_out": "The watch's timeout passed (final)",
    "abandoned.unwatched": "The watch was ended on request (final)",
}
