"""Convert values of the Web Services API from XML to JSON. Pure.

| XML | JSON |
|---|---|
| a reference to a managed object | `{"type", "id"}` |
| `ArrayOf…`, elements of one name, an element that the SDK declares as an array | a list |
| another element with children, or of a data object's type | an object, with its `xsi:type` as `_type` if it is sent |
| text of the type boolean, integer or floating-point number, sent or declared | a boolean or a number |
| other text | a string |
| nil | null |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from typing import Any

from .sdk_types import LOCALIZED_FAULT, Property, is_data_object, is_fault, properties_of
from .soap import Element, is_nil, local_name, ref_of, type_of

DEPTH_MAX = 32
"""Objects and arrays inside each other."""
REFERENCE = "ManagedObjectReference"
_ARRAY = "ArrayOf"
_UNDECLARED = Property("", is_array=False)
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_FRACTION = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{0,400})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**64 - 1
"""Of `xsd:long` and `xsd:unsignedLong`. JSON has no limits, but its readers do."""


class ValueOutOfBounds(ValueError):  # noqa: N818 - reads as what the value is
    """The value exceeds what the bridge converts."""


def convert_value(element: Element, declared: str = "") -> Any:
    """Return the value of an element. `declared`: the type that the SDK declares in its place.

    Raises ValueOutOfBounds.
    """
    return _convert(element, declared, DEPTH_MAX)


def convert_properties(element: Element, declared: str, without: Collection[str]) -> dict[str, Any]:
    """Return the properties of a data object, without its type and those named. Raises ValueOutOfBounds."""
    return _convert_properties(element, type_of(element) or "", declared, DEPTH_MAX, without)


def _convert(element: Element, declared: str, levels: int) -> Any:
    if is_nil(element):
        return None
    sent = type_of(element) or ""
    kind = sent or declared
    if kind.startswith(_ARRAY):
        return _convert_items(element, kind.removeprefix(_ARRAY), levels)
    if len(element):
        return _convert_object(element, sent, declared, levels)
    if ref := ref_of(element):
        return {"type": ref.type, "id": ref.id}
    text = element.text or ""
    is_object = sent not in _TEXTS if sent else is_data_object(declared)
    if text.strip() or not is_object:
        return _SCALARS.get(kind, str)(text)
    return {"_type": sent} if sent else {}


def _convert_items(element: Element, item: str, levels: int) -> list[Any]:
    _check_depth(levels)
    scalar = item[:1].lower() + item[1:]  # ArrayOfInt has items of xsd:int
    if scalar in _SCALARS:
        item = scalar
    elif is_fault(item):
        item = LOCALIZED_FAULT
    return [_convert(one, item, levels - 1) for one in element if local_name(one)]


def _convert_object(element: Element, sent: str, declared: str, levels: int) -> dict[str, Any]:
    properties = _convert_properties(element, sent, declared, levels)
    return {"_type": sent, **properties} if sent else properties


def _convert_properties(
    element: Element, sent: str, declared: str, levels: int, without: Collection[str] = ()
) -> dict[str, Any]:
    _check_depth(levels)
    known = properties_of(sent) or properties_of(declared)  # a type of a later vCenter extends the declared one
    found: dict[str, list[Any]] = {}
    for one in element:
        name = local_name(one)
        if name and name not in without:
            value = _convert(one, known.get(name, _UNDECLARED).type, levels - 1)
            found.setdefault(name, []).append(value)
    return {name: _join(values, known.get(name, _UNDECLARED).is_array) for name, values in found.items()}


def _join(values: list[Any], is_array: bool) -> Any:
    """Return the value of a property from those of its elements. One element may be a whole `ArrayOf…`."""
    return values if len(values) > 1 or (is_array and not isinstance(values[0], list)) else values[0]


def _check_depth(levels: int) -> None:
    if not levels:
        raise ValueOutOfBounds(f"is nested more than {DEPTH_MAX} deep")


def _parse_boolean(text: str) -> bool | str:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.strip(), text)


def _parse_integer(text: str) -> int | str:
    digits = text.strip()
    number = int(digits) if _INTEGER.fullmatch(digits) else None
    return text if number is None or not _INTEGER_MIN <= number <= _INTEGER_MAX else number


def _parse_fraction(text: str) -> float | str:
    """Return a number; the text of NaN and the infinities, which JSON doesn't have."""
    digits = text.strip()
    number = float(digits) if _FRACTION.fullmatch(digits) else math.inf
    return number if math.isfinite(number) else text


_SCALARS: dict[str, Callable[[str], Any]] = {
    "boolean": _parse_boolean,
    **dict.fromkeys(("float", "double", "decimal"), _parse_fraction),
    **dict.fromkeys(("byte", "short", "int", "long", "integer"), _parse_integer),
    **dict.fromkeys(("unsignedByte", "unsignedShort", "unsignedInt", "unsignedLong"), _parse_integer),
}
_TEXTS = {*_SCALARS, "string", "anyURI", "base64Binary", "dateTime", "QName"}
"""Types whose value is text even if it is empty, and no data object without properties."""
