"""The settings of deliveries, and how they are read: each by variables of its own, or all as one JSON object."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from ..domain.deliveries import Selection, parse_kinds, parse_labels, split_list
from ..domain.durations import parse_duration
from ..domain.subjects import is_vcenter_name
from . import values
from .values import SecretFile

DELIVERIES = "BRIDGE_DELIVERIES"
DELIVERY_NAME_RULE = "it must be letters and digits, in words joined by single underscores, at most 63 characters"


def _setting(key: str, default: Any, meaning: str, **limits: Any) -> Any:
    return Field(default, validation_alias=key, description=meaning, validate_default=True, **limits)


def _parse_url(text: object) -> str:
    """Return an https or http URL; it may have a path and a query, and a user in front, which are secrets."""
    if not isinstance(text, str) or not text.isprintable() or " " in text:
        raise ValueError("must be https://host/path")
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:  # an invalid port or address
        good = False
    if not good:
        raise ValueError("must be https://host/path")
    return text


def _parse_headers(value: object) -> dict[str, str]:
    if value is None or value == "":
        return {}
    try:
        headers = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(one, str) for pair in headers.items() for one in pair):
        raise ValueError('must be a JSON object of names and values, like {"X-Team": "platform"}')
    for name, text in headers.items():
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{name!r} can't be the name of a header")
        if not (text.isascii() and text.isprintable()):
            raise ValueError(f"the value of {name} must be printable ASCII")
        if name.lower() in _OWN_HEADERS or name.lower().startswith(("webhook-", "ce-")):
            raise ValueError(f"{name} is set by the bridge")
    return headers


_OWN_HEADERS = ("host", "content-length", "transfer-encoding", "connection", "content-type", "idempotency-key")


def _parse_start(text: object) -> str:
    if text in ("new", "all"):
        return str(text)
    try:
        parse_duration(text)
    except ValueError:
        raise ValueError('must be new, all, or a duration ago, like "1h"') from None
    return str(text)


def _parse_vcenters(text: object) -> tuple[str, ...]:
    names = split_list(str(text).lower())
    if not names or not all(map(is_vcenter_name, names)):
        raise ValueError("must be names of vCenters, comma-separated")
    return names


def _parse_operations(text: object) -> tuple[str, ...]:
    return split_list(str(text))


def _pass_default(parse: Any) -> BeforeValidator:
    """Return a validator that parses a text and takes the default as it is."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


Secret = Annotated[SecretFile, PlainValidator(values.open_secret_file), PlainSerializer(repr)]


class DeliverySettings(BaseModel):
    """One delivery; its variables are `BRIDGE_DELIVERIES__<NAME>__<KEY>`."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, hide_input_in_errors=True)

    name: str = Field(description="its name in metrics, logs and subjects: <NAME> in lower case")
    url: Annotated[str, BeforeValidator(_parse_url)] = Field(
        validation_alias="url", repr=False, description="where events are sent, by POST; redirects are not followed"
    )
    events: Annotated[tuple[str, ...], _pass_default(parse_kinds)] = _setting(
        "events",
        ("completed", "abandoned"),
        "the kinds that are sent, comma-separated; completed.failed and the like name one outcome",
    )
    vcenters: Annotated[tuple[str, ...], _pass_default(_parse_vcenters)] = _setting(
        "vcenters", (), "only events of these vCenters, comma-separated"
    )
    labels: Annotated[tuple[tuple[str, str], ...], _pass_default(parse_labels)] = _setting(
        "labels", (), "only events of watches with all these labels, like team=platform,stage=prod"
    )
    operations: Annotated[tuple[str, ...], _pass_default(_parse_operations)] = _setting(
        "operations", (), "only these operations, comma-separated; * is any text, !name excludes"
    )
    start: Annotated[str, BeforeValidator(_parse_start)] = _setting(
        "start", "new", "new, all, or a duration ago: from where events are sent when the delivery is first made"
    )
    format: Literal["structured", "binary", "template"] = _setting(
        "format", "structured", "structured or binary (CloudEvents over HTTP), or template"
    )
    template_file: Annotated[Any, _pass_default(values.check_readable)] = _setting(
        "template_file", None, "a Jinja2 template that renders the body from event, with FORMAT=template"
    )
    content_type: str = _setting(
        "content_type", "application/json", "the Content-Type of what the template renders", pattern=r"^[ -~]+$"
    )
    secret_file: Secret | None = _setting(
        "secret_file",
        None,
        "a file with a secret (whsec_…) that signs each request by the Standard Webhooks scheme; two lines while it "
        "is being replaced",
    )
    bearer_file: Secret | None = _setting("bearer_file", None, "a file with a token for Authorization: Bearer")
    basic_file: Secret | None = _setting("basic_file", None, "a file with user:password for Authorization: Basic")
    headers: Annotated[dict[str, str], BeforeValidator(_parse_headers)] = _setting(
        "headers", None, 'further headers, a JSON object like {"X-Team": "platform"}; values are secrets', repr=False
    )
    ca_file: Annotated[Any, _pass_default(values.check_ca_file)] = _setting(
        "ca_file", None, "PEM file of the CA that signs the target's certificate, instead of the system's CAs"
    )
    verify_tls: bool = _setting(
        "verify_tls", True, "false accepts any certificate, so any server that answers gets the events"
    )
    proxy: Annotated[str | None, _pass_default(values.parse_proxy_url)] = _setting(
        "proxy",
        None,
        "http://host:port of a proxy to the target; HTTPS_PROXY and similar variables are ignored",
        repr=False,
    )
    timeout_s: Annotated[float, BeforeValidator(values.duration_parser("100ms", "5m"))] = _setting(
        "timeout", "10s", "how long a request may take in all (duration)"
    )
    max_in_flight: int = _setting("max_in_flight", 8, "the most requests at once, per replica", ge=1, le=256)
    give_up_after_s: Annotated[float, BeforeValidator(values.duration_parser("1s"))] = _setting(
        "give_up_after",
        "24h",
        "an event that still can't be delivered so long after it was stored, or after the delivery was made if that "
        "is later, is reported as undeliverable (duration)",
    )

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        if (self.format == "template") != (self.template_file is not None):
            raise ValueError("FORMAT=template and TEMPLATE_FILE are of use only together")
        given = [
            self.bearer_file is not None,
            self.basic_file is not None,
            any(name.lower() == "authorization" for name in self.headers),
            urlsplit(self.url).username is not None,
        ]
        if sum(given) > 1:
            raise ValueError("BEARER_FILE, BASIC_FILE, Authorization in HEADERS and a user in URL: keep one")
        return self

    @property
    def selection(self) -> Selection:
        return Selection(self.events, self.vcenters, self.labels, self.operations)

    @property
    def origin(self) -> str:
        """The URL without user, path and query, which may be secrets, for logs and pages."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def delivery_variable(name: str, key: str) -> str:
    """Return the name of the environment variable that sets `key` of a delivery."""
    return f"{DELIVERIES}__{name}__{key}".upper()


