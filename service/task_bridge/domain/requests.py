"""Requests: their form, and why they are refused. Pure.

Requests come from programs in any language, so they are read strictly: a typo must not pass silently. Only this module
uses pydantic models.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping
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
from .errors import Problem, Refused, invalid_request
from .subjects import is_vcenter_name
from .task import is_vim_task
from .task_ids import parse_bare_id, parse_task_id

REQUEST_MAX_BYTES = 64 * 1024
"""Fits every valid request, however it is escaped. Larger ones are refused before parsing them costs seconds."""
REQUEST_MAX_KEPT_BYTES = 8 * 1024
_TRACE = "(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(rf"00-{_TRACE}|(?!00|ff)[0-9a-f]{{2}}-{_TRACE}(-[ -~]{{0,200}})?")


def check_duration(value: object) -> object:
    return None if value is None else parse_duration(value)


def check_timeout(value: float | None) -> float | None:
    if value is not None and value <= 0:
        raise ValueError("must be above 0")
    return value


TaskId = Annotated[str, AfterValidator(parse_task_id)]
Duration = Annotated[float, BeforeValidator(check_duration)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
LabelValue = Annotated[str, StringConstraints(max_length=256)]


class StrictRequest(BaseModel):
    """The base of every request: unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Model = TypeVar("Model", bound=StrictRequest)


class TaskRequest(StrictRequest):
    """A request for one task of a vCenter: `get`, `unwatch`, `cancel`."""

    task: TaskId
    vcenter: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_id(cls, body: object) -> object:
        # The answer of `?vmw-task=true`, a JSON string, can be published as it is.
        return {"task": body} if isinstance(body, str) else body


class WatchRequest(TaskRequest):
    """A request to watch a task until it ends."""

    # Durations are seconds once they are parsed.
    timeout: Annotated[Duration | None, BeforeValidator(check_duration), AfterValidator(check_timeout)] = None
    stalled_after: Annotated[Duration | None, BeforeValidator(check_duration)] = None
    partial_results: bool = False
    details: bool = False
    # A factory, since pydantic deep-copies a default dict for each request, which costs as much as all the rest.
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16, default_factory=dict)]


class ListRequest(StrictRequest):
    """A request for a page of active watches; `cursor` is that of the reply before."""

    vcenter: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: str | None = None

    @property
    def after(self) -> int:
        """Stream sequence after which this page starts."""
        return int(self.cursor or 0)

    @model_validator(mode="after")
    def _check_cursor(self) -> Self:
        if self.cursor is not None and not re.fullmatch(r"[0-9]{1,18}", self.cursor, re.ASCII):
            raise ValueError("cursor: is not one that a reply gave")
        return self


class VCenterRouting(msgspec.Struct, frozen=True):
    """The vCenters that a request can name.

    `urls`: URL by name. `default`: the vCenter of requests that name none. `without_vim`: those whose classic tasks
    can't be watched. `permitted`: those that the requester may name and see, None for all.
    """

    urls: Mapping[str, str]
    default: str | None
    without_vim: frozenset[str] = frozenset()
    permitted: frozenset[str] | None = None

    def restrict(self, permitted: frozenset[str] | None) -> VCenterRouting:
        """Return the same for a requester who may use these vCenters only."""
        if permitted is None:
            return self
        urls = {name: url for name, url in self.urls.items() if name in permitted}
        return VCenterRouting(urls, self.default, self.without_vim, permitted)

    def resolve(self, vcenter: str | None) -> str:
        """Return the name of the vCenter that a request means, configured or not.

        Raises Refused: 400 if the request must name one, 404 for an invalid name (in a subject, `*` would mean any),
        403 if the requester may not use it.
        """
        if vcenter is not None and not is_vcenter_name(vcenter):
            raise unknown_vcenter(vcenter, self.urls)
        name = vcenter or self.default
        if name is not None and self.permitted is not None and name not in self.permitted:
            raise _forbidden_vcenter(name, self.permitted)
        if name is not None:
            return name
        problem = "name one of " + ", ".join(sorted(self.urls))
        raise invalid_request(
            "Several vCenters are configured and the request names none.", Problem("vcenter", problem)
        )

    def resolve_scope(self, vcenter: str | None) -> list[str] | None:
        """Return the vCenters that a request for a list means, configured or not; None: all. Raises Refused."""
        if vcenter is not None:
            return [self.resolve(vcenter)]
        return None if self.permitted is None else sorted(self.permitted)

    def resolve_configured(self, vcenter: str | None) -> str:
        """Return the name of the configured vCenter that a request means. Raises Refused (400 or 404)."""
        name = self.resolve(vcenter)
        if name not in self.urls:
            raise unknown_vcenter(name, self.urls)
        return name

    def resolve_watchable(self, vcenter: str | None, task: str) -> str:
        """Return the configured vCenter whose `task` can be watched or canceled. Raises Refused (400 or 404)."""
        name = self.resolve_configured(vcenter)
        if name in self.without_vim and is_vim_task(task):
            setting = f"BRIDGE_VCENTERS__{name.upper()}__VIM"
            problem = f"is a classic vim task, which the bridge doesn't follow on {name}: {setting} is off"
            raise invalid_request(f"The request is refused: task: {problem}.", Problem("task", problem))
        return name


def unknown_vcenter(name: str, known: Iterable[str]) -> Refused:
    listed = ", ".join(sorted(known))
    return Refused(
        404,
        "unknown_vcenter",
        f"No vCenter named {name[:63]!r} is configured; it must be one of {listed}.",
        [Problem("vcenter", f"must be one of {listed}")],
    )


