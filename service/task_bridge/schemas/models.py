"""The JSON Schemas (2020-12) of requests, replies and events, built from the models. Pure.

Requests are closed: unknown fields are refused. Events and replies are open: 1.x can add keys, kinds and outcomes; all
their keys are always present. No keyword stands beside a `$ref`, so that validators of older drafts, AsyncAPI's among
them, read the schemas the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

from ..domain.events import FINAL_OUTCOMES, KINDS, TYPE_PREFIX, CloudEvent
from ..domain.follows.event import FollowCloudEvent, FollowReply, FollowsReply, UnfollowReply
from ..domain.follows.request import FollowNameRequest, FollowRequest, FollowsRequest
from ..domain.replies import CancelReply, ErrorBody, GetReply, ListReply, UnwatchReply, WatchReply
from ..domain.requests import REQUEST_MAX_KEPT_BYTES, ListRequest, TaskRequest, WatchRequest
from .descriptions import DESCRIPTIONS, REJECTED, TASK_ID, UNDELIVERED, Schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DEFS = "#/$defs/"
_REQUESTS = (WatchRequest, TaskRequest, ListRequest, FollowRequest, FollowNameRequest, FollowsRequest)
_REPLIES = (WatchReply, GetReply, ListReply, UnwatchReply, CancelReply, FollowReply, UnfollowReply, FollowsReply)
_EVENTS = (CloudEvent, FollowCloudEvent)


def ref(name: str) -> Schema:
    return {"$ref": _DEFS + name}


def build_schema_files() -> dict[str, Schema]:
    """Return the three schemas by name. Each is complete in itself."""
    requests = [model.__name__ for model in _REQUESTS]
    replies = [*(model.__name__ for model in _REPLIES), "ErrorReply"]
    rejection = {"properties": {"type": {"const": REJECTED}}, "required": ["type"]}
    return {
        "request": _build_file(
            "A watch request. Each verb of the API has a request of its own in `$defs`",
            requests,
            {"allOf": [ref("WatchRequest")]},
        ),
        "reply": _build_file("A reply of the API to any verb", replies, {"anyOf": [ref(name) for name in replies]}),
        "event": _build_file(
            "A message of the events stream: an event of a watch, or a rejection",
            ["CloudEvent", "Rejection"],
            {"if": rejection, "then": ref("Rejection"), "else": ref("CloudEvent")},
        ),
        "follow": _build_file(
            "An event of a follow, in the events stream", ["FollowCloudEvent"], {"allOf": [ref("FollowCloudEvent")]}
        ),
        "undelivered": _build_file(
            "A report of an event that wasn't delivered over HTTP, in the events stream",
            ["Undelivered"],
            {"allOf": [ref("Undelivered")]},
        ),
    }


def _build_file(title: str, names: list[str], root: Schema) -> Schema:
    return {"$schema": DIALECT, "title": title, **root, "$defs": collect_components(names)}


def collect_components(names: list[str]) -> dict[str, Schema]:
    """Return these components and all components that they refer to."""
    components, needed = build_components(), list(names)
    for name in needed:  # grows while it is read
        needed.extend(other for other in _iter_refs(components[name]) if other not in needed)
    return {name: components[name] for name in needed}


def _iter_refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(target := value.get("$ref"), str):
            yield target.removeprefix(_DEFS)
        for item in value.values():
            yield from _iter_refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _iter_refs(item)


@cache
def build_components() -> dict[str, Schema]:
    """Return every component by name. The result is cached: callers must not change it."""
    components = {
        "TaskId": TASK_ID,
        **_build_request_components(),
        **_build_open_components(),
        "ErrorReply": _ERROR_REPLY,
    }
    components["Rejection"] = _build_rejection(components["CloudEvent"]["properties"])
    components["Undelivered"] = _build_undelivered(components["CloudEvent"]["properties"])
    return components


def _build_request_components() -> dict[str, Schema]:
    _, generated = models_json_schema([(model, "validation") for model in _REQUESTS], ref_template=_DEFS + "{model}")
    models: dict[str, Schema] = {name: _describe_fields(name, schema) for name, schema in generated["$defs"].items()}
    for name, model in models.items():
        if "task" in model["properties"]:
            model["properties"]["task"] = ref("TaskId")
            header = {key: model.pop(key) for key in ("title", "description")}
            models[name] = {**header, "anyOf": [ref("TaskId"), model]}
    return models


def _build_open_components() -> dict[str, Schema]:
    _, generated = msgspec.json.schema_components([*_EVENTS, ErrorBody, *_REPLIES], ref_template=_DEFS + "{name}")
    models: dict[str, Schema] = {name: _describe_fields(name, schema) for name, schema in generated.items()}
    for model in models.values():
        if "description" in model:
            model["description"] = inspect.cleandoc(model["description"])  # Python 3.13 did that, earlier ones didn't
        for field in model["properties"].values():
            field.pop("default", None)  # every key is present, so a reader doesn't need defaults
        model["required"] = [name for name, field in model["properties"].items() if "x-since" not in field]
    _restrict_cloudevent(models["CloudEvent"])
    _restrict_follow_event(models["FollowCloudEvent"])
    models["EventData"]["allOf"] = list(_event_rules())
    for name in ("WatchReply", "GetReply", "UnwatchReply"):
        last_event = models[name]["properties"]["last_event"]
        last_event["anyOf"] = [ref("CloudEvent")] if name == "UnwatchReply" else [ref("CloudEvent"), {"type": "null"}]
    return models


def _describe_fields(name: str, model: Schema) -> Schema:
    """Return the model with the description of each field. Raise KeyError if descriptions and fields differ."""
    descriptions, properties = DESCRIPTIONS[name], model["properties"]
    if descriptions.keys() != properties.keys():
        raise KeyError(f"{name}: descriptions and fields differ: {sorted(descriptions.keys() ^ properties.keys())}")
    fields = {field: _simplify(schema, descriptions[field]) for field, schema in properties.items()}
    return {**model, "properties": fields}


def _simplify(schema: Schema, description: Schema) -> Schema:
    """Return the field's schema with its description, without a title.

    A lone `$ref` is wrapped, and "string or null" gets its short form. If the description has an `anyOf` (durations,
    which the model knows as seconds only), it replaces the model's.
    """
    dropped = ("title", "anyOf") if "anyOf" in description else ("title",)
    schema = {key: value for key, value in schema.items() if key not in dropped}
    if "$ref" in schema:
        schema = {"allOf": [schema]}
    elif "anyOf" in schema and all(option.keys() == {"type"} for option in schema["anyOf"]):
        schema["type"] = [option["type"] for option in schema.pop("anyOf")]
    return {**schema, **description}


def _restrict_cloudevent(model: Schema) -> None:
    optional = ("outcome", "traceparent", "tracestate")
    fields = model["properties"]
    for name in optional:
        fields[name]["type"] = "string"  # present or absent, but never null
    fields["specversion"] = {"const": "1.0"}
    fields["datacontenttype"] = {"const": "application/json"}
    model["required"] = [name for name in fields if name not in optional]
    is_final = {"properties": {"data": {"properties": {"final": {"const": True}}, "required": ["final"]}}}
    model["allOf"] = [
        {"if": is_final, "then": {"required": ["outcome"]}, "else": {"not": {"required": ["outcome"]}}},
    ]
    for kind in (*KINDS, *FINAL_OUTCOMES):
        has_type = {"properties": {"type": {"const": f"{TYPE_PREFIX}.task.{kind}.v1"}}}
        has_kind = {"properties": {"data": {"properties": {"kind": {"const": kind}}}}}
        model["allOf"].append({"if": has_type, "then": has_kind})


def _restrict_follow_event(model: Schema) -> None:
    fields = model["properties"]
    fields["specversion"] = {"const": "1.0"}
    fields["datacontenttype"] = {"const": "application/json"}
    model["required"] = list(fields)


def _when(field: str, value: object, **then: Schema) -> Schema:
    return {"if": {"properties": {field: {"const": value}}, "required": [field]}, "then": {"properties": then}}


_NULL: Schema = {"type": "null"}
_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}


def _event_rules() -> Iterator[Schema]:
    """Yield the rules between the fields of an event's data."""
    for kind in KINDS:
        yield _when("kind", kind, final={"const": False}, outcome=_NULL, error=_NULL, status=_TEXT)
    yield _when("kind", "completed", final={"const": True}, status=_TEXT)
    yield _when("kind", "abandoned", final={"const": True}, error=_OBJECT)
    yield _when("final", True, outcome=_TEXT)
    yield _when("final", False, outcome=_NULL)
    yield _when("outcome", "succeeded", error=_NULL, status={"const": "SUCCEEDED"})
    for outcome in ("failed", "canceled"):
        yield _when("outcome", outcome, error=_OBJECT, status={"const": "FAILED"})
    yield _when("result_state", "inline", result={"not": _NULL}, result_ref=_NULL)
    yield _when("result_state", "stored", result=_NULL, result_ref=_OBJECT)
    for state in ("none", "unavailable"):
        yield _when("result_state", state, result=_NULL, result_ref=_NULL)
    yield _when("sequence", 1, previous_status=_NULL)


