"""SOAP in and out: requests as methods with arguments, answers and faults as envelopes."""

from typing import NamedTuple

from lxml import etree
from starlette.responses import Response

from ..bodies import SimulatedTarget
from .values import Value, element, moref, text

VIM = "urn:vim25"
XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
_START = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/" '
    'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>'
)
_END = "</soapenv:Body></soapenv:Envelope>"
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True, remove_comments=True)

Element = etree._Element


class SoapFaultError(Exception):
    """Answered as a SOAP fault with this detail."""

    def __init__(self, kind: str, said: str = "", *parts: tuple[str, Value | None]) -> None:
        super().__init__(kind)
        self.kind = kind
        self.said = said
        self.parts = parts


class MethodCall(NamedTuple):
    """A method of a managed object, and its arguments as they stand there."""

    name: str
    this: SimulatedTarget
    arguments: Element

    def text(self, *path: str) -> str | None:
        return text_of(find(self.arguments, *path))

    def all(self, name: str) -> list[Element]:
        return children(self.arguments, name)

    def targets(self, name: str) -> list[SimulatedTarget]:
        return [target_of(found) for found in self.all(name)]


def read(body: bytes) -> MethodCall:
    """The call in a request. Raises SoapFaultError."""
    try:
        envelope = etree.fromstring(body, _PARSER)
    except etree.XMLSyntaxError as error:
        raise SoapFaultError("InvalidRequest", str(error)) from error
    holder = find(envelope, "Body")
    method = None if holder is None else next(iter(holder), None)
    this = None if method is None else find(method, "_this")
    if method is None or this is None:
        raise SoapFaultError("InvalidRequest", "There is no method in the body.")
    return MethodCall(name_of(method), target_of(this), method)


def name_of(found: Element) -> str:
    return etree.QName(found).localname


def children(parent: Element, name: str) -> list[Element]:
    return [child for child in parent if name_of(child) == name]


def find(parent: Element, *path: str) -> Element | None:
    found: Element | None = parent
    for name in path:
        found = next(iter(children(found, name)), None) if found is not None else None
    return found


def text_of(found: Element | None) -> str | None:
    return None if found is None else (found.text or "").strip()


def target_of(found: Element) -> SimulatedTarget:
    return SimulatedTarget(found.get("type") or "", (found.text or "").strip())


def answer(method: str, inner: str) -> Response:
    return _envelope(f'<{method}Response xmlns="{VIM}">{inner}</{method}Response>', 200)


def returned(value: Value | None, *, typed: bool = False) -> str:
    return "" if value is None else element("returnval", value, typed=typed)


def fault_answer(fault: SoapFaultError) -> Response:
    detail = "".join(element(name, value, typed=False) for name, value in fault.parts if value is not None)
    said = element("faultstring", text(fault.said), typed=False)
    return _envelope(
        f"<soapenv:Fault><faultcode>ServerFaultCode</faultcode>{said}<detail>"
        f'<{fault.kind}Fault xmlns="{VIM}" xsi:type="{fault.kind}">{detail}</{fault.kind}Fault>'
        "</detail></soapenv:Fault>",
        500,
    )


def _envelope(body: str, status: int) -> Response:
    return Response(f"{_START}{body}{_END}", status, media_type="text/xml")


def not_found(target: SimulatedTarget) -> SoapFaultError:
    said = f"The object '{target.type}:{target.id}' has already been deleted or has not been completely created"
    return SoapFaultError("ManagedObjectNotFound", said, ("obj", moref(target)))


def not_authenticated(target: SimulatedTarget) -> SoapFaultError:
    return SoapFaultError("NotAuthenticated", "The session is not authenticated.", *about_denied(target))


def about_denied(target: SimulatedTarget) -> tuple[tuple[str, Value], tuple[str, Value]]:
    return ("object", moref(target)), ("privilegeId", text("System.Read"))
