"""The JSON Schemas of requests, replies and events, one AsyncAPI document of every subject, one OpenAPI document.

`make schemas` writes the JSON files in this package from the models (`models.py`), and a test checks that they are
current. They are files so that the wheel contains them and printing one doesn't need the models.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

NAMES = ("request", "reply", "event", "follow", "undelivered")


def read_text(name: str) -> str:
    """Return the text of the schema `request`, `reply`, `event`, `follow` or `undelivered`."""
    return (files(__name__) / f"{name}.json").read_text(encoding="utf-8")


def load_schema(name: str) -> dict[str, Any]:
    """Return the schema `request`, `reply`, `event`, `follow` or `undelivered` as an object."""
    return json.loads(read_text(name))  # type: ignore[no-any-return]


def load_components() -> dict[str, Any]:
    """Return every schema that the files define, by name."""
    return {name: part for file in NAMES for name, part in load_schema(file)["$defs"].items()}


def relocate_refs(value: Any) -> Any:
    """Return a copy in which every `$ref` points to where AsyncAPI and OpenAPI keep components."""
    if isinstance(value, dict):
        moved = {key: relocate_refs(item) for key, item in value.items()}
        if isinstance(target := value.get("$ref"), str):
            moved["$ref"] = target.replace("#/$defs/", "#/components/schemas/")
        return moved
    return [relocate_refs(item) for item in value] if isinstance(value, list) else value


def format_document(document: dict[str, Any]) -> str:
    """Format a document as text, the way the files have it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
