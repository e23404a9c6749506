"""The JSON Schemas of requests, replies and events, and one AsyncAPI document of every subject.

The files beside this are what `models.py` makes of the models (`make schemas` writes them, a test holds them
equal): for whoever reads them out of the wheel, and so that printing one needs no models.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

NAMES = ("request", "reply", "event")


def read_text(name: str) -> str:
    """The schema `request`, `reply` or `event` as its file has it."""
    return (files(__name__) / f"{name}.json").read_text(encoding="utf-8")


def load_schema(name: str) -> dict[str, Any]:
    return json.loads(read_text(name))  # type: ignore[no-any-return]


def format_document(document: dict[str, Any]) -> str:
    """A document as text, the way the files have it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
