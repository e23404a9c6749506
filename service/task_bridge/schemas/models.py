"""The JSON Schemas (2020-12) of requests, replies and events, made of the models. Pure.

Requests are closed: an unknown field is refused. Events and replies are open: 1.x may add keys, kinds and outcomes,
and every key of theirs is always there. No keyword stands beside a `$ref`, so that validators of older drafts,
AsyncAPI's among them, read the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

from ..domain.events import TYPE_PREFIX, CloudEvent
from ..domain.requests import (
    REQUEST_MAX_KEPT_BYTES,
    CancelReply,
    ErrorBody,
    GetReply,
    ListReply,
    ListRequest,
    TaskRequest,
    UnwatchReply,
    WatchReply,
    WatchRequest,
)
from .descriptions import DESCRIPTIONS, FINAL_OUTCOMES, KINDS, REJECTED, TASK_ID, Schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DEFS = "#/$defs/"
_REQUESTS = (WatchRequest, TaskRequest, ListRequest)
_REPLIES = (WatchReply, GetReply, ListReply, UnwatchReply, CancelReply)


def ref(name: str) -> Schema:
    return {"$ref": _DEFS + name}


def build_schema_files() -> dict[str, Schema]:
    """The three schemas, each complete in itself, by name."""
    requests = [model.__name__ for model in _REQUESTS]
    replies = [*(model.__name__ for model in _REPLIES), "ErrorReply"]
    rejected = {"properties": {"type": {"const": REJECTED}}, "required": ["type"]}
    return {
        "request": _file(
            "A watch request. Of the other verbs, get, unwatch and cancel take a TaskRequest, list a ListRequest",
            requests,
            {"allOf": [ref("WatchRequest")]},
        ),
        "reply": _file("An answer of the API, one of each verb", replies, {"anyOf": [ref(name) for name in replies]}),
        "event": _file(
            "A message of the events stream: an event of a watch, or a rejection",
            ["CloudEvent", "Rejection"],
            {"if": rejected, "then": ref("Rejection"), "else": ref("CloudEvent")},
        ),
    }


def _file(title: str, names: list[str], root: Schema) -> Schema:
    return {"$schema": DIALECT, "title": title, **root, "$defs": collect_components(names)}


def collect_components(names: list[str]) -> dict[str, Schema]:
    """These components and those that they need."""
    all_of_them, wanted = build_components(), list(names)
    for name in wanted:
        wanted.extend(needed for needed in _named_in(all_of_them[name]) if needed not in wanted)
    return {name: all_of_them[name] for name in wanted}


def _named_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(named := value.get("$ref"), str):
            yield named.removeprefix(_DEFS)
        for item in value.values():
            yield from _named_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _named_in(item)


@cache
def build_components() -> dict[str, Schema]:
    """Every component by name. Not to be changed by who gets it."""
    made = {"TaskId": TASK_ID, **_request_components(), **_open_components(), "ErrorReply": _error_reply()}
    made["Rejection"] = _rejection(made["CloudEvent"]["properties"])
    return made


def _request_components() -> dict[str, Schema]:
    _, made = models_json_schema([(model, "validation") for model in _REQUESTS], ref_template=_DEFS + "{model}")
    models: dict[str, Schema] = {name: _worded(name, schema) for name, schema in made["$defs"].items()}
    for name, model in models.items():
        if "task" in model["properties"]:
            model["properties"]["task"] = ref("TaskId")
            about = {key: model.pop(key) for key in ("title", "description")}
            models[name] = {**about, "anyOf": [ref("TaskId"), model]}
    return models


def _open_components() -> dict[str, Schema]:
    _, made = msgspec.json.schema_components([CloudEvent, ErrorBody, *_REPLIES], ref_template=_DEFS + "{name}")
    models: dict[str, Schema] = {name: _complete(_worded(name, schema)) for name, schema in made.items()}
    _finish_cloudevent(models["CloudEvent"])
    models["EventData"]["allOf"] = [*_kinds(), *_outcomes(), *_results(), _first()]
    for name in ("WatchReply", "GetReply", "UnwatchReply"):
        one = models[name]["properties"]["last_event"]
        one["anyOf"] = [ref("CloudEvent")] if name == "UnwatchReply" else [ref("CloudEvent"), {"type": "null"}]
    return models


def _worded(name: str, model: Schema) -> Schema:
    """The model with a word on each of its fields; a field without one is a KeyError of the next test."""
    words, properties = DESCRIPTIONS[name], model["properties"]
    if words.keys() != properties.keys():
        raise KeyError(f"{name}: words and fields differ: {sorted(words.keys() ^ properties.keys())}")
    fields = {field: {**_plain(schema, words[field]), **words[field]} for field, schema in properties.items()}
    return {**model, "properties": fields}


def _plain(schema: Schema, words: Schema) -> Schema:
    """A field's schema without a title, a lone `$ref` wrapped, and "string or null" in its short form.

    Where the words have forms of their own (durations, which the model knows as seconds only), those hold.
    """
    unwanted = ("title", "anyOf") if "anyOf" in words else ("title",)
    schema = {key: value for key, value in schema.items() if key not in unwanted}
    if "$ref" in schema:
        return {"allOf": [schema]}
    if "anyOf" in schema and all(one.keys() == {"type"} for one in schema["anyOf"]):
        schema["type"] = [one["type"] for one in schema.pop("anyOf")]
    return schema


def _complete(model: Schema) -> Schema:
    """All keys are always there, but a target's name; a default is nothing that a reader needs to know."""
    for field in model["properties"].values():
        field.pop("default", None)
    return {
        **model,
        "required": [name for name in model["properties"] if (model["title"], name) != ("Target", "name")],
    }


