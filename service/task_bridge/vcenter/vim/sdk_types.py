"""What the vSphere SDK declares of its data types: which properties are arrays, numbers or data objects. Pure.

vCenter sends the type of a value only where it differs from the declared one. `make sdk-types` writes the table from
pyVmomi's definitions; `tests/tools/sdk_types.py` explains its lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

LOCALIZED_FAULT = "LocalizedMethodFault"
FAULT = "MethodFault"


class Property(NamedTuple):
    """What is declared of a property. `type` is empty if it isn't known, `string` for all kinds of text."""

    type: str
    is_array: bool


def is_data_object(name: str) -> bool:
    return name in _read_table()


def is_fault(name: str) -> bool:
    """Return whether the type is a fault. Where one is declared, vCenter sends a `LocalizedMethodFault`."""
    table = _read_table()
    while name in table and name != FAULT:
        name = table[name].split(" ", 1)[0]
    return name == FAULT


def properties_of(name: str) -> Mapping[str, Property]:
    """Return the properties of a type that aren't single texts; none of an unknown type."""
    return _parse_properties(name) if name in _read_table() else {}


@cache
def _read_table() -> dict[str, str]:
    """Return the lines by type. Most types never come, so a line is parsed when its type does."""
    lines = (files(__package__) / "sdk_types.txt").read_text(encoding="ascii").splitlines()
    return {name: rest for name, _, rest in (line.partition(" ") for line in lines)}


@cache
def _parse_properties(name: str) -> Mapping[str, Property]:
    base, *fields = _read_table()[name].split(" ")
    own = (field.partition(":") for field in fields)
    return {**properties_of(base), **{field: Property(kind.rstrip("*"), kind.endswith("*")) for field, _, kind in own}}
