"""Values of the Web Services API as JSON: one rule at a time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from task_bridge.domain.json_size import encode_compact
from task_bridge.vcenter.vim import soap
from task_bridge.vcenter.vim.values import DEPTH_MAX, ValueOutOfBounds, convert_value

NAMESPACES = (
    'xmlns="urn:vim25" xmlns:v="urn:vim25" xmlns:vsan="urn:vsan" xmlns:x="http://www.w3.org/2001/XMLSchema-instance" '
    'xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
)


def convert(inner: str, kind: str = "", declared: str = "") -> Any:
    sent = f' x:type="{kind}"' if kind else ""
    answer = f"<AResponse><val {NAMESPACES}{sent}>{inner}</val></AResponse>"
    body = f'<e:Envelope xmlns:e="e"><e:Body>{answer}</e:Body></e:Envelope>'
    value = soap.child(soap.parse_answer(body.encode(), "A"), "val")
    assert value is not None
    return convert_value(value, declared)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("xsd:boolean", "true", True),
        ("xsd:boolean", " 0 ", False),
        ("xsd:boolean", "perhaps", "perhaps"),
        ("xsd:int", "-7", -7),
        ("xsd:long", "9223372036854775807", 2**63 - 1),
        ("xsd:unsignedLong", "18446744073709551615", 2**64 - 1),
        ("xsd:long", "18446744073709551616", "18446744073709551616"),
        ("xsd:int", "1_0", "1_0"),
        ("xsd:int", "٣", "٣"),
        ("xsd:byte", "127", 127),
        ("xsd:short", "+3", 3),
        ("xsd:double", "1.5", 1.5),
        ("xsd:float", "1e-3", 0.001),
        ("xsd:double", "7", 7.0),
        ("xsd:double", "NaN", "NaN"),
        ("xsd:double", "-INF", "-INF"),
        ("xsd:double", "1e999", "1e999"),
        ("xsd:string", "12", "12"),
        ("xsd:string", " a  b\n", " a  b\n"),
        ("xsd:string", "", ""),
        ("xsd:int", "", ""),
        ("xsd:dateTime", "2026-11-24T22:40:55Z", "2026-11-24T22:40:55Z"),
        ("xsd:base64Binary", "AAE=", "AAE="),
        ("VirtualMachinePowerState", "poweredOn", "poweredOn"),
        ("OfLater", "text", "text"),
        ("", "12", "12"),
        ("", "true", "true"),
        ("", "", ""),
    ],
)
def test_a_scalar_is_what_its_type_says(kind: str, text: str, expected: Any) -> None:
    value = convert(text, kind)
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("xml", "kind", "expected"),
    [
        ('<a type="Folder">group-v3</a>', "", {"a": {"type": "Folder", "id": "group-v3"}}),
        ('<a x:nil="true"/><b x:nil="1">x</b>', "", {"a": None, "b": None}),
        ("<a>1</a><b>2</b><a>3</a>", "", {"a": ["1", "3"], "b": "2"}),
        ('<a>1</a><a x:nil="true"/><a>3</a>', "", {"a": ["1", None, "3"]}),
        ("<a><!-- c -->1<!-- c -->2<?p?></a><?p?>", "", {"a": "12"}),
        ("<a><![CDATA[<b>]]></a>", "", {"a": "<b>"}),
        ("<v:a>1</v:a><vsan:a>2</vsan:a>", "v:OfLater", {"_type": "OfLater", "a": ["1", "2"]}),
        ("lost<a>1</a>lost", "", {"a": "1"}),
        ('<a x:type="xsd:int">1</a><b x:type="OfLater"/>', "", {"a": 1, "b": {"_type": "OfLater"}}),
        ("<string>a</string><string/>", "ArrayOfString", ["a", ""]),
        ("<int>1</int>", "v:ArrayOfInt", [1]),
        ("<boolean>true</boolean><odd>false</odd>", "ArrayOfBoolean", [True, False]),
        ('<ManagedObjectReference type="HostSystem">host-1</ManagedObjectReference>',
         "ArrayOfManagedObjectReference", [{"type": "HostSystem", "id": "host-1"}]),
        ('<anyType x:type="xsd:int">1</anyType><anyType x:type="xsd:string">1</anyType>', "ArrayOfAnyType", [1, "1"]),
        ("", "ArrayOfHostSystem", []),
        ("<o><key>a</key></o>", "ArrayOfOfLater", [{"key": "a"}]),
    ],
)  # fmt: skip
def test_structures_are_objects_and_lists(xml: str, kind: str, expected: Any) -> None:
    assert convert(xml, kind) == expected


@pytest.mark.parametrize(
    ("xml", "kind", "expected"),
    [
        # An array that has one element, and numbers without a type of their own
        ("<host type='HostSystem'>host-1</host>", "NoCompatibleHost",
         {"_type": "NoCompatibleHost", "host": [{"type": "HostSystem", "id": "host-1"}]}),
        ("<property>a</property><deviceIndex>0</deviceIndex>", "InvalidDeviceSpec",
         {"_type": "InvalidDeviceSpec", "property": "a", "deviceIndex": 0}),
        ("<free>12</free>", "OfLater", {"_type": "OfLater", "free": "12"}),
        # of a data object inside, whose type isn't sent
        ("<volumeResults><volumeId><id>v</id></volumeId></volumeResults>", "vsan:CnsVolumeOperationBatchResult",
         {"_type": "CnsVolumeOperationBatchResult", "volumeResults": [{"volumeId": {"id": "v"}}]}),
        ("<config><hardware><numCPU>2</numCPU><device x:type='VirtualCdrom'><key>3</key></device></hardware></config>",
         "VirtualMachineConfigSummary",
         {"_type": "VirtualMachineConfigSummary",
          "config": {"hardware": {"numCPU": "2", "device": {"_type": "VirtualCdrom", "key": 3}}}}),
        ("<numCPU>2</numCPU><device x:type='VirtualCdrom'><key>3</key></device>", "VirtualHardware",
         {"_type": "VirtualHardware", "numCPU": 2, "device": [{"_type": "VirtualCdrom", "key": 3}]}),
        # inherited, and of a type that only a later vCenter has
        ("<faultMessage><key>k</key></faultMessage>", "NotFound",
         {"_type": "NotFound", "faultMessage": [{"key": "k"}]}),
        ("<fault x:type='vsan:OfLater'><faultMessage><key>k</key></faultMessage></fault>", "LocalizedMethodFault",
         {"_type": "LocalizedMethodFault", "fault": {"_type": "OfLater", "faultMessage": [{"key": "k"}]}}),
        # A declared fault is a LocalizedMethodFault, in arrays too
        ("<LocalizedMethodFault><fault x:type='CnsFault'/></LocalizedMethodFault>", "ArrayOfNotFound",
         [{"fault": {"_type": "CnsFault"}}]),
        # Empty data objects and texts
        ("<volumeId/><fault/>", "CnsVolumeOperationResult",
         {"_type": "CnsVolumeOperationResult", "volumeId": {}, "fault": {}}),
        ("<name/>", "DuplicateName", {"_type": "DuplicateName", "name": ""}),
    ],
)  # fmt: skip
def test_what_the_sdk_declares_counts_where_vcenter_sends_no_type(xml: str, kind: str, expected: Any) -> None:
    assert convert(xml, kind) == expected


def test_the_declared_type_of_the_place_serves_a_value_without_a_type() -> None:
    assert convert("<deviceIndex>1</deviceIndex>", declared="InvalidDeviceSpec") == {"deviceIndex": 1}
    assert convert("<deviceIndex>1</deviceIndex>", "OfLater", "InvalidDeviceSpec") == {
        "_type": "OfLater",
        "deviceIndex": 1,
    }


@pytest.mark.parametrize("kind", ["", "ArrayOfAnyType"])
def test_values_are_nested_32_deep_at_most(kind: str) -> None:
    sent = f' x:type="{kind}"' if kind else ""

    def nested(depth: int) -> str:
        return f"<a{sent}>" * (depth - 1) + "<a>b</a>" + "</a>" * (depth - 1)

    assert str(convert(nested(DEPTH_MAX), kind)).count("[" if kind else "{") == DEPTH_MAX
    for depth in (DEPTH_MAX + 1, 60, 255, 2_000):
        with pytest.raises(ValueOutOfBounds, match="nested more than 32 deep"):
            convert(nested(depth), kind)


def test_a_value_may_have_hundreds_of_thousands_of_elements_and_megabytes_of_text() -> None:
    assert convert("<a/>" * 390_000) == {"a": [""] * 390_000}
    assert convert("é" * 12_000_000) == "é" * 12_000_000
    assert len(convert("".join(f"<a{number}/>" for number in range(100_000)))) == 100_000


names = st.sampled_from(["a", "b", "host", "error", "fault", "deviceIndex", "_type", "key", "value"])
kinds = st.sampled_from(
    ["", "xsd:int", "xsd:boolean", "xsd:double", "NoCompatibleHost", "ArrayOf", "ArrayOfInt", ":", "v:X"]
)
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=6
)


@st.composite
def elements(draw: st.DrawFn, depth: int = 3) -> etree._Element:
    space = draw(st.sampled_from(["", "{urn:vim25}", "{urn:vsan}"]))
    made = etree.Element(space + draw(names))
    made.text = draw(texts)
    if kind := draw(kinds):
        made.set(f"{soap.XSI}type", kind)
    for name in draw(st.lists(st.sampled_from(["type", f"{soap.XSI}nil", "serverGuid", "odd"]), max_size=2)):
        made.set(name, draw(st.sampled_from(["true", "", "HostSystem"])))
    if depth:
        made.extend(draw(st.lists(elements(depth - 1), max_size=3)))
    return made


@settings(deadline=None, max_examples=200)
@given(elements(), st.sampled_from(["", "NoCompatibleHost", "int", "LocalizedMethodFault"]))
def test_whatever_comes_is_json(element: etree._Element, declared: str) -> None:
    assert encode_compact(convert_value(element, declared))
