"""Values of every data type of the vSphere SDK, by pyVmomi: made up, written as vCenter does, and read as JSON."""

from __future__ import annotations

import base64
import datetime
import random
from collections.abc import Iterator
from typing import Any

import pyVmomi.Iso8601
import pyVmomi.SoapAdapter
import pyVmomi.VmomiSupport

Iso8601: Any = pyVmomi.Iso8601
SoapAdapter: Any = pyVmomi.SoapAdapter
VmomiSupport: Any = pyVmomi.VmomiSupport
_FAULT = VmomiSupport.GetVmodlType("vmodl.MethodFault")
_LOCALIZED = VmomiSupport.GetVmodlType("vmodl.LocalizedMethodFault")
_SPACES = {"urn:vim25": "", SoapAdapter.XMLNS_XSI: "xsi", SoapAdapter.XMLNS_XSD: "xsd", "urn:vsan": "vsan"}
_DYNAMIC = ("dynamicType", "dynamicProperty")
_TIME = datetime.datetime(2026, 11, 24, 22, 40, 55, 123456, datetime.UTC)


def list_types() -> list[str]:
    """Return the names of all data types that values can have."""
    abstract = ("DataObject", "vmodl.DynamicArray", "vmodl.DynamicData", "vmodl.DynamicProperty")
    unwrapped = ("vmodl.LocalizedMethodFault",)  # pyVmomi reads the fault inside
    return sorted(name for name in VmomiSupport._dataDefMap if name not in (*abstract, *unwrapped))


def write(value: Any) -> str:
    """Return the value as an element `val` of any type, with all properties, of whatever version they are."""
    info = VmomiSupport.Object(name="val", type=object, version="vim.version.version1", flags=0)
    spaces = "".join(f' xmlns:{prefix}="{space}"' for space, prefix in _SPACES.items() if prefix)
    text: str = SoapAdapter.SerializeToStr(value, info, None, dict(_SPACES))
    return text.replace("<val", f'<val xmlns="urn:vim25"{spaces}', 1)


def read(text: str) -> Any:
    """Return pyVmomi's reading of the element as JSON, by the bridge's rules."""
    return convert(SoapAdapter.Deserialize(text.encode()))


def _list_properties(kind: Any) -> list[Any]:
    """Return the properties of a type. A fault's `msg` is the text beside it on the wire."""
    hidden = (*_DYNAMIC, "msg") if issubclass(kind, _FAULT) else _DYNAMIC
    return [field for field in kind._GetPropertyList() if field.name not in hidden]


