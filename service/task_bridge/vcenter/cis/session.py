"""One REST session with one vCenter: logs in when needed, once for all callers, and logs out of each that it gave up.

vCenter has two logins, `/api/session` (7.0 U2 and later) and that of `/rest`. Which of them it has doesn't show where
its tasks are. A session ends without notice: by idling, by age, by a restart.
"""

from __future__ import annotations

import base64
import random
import re
import time
from collections.abc import Awaitable, Callable

from ...domain.errors import VCenterUnavailable
from ...domain.task import Rendering
from ...metrics import Metrics
from ..http import DEFAULT_LIMITS, SMALL_LIMITS, Answer, AnswerLimits, VCenterHttp
from ..login import GivenUpSessions, LoginThrottle, SingleFlight
from ..login_rules import Verdict
from ..policy import VCenterConfig
from .renderings import (
    LOGIN_CALLS,
    UNKNOWN_TASK,
    LoginCalls,
    SessionFault,
    classify_session_fault,
    describe_unknown_schemes,
    is_no_route,
    parse_message,
    parse_token,
    proves_session,
    task_target,
)

ALIVE_S = 3.0
"""A 403 doesn't prompt a check of a session that vCenter accepted so short a time ago."""
LOGOUT_LIMITS = SMALL_LIMITS._replace(read_timeout_s=2.0)
"""A logout delays the next login."""

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
        self._given_up = GivenUpSessions(self._log_out)
        self._rendering: Rendering | None = None
        self._login = SingleFlight(self._log_in)
        self._accepted_at = -ALIVE_S
        rng = rng or random.Random()  # noqa: S311 - spreads logins, keeps no secret
        self.login_throttle = LoginThrottle(settings, metrics, clock, rng)
        self._record = self.login_throttle.create_session_record("cis")
        self._closed = False

    async def request(
        self,
        operation: str,
        method: str,
        target: str,
        content: bytes | None = None,
        limits: AnswerLimits = DEFAULT_LIMITS,
    ) -> Answer:
        """Send a request as a logged-in user. Return the answer; a 401 only if the session serves other requests.

        If vCenter has ended the session, log in and repeat the request, once. Raises VCenterUnavailable.
        """
        stale = None
        for _ in range(2):
            token = await self._ensure_token(stale)
            answer = await self._send(token, operation, method, target, content, limits)
            if not await self._must_replace(token, operation, answer):
                return answer
            stale = token
        raise VCenterUnavailable(f"vCenter {self._settings.name} ended the new session at once.")

    async def check(self) -> bool:
        """Return True if vCenter accepts the session, which proves that its services run.

        Where the user may not ask for the session, ask for a task. Raises VCenterUnavailable.
        """
        await self._ensure_token(stale=None)  # the login decides which rendering to ask
        answer = await self.request("session", *self._calls.check)
        if answer.status != 403:
            return answer.ok
        return proves_session(await _get_unknown_task(lambda target: self.request("get", "GET", target)))

    async def close(self) -> None:
        """Log out, even if a login is still in flight. Never raises."""
        self._closed = True
        await self._login.wait()
        self._give_up_token()
        await self._given_up.log_out_of_all()

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
        try:
            answer = await self._http.request(operation, method, target, headers, content, limits=limits)
        except VCenterUnavailable:
            self._record.record_other_answer()
            raise
        if proves_session(answer):
            if token == self._token:
                self._record_good_answer(operation)
        elif answer.status != 500:
            self._record.record_other_answer()
        return answer

    # Whether the session has ended

    def _record_good_answer(self, operation: str) -> None:
        self._accepted_at = self._clock()
        self._record.record_good_answer("check")  # which an answer about tasks proves too
        if operation != "session":
            self._record.record_good_answer("tasks")

    async def _must_replace(self, token: str, operation: str, answer: Answer) -> bool:
        """Return True if the request must be repeated in a new session. Raises VCenterUnavailable if it can't be."""
        fault = classify_session_fault(answer)
        if token != self._token:
            return fault is not SessionFault.NO  # another request has replaced the session meanwhile
        kind = "check" if operation == "session" else "tasks"
        is_alive = None if fault is SessionFault.NO else await self._is_alive(token, kind, fault)
        if fault is SessionFault.NO or (is_alive and fault is not SessionFault.CERTAIN):
            return answer.status == 500 and self._record.record_failure(kind, self._clock())
        if token != self._token:
            return True
        verdict = self._record.record_refusal(kind, self._clock(), is_alive=is_alive is not False)
        if verdict is Verdict.WAIT:
            message = parse_message(answer)
            raise self.login_throttle.build_rejection(str(message), describe_unknown_schemes(answer))
        return verdict is Verdict.REPLACE

    async def _is_alive(self, token: str, kind: str, fault: SessionFault) -> bool | None:
        """Return whether the session is alive though a request was refused; None if vCenter doesn't say.

        Raises VCenterUnavailable.
        """
        if fault is SessionFault.POSSIBLE and (kind == "check" or self._clock() - self._accepted_at < ALIVE_S):
            return True
        if kind == "check" or (fault is SessionFault.CERTAIN and not self._record.is_accepted):
            return False
        check = await self._send(token, "session", *self._calls.check)
        if check.ok or fault is SessionFault.CERTAIN:
            return check.ok
        if classify_session_fault(check) is SessionFault.POSSIBLE:
            # This user may not ask for the session. A task that doesn't exist is refused only without a session.
            check = await _get_unknown_task(lambda target: self._send(token, "get", "GET", target))
        if proves_session(check):
            return True
        match classify_session_fault(check):
            case SessionFault.CERTAIN | SessionFault.LIKELY:
                return False
            case SessionFault.POSSIBLE:
                return None
        if fault is SessionFault.LIKELY:
            return None
        raise VCenterUnavailable(f"vCenter {self._settings.name} can't report on its session: {parse_message(check)}")

    @property
    def _calls(self) -> LoginCalls:
        return LOGIN_CALLS[self._rendering or "api"]

    def _give_up_token(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            self._given_up.add(token)

    async def _log_out(self, token: str) -> None:
        headers = {_SESSION_HEADER: token}
        await self._http.request("logout", *self._calls.logout, headers, urgent=True, limits=LOGOUT_LIMITS)

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
            credentials = self.login_throttle.read_credentials("cis")
            self._give_up_token()
            await self._given_up.log_out_of_all()
            answer = await self._post_login(*credentials)
            if answer.ok and (token := parse_token(answer.body)):
                self.login_throttle.record_login("cis", credentials)
                self._token, self._accepted_at = token, self._clock()
                self._record.begin(self._accepted_at)
                return token
            raise self._record_failed_login(answer, credentials)

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

    def _record_failed_login(self, answer: Answer, credentials: tuple[str, str]) -> VCenterUnavailable:
        """Record why there is no session, which decides when the next login may be tried. Return the error to raise."""
        name, message = self._settings.name, parse_message(answer)
        if answer.status in (401, 403):
            schemes = describe_unknown_schemes(answer)
            return self.login_throttle.record_refusal("cis", credentials, str(message), schemes)
        if answer.status == 503 and message.mentions(_SESSION_LIMIT):
            return self.login_throttle.record_session_limit(str(message), answer.retry_after_s)
        self.login_throttle.record_failure()
        if is_no_route(answer):
            return VCenterUnavailable(
                f"{self._settings.url} has no login of a vCenter: {message}. Check the URL of vCenter {name}."
            )
        return VCenterUnavailable(f"vCenter {name} creates no session: {message}", retry_after_s=answer.retry_after_s)


async def _get_unknown_task(ask: Callable[[str], Awaitable[Answer]]) -> Answer:
    """Ask for a task that doesn't exist, by the first rendering that has tasks."""
    answer = await ask(task_target("api", UNKNOWN_TASK, with_result=True))
    return await ask(task_target("rest", UNKNOWN_TASK, with_result=True)) if is_no_route(answer) else answer
