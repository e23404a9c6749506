"""Errors of classic tasks: every text of a fault and its causes, and the fault's own properties."""

from __future__ import annotations

from typing import Any

import pytest
from lxml import etree

from task_bridge.domain.task import Message, TaskError
from task_bridge.vcenter.vim.faults import CAUSES_MAX, MESSAGES_MAX, parse_fault

NAMESPACES = (
    'xmlns="urn:vim25" xmlns:x="http://www.w3.org/2001/XMLSchema-instance" xmlns:s="http://www.w3.org/2001/XMLSchema"'
)


def parse(inner: str, kind: str = "LocalizedMethodFault") -> TaskError | None:
    return parse_fault(etree.fromstring(f'<val {NAMESPACES} x:type="{kind}">{inner}</val>'))


def localized(kind: str, text: str | None, inner: str = "") -> str:
    said = "" if text is None else f"<localizedMessage>{text}</localizedMessage>"
    return f'<fault x:type="{kind}">{inner}</fault>{said}'


def cause(kind: str, text: str | None, inner: str = "") -> str:
    return f"<faultCause>{localized(kind, text, inner)}</faultCause>"


def entry(key: str, text: str, args: str = "") -> str:
    return f"<faultMessage><key>{key}</key>{args}<message>{text}</message></faultMessage>"


def arg(key: object, value: str, kind: str = "s:string") -> str:
    return f'<arg><key>{key}</key><value x:type="{kind}">{value}</value></arg>'


