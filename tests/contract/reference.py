"""docs/events.md, generated from the event schema: `make schemas` writes it, and a test checks that it is current."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from task_bridge import schemas
from task_bridge.domain.events import SUBJECT_KINDS
from task_bridge.domain.subjects import SubjectNames
from task_bridge.schemas.asyncapi import build_document
from validity import FROZEN

_INTRO = """\
# The events, key by key

Generated from the event schema ([event.json](../service/task_bridge/schemas/event.json)), which `task-bridge schema
event` prints. How to consume events is in [consumers.md](consumers.md). Every event is a CloudEvent 1.0 in structured
JSON mode. All keys of `data` are always present; `null` means that vCenter didn't say. Times are RFC 3339 in UTC with
milliseconds. Within 1.x new keys, kinds, outcomes, statuses and error codes can appear: ignore what you don't know,
and decide by `data.final`.
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
    """Return the page."""
    schema = schemas.load_schema("event")["$defs"]
    example = json.loads((FROZEN / "events" / "completed.failed.json").read_text())
    example["data"]["target"].setdefault("name", None)  # which the first events of 1.0 left out
    parts = [
        _INTRO,
        "\n".join(["## Kinds", "", *_kinds()]),
        "\n".join(["## The envelope", "", *_table(schema["CloudEvent"])]),
        *("\n".join([title, "", *_table(schema[name])]) for name, title in _PARTS.items()),
        "\n".join(["## A rejection", "", *_rejection(schema)]),
        f"## An example\n\n```json\n{json.dumps(example, indent=1, ensure_ascii=False)}\n```",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _kinds() -> Iterator[str]:
    messages = build_document(SubjectNames("vcenter.tasks"))["channels"]
    summaries = build_document(SubjectNames("vcenter.tasks"))["components"]["messages"]
    yield "| end of the subject | when |"
    yield "|---|---|"
    for kind in SUBJECT_KINDS:
        (name,) = messages[f"events.{kind}"]["messages"]
        yield f"| `{kind}` | {summaries[name]['summary']} |"


def _rejection(schema: dict[str, Any]) -> Iterator[str]:
    yield schema["Rejection"]["description"] + " It has the attributes of the envelope, and in `data`:"
    yield ""
    data = schema["Rejection"]["properties"]["data"]
    yield from _table(data)
    yield ""
    yield "`error` is the same object as in error replies of the API:"
    yield ""
    yield from _table(schema["ErrorBody"])


def _table(model: dict[str, Any]) -> Iterator[str]:
    yield "| key | type | |"
    yield "|---|---|---|"
    for name, field in model["properties"].items():
        absent = "" if name in model["required"] else ", may be absent"
        yield f"| `{name}` | {_type(field)}{absent} | {_describe(field)} |"


def _describe(field: dict[str, Any]) -> str:
    text = field.get("description", "").removesuffix(" RFC 3339 in UTC with milliseconds.")
    return f"{text} `{field['const']}`".strip() if "const" in field else text


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return _link(field["$ref"].rsplit("/", 1)[1])
    for form in ("anyOf", "allOf"):
        if form in field:
            return " or ".join(_type(one) for one in field[form])
    kinds = field.get("type", "string" if "const" in field else "any JSON")
    types = " or ".join(kind for kind in kinds if kind != "integer") if isinstance(kinds, list) else kinds
    if types == "array":
        return f"array of {_type(field['items'])}"
    return types.replace("string", "time") if field.get("format") == "date-time" else types


def _link(name: str) -> str:
    title = _PARTS.get(name)
    if title is None:
        return "object, see below"
    anchor = "".join(c for c in title.lstrip("# ") if c.isalnum() or c == "_")
    return f"[object](#{anchor})"


if __name__ == "__main__":
    sys.stdout.write(reference())
