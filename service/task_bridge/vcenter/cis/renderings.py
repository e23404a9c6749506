"""vCenter's two renderings: what is sent, and what an answer means. Pure.

`/api` (7.0 U2 and later) has bare bodies, `/rest` (6.7 U1 and later) wraps them into `value`, writes maps as
key/value lists and lists tasks by a GET whose query repeats a parameter.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from ...domain.task import Message, NotATask, Rendering, Task, TaskError, parse_error, parse_task
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

LIST_MAX = 500
"""Above 1,000 matches vCenter answers with an error; half leaves room for slow providers."""
REST_LIST_MAX = 70
_QUERY_MAX = 7_000


class UnreadableBody(ValueError):  # noqa: N818 - reads as what the body is
    """A body that isn't what was asked for."""


# What is sent


def encode_task_id(task: str) -> str:
    """A task id as one path segment or query value."""
    return quote(task, safe=":")


def task_target(rendering: Rendering, task: str, *, with_result: bool) -> str:
    flag = "exclude_result" if rendering == "api" else "spec.exclude_result"
    return f"/{rendering}/cis/tasks/{encode_task_id(task)}" + ("" if with_result else f"?{flag}=true")


def cancel_target(rendering: Rendering, task: str) -> str:
    return f"/{rendering}/cis/tasks/{encode_task_id(task)}?action=cancel"


class ListCall(NamedTuple):
    method: str
    target: str
    content: bytes | None


def list_calls(rendering: Rendering, tasks: list[str], *, with_result: bool) -> Iterator[ListCall]:
    """The requests that list these tasks: one on `/api`, on `/rest` as many as keep the URL short."""
    if rendering == "api":
        spec: dict[str, Any] = {"filter_spec": {"tasks": tasks}}
        if not with_result:
            spec["result_spec"] = {"exclude_result": True}
        yield ListCall("POST", "/api/cis/tasks?action=list", msgspec.json.encode(spec))
        return
    fixed = "" if with_result else "&result_spec.exclude_result=true"
    for query in _queries(tasks):
        yield ListCall("GET", f"/rest/cis/tasks?{query}{fixed}", None)


def _queries(tasks: Iterable[str]) -> Iterator[str]:
    query = ""
    for task in tasks:
        parameter = f"filter_spec.tasks={encode_task_id(task)}"
        if query and len(query) + len(parameter) >= _QUERY_MAX:
            yield query
            query = ""
        query += f"&{parameter}" if query else parameter
    if query:
        yield query


# What an answer means


class VCenterMessage(NamedTuple):
    """vCenter's own words in an answer that isn't a success. `error` is None when they aren't its standard ones."""

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
    def is_by_router(self) -> bool:
        """The tasks service didn't say this: the router did, or a proxy."""
        ids = [self.type or "", *(message.id or "" for message in self.messages)]
        return self.error is None or any(name.startswith("com.vmware.vapi.rest.") for name in ids)

    def to_task_error(self) -> TaskError:
        return self.error or TaskError(type=None, message=self.text)

    def __str__(self) -> str:
        return self.text


def parse_message(answer: Answer) -> VCenterMessage:
    error = _standard_error(answer.body)
    if error is not None:
        return VCenterMessage(answer.status, error, f"{error.message} (HTTP {answer.status})")
    text = re.sub(r"(<[^>]*>|\s)+", " ", answer.body[:400].decode("utf-8", "replace")).strip()
    return VCenterMessage(answer.status, None, f"HTTP {answer.status}" + (f" ({text[:200]})" if text else ""))


def _standard_error(body: bytes) -> TaskError | None:
    try:
        return parse_error(parse_json(body))
    except UnreadableBody:
        return None


def is_no_route(answer: Answer) -> bool:
    """Nothing is offered at this path: 404 by the router or in plain text, 405, or a redirect."""
    if answer.status in (301, 302, 307, 308, 405, 501):
        return True
    return answer.status == 404 and parse_message(answer).is_by_router


class SessionFault(enum.Enum):
    """Whether an answer means that the session has ended."""

    NO = enum.auto()
    POSSIBLE = enum.auto()
    CERTAIN = enum.auto()


_AUTHENTICATION = re.compile(
    r"not ?authenticated|unauthenticated|authentication\W*(is )?required|requires authentication"
    r"|session where login failed|session\b.{0,40}\b(expired|invalid|not valid|timed out)|invalid session",
    re.IGNORECASE,
)


def classify_session_fault(answer: Answer) -> SessionFault:
    """A 401 is certain (vcsim's is empty), and so is a 403 or 500 that speaks of authentication; any other 403
    may be one (an expired session was once answered so)."""
    if answer.status == 401:
        return SessionFault.CERTAIN
    if answer.status not in (403, 500):
        return SessionFault.NO
    words = parse_message(answer)
    if words.type == "UNAUTHENTICATED" or words.mentions(_AUTHENTICATION):
        return SessionFault.CERTAIN
    return SessionFault.POSSIBLE if answer.status == 403 else SessionFault.NO


# What is read


def parse_token(body: bytes) -> str | None:
    """The session id out of either login's body."""
    try:
        value = parse_json(body)
    except UnreadableBody:
        return None
    token = value.get("value") if isinstance(value, dict) else value
    return token if isinstance(token, str) and token.isascii() and token.isprintable() and token else None


class _Entry(msgspec.Struct):
    key: str
    value: msgspec.Raw


class _RestList(msgspec.Struct):
    value: list[_Entry] | dict[str, msgspec.Raw]


class _RestTask(msgspec.Struct):
    value: msgspec.Raw


_api_list = msgspec.json.Decoder(dict[str, msgspec.Raw])
_rest_list = msgspec.json.Decoder(_RestList)
_rest_task = msgspec.json.Decoder(_RestTask)

TaskBodies = dict[str, msgspec.Raw]


def parse_list(rendering: Rendering, body: bytes) -> TaskBodies:
    """The tasks of a list, each still as JSON. Raises Unreadable."""
    try:
        if rendering == "api":
            return _api_list.decode(body)
        listed = _rest_list.decode(body).value
    except (ValueError, RecursionError) as error:
        raise UnreadableBody(f"not a list of tasks: {error}") from error
    return listed if isinstance(listed, dict) else {entry.key: entry.value for entry in listed}


def unwrap_task(rendering: Rendering, body: bytes) -> msgspec.Raw:
    """One task, still as JSON. Raises Unreadable."""
    if rendering == "api":
        return msgspec.Raw(body)
    try:
        return _rest_task.decode(body).value
    except (ValueError, RecursionError) as error:
        raise UnreadableBody(f"not a task: {error}") from error


def parse_json(body: bytes | msgspec.Raw) -> Any:
    """Any JSON, also what msgspec refuses: lone surrogates, NaN, bytes that aren't UTF-8. Raises Unreadable."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(bytes(body).decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise UnreadableBody(f"not JSON: {error}") from error


def parse_raw_task(body: bytes | msgspec.Raw, rendering: Rendering, *, with_result: bool) -> Task:
    """The task that a body shows. Raises Unreadable.

    Without `with_result` the result was to be left out; where it is there nevertheless, the task that ended has it.
    """
    info = parse_json(body)
    carried = isinstance(info, dict) and info.get("result") is not None
    try:
        task = parse_task(info, rendering, with_result=with_result or carried)
    except (NotATask, RecursionError) as error:
        raise UnreadableBody(str(error)) from error
    if task.ended:
        return task
    # What is told only at the end needn't be kept, nor a result that nobody asked for.
    return msgspec.structs.replace(task, extra=None, result=task.result if with_result else None)
