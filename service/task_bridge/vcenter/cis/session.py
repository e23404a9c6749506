"""One REST session with one vCenter: logs in when needed, once for all callers, and logs out at the end.

vCenter has two logins, `/api/session` (7.0 U2 and later) and that of `/rest`. Which of them it has doesn't show where
its tasks are. A session ends without notice: by idling, by age, by a restart.
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
from ..http import DEFAULT_LIMITS, SMALL_LIMITS, Answer, AnswerLimits, VCenterHttp
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
"""A 403 doesn't prompt a check of a session that vCenter accepted so short a time ago."""

_SESSION_LIMIT = re.compile("MaxUserSessionCountReached")
_SESSION_HEADER = "vmware-api-session-id"


class CisSession:
    """Sends requests with a session. `close` ends it."""

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
        self._accepted_at = -ALIVE_S
        rng = rng or random.Random()  # noqa: S311 - spreads logins, keeps no secret
        self.login_throttle = LoginThrottle(settings, metrics, clock, rng)
        self._closed = False

    async def request(
        self,
        operation: str,
        method: str,
        target: str,
        content: bytes | None = None,
        limits: AnswerLimits = DEFAULT_LIMITS,
    ) -> Answer:
        """Send a request as a logged-in user. Return the answer, whatever its status but 401.

        If vCenter has ended the session, log in and repeat the request, once. Raises VCenterUnavailable.
        """
        token = await self._ensure_token(stale=None)
        answer = await self._send(token, operation, method, target, content, limits)
        if not await self._is_session_over(token, answer):
            return answer
        token = await self._ensure_token(stale=token)
        answer = await self._send(token, operation, method, target, content, limits)
        if classify_session_fault(answer) is SessionFault.CERTAIN:
            raise self.login_throttle.record_rejected_session(str(parse_message(answer)))
        return answer

    async def check(self) -> bool:
        """Return True if vCenter accepts the session, which proves that its services run.

        Raises VCenterUnavailable.
        """
        await self._ensure_token(stale=None)  # the login decides which rendering to ask
        return (await self.request("session", *self._calls.check)).ok

    async def close(self) -> None:
        """Log out, even if a login is still in flight. Never raises."""
        self._closed = True
        await self._login.wait()
        token, self._token = self._token, None
        if token is None:
            return
        with contextlib.suppress(VCenterUnavailable):
            method, target = self._calls.logout
            await self._http.request("logout", method, target, {_SESSION_HEADER: token}, urgent=True)

    async def _send(
        self,
        token: str,
        operation: str,
        method: str,
        target: str,
        content: bytes | None = None,
        limits: AnswerLimits = DEFAULT_LIMITS,
    ) -> Answer:
        headers = {_SESSION_HEADER: token}
        if content is not None:
            headers["content-type"] = "application/json"
        answer = await self._http.request(operation, method, target, headers, content, limits=limits)
        if answer.ok and token == self._token:
            self._accepted_at = self._clock()
            self.login_throttle.record_accepted_session()
        return answer

    async def _is_session_over(self, token: str, answer: Answer) -> bool:
        """Return True if the answer means that the session has ended. After an unclear 403, check the session."""
        fault = classify_session_fault(answer)
        if fault is not SessionFault.POSSIBLE:
            return fault is SessionFault.CERTAIN
        if self._clock() - self._accepted_at < ALIVE_S:
            return False
        check = await self._send(token, "session", *self._calls.check)
        if check.status >= 500:
            raise VCenterUnavailable(
                f"vCenter {self._settings.name} can't report on its session: {parse_message(check)}"
            )
        return classify_session_fault(check) is not SessionFault.NO

    @property
    def _calls(self) -> LoginCalls:
        return LOGIN_CALLS[self._rendering or "api"]

    # Logging in

    async def _ensure_token(self, stale: str | None) -> str:
        """Return the session's token; renew the session if there is none, or if it is still the `stale` one."""
        if self._token is not None and self._token != stale:
            return self._token
        if self._closed:
            raise VCenterUnavailable(f"The bridge is disconnecting from vCenter {self._settings.name}.")
        return await self._login.run()

    async def _log_in(self) -> str:
        async with self.login_throttle.lock:
            username, password = self.login_throttle.read_credentials()
            self._token = None
            answer = await self._post_login(username, password)
            if answer.ok and (token := parse_token(answer.body)):
                self.login_throttle.record_login()
                self._token, self._accepted_at = token, self._clock()
                return token
            raise self._record_failed_login(answer, username, password)

    async def _post_login(self, username: str, password: str) -> Answer:
        """Return vCenter's answer to the first login that it has, and remember its rendering."""
        credentials = base64.b64encode(f"{username}:{password}".encode()).decode("ascii")
        headers = {"authorization": f"Basic {credentials}", "vmware-use-header-authn": "true"}
        renderings: list[Rendering] = ["rest", "api"] if self._rendering == "rest" else ["api", "rest"]
        answer: Answer | None = None
        for rendering in renderings if self._settings.api == "auto" else [self._settings.api]:
            try:
                answer = await self._http.request("login", *LOGIN_CALLS[rendering].login, headers, limits=SMALL_LIMITS)
            except VCenterUnavailable:
                self.login_throttle.record_failure()
                raise
            if not is_no_route(answer):
                self._rendering = rendering
                return answer
        assert answer is not None  # noqa: S101 - there is always a rendering to try
        self._rendering = None
        return answer

    def _record_failed_login(self, answer: Answer, username: str, password: str) -> VCenterUnavailable:
        """Record why there is no session, which decides when the next login may be tried. Return the error to raise."""
        name, message = self._settings.name, parse_message(answer)
        if answer.status in (401, 403):
            return self.login_throttle.record_refusal(username, password, str(message))
        if answer.status == 503 and message.mentions(_SESSION_LIMIT):
            return self.login_throttle.record_session_limit(str(message), answer.retry_after_s)
        self.login_throttle.record_failure()
        if is_no_route(answer):
            return VCenterUnavailable(
                f"{self._settings.url} has no login of a vCenter: {message}. Check the URL of vCenter {name}."
            )
        return VCenterUnavailable(f"vCenter {name} creates no session: {message}", retry_after_s=answer.retry_after_s)