def _forbidden_vcenter(name: str, permitted: Iterable[str]) -> Refused:
    listed = ", ".join(sorted(permitted)) or "none"
    return Refused(
        403,
        "forbidden",
        f"You may not use the vCenter {name!r}; you may use {listed}.",
        [Problem("vcenter", f"must be one of {listed}")],
    )


def decode_strict_json(body: bytes, wanted: str = "JSON") -> Any:
    """Decode the body as strict JSON, an empty one as `{}`; a byte order mark before it is skipped. Raises Refused.

    `wanted`: what the body may be, for the message.
    """
    if len(body) > REQUEST_MAX_BYTES:
        raise invalid_request("The request is too large.", Problem("", f"must be at most {REQUEST_MAX_BYTES:,} bytes"))
    if not body.removeprefix(codecs.BOM_UTF8).strip():
        return {}
    try:
        return _decoder.decode(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        problem = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON: {error}"
        raise invalid_request(f"The request can't be read as {wanted}.", Problem("", problem[:300])) from error


def _name_vcenter(fields: dict[str, Any], named: str) -> dict[str, Any]:
    if fields.get("vcenter") not in (None, named):
        problem = f"must be {named[:63]!r}, which the subject names, or absent"
        raise invalid_request("The request names another vCenter than its subject.", Problem("vcenter", problem))
    return {**fields, "vcenter": named}


def _decode_task(body: bytes) -> Any:
    """Decode the body of a request about one task: JSON, or nothing but its id. Raises Refused."""
    try:
        return decode_strict_json(body, "JSON or as one plain task id")
    except Refused:
        if (task := parse_bare_id(body[:REQUEST_MAX_KEPT_BYTES].decode("utf-8-sig", "replace"))) is None:
            raise
        return task


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return read


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_request(model: type[Model], body: bytes, named: str | None = None) -> Model:
    """Parse the request in `body`. Raises Refused (400), which names each field and its problem.

    `named`: the vCenter that the request's subject names. A body that names another one is refused.
    """
    is_about_task = issubclass(model, TaskRequest)
    value = _decode_task(body) if is_about_task else decode_strict_json(body)
    if not isinstance(value, dict) and not (isinstance(value, str) and is_about_task):
        wanted = "a JSON object or a JSON string that is the task id" if is_about_task else "an object"
        raise invalid_request("The request has the wrong form.", Problem("", f"must be {wanted}"))
    if named is not None:
        value = _name_vcenter({"task": value} if isinstance(value, str) else value, named)
    return validate_request(model, value)


def validate_request(model: type[Model], value: Any) -> Model:
    """Return the request that a decoded value is. Raises Refused (400), which names each field and its problem."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        details = [_problem(item["loc"], item["type"], item["msg"]) for item in error.errors(include_url=False)]
        summary = "; ".join(f"{problem.field or 'request'}: {problem.problem}" for problem in details[:3])
        raise invalid_request(f"The request is refused: {summary}.", *details[:20]) from error


_decoder = json.JSONDecoder(object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant)


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
    """Return (`traceparent`, `tracestate`) of a message's headers, None for what isn't a W3C trace context."""
    lowered = {key.lower(): value for key, value in (headers or {}).items()}
    traceparent = lowered.get("traceparent", "").strip()
    if not _TRACEPARENT.fullmatch(traceparent):
        return None, None
    tracestate = lowered.get("tracestate", "").strip()
    printable = tracestate.isascii() and tracestate.isprintable()
    return traceparent, (tracestate[:512] or None if printable else None)


def describe_rejected_request(body: bytes) -> dict[str, Any]:
    """Return what a rejection repeats of the request: its text, and the fields that could be read.

    Everything is cut to a size that NATS accepts; otherwise the request could never be rejected.
    """
    text = body[: REQUEST_MAX_KEPT_BYTES + 4].decode("utf-8", "replace")
    kept = text.encode()[:REQUEST_MAX_KEPT_BYTES].decode("utf-8", "ignore")
    fields = _read_fields(body)
    labels = fields.get("labels")
    labels = labels if isinstance(labels, dict) and _is_short(labels) else {}
    return {
        "request": kept,
        "vcenter": _clean(fields.get("vcenter")),
        "task": _clean(fields.get("task")),
        "labels": {_clean(key): _clean(item) for key, item in labels.items()} or None,
    }


def describe_request_target(body: bytes) -> dict[str, str | None]:
    """Return the vCenter, the task and the name that a request has, as far as it can be read: for the log."""
    fields = _read_fields(body)
    return {key: (_clean(fields.get(key)) or "")[:256] or None for key in ("vcenter", "task", "name")}


def _read_fields(body: bytes) -> dict[str, Any]:
    try:
        value = _decode_task(body)
    except Refused:
        return {}
    return {"task": value} if isinstance(value, str) else value if isinstance(value, dict) else {}


def _is_short(labels: dict[str, Any]) -> bool:
    strings = [*labels, *labels.values()]
    return all(isinstance(item, str) for item in strings) and sum(map(len, strings)) <= REQUEST_MAX_KEPT_BYTES


def _clean(value: object) -> str | None:
    if not isinstance(value, str) or len(value) > REQUEST_MAX_KEPT_BYTES:
        return None
    return value.encode("utf-8", "replace").decode()
