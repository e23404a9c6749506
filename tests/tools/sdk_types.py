"""Print the table of the vSphere SDK's data types that `task_bridge.vcenter.vim.sdk_types` reads.

`make sdk-types` writes it, from the type definitions of the locked pyVmomi. A line is a type: its name, its base type
(`-` without one), and those of its own properties that aren't plain text, as `name:type`, with `*` after an array. All
integer types are `int`, both floating-point types `float`; texts, times, enumerations and references are `string`, of
which only arrays are listed. A declared fault is a `LocalizedMethodFault`: that is what vCenter sends in its place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from pyVmomi import VmomiSupport

_NUMBERS = {"boolean": "boolean", "float": "float", "double": "float"} | dict.fromkeys(
    ("byte", "short", "int", "long"), "int"
)
_FAULT, _LOCALIZED = "vmodl.MethodFault", "vmodl.LocalizedMethodFault"
_definitions: dict[str, list[Any]] = VmomiSupport._dataDefMap


def build_table() -> str:
    """Return the table as text, in the order of the names."""
    merged: dict[str, tuple[str, dict[str, str]]] = {}
    for _, name, base, _, properties in sorted(_definitions.values(), key=lambda one: str(one[0])):
        if name in merged:
            # Two names stand for two types each, of other namespaces. Their properties don't contradict.
            merged[name][1].update(_list_inherited_fields(base))
        _, fields = merged.setdefault(name, (_definitions[base][1] if base in _definitions else "-", {}))
        fields.update(_list_fields(name, properties or ()))
    lines = (
        f"{name} {base}" + "".join(f" {field}:{kind}" for field, kind in fields.items())
        for name, (base, fields) in sorted(merged.items())
    )
    return "\n".join(lines) + "\n"


def _list_inherited_fields(kind: str | None) -> Iterator[tuple[str, str]]:
    while kind in _definitions:
        _, name, base, _, properties = _definitions[kind]
        yield from _list_fields(name, properties or ())
        kind = base


def _list_fields(owner: str, properties: Any) -> Iterator[tuple[str, str]]:
    for field, kind, *_ in properties:
        item = kind.removesuffix("[]")
        is_array = item != kind
        declared = _name_type(owner, item)
        if is_array or declared != "string":
            yield field, f"{declared}*" if is_array else declared


def _name_type(owner: str, kind: str) -> str:
    if kind in _NUMBERS:
        return _NUMBERS[kind]
    if kind not in _definitions:
        return "string"
    if _is_fault(kind) and owner != _definitions[_LOCALIZED][1]:
        kind = _LOCALIZED
    return str(_definitions[kind][1])


def _is_fault(kind: str | None) -> bool:
    while kind in _definitions:
        if kind == _FAULT:
            return True
        kind = _definitions[kind][2]
    return False


if __name__ == "__main__":
    sys.stdout.write(build_table())
