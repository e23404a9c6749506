"""Faults of a simulated vCenter, and the requests that they apply to.

    vcenter.faults.add(faults.bad_gateway(), operation="get", times=3)
    with vcenter.faults.during(faults.unauthenticated(empty=True)): ...

An `Effect` says how a response changes. `Faults` decides which requests it applies to: by operation, by a part of the
path, by task (a list matches if it names the task), by provider (the part of a task id after the colon), by whether it
asks for all that the provider knows (`return_all`), for a number of requests, for a time, or until it is cleared.
`FAULTS` contains all effects by name, for the control API.
"""

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape

import msgspec
from msgspec import Struct

from . import errors
from .errors import StandardError
from .options import Clock
from .renderings import build_old_router_error
from .script import message
from .task_attributes import provider_of


class Effect(Struct, frozen=True):
    """Changes to a response. A default value leaves that part unchanged.

    `delay_s` passes before the headers. `sends` is the number of bytes of the body to send first; then a longer
    body stalls for `stall_s` (None: until the fault is cleared or the client disconnects), and the rest follows.
    `holds` stalls the whole response, headers too, though vCenter has computed it. `drops` ends the connection after
    `sends` bytes of the body, or before any header if `sends` is None.
    """

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    error: Callable[[], StandardError] | None = None
    reshape: Callable[[bytes], bytes] | None = None
    delay_s: float = 0.0
    sends: int | None = None
    stall_s: float | None = None
    holds: bool = False
    drops: bool = False

    @property
    def replaces_answer(self) -> bool:
        """True if the response takes the place of vCenter's, so that the request never reaches vCenter."""
        return self.status is not None or self.error is not None or (self.drops and self.sends is None)


class Fault(Struct):
    """An effect and the requests that it applies to. `left` counts those to come; None means no limit."""

    id: str
    name: str
    effect: Effect
    operation: str | None = None
    path: str | None = None
    task: str | None = None
    provider: str | None = None
    return_all: bool | None = None
    left: int | None = None
    until: float | None = None
    cleared: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    def matches(self, operation: str, path: str, tasks: Collection[str], return_all: bool) -> bool:
        return (
            self.left != 0
            and self.operation in (None, operation)
            and (self.path is None or self.path in path)
            and (self.task is None or self.task in tasks)
            and (self.provider is None or self.provider in map(provider_of, tasks))
            and self.return_all in (None, return_all)
        )


class Faults:
    """The active faults. The first one that matches a request applies to it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._numbers = itertools.count(1)
        self._faults: dict[str, Fault] = {}

    def add(
        self,
        effect: Effect,
        *,
        operation: str | None = None,
        path: str | None = None,
        task: str | None = None,
        provider: str | None = None,
        return_all: bool | None = None,
        times: int | None = None,
        for_s: float | None = None,
        name: str = "fault",
    ) -> str:
        """Add a fault and return its id. A fault stays listed after its last request, so that it can be cleared."""
        until = None if for_s is None else self._clock() + for_s
        fault_id = f"{name}-{next(self._numbers)}"
        fault = Fault(fault_id, name, effect, operation, path, task, provider, return_all, times, until)
        self._faults[fault.id] = fault
        return fault.id

    def clear(self, fault_id: str | None = None) -> None:
        """End one fault, or all; responses that it stalls continue."""
        for cleared_id in [fault_id] if fault_id else list(self._faults):
            self._faults.pop(cleared_id).cleared.set()

    @contextmanager
    def during(self, effect: Effect, **matching: Any) -> Iterator[None]:
        """Apply the effect until the block ends; `matching` as in `add`."""
        fault_id = self.add(effect, **matching)
        try:
            yield
        finally:
            if fault_id in self._faults:
                self.clear(fault_id)

    def claim(self, operation: str, path: str, tasks: Collection[str], *, return_all: bool = False) -> Fault | None:
        """Return the fault that applies to this request, and count the request."""
        for fault in self.active():
            if fault.matches(operation, path, tasks, return_all):
                fault.left = None if fault.left is None else fault.left - 1
                return fault
        return None

    def active(self) -> list[Fault]:
        now = self._clock()
        for fault in list(self._faults.values()):
            if fault.until is not None and now >= fault.until:
                self.clear(fault.id)
        return list(self._faults.values())


# Errors in the forms of vSphere


def unauthenticated(empty: bool = False, challenge: str = errors.CHALLENGE) -> Effect:
    """Answer 401, in JSON as vCenter does, or without a body, as vcsim does, and the challenge in a header."""
    if empty:
        return Effect(status=401, body=b"", headers=(("www-authenticate", challenge),))
    return Effect(error=lambda: errors.unauthenticated_error(challenge))


def unauthorized() -> Effect:
    return Effect(error=lambda: errors.unauthorized_error("this"))


def task_not_found() -> Effect:
    return Effect(error=lambda: errors.task_not_found_error("this"))


def route_not_found(old: bool = False) -> Effect:
    """Answer 404 as the router does, not the Tasks service; `old` uses the form of the oldest versions."""
    if old:
        return Effect(status=404, body=msgspec.json.encode(build_old_router_error()))
    return Effect(error=errors.route_not_found_error)


def provider_not_found(service: str = "com.vmware.example") -> Effect:
    """Answer 404 as for a service that vCenter doesn't have."""
    return Effect(error=lambda: errors.provider_not_found_error(service))


