"""Bodies in the rendering of `/rest`, made from those of `/api`. Pure.

`/rest` wraps answers in `value`, writes every map as an array of `key` and `value`, names the class of a task's error
in `@class`, and wraps errors in `type` and `value`. JSON doesn't distinguish a map from a structure. vSphere's
structures have members in snake_case, so an object with any other key counts as a map. So do objects with the names in
`MAPS`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from .script import Fields

Rendering = Literal["api", "rest"]

MAPS = frozenset(
    {"params", "hosts", "compliances", "subtasks", "subtask_summaries", "diff_results", "compliance_result"}
)

_match_member = re.compile(r"[a-z_][a-z0-9_]*").fullmatch


def render_rest_info(body: Fields) -> Fields:
    """Return a task's Info in the rendering of `/rest`."""
    info = {name: render_rest_value(value, name) for name, value in body.items()}
    error = info.get("error")
    if isinstance(error, dict) and "error_type" in error:
        info["error"] = {"@class": name_error_class(error["error_type"]), **error}
    return info


def render_rest_value(value: Any, name: str = "") -> Any:
    if isinstance(value, list):
        return [render_rest_value(element) for element in value]
    if not isinstance(value, dict):
        return value
    inner = {key: render_rest_value(element, key) for key, element in value.items()}
    # Objects of VI/JSON inside a result are opaque to vAPI, which passes them on unchanged.
    is_map = name in MAPS or ("_typeName" not in value and not all(map(_match_member, value)))
    return render_rest_map(inner) if is_map else inner


def render_rest_map(entries: Mapping[str, Any]) -> list[Fields]:
    return [{"key": key, "value": value} for key, value in entries.items()]


def render_rest_error(body: Fields) -> Fields:
    """Return a standard error as `/rest` wrote it before 6.7.2: only `type` contains its type."""
    value = {name: render_rest_value(element, name) for name, element in body.items() if name != "error_type"}
    return {"type": name_error_class(body["error_type"]), "value": value}


def name_error_class(error_type: str) -> str:
    return f"com.vmware.vapi.std.errors.{error_type.lower()}"


def build_old_router_error() -> Fields:
    """Return the answer of the oldest routers to an unknown path."""
    name = "com.vmware.vapi.rest.httpNotFound"
    localizable = [{"defaultMessage": "Not found.", "id": name}]
    return {"localizableMessages": localizable, "majorErrorCode": 404, "name": name}
