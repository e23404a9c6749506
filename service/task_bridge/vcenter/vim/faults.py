"""Parse the error of a classic task: a `LocalizedMethodFault`, which contains a fault and its chain of causes. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from lxml import etree

from ...domain.json_size import cut_large, describe_cut, encode_compact
from ...domain.task import Message, TaskError
from .sdk_types import FAULT, LOCALIZED_FAULT
from .soap import Element, child, is_nil, text_of, type_of
from .values import ValueOutOfBounds, convert_properties, convert_value

CAUSES_MAX = 16
"""Causes of one fault, each the cause of the one before."""
MESSAGES_MAX = 1_000
NO_REASON = TaskError(None, "vCenter reports that the task failed and gives no reason.")
NO_REASON_BUT_RESULT = TaskError(
    None, "vCenter reports that the task failed, without an error. What it gave instead is in `result`."
)
_NOT_OWN = ("faultCause", "faultMessage")
_REASONS = ("reason", "faultstring", "message")
"""Properties in which some faults have their text."""


def parse_fault(element: Element) -> TaskError | None:
    """Return the error, None if the element is empty or nil."""
    if is_nil(element):
        return None
    fault = _find_fault(element)
    messages = tuple(islice(_unique(_read_messages(element)), MESSAGES_MAX))
    if fault is None and not messages:
        return None
    kind = None if fault is None else type_of(fault)
    reasons = [] if fault is None else [text for name in _REASONS if (text := text_of(child(fault, name)))]
    texts = [*(message.text for message in messages), *reasons, f"{kind}, without a message" if kind else ""]
    return TaskError(
        type=kind,
        message=next(filter(None, texts), NO_REASON.message),
        messages=messages,
        data=None if fault is None else _convert_data(fault),
    )


def _find_fault(element: Element) -> Element | None:
    """Return the fault in a `LocalizedMethodFault`, or the element itself if it is a fault."""
    return element if type_of(element) not in (None, LOCALIZED_FAULT) else child(element, "fault")


def _read_messages(element: Element) -> Iterator[Message]:
    """Yield the messages of a fault and of its causes, from the outside to the innermost."""
    current: Element | None = element
    for _ in range(1 + CAUSES_MAX):
        if current is None:
            return
        if text := text_of(child(current, "localizedMessage")):
            yield Message(None, text)
        fault = _find_fault(current)
        if fault is None:
            return
        for entry in fault.iterchildren("{*}faultMessage"):
            if text := text_of(child(entry, "message")):
                yield Message(text_of(child(entry, "key")), text, _read_args(entry))
        current = child(fault, "faultCause")


def _unique(messages: Iterator[Message]) -> Iterator[Message]:
    texts: set[str] = set()
    for message in messages:
        if message.text not in texts:
            texts.add(message.text)
            yield message


def _read_args(entry: Element) -> tuple[str, ...]:
    """Return the arguments of a message in the order of their keys, which are numbers, or as they come."""
    pairs = [(text_of(child(arg, "key")) or "", child(arg, "value")) for arg in entry.iterchildren("{*}arg")]
    if all(key.isascii() and key.isdigit() and len(key) < 10 for key, _ in pairs):
        pairs.sort(key=lambda pair: int(pair[0]))
    return tuple("" if value is None else _write_arg(value) for _, value in pairs)


def _write_arg(value: Element) -> str:
    try:
        arg = convert_value(value)
    except ValueOutOfBounds:
        return ""
    return arg if isinstance(arg, str) else encode_compact(arg).decode()


def _convert_data(fault: Element) -> Any:
    """Return the fault's own properties, None without any; if they exceed the bounds, how many bytes of XML it has."""
    try:
        own = convert_properties(fault, FAULT, without=_NOT_OWN)
    except ValueOutOfBounds:
        return describe_cut(len(etree.tostring(fault)))
    return cut_large(own) if own else None