_ERROR_REPLY: Schema = {
    "title": "ErrorReply",
    "description": "The reply of any verb that refuses a request. The headers have the error too.",
    "type": "object",
    "properties": {
        "error": ref("ErrorBody"),
        "last_event": {
            "description": "The final event; only if `unwatch` fails with 409 `already_ended`.",
            "anyOf": [ref("CloudEvent"), _NULL],
        },
    },
    "required": ["error"],
}


def _build_rejection(event_attributes: Schema) -> Schema:
    """Return the schema of a rejection, which `jetstream/rejections.py` builds field by field."""
    shared = ("specversion", "source", "subject", "time", "datacontenttype", "traceparent", "tracestate")
    request = {"description": f"The text as received, cut at {REQUEST_MAX_KEPT_BYTES} bytes.", "type": "string"}
    labels = {"type": ["object", "null"], "additionalProperties": _TEXT}
    name = {"type": ["string", "null"]}
    data = {"error": ref("ErrorBody"), "request": request, "vcenter": name, "task": name, "labels": labels}
    return {
        "title": "Rejection",
        "description": "A stored request that can never be served, published once per request. Unknown values are "
        "null; `subject` is absent if no task is known.",
        "type": "object",
        "properties": {
            **{name: event_attributes[name] for name in shared},
            "id": {"description": "The id of the request.", "type": "string", "minLength": 1},
            "type": {"const": REJECTED},
            "data": {"type": "object", "properties": data, "required": list(data)},
        },
        "required": ["specversion", "id", "source", "type", "time", "datacontenttype", "data"],
    }


