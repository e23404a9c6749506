"""What may be asked of the bridge, what is refused and why, and the replies. Pure.

Requests come from strangers in any language, so they are read strictly: a typo must not pass silently. pydantic
stands at this door only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from .durations import parse_duration
from .errors import Problem, Refused
from .events import WatchRef
from .subjects import is_vcenter_name
from .task import Progress, is_vim_task

REQUEST_MAX_BYTES = 64 * 1024
"""What every good request fits in, however it is escaped: all others hear so before they cost seconds to read."""
REQUEST_MAX_KEPT_BYTES = 8 * 1024
_NOT_IN_TASK = re.compile(r"[\x00-\x1f\x7f-\x9f/?#]")
_VIM_TASK = re.compile(r"^Task:(task-[0-9]+)$", re.ASCII)
"""As tools print the reference to a classic task."""
_TRACE = "(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(rf"00-{_TRACE}|(?!00|ff)[0-9a-f]{{2}}-{_TRACE}(-[ -~]{{0,200}})?")


def _check_task(task: str) -> str:
    try:
        size = len(task.encode())
    except UnicodeEncodeError:  # half a character, which JSON can escape
        size = 0
    if not 1 <= size <= 256:
        raise ValueError("must be 1 to 256 bytes of UTF-8")
    if task in (".", "..") or _NOT_IN_TASK.search(task):
        raise ValueError("must not contain control characters, '/', '?' or '#', nor be '.' or '..'")
    return _VIM_TASK.sub(r"\1", task)


def _check_duration(value: object) -> object:
    return None if value is None else parse_duration(value)


def _check_timeout(value: float | None) -> float | None:
    if value is not None and value <= 0:
        raise ValueError("must be above 0")
    return value


TaskId = Annotated[str, AfterValidator(_check_task)]
Duration = Annotated[float, BeforeValidator(_check_duration)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
LabelValue = Annotated[str, StringConstraints(max_length=256)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Model = TypeVar("Model", bound=_Request)


class TaskRequest(_Request):
    """`get`, `unwatch` and `cancel`: a task of a vCenter."""

    task: TaskId
    vcenter: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_id(cls, body: object) -> object:
        # What `?vmw-task=true` answers, a JSON string, can be published as it is.
        return {"task": body} if isinstance(body, str) else body


class WatchRequest(TaskRequest):
    """Watch a task until it ends."""

    # Durations are in seconds once they are read.
    timeout: Annotated[Duration | None, BeforeValidator(_check_duration), AfterValidator(_check_timeout)] = None
    stalled_after: Annotated[Duration | None, BeforeValidator(_check_duration)] = None
    partial_results: bool = False
    # A factory: pydantic deep-copies a default dict at each request, which costs as much as all the rest.
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16, default_factory=dict)]


class ListRequest(_Request):
    """The active watches, `limit` at a time; `cursor` is the one of the reply before."""

    vcenter: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: str | None = None

    @property
    def after(self) -> int:
        """The stream sequence after which this page begins."""
        return int(self.cursor or 0)

    @model_validator(mode="after")
    def _check_cursor(self) -> Self:
        if self.cursor is not None and not re.fullmatch(r"[0-9]{1,18}", self.cursor, re.ASCII):
            raise ValueError("cursor: is not one that a reply gave")
        return self


class VCenterRouting(msgspec.Struct, frozen=True):
    """Which vCenters a request may name: name to URL, the one that is meant when none is named, and those whose
    classic tasks aren't followed.
    """

    urls: Mapping[str, str]
    default: str | None
    without_vim: frozenset[str] = frozenset()

    def resolve(self, vcenter: str | None) -> str:
        """The vCenter a request means, configured or not. Raises Refused (400) when it must say, and (404) for what
        can't name one: names go into subjects, where `*` would mean any.
        """
        if vcenter is not None and not is_vcenter_name(vcenter):
            raise unknown_vcenter(vcenter, self.urls)
        if vcenter is not None:
            return vcenter
        if self.default is not None:
            return self.default
        problem = "name one of " + ", ".join(sorted(self.urls))
        raise invalid_request(
            "Several vCenters are configured and the request names none.", Problem("vcenter", problem)
        )

    def resolve_configured(self, vcenter: str | None) -> str:
        """The same, and it must be configured. Raises Refused (404)."""
        name = self.resolve(vcenter)
        if name not in self.urls:
            raise unknown_vcenter(name, self.urls)
        return name

    def resolve_watchable(self, vcenter: str | None, task: str) -> str:
        """The configured vCenter whose `task` may be followed or canceled. Raises Refused (400 or 404)."""
        name = self.resolve_configured(vcenter)
        if name in self.without_vim and is_vim_task(task):
            setting = f"BRIDGE_VCENTERS__{name.upper()}__VIM"
            problem = f"is a classic vim task, which the bridge doesn't follow on {name}: {setting} is off"
            raise invalid_request(f"The request is refused: task: {problem}.", Problem("task", problem))
        return name


def unknown_vcenter(name: str, known: Mapping[str, str]) -> Refused:
    listed = ", ".join(sorted(known))
    return Refused(
        404,
        "unknown_vcenter",
        f"No vCenter named {name[:63]!r} is configured; there is {listed}.",
        [Problem("vcenter", f"must be one of {listed}")],
    )


def invalid_request(message: str, *details: Problem) -> Refused:
    return Refused(400, "invalid_request", message, details)


def decode_strict_json(body: bytes) -> Any:
    """The body as JSON, an empty one as `{}`. Raises Refused for what isn't strict JSON."""
    if len(body) > REQUEST_MAX_BYTES:
        raise invalid_request("The request is too large.", Problem("", f"must be at most {REQUEST_MAX_BYTES:,} bytes"))
    if not body.strip():
        return {}
    try:
        return _decoder.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        problem = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON: {error}"
        raise invalid_request("The request can't be read as JSON.", Problem("", problem[:300])) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return read


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_request(model: type[Model], body: bytes) -> Model:
    """The request in `body`. Raises Refused (400) naming each field and what about it."""
    value = decode_strict_json(body)
    if not isinstance(value, dict) and not (isinstance(value, str) and issubclass(model, TaskRequest)):
        wanted = "a JSON object or a JSON string that is the task id" if issubclass(model, TaskRequest) else "an object"
        raise invalid_request("The request has the wrong form.", Problem("", f"must be {wanted}"))
    try:
        return model.model_validate(value)
    except ValidationError as error:
        details = [_problem(item["loc"], item["type"], item["msg"]) for item in error.errors(include_url=False)]
        told = "; ".join(f"{problem.field or 'request'}: {problem.problem}" for problem in details[:3])
        raise invalid_request(f"The request is refused: {told}.", *details[:20]) from error


