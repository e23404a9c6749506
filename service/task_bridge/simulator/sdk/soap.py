"""SOAP: requests parsed to method calls, responses and faults rendered as envelopes."""

from typing import NamedTuple

from lxml import etree
from starlette.responses import Response

from ..task_attributes import SimulatedTarget
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
    """A method's fault, answered as a SOAP fault; `parts` are the fields of its detail."""

    def __init__(self, fault_type: str, message: str = "", *parts: tuple[str, Value | None]) -> None:
        super().__init__(fault_type)
        self.fault_type = fault_type
        self.message = message
        self.parts = parts


class MethodCall(NamedTuple):
    """A call of a managed object's method, and the element that contains its arguments."""

    name: str
    this: SimulatedTarget
    arguments: Element

    def text(self, *path: str) -> str | None:
        return text_of(find(self.arguments, *path))

    def all(self, name: str) -> list[Element]:
        return children(self.arguments, name)

    def targets(self, name: str) -> list[SimulatedTarget]:
        return [parse_target(argument) for argument in self.all(name)]


def parse_call(body: bytes) -> MethodCall:
    """Parse the body of a request. Raises SoapFaultError."""
    try:
        envelope = etree.fromstring(body, _PARSER)
    except etree.XMLSyntaxError as error:
        raise SoapFaultError("InvalidRequest", str(error)) from error
    holder = find(envelope, "Body")
    method = None if holder is None else next(iter(holder), None)
    this = None if method is None else find(method, "_this")
    if method is None or this is None:
        raise SoapFaultError("InvalidRequest", "There is no method in the body.")
    return MethodCall(local_name(method), parse_target(this), method)


def local_name(node: Element) -> str:
    return etree.QName(node).localname


def children(parent: Element, name: str) -> list[Element]:
    return [child for child in parent if local_name(child) == name]


def find(parent: Element, *path: str) -> Element | None:
    """Return the first element at this path below the parent."""
    node: Element | None = parent
    for name in path:
        node = next(iter(children(node, name)), None) if node is not None else None
    return node


def text_of(node: Element | None) -> str | None:
    return None if node is None else (node.text or "").strip()


def parse_target(node: Element) -> SimulatedTarget:
    return SimulatedTarget(node.get("type") or "", (node.text or "").strip())


def method_response(method: str, inner: str) -> Response:
    return _envelope(f'<{method}Response xmlns="{VIM}">{inner}</{method}Response>', 200)


def return_value(value: Value | None, *, typed: bool = False) -> str:
    return "" if value is None else element("returnval", value, typed=typed)


def fault_response(fault: SoapFaultError) -> Response:
    detail = "".join(element(name, value, typed=False) for name, value in fault.parts if value is not None)
    message = element("faultstring", text(fault.message), typed=False)
    return _envelope(
        f"<soapenv:Fault><faultcode>ServerFaultCode</faultcode>{message}<detail>"
        f'<{fault.fault_type}Fault xmlns="{VIM}" xsi:type="{fault.fault_type}">{detail}</{fault.fault_type}Fault>'
        "</detail></soapenv:Fault>",
        500,
    )


def _envelope(body: str, status: int) -> Response:
    return Response(f"{_START}{body}{_END}", status, media_type="text/xml")


def object_not_found_fault(target: SimulatedTarget) -> SoapFaultError:
    message = f"The object '{target.type}:{target.id}' has already been deleted or has not been completely created"
    return SoapFaultError("ManagedObjectNotFound", message, ("obj", moref(target)))


def no_session_fault(target: SimulatedTarget) -> SoapFaultError:
    return SoapFaultError("NotAuthenticated", "The session is not authenticated.", *permission_fields(target))


def permission_fields(target: SimulatedTarget) -> tuple[tuple[str, Value], tuple[str, Value]]:
    """Return the fields of a NoPermission or NotAuthenticated fault about this object."""
    return ("object", moref(target)), ("privilegeId", text("System.Read"))
