"""SOAP envelopes of the vSphere Web Services API: methods out, answers and faults in. Pure.

What comes back is parsed without entities, network and huge nodes, and refused when it brings a DTD, which SOAP
doesn't allow and bombs are made of.
"""

from __future__ import annotations

from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from lxml import etree

from ...domain.errors import VCenterUnavailable

XSI = "{http://www.w3.org/2001/XMLSchema-instance}"
_START = (
    '<?xml version="1.0" encoding="UTF-8"?><e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema"><e:Body>'
)
_END = "</e:Body></e:Envelope>"
_LONGEST_SAID = 300

Element = etree._Element


class Ref(NamedTuple):
    """A reference to a managed object."""

    type: str
    id: str


class UnreadableXml(VCenterUnavailable):
    """The answer isn't one of this API: cut off, no XML, or not what was asked for."""


class SoapFault(VCenterUnavailable):
    """vCenter refused a method: `kind` is the fault's type, None where there is no detail."""

    def __init__(self, message: str, kind: str | None, said: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = said


def build_envelope(method: str, this: Ref, inner: str) -> bytes:
    """A call of `method` on `this`; `inner` are its arguments as XML."""
    body = f'<{method} xmlns="urn:vim25">{xml_ref("_this", this)}{inner}</{method}>'
    return f"{_START}{body}{_END}".encode()


def xml_ref(tag: str, to: Ref) -> str:
    return f"<{tag} type={quoteattr(to.type)}>{escape(to.id)}</{tag}>"


def xml_text(tag: str, value: object) -> str:
    return f"<{tag}>{escape(str(value))}</{tag}>"


def parse_answer(body: bytes, method: str) -> Element:
    """The answer to `method`. Raises SoapFault or Unreadable."""
    try:
        # A parser for each: one that met an error doesn't hand its state on.
        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, huge_tree=False, remove_comments=True, remove_pis=True
        )
        envelope = etree.fromstring(body, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise UnreadableXml(f"what isn't XML of this API: {str(error)[:_LONGEST_SAID]}") from error
    if envelope.getroottree().docinfo.internalDTD is not None:
        raise UnreadableXml("XML with a document type, which SOAP doesn't allow")
    holder = child(envelope, "Body")
    answer = None if holder is None else next(iter(holder), None)
    if answer is None:
        raise UnreadableXml("XML that isn't a SOAP answer")
    if local_name(answer) == "Fault":
        raise _fault(answer)
    if local_name(answer) != f"{method}Response":
        raise UnreadableXml(f"something else than the answer to {method}")
    return answer


def local_name(element: Element) -> str:
    """The local name; entities, of which an answer has none, are nameless."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def child(element: Element, *path: str) -> Element | None:
    found: Element | None = element
    for step in path:
        if found is None:
            return None
        found = next(found.iterchildren(f"{{*}}{step}"), None)
    return found


def children(element: Element, wanted: str) -> list[Element]:
    return list(element.iterchildren(f"{{*}}{wanted}"))


def text_of(element: Element | None) -> str | None:
    """The text, None where there is none or it is nil."""
    if element is None or element.get(f"{XSI}nil") in ("true", "1"):
        return None
    return (element.text or "").strip() or None


def type_of(element: Element) -> str | None:
    """The type that an element names, without its prefix."""
    named = element.get(f"{XSI}type")
    return named.rpartition(":")[2] if named else None


def ref_of(element: Element | None) -> Ref | None:
    kind = None if element is None else element.get("type")
    to = text_of(element)
    return Ref(kind, to) if kind and to else None


def _fault(element: Element) -> SoapFault:
    said = (text_of(child(element, "faultstring")) or "")[:_LONGEST_SAID]
    detail = child(element, "detail")
    inner = None if detail is None else next(iter(detail), None)
    kind = None
    if inner is not None:
        kind = type_of(inner) or local_name(inner).removesuffix("Fault") or None
    told = ": ".join(part for part in (kind, said) if part) or "a fault that says nothing"
    return SoapFault(told, kind, said)
