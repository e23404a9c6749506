"""The JSON Schemas of requests, replies and events, and one AsyncAPI document of every subject.

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


def format_document(document: dict[str, Any]) -> str:
    """Format a document as text, the way the files have it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
