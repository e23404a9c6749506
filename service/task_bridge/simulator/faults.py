"""Faults that a simulated vCenter can be made to show, and when.

    vcenter.faults.add(faults.bad_gateway(), operation="get", times=3)
    with vcenter.faults.during(faults.unauthenticated(empty=True)): ...

An `Effect` is what happens to an answer; `Faults` decides which requests meet it: by operation, by a part of the
path, by task (a list meets it when it names the task), for a number of requests, for a time, or until cleared.
`FAULTS` names all effects, for whoever asks over HTTP.
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
from .clock import Clock
from .errors import StandardError
from .renderings import old_router_error
from .script import message


class Effect(Struct, frozen=True):
    """What becomes of an answer. What isn't given is as it would have been without the fault.

    `delay_s` passes before the headers. `sends` bytes of the body are sent, then nothing more for `stall_s`
    (None: until the fault is cleared or the client leaves) and then the rest. `drops` ends the connection after
    `sends` bytes of the body, or before any header when `sends` is None.
    """

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    error: Callable[[], StandardError] | None = None
    reshape: Callable[[bytes], bytes] | None = None
    delay_s: float = 0.0
    sends: int | None = None
    stall_s: float | None = None
    drops: bool = False

    @property
    def stands_in(self) -> bool:
        """Whether the answer is given in vCenter's place, so that the request never reaches it."""
        return self.status is not None or self.error is not None or (self.drops and self.sends is None)


class Fault(Struct):
    id: str
    name: str
    effect: Effect
    operation: str | None = None
    path: str | None = None
    task: str | None = None
    left: int | None = None
    until: float | None = None
    cleared: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    def meets(self, operation: str, path: str, tasks: Collection[str]) -> bool:
        return (
            self.left != 0
            and self.operation in (None, operation)
            and (self.path is None or self.path in path)
            and (self.task is None or self.task in tasks)
        )


class Faults:
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
        times: int | None = None,
        for_s: float | None = None,
        name: str = "fault",
    ) -> str:
        """The fault's id. The first that matches is met; a spent one stays known, so that it can be cleared."""
        until = None if for_s is None else self._clock() + for_s
        fault = Fault(f"{name}-{next(self._numbers)}", name, effect, operation, path, task, times, until)
        self._faults[fault.id] = fault
        return fault.id

    def clear(self, fault_id: str | None = None) -> None:
        """Ends one fault, or all; answers that it held back go on."""
        for doomed in [fault_id] if fault_id else list(self._faults):
            self._faults.pop(doomed).cleared.set()

    @contextmanager
    def during(self, effect: Effect, **matching: Any) -> Iterator[None]:
        fault_id = self.add(effect, **matching)
        try:
            yield
        finally:
            if fault_id in self._faults:
                self.clear(fault_id)

    def claim(self, operation: str, path: str, tasks: Collection[str]) -> Fault | None:
        """The fault that this request meets; it counts as met."""
        for fault in self.active():
            if fault.meets(operation, path, tasks):
                fault.left = None if fault.left is None else fault.left - 1
                return fault
        return None

    def active(self) -> list[Fault]:
        now = self._clock()
        for fault in list(self._faults.values()):
            if fault.until is not None and now >= fault.until:
                self.clear(fault.id)
        return list(self._faults.values())


# Errors in vSphere's own forms


def unauthenticated(empty: bool = False) -> Effect:
    """401, in JSON as vCenter has it, or without a body as vcsim has it."""
    return Effect(status=401, body=b"") if empty else Effect(error=errors.unauthenticated)


def unauthorized() -> Effect:
    return Effect(error=lambda: errors.unauthorized("this"))


def task_not_found() -> Effect:
    return Effect(error=lambda: errors.task_not_found("this"))


def route_not_found(old: bool = False) -> Effect:
    """404 by the router, not by the Tasks service; `old` in the form of the oldest versions."""
    return _json(404, old_router_error()) if old else Effect(error=errors.route_not_found)


def resource_inaccessible() -> Effect:
    """500 on `/api`, 400 on `/rest`."""
    return Effect(error=lambda: StandardError("RESOURCE_INACCESSIBLE", message("A provider can't be reached.")))


