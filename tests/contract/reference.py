"""docs/events.md, made of the event schema: `make schemas` writes it, a test holds it equal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from task_bridge import schemas
from task_bridge.domain.subjects import SubjectNames
from task_bridge.schemas.asyncapi import FINAL_KINDS, build_document
from task_bridge.schemas.descriptions import KINDS
from validity import FROZEN

_INTRO = """\
# The events, key by key

Made of the event schema, which `task-bridge schema event` prints
([event.json](../service/task_bridge/schemas/event.json)); how to consume events stands in
[consumers.md](consumers.md). Every event is a CloudEvent 1.0 in JSON, in structured mode. All keys of `data` are
always there; `null` is what vCenter didn't say. Times are RFC 3339 in UTC with milliseconds. Within 1.x new keys,
kinds, outcomes, statuses and error codes may appear: ignore what you don't know, and go by `data.final`.
"""
_PARTS = {
    "EventData": "## `data`",
    "WatchRef": "### `watch`",
    "Target": "### `target`",
    "Progress": "### `progress`",
    "TaskError": "### `error`",
    "Message": "### `error.messages[]`",
    "ResultRef": "### `result_ref`",
}


def reference() -> str:
    """The page."""
    schema = schemas.load_schema("event")["$defs"]
    example = json.loads((FROZEN / "events" / "completed.failed.json").read_text())
    parts = [
        _INTRO,
        "\n".join(["## Kinds", "", *_kinds()]),
        "\n".join(["## Around `data`", "", *_table(schema["CloudEvent"])]),
        *("\n".join([title, "", *_table(schema[name])]) for name, title in _PARTS.items()),
        "\n".join(["## A rejection", "", *_rejection(schema)]),
        f"## An example\n\n```json\n{json.dumps(example, indent=1, ensure_ascii=False)}\n```",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _kinds() -> Iterator[str]:
    messages = build_document(SubjectNames("vcenter.tasks"))["channels"]
    told = build_document(SubjectNames("vcenter.tasks"))["components"]["messages"]
    yield "| end of the subject | when |"
    yield "|---|---|"
    for kind in (*KINDS, *FINAL_KINDS):
        (name,) = messages[f"events.{kind}"]["messages"]
        yield f"| `{kind}` | {told[name]['summary']} |"


def _rejection(schema: dict[str, Any]) -> Iterator[str]:
    yield schema["Rejection"]["description"] + " It has the attributes above, and in `data`:"
    yield ""
    data = schema["Rejection"]["properties"]["data"]
    yield from _table(data)
    yield ""
    yield "`error` is what an error answer of the API has in its body too:"
    yield ""
    yield from _table(schema["ErrorBody"])


def _table(model: dict[str, Any]) -> Iterator[str]:
    yield "| key | type | |"
    yield "|---|---|---|"
    for name, field in model["properties"].items():
        absent = "" if name in model["required"] else ", may be absent"
        yield f"| `{name}` | {_type(field)}{absent} | {_said(field)} |"


def _said(field: dict[str, Any]) -> str:
    said = field.get("description", "").removesuffix(" RFC 3339 in UTC with milliseconds.")
    return f"{said} `{field['const']}`".strip() if "const" in field else said


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return _link(field["$ref"].rsplit("/", 1)[1])
    for form in ("anyOf", "allOf"):
        if form in field:
            return " or ".join(_type(one) for one in field[form])
    kinds = field.get("type", "string" if "const" in field else "any JSON")
    told = " or ".join(kind for kind in kinds if kind != "integer") if isinstance(kinds, list) else kinds
    if told == "array":
        return f"array of {_type(field['items'])}"
    return told.replace("string", "time") if field.get("format") == "date-time" else told


def _link(name: str) -> str:
    title = _PARTS.get(name)
    if title is None:
        return "object, see below"
    anchor = "".join(c for c in title.lstrip("# ") if c.isalnum() or c == "_")
    return f"[object](#{anchor})"


if __name__ == "__main__":
    sys.stdout.write(reference())
