"""One SOAP session with one vCenter: logs in when needed, again after the session ended, and logs out of each.

vCenter reports the end of a session in two ways: a method gets the NotAuthenticated fault, but reading properties
gets a good answer in which every property is missing for that reason. The session's collectors and views end with it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

from ...domain.errors import VCenterUnavailable
from ...domain.task_json import BodyOutOfBounds
from ..challenge import describe_unknown_schemes
from ..http import MAX_BODY_BYTES, Answer, AnswerLimits
from ..login import GivenUpSessions, SingleFlight
from ..login_rules import Verdict
from ..parsing import parse_isolated, parse_outside_loop
from ..policy import VCenterConfig
from ..shared import SharedVCenter
from . import soap
from .soap import Element, Ref, SoapFault, UnreadableXml, XmlOutOfBounds

ANSWER_LIMITS = AnswerLimits(max_bytes=16 * 1024 * 1024)
READ_LIMITS = AnswerLimits(max_bytes=MAX_BODY_BYTES)
"""Of answers that are read where they are parsed."""
LOGOUT_LIMITS = AnswerLimits(read_timeout_s=2.0)
"""A logout delays the next login."""
LONG_BYTES = 2 * 1024 * 1024
"""An answer about 500 tasks has half of it."""
SERVICE_INSTANCE = Ref("ServiceInstance", "ServiceInstance")
_COOKIE = re.compile(r"vmware_soap_session=([^;,]+)")
_REFUSED = {"InvalidLogin", "PasswordExpired", "NoPermission", "NotAuthenticated"}
_READS = {"pull", "names"}
"""Requests that read properties: they may be answered well without a session, so their answers are looked at first."""
_FAILING_OPERATIONS = {"pull", "wait", "push", "modify"}
"""Faults of other operations may be due to their arguments."""
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
        self._record = shared.login_throttle.create_session_record("vim")
        self._clock = shared.login_throttle.clock
        self._cookie: str | None = None
        self._service: ServiceContent | None = None
        self._given_up = GivenUpSessions(self._log_out)
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
        return await self._request(operation, method, this or SERVICE_INSTANCE, inner, limits, self._parse)

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
        parse = partial(soap.read_answer, method=method, read=read)

        async def parse_isolated_answer(sent: list[Answer], method: str) -> T:
            self._refuse_401(sent[0], method)
            with self._name_errors(method):
                # No variable here holds the answer: an error would keep it, by its traceback.
                return await parse_isolated(sent.pop().body, parse, LONG_BYTES, is_streamed=True)

        return await self._request(operation, method, this, inner, limits, parse_isolated_answer)

    async def _request(
        self,
        operation: str,
        method: str,
        this: Ref,
        inner: str,
        limits: AnswerLimits,
        parse: Callable[[list[Answer], str], Awaitable[T]],
    ) -> T:
        """Call a method in the session and return its parsed answer. `parse` gets it in a list, to take it out."""
        service = await self.ensure_logged_in()
        number = self.number
        try:
            sent = [await self._send(operation, method, this, inner, service.version, limits)]
        except VCenterUnavailable:
            self._record.record_other_answer()
            raise
        status = sent[0].status
        try:
            parsed = await parse(sent, method)
        except (SoapFault, UnreadableXml) as error:
            raise await self._handle_error(error, status, operation, number) from error
        if operation not in _READS:
            self.record_good_answer(operation, number)
        return parsed

    def record_good_answer(self, operation: str, number: int) -> None:
        """Note that vCenter has answered as it does only in a session that it accepts."""
        if number == self.number:
            self._record.record_good_answer(operation)

    async def handle_refusal(
        self, operation: str, number: int, message: str, challenge: str = ""
    ) -> VCenterUnavailable:
        """Decide what follows from an answer as to somebody who isn't logged in. Return the error to raise.

        It is SessionEnded if the session is given up, and SoapFault if only this request is refused.
        """
        is_alive = self._record.is_accepted and self._is_current(number) and await self._is_alive()
        if not self._is_current(number):
            return self.build_ended_error()
        match self._record.record_refusal(operation, self._clock(), is_alive=is_alive):
            case Verdict.REPLACE:
                await self._end_session()
                return self.build_ended_error()
            case Verdict.WAIT:
                return self._login_throttle.build_rejection(message, describe_unknown_schemes(challenge))
            case Verdict.KEEP:
                text = f"vCenter {self._settings.name} refuses a request, though its session is good: {message}"
                return SoapFault(text, "NotAuthenticated", message)

    def build_ended_error(self) -> SessionEnded:
        return SessionEnded(f"vCenter {self._settings.name} ended the session for classic tasks.")

    def build_unreadable_error(self, problem: str) -> UnreadableXml:
        """Return the error for an answer that doesn't fit this API."""
        return UnreadableXml(f"vCenter {self._settings.name} {problem}.")

    async def check_reachable(self) -> None:
        """Check that /sdk answers at all, which takes no login. Raises VCenterUnavailable."""
        await self._fetch_service_content()

    async def close(self) -> None:
        """Log out, even if a login is still in flight. Never raises. A later call logs in again."""
        await self._login.wait()
        await self._end_session()

    async def close_for_good(self) -> None:
        """Log out and refuse later calls. Never raises."""
        self._closed = True
        await self.close()

    # Logging in

    async def _log_in(self) -> ServiceContent:
        async with self._login_throttle.lock:
            credentials = self._login_throttle.read_credentials("vim")
            await self._given_up.log_out_of_all()
            try:
                service = await self._open_session(*credentials)
            except SoapFault as fault:
                if fault.kind in _REFUSED:
                    reason, schemes = fault.reason or str(fault), describe_unknown_schemes(fault.challenge)
                    raise self._login_throttle.record_refusal("vim", credentials, reason, schemes) from fault
                self._login_throttle.record_failure()
                raise
            except VCenterUnavailable:
                self._login_throttle.record_failure()
                raise
            self._login_throttle.record_login("vim", credentials)
            self._record.begin(self._clock())
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
            await self._post("login", "Login", service.sessions, arguments, service.version)
        except UnreadableXml:
            self._give_up(service)
            await self._given_up.log_out_of_all()
            raise
        if self._cookie is None:
            raise self.build_unreadable_error("creates no session at /sdk")
        return service

    async def _fetch_service_content(self) -> ServiceContent:
        """Fetch the service's content, which needs no session."""
        answer = await self._post("login", "RetrieveServiceContent", SERVICE_INSTANCE, "", _ANY_VERSION)
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

    async def _post(self, operation: str, method: str, this: Ref, inner: str, version: str) -> Element:
        """Call a method with or without a session. Raises VCenterUnavailable."""
        return await self._parse([await self._send(operation, method, this, inner, version, ANSWER_LIMITS)], method)

    async def _send(
        self, operation: str, method: str, this: Ref, inner: str, version: str, limits: AnswerLimits
    ) -> Answer:
        content = soap.build_envelope(method, this, inner)
        headers = _build_headers(version, self._cookie)
        answer = await self._http.request(operation, "POST", "/sdk", headers, content, limits=limits)
        if cookie := _COOKIE.search(answer.set_cookie):
            self._cookie = cookie[1]
        if answer.status not in (200, 401, 500):
            raise VCenterUnavailable(
                f"vCenter {self._settings.name} answers {method} at /sdk with HTTP {answer.status}. "
                "It may be starting.",
                retry_after_s=answer.retry_after_s,
            )
        return answer

    async def _parse(self, sent: list[Answer], method: str) -> Element:
        """Return the answer to a method. Raises SoapFault, also for HTTP 401, or UnreadableXml."""
        self._refuse_401(sent[0], method)
        with self._name_errors(method):
            return await parse_outside_loop(len(sent[0].body), soap.parse_answer, sent.pop().body, method)

    def _refuse_401(self, answer: Answer, method: str) -> None:
        if answer.status == 401:
            reason = f"vCenter {self._settings.name} answers {method} at /sdk with HTTP 401"
            raise SoapFault(reason, "NotAuthenticated", reason, answer.challenge)

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

    async def _handle_error(
        self, error: SoapFault | UnreadableXml, status: int, operation: str, number: int
    ) -> VCenterUnavailable:
        """Give up a session that has ended, or that no longer serves. Return the error to raise."""
        if isinstance(error, SoapFault) and error.kind == "NotAuthenticated":
            message = f"{error.kind}: {error.reason}" if error.reason else error.kind
            return await self.handle_refusal(operation, number, message, error.challenge)
        if status != 500:
            self._record.record_other_answer()
        elif operation in _FAILING_OPERATIONS and self._record.record_failure(operation, self._clock()):
            if self._is_current(number):
                await self._end_session()
            return self.build_ended_error()
        return error

    def _is_current(self, number: int) -> bool:
        return self._service is not None and number == self.number

    async def _is_alive(self) -> bool:
        """Return True if vCenter reports the session as logged in."""
        if self._service is None:
            return False
        sessions = self._service.sessions
        paths = soap.xml_text("type", sessions.type) + soap.xml_text("pathSet", "currentSession")
        objects = f"<objectSet>{soap.xml_ref('obj', sessions)}</objectSet>"
        inner = f"<specSet><propSet>{paths}</propSet>{objects}</specSet><options/>"
        collector, version = self._service.collector, self._service.version
        try:
            answer = await self._post("session", "RetrievePropertiesEx", collector, inner, version)
        except VCenterUnavailable:
            return False
        return soap.child(answer, "returnval", "objects", "propSet", "val") is not None

    # Ends of sessions

    async def _end_session(self) -> None:
        """Log out, so that the next call logs in again."""
        service, self._service = self._service, None
        if service is not None:
            self._give_up(service)
        await self._given_up.log_out_of_all()

    def _give_up(self, service: ServiceContent) -> None:
        cookie, self._cookie = self._cookie, None
        if cookie is not None:
            self._given_up.add((service, cookie))

    async def _log_out(self, session: tuple[ServiceContent, str]) -> None:
        service, cookie = session
        headers, content = _build_headers(service.version, cookie), soap.build_envelope("Logout", service.sessions, "")
        await self._http.request("logout", "POST", "/sdk", headers, content, urgent=True, limits=LOGOUT_LIMITS)


def _build_headers(version: str, cookie: str | None) -> dict[str, str]:
    headers = {"content-type": "text/xml; charset=utf-8", "accept": "text/xml", "soapaction": f'"{version}"'}
    return headers | ({"cookie": f"vmware_soap_session={cookie}"} if cookie else {})
