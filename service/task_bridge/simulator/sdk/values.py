"""Values of the Web Services API as XML. Pure."""

from collections.abc import Iterable
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from ..bodies import SimulatedTarget

_OF_ANY = {"AnyType", "TaskReason", "MethodFault"}
"""Declared types whose values must name their own."""


class Value(NamedTuple):
    """`type` is the xsi:type, `inner` what stands inside the element, `moref` the referred object's type."""

    type: str
    inner: str
    moref: str | None = None


def element(tag: str, value: Value, *, typed: bool) -> str:
    """The value as an element; `typed` where its type doesn't follow from where it stands."""
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
    """A data object; parts without a value are left out."""
    inner = (element(name, value, typed=value.type in _OF_ANY) for name, value in parts if value is not None)
    return Value(kind, "".join(inner))


def fault(kind: str, said: str, *parts: tuple[str, Value | None]) -> Value:
    """A LocalizedMethodFault around a fault of this type."""
    inner = element("fault", structure(kind, *parts), typed=True)
    return Value("LocalizedMethodFault", f"{inner}{element('localizedMessage', text(said), typed=False)}")


def anything(value: Any) -> Value | None:
    """Decoded JSON as a value; `{"type", "id"}` is a reference, and any other object an array of KeyValue."""
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
            return Value("ArrayOfKeyValue", "".join(_pair(str(key), str(item)) for key, item in value.items()))
        case _:
            return Value("ArrayOfString", _strings(map(str, value)))


def _pair(key: str, value: str) -> str:
    return f"<KeyValue><key>{escape(key)}</key><value>{escape(value)}</value></KeyValue>"


def _strings(items: Iterable[str]) -> str:
    return "".join(f"<string>{escape(item)}</string>" for item in items)