def internal_server_error() -> Effect:
    return Effect(error=lambda: StandardError("INTERNAL_SERVER_ERROR", message("A provider threw an exception.")))


def service_unavailable(retry_after_s: int | None = None) -> Effect:
    error = StandardError("SERVICE_UNAVAILABLE", message("The service is starting."))
    return Effect(error=lambda: error, headers=_retry_after(retry_after_s))


def too_many_requests(retry_after_s: int | None = None) -> Effect:
    return Effect(status=429, body=b"", headers=_retry_after(retry_after_s))


def soap_fault(kind: str = "SystemError", said: str = "A general system error occurred.") -> Effect:
    """A fault of `/sdk` with a detail of this type; without a kind there is no detail."""
    detail = f'<detail><{kind}Fault xmlns="urn:vim25" xsi:type="{kind}"/></detail>' if kind else ""
    body = (
        '<?xml version="1.0"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><soapenv:Fault>'
        f"<faultcode>ServerFaultCode</faultcode><faultstring>{escape(said)}</faultstring>{detail}"
        "</soapenv:Fault></soapenv:Body></soapenv:Envelope>"
    )
    return Effect(status=500, body=body.encode(), headers=(("content-type", "text/xml"),))


# What proxies say while services restart


def html_error(status: int = 500, text: str = "Internal Server Error", retry_after_s: int | None = None) -> Effect:
    page = f"<html><head><title>{status} {text}</title></head><body><h1>{text}</h1></body></html>"
    headers = (("content-type", "text/html"), *_retry_after(retry_after_s))
    return Effect(status=status, body=page.encode(), headers=headers)


def bad_gateway() -> Effect:
    return html_error(502, "Bad Gateway")


def gateway_unavailable(retry_after_s: int | None = None) -> Effect:
    return html_error(503, "Service Unavailable", retry_after_s)


def answer(status: int, body: str = "", content_type: str = "application/json") -> Effect:
    """Any status with any body."""
    return Effect(status=status, body=body.encode(), headers=(("content-type", content_type),))


# Slow and broken answers


def delayed(seconds: float) -> Effect:
    """The answer itself is right, and late."""
    return Effect(delay_s=seconds)


def stalled_body(sends: int = 1, seconds: float | None = None) -> Effect:
    """The body stops after some bytes: for a time, or until the fault is cleared or the client leaves."""
    return Effect(sends=sends, stall_s=seconds)


def connection_reset(sends: int | None = None) -> Effect:
    """The connection ends before any answer, or after some bytes of the body."""
    return Effect(drops=True, sends=sends)


def truncated_json() -> Effect:
    """A whole HTTP answer whose JSON stops in the middle."""
    return Effect(reshape=lambda body: body[: len(body) // 2])


def huge_body(size: int = 8_000_000) -> Effect:
    """The right JSON behind so many blanks."""
    return Effect(reshape=lambda body: b" " * size + body)


def non_object() -> Effect:
    return Effect(reshape=lambda _: b'["not", "an", "object"]')


def duplicate_keys() -> Effect:
    """A task's `status` stands there twice, first with another value."""
    return Effect(reshape=lambda body: body.replace(b'"status":', b'"status":"FAILED","status":', 1))


def invalid_utf8() -> Effect:
    return Effect(reshape=lambda body: body.replace(b'"', b'"\xff\xfe', 1))


def _json(status: int, body: Any) -> Effect:
    return Effect(status=status, body=msgspec.json.encode(body))


def _retry_after(seconds: int | None) -> tuple[tuple[str, str], ...]:
    return () if seconds is None else (("retry-after", str(seconds)),)


FAULTS: dict[str, Callable[..., Effect]] = {
    effect.__name__: effect
    for effect in (
        unauthenticated,
        unauthorized,
        task_not_found,
        route_not_found,
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
        stalled_body,
        connection_reset,
        truncated_json,
        huge_body,
        non_object,
        duplicate_keys,
        invalid_utf8,
    )
}
