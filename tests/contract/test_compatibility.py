"""What a consumer of 1.0 counts on: `v1.0/` are its schemas, and never change.

Events and replies may say more, never less and never otherwise; requests may be taken in more
forms, never in fewer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from task_bridge import schemas
from task_bridge.domain.events import from_cloudevent, to_cloudevent
from validity import FROZEN, WITHDRAWN, validator, validator_of

Schema = dict[str, Any]
_IGNORED = ("title", "description", "$schema", "default", "examples")
_ANYTHING = ["array", "boolean", "integer", "null", "number", "object", "string"]


def frozen(name: str) -> Schema:
    return json.loads((FROZEN / f"{name}.json").read_text())  # type: ignore[no-any-return]


def breaks_readers(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """What a reader of `old` could stumble over when `new` is written."""
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _breaks_object(old, new, at)
    elif isinstance(old, list) and isinstance(new, list) and at.endswith(("allOf", "anyOf")):
        yield from _breaks_forms(old, new, at)
    elif old != new:
        yield f"{at}: {old!r} has become {new!r}"


def _breaks_object(old: Schema, new: Schema, at: str) -> Iterator[str]:
    for key, value in old.items():
        if key in _IGNORED:
            continue
        where = f"{at}/{key}"
        if key not in new:
            yield f"{where} is gone"
        elif key == "required":
            yield from (f"{where}: {name} may be missing" for name in value if name not in new[key])
        elif key == "type":
            yield from (f"{where}: may be {kind}" for kind in _types(new) if kind not in _types(old))
        elif key == "enum":
            yield from (f"{where}: may be {item!r}" for item in new[key] if item not in value)
        else:
            yield from breaks_readers(value, new[key], where)


def _breaks_forms(old: list[Any], new: list[Any], at: str) -> Iterator[str]:
    """`anyOf`: no new form. `allOf`: none of the promises is gone."""
    if at.endswith("anyOf"):
        unknown = [one for one in new if all(any(breaks_readers(known, one)) for known in old)]
        yield from (f"{at}: {json.dumps(one)[:120]} is new" for one in unknown)
    else:
        lost = [one for one in old if all(any(breaks_readers(one, kept)) for kept in new)]
        yield from (f"{at}: {json.dumps(one)[:120]} is gone" for one in lost)


def _types(schema: Schema) -> list[str]:
    types = schema.get("type", _ANYTHING)
    return types if isinstance(types, list) else [types]


@pytest.mark.parametrize("name", ["event", "reply"])
def test_what_a_consumer_of_1_0_reads_is_still_written(name: str) -> None:
    today = schemas.load_schema(name)
    if name == "reply":  # nobody who knows only 1.0 sends the new verbs
        today["anyOf"] = [one for one in today["anyOf"] if "follow" not in one["$ref"].lower()]
    broken = list(breaks_readers(frozen(name), today))
    assert len(broken) == 1
    assert json.dumps(WITHDRAWN)[:120] in broken[0]


def _field(name: str) -> Callable[[Schema], Schema]:
    return lambda schema: schema["$defs"]["EventData"]["properties"][name]


def _event_data(schema: Schema) -> Schema:
    return schema["$defs"]["EventData"]  # type: ignore[no-any-return]


BREAKING: dict[str, Callable[[Schema], Any]] = {
    "a key is removed": lambda s: _event_data(s)["properties"].pop("user"),
    "a key may be missing": lambda s: _event_data(s)["required"].remove("user"),
    "another type": lambda s: _field("sequence")(s).update(type="string"),
    "a wider type": lambda s: _field("sequence")(s).update(type="number"),
    "newly null": lambda s: _field("final")(s).update(type=["boolean", "null"]),
    "any type": lambda s: _field("final")(s).pop("type"),
    "another form of time": lambda s: _field("unchanged_since")(s).update(pattern="^[0-9]+$"),
    "a wider range": lambda s: s["$defs"]["Progress"]["properties"]["percent"].update(maximum=1000),
    "a new state of the result": lambda s: _field("result_state")(s)["enum"].append("elsewhere"),
    "a promise is dropped": lambda s: _event_data(s)["allOf"].pop(0),
    "another shape of the watch": lambda s: _field("watch")(s).update(allOf=[{"$ref": "#/$defs/Target"}]),
    "a target in two forms": lambda s: _field("target")(s)["anyOf"].append({"type": "string"}),
    "another version": lambda s: s["$defs"]["CloudEvent"]["properties"]["specversion"].update(const="2.0"),
}
HARMLESS: dict[str, Callable[[Schema], Any]] = {
    "nothing": lambda s: None,
    "a new key": lambda s: _event_data(s)["properties"].update(region={"type": "string"}),
    "that is always there": lambda s: _event_data(s)["required"].append("region"),
    "a better word": lambda s: _field("status")(s).update(description="Other words."),
    "never null any more": lambda s: _field("user")(s).update(type="string"),
    "one more promise": lambda s: _event_data(s)["allOf"].append({"minProperties": 3}),
}


@pytest.mark.parametrize("change", BREAKING)
def test_a_change_that_would_break_a_consumer_is_found(change: str) -> None:
    changed = copy.deepcopy(frozen("event"))
    BREAKING[change](changed)
    assert list(breaks_readers(frozen("event"), changed))


@pytest.mark.parametrize("change", HARMLESS)
def test_a_change_that_a_consumer_need_not_know_is_not_held_up(change: str) -> None:
    changed = copy.deepcopy(frozen("event"))
    HARMLESS[change](changed)
    assert list(breaks_readers(frozen("event"), changed)) == []


# Requests: bodies that 1.0 takes (and refuses) with its frozen schema, as they stand in 1.0's examples

REQUESTS = json.loads((FROZEN / "requests.json").read_text())


@pytest.mark.parametrize("part", REQUESTS)
def test_a_request_that_1_0_takes_is_taken(part: str) -> None:
    for body in REQUESTS[part]:
        assert validator_of(frozen("request"), part).is_valid(body), body
        assert validator("request", part).is_valid(body), body


def test_the_examples_of_requests_have_every_field_of_1_0() -> None:
    for part, bodies in REQUESTS.items():
        model = frozen("request")["$defs"][part]
        fields = (model["anyOf"][1] if "anyOf" in model else model)["properties"]
        assert {key for body in bodies if isinstance(body, dict) for key in body} == set(fields)


EVENTS = sorted((FROZEN / "events").glob("*.json"))


@pytest.mark.parametrize("file", EVENTS, ids=lambda file: file.stem)
def test_an_event_of_1_0_is_valid_and_can_be_resumed_from(file: Any) -> None:
    body = file.read_bytes()
    assert validator_of(frozen("event")).is_valid(json.loads(body))
    event = from_cloudevent(body, stalled_reported=False)
    assert event is not None
    rewritten = json.loads(to_cloudevent(event))
    assert validator("event").is_valid(rewritten)
    assert validator_of(frozen("event")).is_valid(rewritten)
    assert rewritten == with_new_keys(json.loads(body))


def with_new_keys(event: Any) -> Any:
    """The event with the keys that later releases added, each null."""
    definitions = schemas.load_schema("event")["$defs"]
    data = event["data"]
    for model, holder in (("EventData", data), ("Target", data["target"]), ("WatchRef", data["watch"])):
        for key, field in definitions[model]["properties"].items():
            if holder is not None and "x-since" in field:
                holder.setdefault(key, None)
    return event


@pytest.mark.parametrize("name", ["event", "reply"])
def test_a_target_always_has_a_name_if_only_null(name: str) -> None:
    target = schemas.load_schema(name)["$defs"]["Target"]
    assert "name" not in target["required"]  # events of 1.0 lack it
    assert target["properties"]["name"]["type"] == ["string", "null"]