ERRORS: dict[str, tuple[str, TaskError]] = {
    "only a cause says something": (
        localized("CnsFault", "", cause("InvalidArgument", "The size is wrong.") + "<reason>Resize failed</reason>"),
        TaskError(
            "CnsFault", "The size is wrong.", (Message(None, "The size is wrong."),), data={"reason": "Resize failed"}
        ),
    ),
    "each cause with its details": (
        localized(
            "GenericVmConfigFault",
            "Outer.",
            cause(
                "FileFault",
                "Middle.",
                cause("FileLocked", "Inner.", "<file>a.vmdk</file>") + entry("k.lock", "Held by esx1.", arg(1, "esx1")),
            )
            + "<reason>disk</reason>",
        ),
        TaskError(
            "GenericVmConfigFault",
            "Outer.",
            (
                Message(None, "Outer."),
                Message(None, "Middle."),
                Message("k.lock", "Held by esx1.", ("esx1",)),
                Message(None, "Inner."),
            ),
            data={"reason": "disk"},
        ),
    ),
    "equal texts come once": (
        localized(
            "NotFound",
            "Gone.",
            entry("a", "Gone.") + entry("b", "Why.") + cause("NotFound", "Gone.", entry("c", "Why.")),
        ),
        TaskError("NotFound", "Gone.", (Message(None, "Gone."), Message("b", "Why."))),
    ),
    "references": (
        localized("DuplicateName", "It exists.", '<name>db7</name><object type="Folder">group-v9</object>'),
        TaskError(
            "DuplicateName",
            "It exists.",
            (Message(None, "It exists."),),
            data={"name": "db7", "object": {"type": "Folder", "id": "group-v9"}},
        ),
    ),
    "both states": (
        localized(
            "InvalidPowerState",
            "Wrong state.",
            "<requestedState>poweredOn</requestedState><existingState>suspended</existingState>",
        ),
        TaskError(
            "InvalidPowerState",
            "Wrong state.",
            (Message(None, "Wrong state."),),
            data={"requestedState": "poweredOn", "existingState": "suspended"},
        ),
    ),
    "faults of hosts": (
        localized(
            "NoCompatibleHost",
            "None fits.",
            '<host type="HostSystem">host-3</host>'
            f"<error>{localized('InsufficientMemoryResourcesFault', 'Too small.', '<requested>9</requested>')}</error>",
        ),
        TaskError(
            "NoCompatibleHost",
            "None fits.",
            (Message(None, "None fits."),),
            data={
                "host": [{"type": "HostSystem", "id": "host-3"}],
                "error": [
                    {
                        "fault": {"_type": "InsufficientMemoryResourcesFault", "requested": 9},
                        "localizedMessage": "Too small.",
                    }
                ],
            },
        ),
    ),
    "no text at all": (localized("x:Odd", None), TaskError("Odd", "Odd, without a message")),
    "only a reason": (
        localized("Odd", "", "<reason> Full </reason><faultstring>f</faultstring>"),
        TaskError("Odd", "Full", data={"reason": " Full ", "faultstring": "f"}),
    ),
    "only a faultstring": (
        localized("Odd", None, "<message>m</message><faultstring>f</faultstring>"),
        TaskError("Odd", "f", data={"message": "m", "faultstring": "f"}),
    ),
    "only a message": (
        localized("Odd", None, "<reason><a>b</a></reason><message>m</message>"),
        TaskError("Odd", "m", data={"reason": {"a": "b"}, "message": "m"}),
    ),
    "no fault, but a text": (
        "<localizedMessage>No.</localizedMessage>",
        TaskError(None, "No.", (Message(None, "No."),)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_everything_that_the_fault_says(name: str) -> None:
    inner, expected = ERRORS[name]
    assert parse(inner) == expected


@pytest.mark.parametrize("inner", ["", "<localizedMessage/>", "<other>a</other>"])
def test_without_a_fault_and_a_text_there_is_no_error(inner: str) -> None:
    assert parse(inner) is None


def test_a_nil_error_is_none() -> None:
    spaces = 'xmlns:x="http://www.w3.org/2001/XMLSchema-instance" x:nil="true"'
    assert parse_fault(etree.fromstring(f'<val {spaces} x:type="NotFound"/>')) is None


def test_a_type_without_a_name_is_none() -> None:
    error = parse(localized("x:", "Text."))
    assert error is not None
    assert error.type is None


def test_a_fault_that_is_not_wrapped_is_one_too() -> None:
    error = parse("<reason>full</reason>" + entry("k", "Text."), "CnsFault")
    assert error == TaskError("CnsFault", "Text.", (Message("k", "Text."),), data={"reason": "full"})


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (arg(2, "b") + arg(10, "c") + arg(1, "a"), ("a", "b", "c")),
        (arg("host", "h") + arg("file", "f"), ("h", "f")),
        (arg(1, "5", "s:int") + arg(2, "true", "s:boolean") + arg(3, ""), ("5", "true", "")),
        ('<arg><key>1</key><value x:type="ManagedObjectReference" type="HostSystem">host-1</value></arg>',
         ('{"type":"HostSystem","id":"host-1"}',)),
        (arg(1, "<string>a</string><string>b</string>", "ArrayOfString"), ('["a","b"]',)),
        ("<arg><key>1</key></arg>", ("",)),
        (arg("9" * 5_000, "a"), ("a",)),
    ],
)  # fmt: skip
def test_arguments_are_texts_in_the_order_of_their_numbers(args: str, expected: tuple[str, ...]) -> None:
    error = parse(localized("Odd", None, entry("k", "Text.", args)))
    assert error is not None
    assert error.messages == (Message("k", "Text.", expected),)


def test_16_causes_are_read() -> None:
    inner = ""
    for number in range(40, 0, -1):
        inner = cause("NotFound", f"Cause {number}", inner)
    error = parse(localized("NotFound", "Outer", inner))
    assert error is not None
    assert [one.text for one in error.messages] == [
        "Outer",
        *(f"Cause {number}" for number in range(1, CAUSES_MAX + 1)),
    ]
    assert error.data is None


def test_messages_without_end_are_cut() -> None:
    error = parse(localized("NotFound", "Outer", "".join(entry("k", f"Text {number}") for number in range(6_000))))
    assert error is not None
    assert len(error.messages) == MESSAGES_MAX


def test_properties_beyond_the_bounds_are_marked() -> None:
    error = parse(localized("Odd", "Text", "<a>" * 40 + "</a>" * 40))
    assert error is not None
    data: Any = error.data
    assert (error.message, data["truncated"]) == ("Text", True)
    assert data["bytes"] > 40 * 7
