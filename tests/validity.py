"""Whether what the bridge publishes is what the schemas say, by the committed files and by CloudEvents' own SDK."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import best_match

from task_bridge import schemas

FROZEN = Path(__file__).parent / "contract" / "v1.0"
"""The schemas as a consumer of 1.0 knows them."""
WITHDRAWN = {
    "if": {
        "properties": {"api": {"const": "cis"}, "kind": {"not": {"const": "completed"}}},
        "required": ["api", "kind"],
    },
    "then": {"properties": {"extra": {"type": "null"}}},
}
"""The one promise of 1.0 about events that 1.1 doesn't keep: a request with `details` asks for `extra` there."""


@cache
def validator(name: str, part: str | None = None) -> Draft202012Validator:
    """Of a schema, or of one of its parts: `validator("reply", "ListReply")`."""
    return validator_of(schemas.load_schema(name), part)


def validator_of(schema: dict[str, Any], part: str | None = None) -> Draft202012Validator:
    if part is not None:
        schema = {"$ref": f"#/$defs/{part}", "$defs": schema["$defs"]}
    return Draft202012Validator(schema, format_checker=FormatChecker())


@cache
def validators_of_events() -> tuple[Draft202012Validator, ...]:
    """Today's, and that of 1.0 while it is another."""
    frozen = json.loads((FROZEN / "event.json").read_text())
    frozen["$defs"]["EventData"]["allOf"].remove(WITHDRAWN)
    today = schemas.load_schema("event")
    return tuple(validator_of(one) for one in ([today] if today == frozen else [today, frozen]))


def check_event(body: bytes) -> None:
    """Fails when `body` isn't an event that a consumer may count on."""
    event = json.loads(body)
    is_of_follow = event["type"].startswith("io.vcenter-task-bridge.follow.")
    for one in (validator("follow"),) if is_of_follow else validators_of_events():
        error = best_match(one.iter_errors(event))
        assert error is None, f"{error.json_path}: {error.message[:300]} in {body[:2000]!r}"
    read = JSONFormat().read(CloudEvent, body)
    assert (read.get_id(), read.get_type()) == (event["id"], event["type"])
    assert read.get_data() == event["data"]


def check_reply(verb: str, body: bytes, *, refused: bool) -> None:
    """Fails when `body` isn't the answer that the schema promises for `verb`."""
    part = "ErrorReply" if refused else f"{verb.title()}Reply"
    error = best_match(validator("reply", part).iter_errors(json.loads(body)))
    assert error is None, f"{part}: {error.json_path}: {error.message[:300]} in {body[:2000]!r}"
    assert validator("reply").is_valid(json.loads(body))