class Generator:
    """Makes values. Every property is set down to `depth`, below only the required ones."""

    def __init__(self, seed: int, depth: int = 3) -> None:
        self._random = random.Random(seed)
        self._depth = depth
        self._subtypes: dict[str, list[str]] = {}
        for name, (_, _, base, *_) in VmomiSupport._dataDefMap.items():
            self._subtypes.setdefault(base, []).append(name)

    def make(self, name: str) -> Any:
        return self._make_object(VmomiSupport.GetVmodlType(name), self._depth)

    def _make_object(self, kind: Any, depth: int) -> Any:
        made = kind()
        for field in _list_properties(kind):
            is_required = not field.flags & VmomiSupport.F_OPTIONAL
            if is_required or depth > 0:
                setattr(made, field.name, self._make_field(field.type, depth - 1))
        if issubclass(kind, _FAULT) and kind is not _LOCALIZED:
            made.msg = self._random.choice([None, "", "Text <of> the fault."])
        return made

    def _make_field(self, kind: Any, depth: int) -> Any:
        if issubclass(kind, list):
            count = self._random.choice([1, 1, 2, 3]) if depth >= 0 else 1
            # pyVmomi can't read arrays in an array of any type.
            return kind([self._make_field(kind.Item, -1 if kind.Item is object else depth) for _ in range(count)])
        if issubclass(kind, VmomiSupport.DataObject) or kind is _LOCALIZED:
            return self._make_object(self._choose_subtype(kind, depth), depth)
        if issubclass(kind, VmomiSupport.ManagedObject):
            kind = VmomiSupport.GetVmodlType("vim.Folder") if kind is VmomiSupport.ManagedObject else kind
            return kind(f"object-{self._random.randrange(1000)}")
        return self._make_any(depth) if kind is object else self._make_scalar(kind)

    def _choose_subtype(self, kind: Any, depth: int) -> Any:
        if kind is _LOCALIZED:
            return kind
        names = self._subtypes.get(kind.__name__ if kind.__name__ in VmomiSupport._dataDefMap else "", [])
        names = [name for name in names if name != "vmodl.LocalizedMethodFault"]
        if not names or depth < 0 or self._random.random() < 0.5:
            return kind
        return VmomiSupport.GetVmodlType(self._random.choice(names))

    def _make_any(self, depth: int) -> Any:
        kinds = [str, int, bool, float, VmomiSupport.long, VmomiSupport.short, datetime.datetime, VmomiSupport.binary]
        arrays = ["string[]", "int[]", "vim.HostSystem[]", "vmodl.KeyAnyValue[]", "anyType[]"]
        if depth < 0 or self._random.random() < 0.6:
            return self._make_scalar(self._random.choice(kinds))
        return self._make_field(VmomiSupport.GetVmodlType(self._random.choice(arrays)), depth - 1)

    def _make_scalar(self, kind: Any) -> Any:
        number = self._random.choice([0, 1, -7, 120])
        if kind is bool:
            return self._random.random() < 0.5
        if issubclass(kind, VmomiSupport.Enum):
            return self._random.choice(kind.values)
        if kind is datetime.datetime:
            return _TIME
        if kind is VmomiSupport.binary:
            return VmomiSupport.binary(b"\x00\xffdata")
        if kind is type:
            return VmomiSupport.GetVmodlType("vim.VirtualMachine")
        if kind is VmomiSupport.ManagedMethod:
            return VmomiSupport.GetWsdlMethod("urn:vim25", "PowerOnVM_Task")
        if issubclass(kind, int):
            return kind(number)
        if issubclass(kind, float):
            return kind(number + 0.25)
        return kind(self._random.choice(["a", " b ", "12", "true", "<&>é"]))


def convert(value: Any) -> Any:
    """Return a value that pyVmomi has read, in a place of any type, as JSON."""
    return _convert(value, object)


def _convert(value: Any, declared: Any) -> Any:
    if isinstance(value, list):
        item = getattr(value if declared is object else declared, "Item")  # noqa: B009 - pyVmomi's lists have it
        return [_convert(one, item) for one in value]
    if isinstance(value, _FAULT):
        return _convert_fault(value, declared)
    if isinstance(value, VmomiSupport.DataObject):
        return _convert_object(value, declared)
    if isinstance(value, VmomiSupport.ManagedObject):
        return {"type": VmomiSupport.GetWsdlName(type(value)), "id": value._moId}
    return _convert_scalar(value)


def _convert_scalar(value: Any) -> Any:
    if isinstance(value, VmomiSupport.binary):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime):
        return Iso8601.ISO8601Format(value)
    if isinstance(value, type):
        return VmomiSupport.GetWsdlName(value)
    if isinstance(value, VmomiSupport.ManagedMethod):
        return value.info.wsdlName
    if isinstance(value, bool):
        return value
    for plain in (int, float):
        if isinstance(value, plain):
            return plain(value)
    return str(value)


def _convert_fault(value: Any, declared: Any) -> Any:
    """Return a fault as the LocalizedMethodFault that it is on the wire."""
    localized = {"fault": _convert_object(value, _FAULT)}
    if value.msg is not None:
        localized["localizedMessage"] = value.msg
    return {"_type": "LocalizedMethodFault", **localized} if declared is object else localized


def _convert_object(value: Any, declared: Any) -> Any:
    fields = dict(_convert_fields(value))
    is_sent = type(value) is not declared
    return {"_type": VmomiSupport.GetWsdlName(type(value)), **fields} if is_sent else fields


def _convert_fields(value: Any) -> Iterator[tuple[str, Any]]:
    for field in _list_properties(type(value)):
        one = getattr(value, field.name)
        if one is not None and not (isinstance(one, list) and not one):
            yield field.name, _convert(one, field.type)
