"""Values of the Web Services API as XML. Pure."""

from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from ..task_attributes import SimulatedTarget

_ABSTRACT_TYPES = {"AnyType", "TaskReason", "MethodFault"}
"""Declared types whose values must name their own type."""


class Value(NamedTuple):
    """`type` is the xsi:type, `inner` the content of the element, `moref` the type of a referenced object."""

    type: str
    inner: str
    moref: str | None = None


def element(tag: str, value: Value, *, typed: bool) -> str:
    """Return the value as an element. Set `typed` if its place doesn't determine its type."""
    kind = f' type="{value.moref}"' if value.moref else ""
    xsi = f' xsi:type="{value.type}"' if typed else ""
    return f"<{tag}{kind}{xsi}>{value.inner}</{tag}>"


def text(value: str, kind: str = "xsd:string") -> Value:
    return Value(kind, escape(value))


def moref(target: SimulatedTarget) -> Value:
    return Value("ManagedObjectReference", escape(target.id), target.type)


def boolean(value: bool) -> Value:
    return Value("xsd:boolean", "true" if value else "false")


def integer(value: int) -> Value:
    return Value("xsd:int" if abs(value) < 2**31 else "xsd:long", str(value))


def structure(kind: str, *parts: tuple[str, Value | None]) -> Value:
    """Return a data object; parts without a value are left out."""
    inner = (element(name, value, typed=value.type in _ABSTRACT_TYPES) for name, value in parts if value is not None)
    return Value(kind, "".join(inner))


def fault(kind: str, message: str, *parts: tuple[str, Value | None]) -> Value:
    """Return a LocalizedMethodFault that contains a fault of this type."""
    inner = element("fault", structure(kind, *parts), typed=True)
    return Value("LocalizedMethodFault", f"{inner}{element('localizedMessage', text(message), typed=False)}")


def value_of_json(value: Any) -> Value | None:
    """Return decoded JSON as a value: `{"type", "id"}` as a reference, any other object as an array of KeyValue."""
    match value:
        case None:
            return None
        case bool():
            return boolean(value)
        case int():
            return integer(value)
        case float():
            return Value("xsd:double", repr(value))
        case str():
            return text(value)
        case {"type": str(kind), "id": str(name), **rest} if not rest:
            return moref(SimulatedTarget(kind, name))
        case dict():
            pairs = (f"<key>{escape(str(key))}</key><value>{escape(str(item))}</value>" for key, item in value.items())
            return Value("ArrayOfKeyValue", "".join(f"<KeyValue>{pair}</KeyValue>" for pair in pairs))
        case _:
            return Value("ArrayOfString", "".join(f"<string>{escape(str(item))}</string>" for item in value))
