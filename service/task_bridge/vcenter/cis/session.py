"""One session with one vCenter: logged in when needed, once for all who need it, and logged out at the end.

vCenter has two ways of logging in, `/api/session` (7.0 U2 and later) and the one of `/rest`; which one there is
says nothing about where the tasks are. A session ends without notice: by idling, by age, by a restart.
"""

from __future__ import annotations

import base64
import contextlib
import random
import re
import time
from collections.abc import Callable

from ...domain.errors import VCenterUnavailable
from ...domain.task import Rendering
from ...metrics import Metrics
from ..http import Answer, VCenterHttp
from ..login import LoginThrottle, SingleFlight
from ..policy import VCenterConfig
from .renderings import (
    LOGIN_CALLS,
    LoginCalls,
    SessionFault,
    classify_session_fault,
    is_no_route,
    parse_message,
    parse_token,
)

ALIVE_S = 3.0
"""A session that was good so short a time ago isn't checked again when a 403 comes."""

_SESSION_LIMIT = re.compile("MaxUserSessionCountReached")
_SESSION_HEADER = "vmware-api-session-id"


class CisSession:
    """Requests with a session. `close` ends it."""

    def __init__(
        self,
        http: VCenterHttp,
        settings: VCenterConfig,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._http = http
        self._settings = settings
        self._clock = clock
        self._token: str | None = None
        self._rendering: Rendering | None = None
        self._login = SingleFlight(self._log_in)
        self._good_at = -ALIVE_S
        rng = rng or random.Random()  # noqa: S311 - spreads logins, keeps no secret
        self.login_throttle = LoginThrottle(settings, metrics, clock, rng)
        self._closed = False

    async def request(self, operation: str, method: str, target: str, content: bytes | None = None) -> Answer:
        """The answer to a request of a logged-in user, whatever its status but 401. Raises VCenterUnavailable.

        Where vCenter ended the session, it is begun anew and the request repeated, once.
        """
        token = await self._logged_in(stale=None)
        answer = await self._ask(token, operation, method, target, content)
        if not await self._is_over(token, answer):
            return answer
        token = await self._logged_in(stale=token)
        answer = await self._ask(token, operation, method, target, content)
        if classify_session_fault(answer) is SessionFault.CERTAIN:
            raise self.login_throttle.record_rejected_session(str(parse_message(answer)))
        return answer

    async def check(self) -> bool:
        """Whether vCenter answers for the session: the proof that its services run. Raises VCenterUnavailable."""
        await self._logged_in(stale=None)  # which also tells how to ask
        return (await self.request("session", *self._calls.check)).ok

    async def close(self) -> None:
        """Logs out, also out of a session that is just being given. Never raises."""
        self._closed = True
        await self._login.wait()
        token, self._token = self._token, None
        if token is None:
            return
        with contextlib.suppress(VCenterUnavailable):
            method, target = self._calls.logout
            await self._http.request("logout", method, target, {_SESSION_HEADER: token}, urgent=True)

    async def _ask(self, token: str, operation: str, method: str, target: str, content: bytes | None = None) -> Answer:
        headers = {_SESSION_HEADER: token}
        if content is not None:
            headers["content-type"] = "application/json"
        answer = await self._http.request(operation, method, target, headers, content)
        if answer.ok and token == self._token:
            self._good_at = self._clock()
            self.login_throttle.record_accepted_session()
        return answer

    async def _is_over(self, token: str, answer: Answer) -> bool:
        """Whether the answer means that the session has ended. A 403 may: the session itself is asked then."""
        fault = classify_session_fault(answer)
        if fault is not SessionFault.POSSIBLE:
            return fault is SessionFault.CERTAIN
        if self._clock() - self._good_at < ALIVE_S:
            return False
        check = await self._ask(token, "session", *self._calls.check)
        if check.status >= 500:
            raise VCenterUnavailable(
                f"vCenter {self._settings.name} can't tell about its session: {parse_message(check)}"
            )
        return classify_session_fault(check) is not SessionFault.NO

    @property
    def _calls(self) -> LoginCalls:
        return LOGIN_CALLS[self._rendering or "api"]

    # Logging in

    async def _logged_in(self, stale: str | None) -> str:
        """The session's token, a new one when it is still the `stale` one."""
        if self._token is not None and self._token != stale:
            return self._token
        if self._closed:
            raise VCenterUnavailable(f"The bridge is leaving vCenter {self._settings.name}.")
        return await self._login.run()

    async def _log_in(self) -> str:
        async with self.login_throttle.lock:
            username, password = self.login_throttle.read_credentials()
            self._token = None
            answer = await self._login_answer(username, password)
            if answer.ok and (token := parse_token(answer.body)):
                self.login_throttle.record_login()
                self._token, self._good_at = token, self._clock()
                return token
            raise self._refusal(answer, username, password)

    async def _login_answer(self, username: str, password: str) -> Answer:
        """vCenter's answer to the login, by the way that it offers."""
        credentials = base64.b64encode(f"{username}:{password}".encode()).decode("ascii")
        headers = {"authorization": f"Basic {credentials}", "vmware-use-header-authn": "true"}
        answer: Answer | None = None
        for rendering in self._renderings():
            try:
                answer = await self._http.request("login", *LOGIN_CALLS[rendering].login, headers)
            except VCenterUnavailable:
                self.login_throttle.record_failure()
                raise
            if not is_no_route(answer):
                self._rendering = rendering
                return answer
        assert answer is not None  # noqa: S101 - there is always a rendering to ask
        self._rendering = None
        return answer

    def _renderings(self) -> list[Rendering]:
        if self._settings.api != "auto":
            return [self._settings.api]
        return ["rest", "api"] if self._rendering == "rest" else ["api", "rest"]

    def _refusal(self, answer: Answer, username: str, password: str) -> VCenterUnavailable:
        """Why there is no session, with what follows from it for the next try."""
        name, words = self._settings.name, parse_message(answer)
        if answer.status in (401, 403):
            return self.login_throttle.record_refusal(username, password, str(words))
        if answer.status == 503 and words.mentions(_SESSION_LIMIT):
            return self.login_throttle.record_session_limit(str(words), answer.retry_after_s)
        self.login_throttle.record_failure()
        if is_no_route(answer):
            text = f"{self._settings.url} has no login of a vCenter: {words}. Check the URL of vCenter {name}."
            return VCenterUnavailable(text)
        return VCenterUnavailable(f"vCenter {name} gives no session: {words}", retry_after_s=answer.retry_after_s)