def is_of_deliveries(variable: str) -> bool:
    return variable == DELIVERIES or variable.startswith(DELIVERIES + "__")


def build_deliveries(variables: Mapping[str, str], mistakes: list[str]) -> dict[str, DeliverySettings]:
    """Return the deliveries that the variables configure; add a line for each mistake. No line quotes a value."""
    deliveries: dict[str, DeliverySettings] = {}
    known = [str(field.validation_alias) for key, field in DeliverySettings.model_fields.items() if key != "name"]
    for name, keys in read_deliveries(variables, mistakes).items():
        unknown = sorted(keys.keys() - set(known))
        for key in unknown:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
            hint = f"; did you mean {close[0].upper()}?" if close else ""
            mistakes.append(f"{delivery_variable(name, key)}: no such setting of a delivery{hint}")
        if "url" not in keys:
            mistakes.append(f"{delivery_variable(name, 'URL')}: missing; set where events are sent")
            continue
        try:
            deliveries[name] = DeliverySettings(name=name, **{key: keys[key] for key in keys if key not in unknown})
        except ValidationError as error:
            mistakes += [_describe_mistake(name, one) for one in error.errors(include_url=False)]
    return deliveries


def _describe_mistake(name: str, error: Any) -> str:
    text = str(error["ctx"]["error"]) if error["type"] == "value_error" else str(error["msg"])
    where = str(error["loc"][0]).removesuffix("_s") if error["loc"] else ""
    variable = delivery_variable(name, where) if where else f"{DELIVERIES}__{name}".upper()
    return f"{variable}: {text.replace('Input should be', 'must be')}"


def read_deliveries(variables: Mapping[str, str], mistakes: list[str]) -> dict[str, dict[str, Any]]:
    """Return the keys of each delivery by its name, in lower case; variables win over the JSON of all."""
    deliveries: dict[str, dict[str, Any]] = {}
    for variable, name, key, value in [*_read_json(variables, mistakes), *_split_variables(variables, mistakes)]:
        if not is_vcenter_name(name):
            mistakes.append(f"{variable}: {name!r} can't name a delivery: {DELIVERY_NAME_RULE}")
        else:
            deliveries.setdefault(name, {})[key] = value
    return deliveries


def _split_variables(variables: Mapping[str, str], mistakes: list[str]) -> Iterator[tuple[str, str, str, Any]]:
    for variable, value in variables.items():
        if variable == DELIVERIES or not is_of_deliveries(variable):
            continue
        parts = variable.lower().split("__")
        if len(parts) != 3:
            mistakes.append(f"{variable}: must be {DELIVERIES}__<NAME>__<KEY>, without a double underscore in <NAME>")
        else:
            yield variable.upper(), parts[1], parts[2], value


def _read_json(variables: Mapping[str, str], mistakes: list[str]) -> list[tuple[str, str, str, Any]]:
    text = variables.get(DELIVERIES)
    if text is None:
        return []
    form = f'{DELIVERIES}: must be a JSON object of objects, like {{"chat": {{"url": "https://…"}}}}'
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        mistakes.append(f"{form}: {error}")  # the error has a position and a reason, no content
        return []
    if not isinstance(tree, dict) or not all(isinstance(keys, dict) for keys in tree.values()):
        mistakes.append(form)
        return []
    return [
        (delivery_variable(name, key), name.lower(), key.lower(), _plain(key, value))
        for name, keys in tree.items()
        for key, value in keys.items()
        if value is not None
    ]


def _plain(key: str, value: Any) -> Any:
    """Return a value of the JSON as the variable would have it: lists are comma-separated, objects stay."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict) and key.lower() == "labels":
        return ",".join(f"{name}={text}" for name, text in value.items())
    return value if isinstance(value, str | dict) else json.dumps(value)
