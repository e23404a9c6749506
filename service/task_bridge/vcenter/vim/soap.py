"""SOAP envelopes of the vSphere Web Services API: build method calls, parse answers and faults. Pure.

Answers are parsed without entities and network access. One with a DTD is refused before: SOAP doesn't allow it, and XML
bombs need it. The number of elements and attributes is bounded, since each takes some 100 bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO, NamedTuple, TypeVar
from xml.sax.saxutils import escape, quoteattr

from lxml import etree

from ...domain.errors import VCenterUnavailable

XSI = "{http://www.w3.org/2001/XMLSchema-instance}"
_NIL, _TYPE = f"{XSI}nil", f"{XSI}type"
_START = (
    '<?xml version="1.0" encoding="UTF-8"?><e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema"><e:Body>'
)
_END = "</e:Body></e:Envelope>"
_REASON_MAX = 300
MARKUP_MAX = 400_000
"""Opening and closing tags and attributes of an answer. An answer about 500 tasks has fewer than 100,000."""
_PIECE_BYTES = 1024 * 1024
_DOCTYPE = b"<!DOCTYPE"
CHILDREN_MAX = 5_000
"""Children of one tag. Answers have 500 objects; vCenter describes some 3,000 operations."""

Element = etree._Element
T = TypeVar("T")


class Ref(NamedTuple):
    """A reference to a managed object."""

    type: str
    id: str


class UnreadableXml(VCenterUnavailable):
    """The answer isn't one of this API: cut off, not XML, or to another method."""


class XmlOutOfBounds(UnreadableXml):
    """The answer exceeds what the bridge parses. One about fewer objects or fewer of their properties may not."""


class SoapFault(VCenterUnavailable):
    """vCenter refused a method. `kind` is the type of the fault, None if it has no detail; `reason` is its text.

    `challenge`: how clients must log in, where HTTP said so.
    """

    def __init__(self, message: str, kind: str | None, reason: str, challenge: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.challenge = challenge

    def __reduce__(self) -> tuple[type[SoapFault], tuple[str, str | None, str]]:
        """Let a fault come from another process."""
        return type(self), (str(self), self.kind, self.reason)


def build_envelope(method: str, this: Ref, inner: str) -> bytes:
    """Return a call of `method` on `this`. `inner` contains the arguments as XML."""
    body = f'<{method} xmlns="urn:vim25">{xml_ref("_this", this)}{inner}</{method}>'
    return f"{_START}{body}{_END}".encode()


def xml_ref(tag: str, ref: Ref) -> str:
    return f"<{tag} type={quoteattr(ref.type)}>{escape(ref.id)}</{tag}>"


def xml_text(tag: str, value: object) -> str:
    return f"<{tag}>{escape(str(value))}</{tag}>"


def read_answer(body: bytes | IO[bytes], method: str, read: Callable[[Element], T]) -> T:
    """Return what `read` makes of the answer to `method`. Raises SoapFault or UnreadableXml."""
    return read(parse_answer(body, method))


def parse_answer(body: bytes | IO[bytes], method: str) -> Element:
    """Return the answer to `method`. Raises SoapFault or UnreadableXml. From a file the body is read in pieces."""
    envelope = _parse_xml(io.BytesIO(body) if isinstance(body, bytes) else body)
    soap_body = child(envelope, "Body")
    answer = None if soap_body is None else next(iter(soap_body), None)
    if answer is None:
        raise UnreadableXml("XML that isn't a SOAP answer")
    if local_name(answer) == "Fault":
        raise _parse_fault(answer)
    if local_name(answer) != f"{method}Response":
        raise UnreadableXml(f"something other than the answer to {method}")
    return answer


def _parse_xml(body: IO[bytes]) -> Element:
    # Create a parser for each answer, so that an error in one doesn't affect the next. Texts may have megabytes, but
    # only UTF-8 shows all document types.
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, huge_tree=True, encoding="utf-8", remove_comments=True, remove_pis=True
    )
    try:
        for piece in _check_pieces(body):
            parser.feed(piece)
        return parser.close()
    except (etree.XMLSyntaxError, ValueError) as error:
        kind = XmlOutOfBounds if "XML_PARSE_HUGE" in str(error) else UnreadableXml
        raise kind(f"text that isn't XML of this API: {str(error)[:_REASON_MAX]}") from error.with_traceback(None)


def _check_pieces(body: IO[bytes]) -> Iterator[bytes]:
    """Yield the pieces of a body. Raises UnreadableXml before one that the parser mustn't get."""
    markup, end = 0, b""
    while piece := body.read(_PIECE_BYTES):
        markup += piece.count(b"<") + piece.count(b"=")
        if markup > MARKUP_MAX:
            raise XmlOutOfBounds(f"XML with more than the {MARKUP_MAX} tags and attributes that the bridge parses")
        if _DOCTYPE in end + piece:
            raise UnreadableXml("XML with a document type, which SOAP doesn't allow")
        end = piece[-len(_DOCTYPE) :]
        yield piece


def local_name(element: Element) -> str:
    """Return the tag without its namespace; empty for entities, which no good answer has."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def child(element: Element, *path: str) -> Element | None:
    """Return the first descendant along the path of local names, None if there is none."""
    current: Element | None = element
    for step in path:
        if current is None:
            return None
        current = next(current.iterchildren(f"{{*}}{step}"), None)
    return current


def children(element: Element, tag: str) -> list[Element]:
    """Return the children with this tag. Raises UnreadableXml if there are more than any good answer has."""
    found = list(islice(element.iterchildren(f"{{*}}{tag}"), CHILDREN_MAX + 1))
    if len(found) > CHILDREN_MAX:
        raise UnreadableXml(f"vCenter answers with more than {CHILDREN_MAX} elements {tag!r} in one place.")
    return found


def is_nil(element: Element) -> bool:
    return element.get(_NIL) in ("true", "1")


def text_of(element: Element | None) -> str | None:
    """Return the text, None if it is missing, empty or nil."""
    if element is None or is_nil(element):
        return None
    return (element.text or "").strip() or None


def type_of(element: Element) -> str | None:
    """Return the `xsi:type` of an element, without its prefix."""
    xsi_type = element.get(_TYPE)
    return (xsi_type.rpartition(":")[2] or None) if xsi_type else None


def ref_of(element: Element | None) -> Ref | None:
    """Return the managed object that an element refers to, None if it refers to none."""
    kind = None if element is None else element.get("type")
    object_id = text_of(element)
    return Ref(kind, object_id) if kind and object_id else None


def _parse_fault(element: Element) -> SoapFault:
    reason = (text_of(child(element, "faultstring")) or "")[:_REASON_MAX]
    detail = child(element, "detail")
    fault = None if detail is None else next(iter(detail), None)
    kind = None
    if fault is not None:
        kind = type_of(fault) or local_name(fault).removesuffix("Fault") or None
    message = ": ".join(part for part in (kind, reason) if part) or "a fault without a type or a reason"
    return SoapFault(message, kind, reason)