def _finish_cloudevent(model: Schema) -> None:
    absent = ("outcome", "traceparent", "tracestate")
    fields = model["properties"]
    for name in absent:
        fields[name]["type"] = "string"  # never null: there, or absent
    fields["specversion"] = {"const": "1.0"}
    fields["datacontenttype"] = {"const": "application/json"}
    model["required"] = [name for name in fields if name not in absent]
    final = {"properties": {"data": {"properties": {"final": {"const": True}}, "required": ["final"]}}}
    model["allOf"] = [
        {"if": final, "then": {"required": ["outcome"]}, "else": {"not": {"required": ["outcome"]}}},
        *(_same_kind(kind) for kind in (*KINDS, *FINAL_OUTCOMES)),
    ]


def _same_kind(kind: str) -> Schema:
    said = {"properties": {"type": {"const": f"{TYPE_PREFIX}.task.{kind}.v1"}}}
    return {"if": said, "then": {"properties": {"data": {"properties": {"kind": {"const": kind}}}}}}


def _when(field: str, value: object, **then: Schema) -> Schema:
    return {"if": {"properties": {field: {"const": value}}, "required": [field]}, "then": {"properties": then}}


_NULL: Schema = {"type": "null"}
_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}


def _kinds() -> Iterator[Schema]:
    for kind in KINDS:
        yield _when("kind", kind, final={"const": False}, outcome=_NULL, error=_NULL, status=_TEXT)
    yield _when("kind", "completed", final={"const": True}, status=_TEXT)
    yield _when("kind", "abandoned", final={"const": True}, error=_OBJECT)
    cis = {
        "properties": {"api": {"const": "cis"}, "kind": {"not": {"const": "completed"}}},
        "required": ["api", "kind"],
    }
    yield {"if": cis, "then": {"properties": {"extra": _NULL}}}
    yield _when("final", True, outcome=_TEXT)
    yield _when("final", False, outcome=_NULL)


def _outcomes() -> Iterator[Schema]:
    yield _when("outcome", "succeeded", error=_NULL, status={"const": "SUCCEEDED"})
    for outcome in ("failed", "canceled"):
        yield _when("outcome", outcome, error=_OBJECT, status={"const": "FAILED"})


def _results() -> Iterator[Schema]:
    yield _when("result_state", "inline", result={"not": _NULL}, result_ref=_NULL)
    yield _when("result_state", "stored", result=_NULL, result_ref=_OBJECT)
    for state in ("none", "unavailable"):
        yield _when("result_state", state, result=_NULL, result_ref=_NULL)


def _first() -> Schema:
    return _when("sequence", 1, previous_status=_NULL)


def _error_reply() -> Schema:
    last = "On 409 `already_ended` of `unwatch`: the final event."
    return {
        "title": "ErrorReply",
        "description": "Any verb's answer when it refuses; the headers say it too.",
        "type": "object",
        "properties": {
            "error": ref("ErrorBody"),
            "last_event": {"description": last, "anyOf": [ref("CloudEvent"), _NULL]},
        },
        "required": ["error"],
    }


def _rejection(around: Schema) -> Schema:
    """Of `messaging/intake.py`, which builds it field by field; `around` are the attributes of an event."""
    shared = ("specversion", "source", "subject", "time", "datacontenttype", "traceparent", "tracestate")
    kept = {"description": f"As received, text, cut at {REQUEST_MAX_KEPT_BYTES} bytes.", "type": "string"}
    labels = {"type": ["object", "null"], "additionalProperties": _TEXT}
    known = {"type": ["string", "null"]}
    data = {"error": ref("ErrorBody"), "request": kept, "vcenter": known, "task": known, "labels": labels}
    return {
        "title": "Rejection",
        "description": "A stored request that can never be served, told once. Null is what its text doesn't tell; "
        "`subject` is absent where no task is known.",
        "type": "object",
        "properties": {
            **{name: around[name] for name in shared},
            "id": {"description": "Of the request.", "type": "string", "minLength": 1},
            "type": {"const": REJECTED},
            "data": {"type": "object", "properties": data, "required": list(data)},
        },
        "required": ["specversion", "id", "source", "type", "time", "datacontenttype", "data"],
    }
