"""One SOAP session with one vCenter: logs in when needed, again after the session ended, and logs out when idle.

vCenter reports the end of a session in two ways: a method gets the NotAuthenticated fault, but reading properties
gets a good answer in which every property is missing for that reason. The session's collectors and views end with it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

from ...domain.errors import VCenterUnavailable
from ...domain.task_json import BodyOutOfBounds
from ..http import MAX_BODY_BYTES, AnswerLimits
from ..login import SingleFlight
from ..parsing import parse_isolated, parse_outside_loop
from ..policy import VCenterConfig
from ..shared import SharedVCenter
from . import soap
from .soap import Element, Ref, SoapFault, UnreadableXml, XmlOutOfBounds

ANSWER_LIMITS = AnswerLimits(max_bytes=16 * 1024 * 1024)
READ_LIMITS = AnswerLimits(max_bytes=MAX_BODY_BYTES)
"""Of answers that are read where they are parsed."""
LONG_BYTES = 2 * 1024 * 1024
"""An answer about 500 tasks has half of it."""
SERVICE_INSTANCE = Ref("ServiceInstance", "ServiceInstance")
_COOKIE = re.compile(r"vmware_soap_session=([^;,]+)")
_REFUSED = {"InvalidLogin", "PasswordExpired", "NoPermission"}
_ANY_VERSION = "urn:vim25"
T = TypeVar("T")


class SessionEnded(VCenterUnavailable):
    """vCenter no longer knows the session, nor its collectors and views."""


class ServiceContent(NamedTuple):
    """References to the service's managers, and its version as `SOAPAction` names it."""

    collector: Ref
    views: Ref
    tasks: Ref
    sessions: Ref
    version: str