_decoder = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant)


def _problem(loc: tuple[int | str, ...], kind: str, message: str) -> Problem:
    field = _clean(".".join(str(part) for part in loc if part != "[key]")[:128]) or ""
    if kind == "extra_forbidden":
        return Problem(field, "is not a field of this request")
    if kind == "missing":
        return Problem(field, "is required")
    text = message.removeprefix("Value error, ")
    if not field and text.startswith("cursor: "):
        return Problem("cursor", text.removeprefix("cursor: "))
    return Problem(field, text[:1].lower() + text[1:])


def parse_trace_context(headers: Mapping[str, str] | None) -> tuple[str | None, str | None]:
    """(`traceparent`, `tracestate`) of a message's headers; what isn't a W3C trace context is nobody's."""
    lowered = {key.lower(): value for key, value in (headers or {}).items()}
    traceparent = lowered.get("traceparent", "").strip()
    if not _TRACEPARENT.fullmatch(traceparent):
        return None, None
    tracestate = lowered.get("tracestate", "").strip()
    printable = tracestate.isascii() and tracestate.isprintable()
    return traceparent, (tracestate[:512] or None if printable else None)


def describe_rejected_request(body: bytes) -> dict[str, Any]:
    """What a rejection repeats of a request that can't be served: its text, and what could be made out of it.

    Bounded: a rejection that NATS refuses to carry would keep the request for ever.
    """
    text = body[: REQUEST_MAX_KEPT_BYTES + 4].decode("utf-8", "replace")
    kept = text.encode()[:REQUEST_MAX_KEPT_BYTES].decode("utf-8", "ignore")
    try:
        value = decode_strict_json(body)
    except Refused:
        value = None
    fields = {"task": value} if isinstance(value, str) else value if isinstance(value, dict) else {}
    labels = fields.get("labels")
    labels = labels if isinstance(labels, dict) and _is_short(labels) else {}
    return {
        "request": kept,
        "vcenter": _clean(fields.get("vcenter")),
        "task": _clean(fields.get("task")),
        "labels": {_clean(key): _clean(item) for key, item in labels.items()} or None,
    }


def _is_short(labels: dict[str, Any]) -> bool:
    strings = [*labels, *labels.values()]
    return all(isinstance(item, str) for item in strings) and sum(map(len, strings)) <= REQUEST_MAX_KEPT_BYTES


def _clean(value: object) -> str | None:
    if not isinstance(value, str) or len(value) > REQUEST_MAX_KEPT_BYTES:
        return None
    return value.encode("utf-8", "replace").decode()


class ErrorDetail(msgspec.Struct, frozen=True):
    """One thing that is wrong, by field."""

    field: str
    problem: str


class ErrorBody(msgspec.Struct, frozen=True):
    """What an error answer and a rejection say."""

    status: int
    code: str
    message: str
    details: list[ErrorDetail]


def error_body(refused: Refused) -> ErrorBody:
    details = [ErrorDetail(*problem) for problem in refused.details]
    return ErrorBody(refused.status, refused.code, refused.message, details)


class WatchReply(msgspec.Struct, frozen=True):
    """Answer of `watch`. `last_event` is a CloudEvent of this watch, null before its first."""

    outcome: str
    vcenter: str
    task: str
    watch: WatchRef
    stream: str
    events: str
    last_event: msgspec.Raw


class GetReply(msgspec.Struct, frozen=True):
    """Answer of `get`: the same, with whether the task is being watched now."""

    watching: bool
    vcenter: str
    task: str
    watch: WatchRef
    stream: str
    events: str
    last_event: msgspec.Raw


class ListedWatch(msgspec.Struct, frozen=True):
    """One line of `list`. `status` and `progress` are null before the first look."""

    vcenter: str
    task: str
    watch: WatchRef
    status: str | None
    progress: Progress | None
    unconfigured: bool


class ListReply(msgspec.Struct, frozen=True):
    """Answer of `list`: a page, how many there are in all, and where the next page begins."""

    watches: list[ListedWatch]
    total: int
    cursor: str | None


def count_fitting(listed: Sequence[ListedWatch], max_bytes: int) -> int:
    """How many of the first of them go into one reply: a page may have fewer than were asked for, never none."""
    left = max_bytes
    for number, one in enumerate(listed):
        left -= len(msgspec.json.encode(one)) + 1
        if left < 0:
            return max(1, number)
    return len(listed)


class UnwatchReply(msgspec.Struct, frozen=True):
    """Answer of `unwatch`; `last_event` is the final event."""

    outcome: str
    vcenter: str
    task: str
    watch: WatchRef
    last_event: msgspec.Raw


class CancelReply(msgspec.Struct, frozen=True):
    """Answer of `cancel`: vCenter took the request; the task's end tells whether it was canceled."""

    outcome: str
    vcenter: str
    task: str
