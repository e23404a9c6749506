"""One SOAP session with one vCenter: logged in when needed, begun anew when it ended, logged out when idle.

It ends in two ways: a method gets the NotAuthenticated fault, but reading properties gets a good answer in which
every property is missing for that reason. What belonged to it (collectors, views) ends with it.
"""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

from ...domain.errors import VCenterUnavailable
from ..http import Answer, AnswerLimits
from ..login import SingleFlight
from ..policy import VCenterConfig
from ..shared import SharedVCenter
from . import soap
from .soap import Element, Ref, SoapFault, UnreadableXml

MAX_BYTES = 16 * 1024 * 1024
ANSWER_LIMITS = AnswerLimits(max_bytes=MAX_BYTES)
SERVICE_INSTANCE = Ref("ServiceInstance", "ServiceInstance")
_COOKIE = re.compile(r"vmware_soap_session=([^;,]+)")
_REFUSED = {"InvalidLogin", "PasswordExpired", "NoPermission"}
_ANY_VERSION = "urn:vim25"


class SessionEnded(VCenterUnavailable):
    """vCenter no longer knows the session, nor what belonged to it."""


class ServiceContent(NamedTuple):
    """The service's own objects, and its version as `SOAPAction` names it."""

    collector: Ref
    views: Ref
    tasks: Ref
    sessions: Ref
    version: str


class VimSession:
    """Calls of a logged-in user. `number` tells one session from the next."""

    def __init__(self, link: SharedVCenter, settings: VCenterConfig) -> None:
        self._http = link.http
        self._gate = link.login_throttle
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
        """Logs in if need be. Raises VCenterUnavailable."""
        if self._service is not None:
            return self._service
        if self._closed:
            raise VCenterUnavailable(f"The bridge is leaving vCenter {self._settings.name}.")
        return await self._login.run()

    async def call(
        self, operation: str, method: str, this: Ref | None, inner: str = "", limits: AnswerLimits = ANSWER_LIMITS
    ) -> Element:
        """The answer to a method, of the service itself where `this` is None. Raises VCenterUnavailable:
        SoapFault, SessionEnded, Unreadable and others.
        """
        service = await self.ensure_logged_in()
        number = self.number
        try:
            return await self._asked(operation, method, this or SERVICE_INSTANCE, inner, service.version, limits)
        except SoapFault as fault:
            if fault.kind == "NotAuthenticated":
                raise self.mark_ended(number) from fault
            raise

    def mark_ended(self, number: int) -> SessionEnded:
        """It turned out that the session of this number has ended."""
        if number == self.number and self._service is not None:
            self._service, self._cookie = None, None
        return SessionEnded(f"vCenter {self._settings.name} ended the session for classic tasks.")

    def build_unreadable_error(self, what: str) -> UnreadableXml:
        """It answers, but not as this API does."""
        return UnreadableXml(f"vCenter {self._settings.name} {what}.")

    async def check(self) -> None:
        """Whether vCenter answers for the session. Raises VCenterUnavailable."""
        await self.call("session", "CurrentTime", None)

    async def close(self) -> None:
        """Logs out; a session that is just being given too, when it is for good. Never raises."""
        await self._login.wait()
        service, self._service = self._service, None
        if service is not None:
            await self._log_out(service)

    async def close_for_good(self) -> None:
        """Closes for good."""
        self._closed = True
        await self.close()

    # Logging in

    async def _log_in(self) -> ServiceContent:
        async with self._gate.lock:
            username, password = self._gate.read_credentials()
            try:
                service = await self._begun(username, password)
            except SoapFault as fault:
                if fault.kind in _REFUSED:
                    raise self._gate.record_refusal(username, password, fault.reason or str(fault)) from fault
                self._gate.record_failure()
                raise
            except VCenterUnavailable:
                self._gate.record_failure()
                raise
            self._gate.record_login()
            self.number += 1
            self._service = service
            return service

    async def _begun(self, username: str, password: str) -> ServiceContent:
        """What a session that was just given serves with. Raises VCenterUnavailable, and leaves none behind."""
        self._cookie = None
        service = await self._found()
        named = (
            soap.xml_text("userName", username) + soap.xml_text("password", password) + soap.xml_text("locale", "en")
        )
        try:
            await self._asked("login", "Login", service.sessions, named, service.version, ANSWER_LIMITS)
        except UnreadableXml:
            await self._log_out(service)
            raise
        if self._cookie is None:
            raise self.build_unreadable_error("gives no session at /sdk")
        return service

    async def _log_out(self, service: ServiceContent) -> None:
        """Never raises."""
        headers, self._cookie = self._headers(service.version), None
        content = soap.build_envelope("Logout", service.sessions, "")
        with contextlib.suppress(VCenterUnavailable):
            await self._http.request("logout", "POST", "/sdk", headers, content, urgent=True, limits=ANSWER_LIMITS)

    async def _found(self) -> ServiceContent:
        """The service's own objects, which it tells everybody."""
        answer = await self._asked("login", "RetrieveServiceContent", SERVICE_INSTANCE, "", _ANY_VERSION, ANSWER_LIMITS)
        content = soap.child(answer, "returnval")
        names = ("propertyCollector", "viewManager", "taskManager", "sessionManager")
        found = [None if content is None else soap.ref_of(soap.child(content, name)) for name in names]
        collector, views, tasks, sessions = found
        if not (collector and views and tasks and sessions) or content is None:
            raise UnreadableXml(f"{self._settings.url}/sdk isn't a vCenter's: {names} aren't all there.")
        # Its own version: which others it still speaks depends on its age.
        version = soap.text_of(soap.child(content, "about", "apiVersion"))
        return ServiceContent(
            collector, views, tasks, sessions, f"{_ANY_VERSION}/{version}" if version else _ANY_VERSION
        )

    # Asking

    async def _asked(
        self, operation: str, method: str, this: Ref, inner: str, version: str, limits: AnswerLimits
    ) -> Element:
        content = soap.build_envelope(method, this, inner)
        answer = await self._http.request(operation, "POST", "/sdk", self._headers(version), content, limits=limits)
        if cookie := _COOKIE.search(answer.set_cookie):
            self._cookie = cookie[1]
        return self._read(answer, method)

    def _headers(self, version: str) -> dict[str, str]:
        headers = {"content-type": "text/xml; charset=utf-8", "accept": "text/xml", "soapaction": f'"{version}"'}
        return headers | ({"cookie": f"vmware_soap_session={self._cookie}"} if self._cookie else {})

    def _read(self, answer: Answer, method: str) -> Element:
        name = self._settings.name
        if answer.status not in (200, 500):
            told = f"vCenter {name} answers {method} at /sdk with HTTP {answer.status}"
            raise VCenterUnavailable(f"{told}. It may be starting.", retry_after_s=answer.retry_after_s)
        try:
            return soap.parse_answer(answer.body, method)
        except UnreadableXml as error:
            raise UnreadableXml(f"vCenter {name} answers {method} with {error}.") from error
        except SoapFault as fault:
            told = f"vCenter {name} refuses {method}: {fault}"
            raise SoapFault(told, fault.kind, fault.reason) from fault