class VimSession:
    """Calls methods as a logged-in user. `number` distinguishes successive sessions."""

    def __init__(self, shared: SharedVCenter, settings: VCenterConfig) -> None:
        self._http = shared.http
        self._login_throttle = shared.login_throttle
        self._settings = settings
        self._cookie: str | None = None
        self._service: ServiceContent | None = None
        self._login = SingleFlight(self._log_in)
        self._closed = False
        self.number = 0

    @property
    def is_open(self) -> bool:
        return self._service is not None

    async def ensure_logged_in(self) -> ServiceContent:
        """Renew the session if it has ended, or log in for the first time. Raises VCenterUnavailable."""
        if self._service is not None:
            return self._service
        if self._closed:
            raise VCenterUnavailable(f"The bridge is disconnecting from vCenter {self._settings.name}.")
        return await self._login.run()

    async def call(
        self, operation: str, method: str, this: Ref | None, inner: str = "", limits: AnswerLimits = ANSWER_LIMITS
    ) -> Element:
        """Call a method and return its answer. `this` None: of the service itself. Metrics count it as `operation`.

        Raises VCenterUnavailable, among them SoapFault, SessionEnded and UnreadableXml.
        """
        service = await self.ensure_logged_in()
        with self._notice_end(self.number):
            return await self._post(operation, method, this or SERVICE_INSTANCE, inner, service.version, limits)

    async def read(
        self,
        operation: str,
        method: str,
        this: Ref,
        inner: str,
        read: Callable[[Element], T],
        limits: AnswerLimits = READ_LIMITS,
    ) -> T:
        """Call a method and return what `read` makes of its answer, outside the event loop if the answer is long.

        `read` is a function of a module: it may run in another process. Raises as `call` does.
        """
        service = await self.ensure_logged_in()
        parse = partial(soap.read_answer, method=method, read=read)
        with self._notice_end(self.number), self._name_errors(method):
            # No variable here holds the answer: an error would keep it, by its traceback.
            return await parse_isolated(
                await self._send(operation, method, this, inner, service.version, limits),
                parse,
                LONG_BYTES,
                is_streamed=True,
            )

    @contextlib.contextmanager
    def _notice_end(self, number: int) -> Iterator[None]:
        """Raise SessionEnded for the fault by which vCenter says that the session of this number has ended."""
        try:
            yield
        except SoapFault as fault:
            if fault.kind == "NotAuthenticated":
                raise self.mark_ended(number) from fault
            raise

    def mark_ended(self, number: int) -> SessionEnded:
        """Forget the session of this number, because vCenter has ended it. Return the error to raise."""
        if number == self.number and self._service is not None:
            self._service, self._cookie = None, None
        return SessionEnded(f"vCenter {self._settings.name} ended the session for classic tasks.")

    def build_unreadable_error(self, problem: str) -> UnreadableXml:
        """Return the error for an answer that doesn't fit this API."""
        return UnreadableXml(f"vCenter {self._settings.name} {problem}.")

    async def check(self) -> None:
        """Check that vCenter answers in this session. Raises VCenterUnavailable."""
        await self.call("session", "CurrentTime", None)

    async def close(self) -> None:
        """Log out, even if a login is still in flight. Never raises. A later call logs in again."""
        await self._login.wait()
        service, self._service = self._service, None
        if service is not None:
            await self._log_out(service)

    async def close_for_good(self) -> None:
        """Log out and refuse later calls. Never raises."""
        self._closed = True
        await self.close()

    # Logging in

    async def _log_in(self) -> ServiceContent:
        async with self._login_throttle.lock:
            username, password = self._login_throttle.read_credentials()
            try:
                service = await self._open_session(username, password)
            except SoapFault as fault:
                if fault.kind in _REFUSED:
                    reason = fault.reason or str(fault)
                    raise self._login_throttle.record_refusal(username, password, reason) from fault
                self._login_throttle.record_failure()
                raise
            except VCenterUnavailable:
                self._login_throttle.record_failure()
                raise
            self._login_throttle.record_login()
            self.number += 1
            self._service = service
            return service

    async def _open_session(self, username: str, password: str) -> ServiceContent:
        """Log in and return the service's content. Raises VCenterUnavailable, and leaves no session behind then."""
        self._cookie = None
        service = await self._fetch_service_content()
        arguments = (
            soap.xml_text("userName", username) + soap.xml_text("password", password) + soap.xml_text("locale", "en")
        )
        try:
            await self._post("login", "Login", service.sessions, arguments, service.version, ANSWER_LIMITS)
        except UnreadableXml:
            await self._log_out(service)
            raise
        if self._cookie is None:
            raise self.build_unreadable_error("creates no session at /sdk")
        return service

    async def _log_out(self, service: ServiceContent) -> None:
        """Log out. Never raises."""
        headers, self._cookie = self._headers(service.version), None
        content = soap.build_envelope("Logout", service.sessions, "")
        with contextlib.suppress(VCenterUnavailable):
            await self._http.request("logout", "POST", "/sdk", headers, content, urgent=True, limits=ANSWER_LIMITS)

    async def _fetch_service_content(self) -> ServiceContent:
        """Fetch the service's content, which needs no session."""
        answer = await self._post("login", "RetrieveServiceContent", SERVICE_INSTANCE, "", _ANY_VERSION, ANSWER_LIMITS)
        content = soap.child(answer, "returnval")
        names = ("propertyCollector", "viewManager", "taskManager", "sessionManager")
        refs = [None if content is None else soap.ref_of(soap.child(content, name)) for name in names]
        collector, views, tasks, sessions = refs
        if not (collector and views and tasks and sessions) or content is None:
            raise UnreadableXml(f"{self._settings.url}/sdk isn't a vCenter's: it lacks some of {', '.join(names)}.")
        # Use vCenter's own version: which older ones it still accepts depends on its age.
        version = soap.text_of(soap.child(content, "about", "apiVersion"))
        version = f"{_ANY_VERSION}/{version}" if version else _ANY_VERSION
        return ServiceContent(collector, views, tasks, sessions, version)

    # Requests

    async def _post(
        self, operation: str, method: str, this: Ref, inner: str, version: str, limits: AnswerLimits
    ) -> Element:
        body = await self._send(operation, method, this, inner, version, limits)
        with self._name_errors(method):
            return await parse_outside_loop(len(body), soap.parse_answer, body, method)

    async def _send(
        self, operation: str, method: str, this: Ref, inner: str, version: str, limits: AnswerLimits
    ) -> bytes:
        content = soap.build_envelope(method, this, inner)
        answer = await self._http.request(operation, "POST", "/sdk", self._headers(version), content, limits=limits)
        if cookie := _COOKIE.search(answer.set_cookie):
            self._cookie = cookie[1]
        if answer.status not in (200, 500):
            raise VCenterUnavailable(
                f"vCenter {self._settings.name} answers {method} at /sdk with HTTP {answer.status}. "
                "It may be starting.",
                retry_after_s=answer.retry_after_s,
            )
        return answer.body

    @contextlib.contextmanager
    def _name_errors(self, method: str) -> Iterator[None]:
        """Name vCenter and the method in errors of an answer, and let go of the answer, which tracebacks hold."""
        name = self._settings.name
        try:
            yield
        except UnreadableXml as error:
            raise type(error)(f"vCenter {name} answers {method} with {error}.") from error.with_traceback(None)
        except BodyOutOfBounds as error:
            message = f"vCenter {name} answers {method} with {error}."
            raise XmlOutOfBounds(message) from error.with_traceback(None)
        except SoapFault as fault:
            raise SoapFault(f"vCenter {name} refuses {method}: {fault}", fault.kind, fault.reason) from fault

    def _headers(self, version: str) -> dict[str, str]:
        headers = {"content-type": "text/xml; charset=utf-8", "accept": "text/xml", "soapaction": f'"{version}"'}
        return headers | ({"cookie": f"vmware_soap_session={self._cookie}"} if self._cookie else {})
