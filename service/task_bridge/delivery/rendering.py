"""The HTTP request that delivers an event: headers and body. Pure, but for the clock that its caller passes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import jinja2.sandbox
import msgspec

from ..domain.events import CONTENT_TYPE
from .signature import sign

_CE_PREFIX = "ce-"
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).translate({ord('"'): None, ord("%"): None})
_USER_AGENT = "vcenter-task-bridge"


T = TypeVar("T")


class HttpRequest(NamedTuple):
    """Headers and body of a POST."""

    headers: dict[str, str]
    body: bytes


class RenderingFailed(Exception):  # noqa: N818 - as the other errors of the bridge
    """An event can't be made into a request; the text says why."""


class BodyTemplate:
    """A Jinja2 template in a sandbox: it may read the event alone. Raises RenderingFailed if it is wrong."""

    def __init__(self, text: str) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            autoescape=False,
            undefined=jinja2.ChainableUndefined,
            keep_trailing_newline=False,
        )
        environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise RenderingFailed(f"the template is wrong: {error}") from error

    def render(self, event: Mapping[str, Any]) -> bytes:
        """Return the body for an event, as UTF-8. Raises RenderingFailed."""
        try:
            return self._template.render(event=event).encode()
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise RenderingFailed(f"the template can't render the event: {error}") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that stays JSON whatever it contains; Jinja2's own filter escapes it for HTML too."""
    if isinstance(value, jinja2.Undefined):
        value = None
    encoded = msgspec.json.encode(value)
    return (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()


def build_structured(body: bytes) -> HttpRequest:
    """Return the CloudEvent as it is stored, in structured mode."""
    return HttpRequest({"Content-Type": f"{CONTENT_TYPE}; charset=utf-8"}, body)


def build_binary(body: bytes) -> HttpRequest:
    """Return the CloudEvent in binary mode: attributes are headers, data is the body. Raises RenderingFailed."""
    event = _decode(body, dict[str, msgspec.Raw])
    data = bytes(event.pop("data", msgspec.Raw(b"null")))
    attributes = {name: msgspec.json.decode(raw) for name, raw in event.items()}
    content_type = str(attributes.pop("datacontenttype", "application/json"))
    headers = {f"{_CE_PREFIX}{name}": _encode_header(str(value)) for name, value in attributes.items() if value}
    return HttpRequest({"Content-Type": content_type, **headers}, data)


def build_rendered(body: bytes, template: BodyTemplate, content_type: str) -> HttpRequest:
    """Return what the template makes of the event. Raises RenderingFailed."""
    return HttpRequest({"Content-Type": content_type}, template.render(_decode(body, dict[str, Any])))


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise RenderingFailed(f"the event isn't a CloudEvent in JSON: {error}") from error


def _encode_header(value: str) -> str:
    """Encode an attribute as the CloudEvents HTTP binding has it: percent-encoded but for printable ASCII."""
    return quote(value, safe=_PRINTABLE)


def add_headers(
    request: HttpRequest, event_id: str, now: int, *, keys: tuple[bytes, ...] = (), further: Mapping[str, str]
) -> HttpRequest:
    """Return the request with the event's id, the signature (with `keys`) and `further` headers. `now`: Unix seconds.

    The id is the same on every try, so that a target can tell a repetition.
    """
    headers = {**further, **request.headers, "User-Agent": _USER_AGENT}
    event_id = _encode_header(event_id)  # another program may have stored any
    headers |= {"webhook-id": event_id, "Idempotency-Key": event_id}
    if keys:
        headers["webhook-timestamp"] = str(now)
        headers["webhook-signature"] = sign(keys, event_id, now, request.body)
    return HttpRequest(headers, request.body)


def build_authorization(*, bearer: str | None, basic: str | None) -> dict[str, str]:
    """Return the Authorization header of a token, or of `user:password`. Raises ValueError, which quotes neither."""
    if bearer is not None:
        if not (bearer.isascii() and bearer.isprintable()):
            raise ValueError("BEARER_FILE must hold one line of ASCII")
        return {"Authorization": f"Bearer {bearer}"}
    if basic is not None:
        return {"Authorization": f"Basic {base64.b64encode(basic.encode()).decode()}"}
    return {}