def operation_not_found() -> Effect:
    return Effect(error=errors.operation_not_found_error)


def resource_inaccessible() -> Effect:
    """Answer 500 on `/api`, 400 on `/rest`."""
    return Effect(error=lambda: StandardError("RESOURCE_INACCESSIBLE", message("A provider can't be reached.")))


def internal_server_error() -> Effect:
    return Effect(error=errors.internal_server_error)


def service_unavailable(retry_after_s: int | None = None) -> Effect:
    error = StandardError("SERVICE_UNAVAILABLE", message("The service is starting."))
    return Effect(error=lambda: error, headers=_retry_after(retry_after_s))


def too_many_requests(retry_after_s: int | None = None) -> Effect:
    return Effect(status=429, body=b"", headers=_retry_after(retry_after_s))


def soap_fault(kind: str = "SystemError", said: str = "A general system error occurred.") -> Effect:
    """Answer a SOAP fault with a detail of this type; an empty `kind` leaves the detail out."""
    detail = f'<detail><{kind}Fault xmlns="urn:vim25" xsi:type="{kind}"/></detail>' if kind else ""
    body = (
        '<?xml version="1.0"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><soapenv:Fault>'
        f"<faultcode>ServerFaultCode</faultcode><faultstring>{escape(said)}</faultstring>{detail}"
        "</soapenv:Fault></soapenv:Body></soapenv:Envelope>"
    )
    return Effect(status=500, body=body.encode(), headers=(("content-type", "text/xml"),))


# Answers of proxies while services restart


def html_error(status: int = 500, text: str = "Internal Server Error", retry_after_s: int | None = None) -> Effect:
    page = f"<html><head><title>{status} {text}</title></head><body><h1>{text}</h1></body></html>"
    headers = (("content-type", "text/html"), *_retry_after(retry_after_s))
    return Effect(status=status, body=page.encode(), headers=headers)


def bad_gateway() -> Effect:
    return html_error(502, "Bad Gateway")


def gateway_unavailable(retry_after_s: int | None = None) -> Effect:
    return html_error(503, "Service Unavailable", retry_after_s)


def answer(status: int, body: str = "", content_type: str = "application/json") -> Effect:
    """Answer any status with any body."""
    return Effect(status=status, body=body.encode(), headers=(("content-type", content_type),))


# Slow and broken responses


def delayed(seconds: float) -> Effect:
    """Send the right response late."""
    return Effect(delay_s=seconds)


def late(seconds: float) -> Effect:
    """Send late what was the right response at first: what changes meanwhile isn't in it."""
    return Effect(holds=True, stall_s=seconds)


def silent() -> Effect:
    """Send nothing until the fault is cleared or the client disconnects."""
    return Effect(holds=True)


def stalled_body(sends: int = 1, seconds: float | None = None) -> Effect:
    """Stall the body after some bytes: for a time, or until the fault is cleared or the client disconnects."""
    return Effect(sends=sends, stall_s=seconds)


def connection_reset(sends: int | None = None) -> Effect:
    """Reset the connection before any response, or after some bytes of the body."""
    return Effect(drops=True, sends=sends)


def truncated_json() -> Effect:
    """Send a complete HTTP response whose JSON stops in the middle."""
    return Effect(reshape=lambda body: body[: len(body) // 2])


def huge_body(size: int = 8_000_000) -> Effect:
    """Send the right JSON after `size` blanks."""
    return Effect(reshape=lambda body: b" " * size + body)


def non_object() -> Effect:
    return Effect(reshape=lambda _: b'["not", "an", "object"]')


def duplicate_keys() -> Effect:
    """Write a task's `status` twice, first with another value."""
    return Effect(reshape=lambda body: body.replace(b'"status":', b'"status":"FAILED","status":', 1))


def invalid_utf8() -> Effect:
    return Effect(reshape=lambda body: body.replace(b'"', b'"\xff\xfe', 1))


def _retry_after(seconds: int | None) -> tuple[tuple[str, str], ...]:
    return () if seconds is None else (("retry-after", str(seconds)),)


FAULTS: dict[str, Callable[..., Effect]] = {
    effect.__name__: effect
    for effect in (
        unauthenticated,
        unauthorized,
        task_not_found,
        route_not_found,
        provider_not_found,
        operation_not_found,
        resource_inaccessible,
        internal_server_error,
        service_unavailable,
        soap_fault,
        too_many_requests,
        html_error,
        bad_gateway,
        gateway_unavailable,
        answer,
        delayed,
        late,
        silent,
        stalled_body,
        connection_reset,
        truncated_json,
        huge_body,
        non_object,
        duplicate_keys,
        invalid_utf8,
    )
}
