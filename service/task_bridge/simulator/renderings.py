"""The same things as `/api` and as `/rest` write them. Pure.

`/rest` wraps answers into `value`, writes every map as an array of `key` and `value`, names a task's error by
`@class`, and wraps errors into `type` and `value`. JSON doesn't tell a map from a structure; vSphere's structures
have members in snake_case, so an object with any other key is taken for a map, and so are those with known names.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from .script import Fields

Rendering = Literal["api", "rest"]

MAPS = frozenset(
    {"params", "hosts", "compliances", "subtasks", "subtask_summaries", "diff_results", "compliance_result"}
)

_member = re.compile(r"[a-z_][a-z0-9_]*").fullmatch


def rest_info(body: Fields) -> Fields:
    """A task's Info as `/rest` writes it."""
    info = {name: rest_value(value, name) for name, value in body.items()}
    error = info.get("error")
    if isinstance(error, dict) and "error_type" in error:
        info["error"] = {"@class": error_class(error["error_type"]), **error}
    return info


def rest_value(value: Any, name: str = "") -> Any:
    if isinstance(value, list):
        return [rest_value(element) for element in value]
    if not isinstance(value, dict):
        return value
    inner = {key: rest_value(element, key) for key, element in value.items()}
    return rest_map(inner) if _is_map(value, name) else inner


def rest_map(entries: Mapping[str, Any]) -> list[Fields]:
    return [{"key": key, "value": value} for key, value in entries.items()]


def rest_error(body: Fields) -> Fields:
    """A standard error as the legacy endpoint of before 6.7.2 has it: its type is in `type` alone."""
    value = {name: rest_value(element, name) for name, element in body.items() if name != "error_type"}
    return {"type": error_class(body["error_type"]), "value": value}


def error_class(error_type: str) -> str:
    return f"com.vmware.vapi.std.errors.{error_type.lower()}"


def old_router_error() -> Fields:
    """What the oldest routers say to a path they don't know."""
    name = "com.vmware.vapi.rest.httpNotFound"
    localizable = [{"defaultMessage": "Not found.", "id": name}]
    return {"localizableMessages": localizable, "majorErrorCode": 404, "name": name}


def _is_map(value: Fields, name: str) -> bool:
    # Objects of VI/JSON inside a result are opaque to vAPI, which passes them on as they are.
    return name in MAPS or ("_typeName" not in value and not all(map(_member, value)))