def _build_undelivered(event_attributes: Schema) -> Schema:
    """Return the schema of a report of a delivery, which `delivery/report.py` builds."""
    shared = ("specversion", "source", "time", "datacontenttype")
    data = {
        "delivery": {"description": "The name of the delivery.", "type": "string"},
        "target": {"description": "Scheme, host and port of its URL.", "type": "string"},
        "reason": {"description": "What the target answered at last, or what failed.", "type": "string"},
        "tries": {"description": "Requests since the replica took the event up.", "type": "integer", "minimum": 0},
        "sequence": {"description": "The event's sequence in the events stream.", "type": "integer", "minimum": 1},
        "event": {
            "description": "The event as it is stored; its text if it isn't JSON, null if it would be too large here."
        },
    }
    return {
        "title": "Undelivered",
        "description": "An event that a delivery over HTTP couldn't deliver. `task-bridge redeliver` sends it again. "
        "Since 1.1.",
        "type": "object",
        "properties": {
            **{name: event_attributes[name] for name in shared},
            "id": {"description": "The delivery, the event's id and its sequence in the stream.", "type": "string"},
            "type": {"const": UNDELIVERED},
            "subject": {"description": "The name of the delivery.", "type": "string"},
            "data": {"type": "object", "properties": data, "required": list(data)},
        },
        "required": ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"],
    }
