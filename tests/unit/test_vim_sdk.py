"""Every data type of the vSphere SDK: the bridge makes of its values what pyVmomi reads, and its table is current."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

import task_bridge.vcenter.vim
from task_bridge.domain.json_size import encode_compact
from task_bridge.domain.task import Message
from task_bridge.vcenter.vim.faults import parse_fault
from task_bridge.vcenter.vim.sdk_types import is_data_object, is_fault, properties_of
from task_bridge.vcenter.vim.values import convert_value
from tools.sdk_types import build_table
from unit import sdk_values
from unit.sdk_values import SoapAdapter, VmomiSupport

PARTS = 4
FAULTS = [name for name in sdk_values.list_types() if issubclass(VmomiSupport.GetVmodlType(name), Exception)]


@pytest.fixture(autouse=True)
def every_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pyVmomi write properties and types of all versions, and not only those of the oldest that has the value."""
    monkeypatch.setattr(SoapAdapter, "IsChildVersion", lambda *_: True)
    monkeypatch.setattr(SoapAdapter, "GetCompatibleType", lambda kind, _: kind)


def test_the_table_is_that_of_the_locked_sdk() -> None:
    shipped = Path(task_bridge.vcenter.vim.__path__[0]) / "sdk_types.txt"
    assert shipped.read_text() == build_table(), "run make sdk-types"


@pytest.mark.parametrize("part", range(PARTS))
def test_a_value_of_every_type_is_what_pyvmomi_reads(part: int) -> None:
    generator = sdk_values.Generator(seed=part)
    for name in sdk_values.list_types()[part::PARTS]:
        text = sdk_values.write(generator.make(name))
        assert convert_value(etree.fromstring(text)) == sdk_values.read(text), (name, text)


def read_messages(fault: Any) -> Iterator[Message]:
    if fault.msg:
        yield Message(None, fault.msg)
    for entry in fault.faultMessage:
        if entry.message and entry.message.strip():
            args = map(sdk_values.convert, (one.value for one in entry.arg))
            texts = (arg if isinstance(arg, str) else encode_compact(arg).decode() for arg in args)
            yield Message(entry.key.strip(), entry.message.strip(), tuple(texts))
    if fault.faultCause is not None:
        yield from read_messages(fault.faultCause)


@pytest.mark.parametrize("part", range(PARTS))
def test_an_error_of_every_fault_type_says_what_pyvmomi_reads(part: int) -> None:
    generator = sdk_values.Generator(seed=100 + part)
    for name in FAULTS[part::PARTS]:
        text = sdk_values.write(generator.make(name))
        error, fault = parse_fault(etree.fromstring(text)), SoapAdapter.Deserialize(text.encode())
        assert error is not None
        kind = VmomiSupport.GetWsdlName(type(fault))
        assert error.type == (None if kind == "MethodFault" else kind)  # it isn't sent where it is the declared one
        messages: dict[str, Message] = {}
        for message in read_messages(fault):
            messages.setdefault(message.text, message)
        assert error.messages == tuple(messages.values()), (name, text)
        properties = sdk_values.read(text)["fault"]
        own = {key: properties[key] for key in properties if key not in ("_type", "faultCause", "faultMessage")}
        assert error.data == (own or None), (name, text)


def test_the_sdk_knows_what_a_fault_is() -> None:
    assert is_fault("CnsFault")
    assert is_fault("MethodFault")
    assert not is_fault("CnsVolumeId")
    assert not is_fault("OfLater")
    assert (is_data_object("CnsVolumeId"), is_data_object("string"), is_data_object("")) == (True, False, False)
    assert properties_of("OfLater") == {}
