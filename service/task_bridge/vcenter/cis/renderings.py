"""The two renderings of vCenter's REST API: which requests to send, and what the answers mean. Pure.

`/api` (7.0 U2 and later) has bare bodies. `/rest` (6.7 U1 and later) wraps them in `value`, writes maps as key/value
lists, and lists tasks with a GET whose query repeats a parameter.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from ...domain.task import Message, Rendering, Target, TaskError, parse_error
from ...domain.task_json import UnreadableBody, parse_json
from .. import challenge
from ..http import Answer

Call = tuple[str, str]
"""A method and a target."""


class LoginCalls(NamedTuple):
    login: Call
    check: Call
    logout: Call


_REST_SESSION = "/rest/com/vmware/cis/session"
LOGIN_CALLS: dict[Rendering, LoginCalls] = {
    "api": LoginCalls(("POST", "/api/session"), ("GET", "/api/session"), ("DELETE", "/api/session")),
    "rest": LoginCalls(("POST", _REST_SESSION), ("POST", f"{_REST_SESSION}?~action=get"), ("DELETE", _REST_SESSION)),
}

UNKNOWN_TASK = "00000000-0000-0000-0000-000000000000:com.vmware.cis"
"""The id of no task: if the tasks service itself says so, it works for this user."""
LIST_MAX = 500
"""vCenter answers more than 1,000 matches with an error; half of that leaves room for slow providers."""
REST_LIST_MAX = 70
_QUERY_MAX = 7_000


# Requests


def encode_task_id(task: str) -> str:
    """Quote a task id as one path segment or query value."""
    return quote(task, safe=":")


def task_target(rendering: Rendering, task: str, *, with_result: bool, return_all: bool = False) -> str:
    flags = _result_flags(with_result, return_all)
    query = "&".join(f"{'' if rendering == 'api' else 'spec.'}{flag}=true" for flag in flags)
    return f"/{rendering}/cis/tasks/{encode_task_id(task)}" + (f"?{query}" if query else "")


def _result_flags(with_result: bool, return_all: bool) -> list[str]:
    """Return what differs from vCenter's default: Info's documented fields, with the result."""
    return [*([] if with_result else ["exclude_result"]), *(["return_all"] if return_all else [])]


def cancel_target(rendering: Rendering, task: str) -> str:
    return f"/{rendering}/cis/tasks/{encode_task_id(task)}?action=cancel"


class ListCall(NamedTuple):
    method: str
    target: str
    content: bytes | None


def list_calls(
    rendering: Rendering, tasks: list[str], *, with_result: bool, return_all: bool = False
) -> Iterator[ListCall]:
    """Yield the requests that list these tasks: one on `/api`, and on `/rest` as many as keep the URL short."""
    flags = _result_flags(with_result, return_all)
    if rendering == "api":
        spec: dict[str, Any] = {"filter_spec": {"tasks": tasks}}
        if flags:
            spec["result_spec"] = dict.fromkeys(flags, True)
        yield ListCall("POST", "/api/cis/tasks?action=list", msgspec.json.encode(spec))
        return
    suffix = "".join(f"&result_spec.{flag}=true" for flag in flags)
    for query in _join_queries(f"filter_spec.tasks={encode_task_id(task)}" for task in tasks):
        yield ListCall("GET", f"/rest/cis/tasks?{query}{suffix}", None)


class ServiceFilter(NamedTuple):
    """The tasks of a service that a list is to show: all, or those of one status, operation or target."""

    service: str
    status: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    target: Target | None = None


def service_call(rendering: Rendering, wanted: ServiceFilter) -> ListCall:
    """Return the request that lists the tasks of a service, without their results. `/rest` can't filter by target."""
    filters = {"services": [wanted.service], "status": wanted.status, "operations": wanted.operations}
    if rendering == "api":
        spec: dict[str, Any] = {name: values for name, values in filters.items() if values}
        if wanted.target is not None:
            spec["targets"] = [{"type": wanted.target.type, "id": wanted.target.id}]
        body = {"filter_spec": spec, "result_spec": {"exclude_result": True}}
        return ListCall("POST", "/api/cis/tasks?action=list", msgspec.json.encode(body))
    pairs = [(f"filter_spec.{name}", value) for name, values in filters.items() for value in values]
    query = urlencode([*pairs, ("result_spec.exclude_result", "true")])
    return ListCall("GET", f"/rest/cis/tasks?{query}", None)


def _join_queries(parameters: Iterable[str]) -> Iterator[str]:
    query = ""
    for parameter in parameters:
        if query and len(query) + len(parameter) >= _QUERY_MAX:
            yield query
            query = ""
        query += f"&{parameter}" if query else parameter
    if query:
        yield query


# Answers that aren't a success


