"""One OpenAPI 3.1 document of the API over HTTP, built from the schemas of the NATS API. Pure."""

from __future__ import annotations

from typing import Any

from .. import __version__
from ..domain.events import FINAL_KINDS, SUBJECT_KINDS
from ..domain.subjects import SERVICE, VERBS
from . import load_components, relocate_refs
from .asyncapi import REQUESTS, VERB_DESCRIPTIONS
from .descriptions import Schema

_DESCRIPTION = (
    "Watches long-running vCenter tasks. The same requests and replies as over NATS, for programs without a NATS "
    "client. A token may be limited to some verbs and some vCenters. The same body is accepted with any content type."
)
_ERRORS = {
    400: "The request is wrong; `details` name each field.",
    401: "The token is missing, or isn't one of this bridge.",
    403: "The token may not use this verb or this vCenter, or it came unencrypted from another host.",
    429: "More than 20 requests within a second, or too many streams. `Retry-After` says when to try again.",
    503: "NATS, JetStream or vCenter is away. Try again.",
}
_BODY_ERRORS = {
    404: "The vCenter, the task, the watch or the follow isn't known.",
    408: "The body didn't arrive in time.",
    413: "The body has more than 1 MiB.",
}
_CONFLICT = {409: "The task or its watch ended before, or the task can't be canceled."}
_EVENTS_DESCRIPTION = (
    "Sends the stored events that match, oldest first, then new ones as they come, as server-sent events: `id` is the "
    "sequence in the stream, `data` a CloudEvent. To go on after an interruption, send the last `id` as "
    "`Last-Event-ID`: nothing is missing and nothing comes twice. With `watch` the response ends after the final event "
    "of that watch. A comment is sent after 15 seconds of silence."
)


def build_openapi() -> Schema:
    """Build the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": SERVICE,
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": {
            **{f"/v1/{verb}": {"post": _build_operation(verb)} for verb in VERBS},
            "/v1/events": {"get": _build_events_operation()},
            "/v1/openapi.json": {"get": _OPENAPI_OPERATION},
        },
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Made by `task-bridge token`.",
                }
            },
            "schemas": relocate_refs(load_components()),
        },
    }


def _build_operation(verb: str) -> Schema:
    reply = _content(f"{verb.title()}Reply")
    responses = {"200": {"description": "The reply.", "content": reply}}
    if verb in ("watch", "follow"):
        responses["202"] = {"description": "`accepted`: it has just started.", "content": reply}
    errors = _ERRORS | _BODY_ERRORS | (_CONFLICT if verb in ("unwatch", "cancel") else {})
    return {
        "operationId": verb,
        "summary": VERB_DESCRIPTIONS[verb],
        "parameters": [_header("traceparent", "The W3C trace context.")] if verb in ("watch", "follow") else [],
        "requestBody": {"required": verb not in ("list", "follows"), "content": _content(REQUESTS[verb])},
        "responses": responses | _build_errors(errors),
    }


def _build_events_operation() -> Schema:
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    kinds = [*SUBJECT_KINDS, *FINAL_KINDS]
    return {
        "operationId": "events",
        "summary": "Sends stored events, and new ones as they come.",
        "description": _EVENTS_DESCRIPTION,
        "parameters": [
            _query("vcenter", "Events of this vCenter only."),
            _query("task", "Events of this task only."),
            _query("kind", "Events of this kind only; `completed` has all its outcomes.", enum=kinds),
            _query("watch", "Events of this watch only, until it ends."),
            _query("since", "`now`, a time, or a duration ago like `1h`: events stored since then. Default: all."),
            _header("Last-Event-ID", "The `id` of the last event that was received; goes before `since`."),
        ],
        "responses": {"200": {"description": "The events.", "content": stream}} | _build_errors(_ERRORS),
    }


_OPENAPI_OPERATION: Schema = {
    "operationId": "openapi",
    "summary": "Returns this document. Needs no token.",
    "security": [],
    "responses": {
        "200": {"description": "This document.", "content": {"application/json": {"schema": {"type": "object"}}}}
    },
}


def _build_errors(errors: dict[int, str]) -> Schema:
    content = _content("ErrorReply")
    return {str(status): {"description": text, "content": content} for status, text in sorted(errors.items())}


def _content(component: str) -> Schema:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{component}"}}}


def _query(name: str, description: str, **schema: Any) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "string", **schema}}


def _header(name: str, description: str) -> Schema:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}