class VCenterMessage(NamedTuple):
    """The message of an answer that isn't a success. `error` is None if the answer isn't vCenter's standard error."""

    status: int
    error: TaskError | None
    text: str

    @property
    def type(self) -> str | None:
        return self.error.type if self.error else None

    @property
    def messages(self) -> tuple[Message, ...]:
        return self.error.messages if self.error else ()

    def mentions(self, pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(f"{message.id} {message.text}") for message in self.messages)

    @property
    def is_from_router(self) -> bool:
        """True if the router or a proxy answered, not the tasks service."""
        ids = [self.type or "", *(message.id or "" for message in self.messages)]
        return self.error is None or any(name.startswith("com.vmware.vapi.rest.") for name in ids)

    def to_task_error(self) -> TaskError:
        return self.error or TaskError(type=None, message=self.text)

    def __str__(self) -> str:
        return self.text


def parse_message(answer: Answer) -> VCenterMessage:
    """Return the message of an answer: of vCenter's standard error, otherwise the beginning of its text."""
    try:
        error = parse_error(parse_json(answer.body))
    except UnreadableBody:
        error = None
    if error is not None:
        return VCenterMessage(answer.status, error, f"{error.message} (HTTP {answer.status})")
    text = re.sub(r"(<[^>]*>|\s)+", " ", answer.body[:400].decode("utf-8", "replace")).strip()
    return VCenterMessage(answer.status, None, f"HTTP {answer.status}" + (f" ({text[:200]})" if text else ""))


_NO_PROVIDER = re.compile(r"cannot find (the |a )?provider", re.IGNORECASE)
_STANDARD_ERRORS = "com.vmware.vapi.std.errors."


class Refusal(enum.Enum):
    """What an answer without a task means: 403 or 404.

    TASK: the tasks service answers that it doesn't know the task, or may not show it. PROVIDER: it has no provider for
    the task. ROUTER: something else answered, such as a router, a proxy or a service that is starting.
    """

    TASK = enum.auto()
    PROVIDER = enum.auto()
    ROUTER = enum.auto()


def classify_refusal(answer: Answer) -> Refusal:
    message = parse_message(answer)
    if message.is_from_router:
        return Refusal.ROUTER
    if message.mentions(_NO_PROVIDER):
        return Refusal.PROVIDER
    fits = message.type == ("UNAUTHORIZED" if answer.status == 403 else "NOT_FOUND")
    return Refusal.TASK if fits and _is_standard_error(answer) else Refusal.ROUTER


def _is_standard_error(answer: Answer) -> bool:
    """True if the error is named as vSphere does it in either rendering, and not as any web server may."""
    body = parse_json(answer.body)
    return "error_type" in body or str(body.get("type")).startswith(_STANDARD_ERRORS)


def is_no_route(answer: Answer) -> bool:
    """True if vCenter has nothing at this path: 404 by the router or in plain text, 405, 501 or a redirect."""
    if answer.status in (301, 302, 307, 308, 405, 501):
        return True
    return answer.status == 404 and parse_message(answer).is_from_router


class SessionFault(enum.Enum):
    """The certainty with which an answer means that the session has ended."""

    NO = enum.auto()
    POSSIBLE = enum.auto()
    LIKELY = enum.auto()
    CERTAIN = enum.auto()


_AUTHENTICATION = re.compile(
    r"not ?authenticated|unauthenticated|authentication\W*(is )?required|requires authentication"
    r"|session where login failed|session\b.{0,40}\b(expired|invalid|not valid|timed out)|invalid session",
    re.IGNORECASE,
)


def classify_session_fault(answer: Answer) -> SessionFault:
    """Return how certainly the answer means that the session has ended.

    A 401 is certain (vcsim's has no body). A 403 or 500 that mentions authentication is likely: it may also come from a
    provider that can't log in elsewhere. Any other 403 is possible: vCenter answered an expired session like that once.
    """
    if answer.status == 401:
        return SessionFault.CERTAIN
    if answer.status not in (403, 500):
        return SessionFault.NO
    message = parse_message(answer)
    if message.type == "UNAUTHENTICATED" or message.mentions(_AUTHENTICATION):
        return SessionFault.LIKELY
    return SessionFault.POSSIBLE if answer.status == 403 else SessionFault.NO


def proves_session(answer: Answer) -> bool:
    """True if vCenter answers only a logged-in user like this: a success, or that there is no such task."""
    if answer.status != 404:
        return answer.ok
    message = parse_message(answer)
    return message.type == "NOT_FOUND" and not message.is_from_router


def describe_unknown_schemes(answer: Answer) -> str | None:
    """Return a sentence if vCenter says how users log in, and the bridge can't do that."""
    try:
        body = parse_json(answer.body)
    except UnreadableBody:
        body = None
    parts = [body, *(body.get(key) for key in ("value", "data"))] if isinstance(body, dict) else []
    challenges = [part.get("challenge") for part in parts if isinstance(part, dict)]
    return challenge.describe_unknown_schemes(answer.challenge, *(one for one in challenges if isinstance(one, str)))


def parse_token(body: bytes) -> str | None:
    """Return the session id from the body of either login, None if there is none."""
    try:
        value = parse_json(body)
    except UnreadableBody:
        return None
    token = value.get("value") if isinstance(value, dict) else value
    return token if isinstance(token, str) and token.isascii() and token.isprintable() and token else None
