"""Every setting of the bridge: its environment variable, its unit, what it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from ..domain.errors import Refused
from ..domain.follows.order import CONFIGURED_FOLLOW
from ..domain.follows.request import FollowRequest
from ..domain.requests import decode_strict_json, parse_request
from . import values
from .deliveries import DeliverySettings
from .nats import DEFAULT_SUBJECT_PREFIX, SUBJECT_PREFIX, NatsSettings
from .values import Listen, SecretFile

Secret = Annotated[SecretFile, PlainValidator(values.open_secret_file), PlainSerializer(repr)]
ReadableFile = Annotated[Path, BeforeValidator(values.check_readable)]
CaFile = Annotated[Path, BeforeValidator(values.check_ca_file)]
LogFormat = Literal["auto", "console", "json"]
Lower = BeforeValidator(lambda text: text.lower() if isinstance(text, str) else text)


def _setting(variable: str, default: Any, meaning: str, **limits: Any) -> Any:
    """Return the field of one setting: its variable (or key of a vCenter), its default as text, what it is for."""
    return Field(default, validation_alias=variable, description=meaning, validate_default=True, **limits)


def _validate_duration(low: str, high: str = "365d") -> BeforeValidator:
    return BeforeValidator(values.duration_parser(low, high))


def _read_secret(given: SecretStr | None, file: SecretFile | None) -> str | None:
    if file is not None:
        return file.read()
    return None if given is None else given.get_secret_value()


def _parse_follow(text: object) -> FollowRequest | None:
    """Return the request of the follow `config`: `all`, or the JSON of a request without `name` and `vcenter`."""
    if text is None or isinstance(text, FollowRequest):
        return text
    if not isinstance(text, str):
        raise ValueError("must be all, or the JSON of a follow request")  # noqa: TRY004 - pydantic reports ValueError
    try:
        fields = {} if text.strip().lower() == "all" else decode_strict_json(text.encode())
        if not isinstance(fields, dict) or {"name", "vcenter"} & fields.keys():
            raise ValueError("must be all, or a JSON object without name and vcenter, which are known here")
        return parse_request(FollowRequest, json.dumps({**fields, "name": CONFIGURED_FOLLOW}).encode())
    except Refused as refused:
        raise ValueError(f"isn't the JSON of a follow request: {refused.message}") from refused


def _build_nats(given: object) -> object:
    """Return the settings of NATS, which code can give as their attributes, the URLs as text."""
    if not isinstance(given, dict):
        return given
    return NatsSettings(**{**given, "urls": values.parse_nats_urls(given["urls"])})


class VCenterSettings(BaseModel):
    """One vCenter; its variables are `BRIDGE_VCENTERS__<NAME>__<KEY>`."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, hide_input_in_errors=True)

    name: str = Field(description="its name in subjects and events: <NAME> in lower case")
    url: Annotated[str, BeforeValidator(values.parse_vcenter_url)] = Field(
        validation_alias="url",
        description="scheme and host, like https://vcenter.example.com; events name it as their source",
    )
    given_username: str | None = _setting(
        "username", None, "the user who reads tasks, like task-bridge@vsphere.local; this or USERNAME_FILE is required"
    )
    username_file: Secret | None = _setting("username_file", None, "a file that holds the username")
    given_password: SecretStr | None = _setting(
        "password", None, "the user's password; this or PASSWORD_FILE is required"
    )
    password_file: Secret | None = _setting(
        "password_file", None, "a file that holds the password; it is read again when it changes"
    )
    ca_file: CaFile | None = _setting(
        "ca_file", None, "PEM file of the CA that signs vCenter's certificate, instead of the system's CAs"
    )
    verify_tls: bool = _setting(
        "verify_tls", True, "false accepts any certificate, so any server that answers gets the password"
    )
    proxy: Annotated[str, BeforeValidator(values.parse_proxy_url)] | None = _setting(
        "proxy", None, "http://host:port of a proxy to this vCenter; HTTPS_PROXY and similar variables are ignored"
    )
    max_concurrent_requests: int = _setting(
        "max_concurrent_requests",
        4,
        "the most requests in flight at once, per replica, to leave room for other clients of vCenter",
        ge=1,
    )
    max_requests_per_second: float = _setting(
        "max_requests_per_second",
        20.0,
        "the most requests per second, per replica; every request counts; beyond it all tasks are polled less often",
        gt=0,
        allow_inf_nan=False,
    )
    timeout_s: Annotated[float, _validate_duration("1s", "5m")] = _setting(
        "timeout",
        "30s",
        "how long an answer may take to begin or to go on (duration); raise it for a vCenter that is slow and right",
    )
    api: Annotated[Literal["auto", "api", "rest"], Lower] = _setting(
        "api", "auto", "the REST API to use: api is /api (7.0 U2 and later), rest is /rest (6.7), auto detects it"
    )
    vim: Annotated[Literal["auto", "push", "pull", "off"], Lower] = _setting(
        "vim",
        "auto",
        "how classic tasks (task-123) are followed over /sdk: push waits for changes, pull polls every 2 s, "
        "auto pushes while that works, off refuses them",
    )
    follow: Annotated[FollowRequest | None, NoDecode, BeforeValidator(_parse_follow)] = _setting(
        "follow",
        None,
        "watch tasks that nobody requests: all, or the JSON of a follow request without its name; the follow is "
        "named config",
    )
    names: bool = _setting(
        "names",
        True,
        "look up the names and inventory paths of targets over /sdk, in at most one request every two seconds; false, "
        "VIM=off or MAX_CONCURRENT_REQUESTS=1 doesn't",
    )

    def username(self) -> str:
        """Return the user name. A file is read again when it has changed."""
        return _read_secret(SecretStr(self.given_username or ""), self.username_file) or ""

    def password(self) -> str:
        """Return the password. A file is read again when it has changed."""
        return _read_secret(self.given_password, self.password_file) or ""


class Settings(BaseSettings):
    """All settings. `warnings` are for the log: one sentence each, without secrets."""

    model_config = SettingsConfigDict(
        env_nested_delimiter="__", frozen=True, validate_by_name=True, hide_input_in_errors=True
    )

    nats: Annotated[InstanceOf[NatsSettings], BeforeValidator(_build_nats)] = Field(
        default_factory=NatsSettings,
        exclude=True,  # it has secrets
    )
    vcenters: dict[str, VCenterSettings] = _setting(
        "BRIDGE_VCENTERS",
        {},
        'all vCenters as one JSON object, like {"lab": {"url": "https://…"}}; added to the other variables, '
        "which win over it; a password in both is a mistake",
    )
    deliveries: dict[str, DeliverySettings] = _setting(
        "BRIDGE_DELIVERIES",
        {},
        'all deliveries as one JSON object, like {"chat": {"url": "https://…"}}; added to the other variables, '
        "which win over it",
    )
    default_vcenter: Annotated[str, Lower] | None = _setting(
        "BRIDGE_DEFAULT_VCENTER", None, "the vCenter of requests that name none, when several are configured"
    )
    subject_prefix: Annotated[str, BeforeValidator(values.check_prefix)] = _setting(
        SUBJECT_PREFIX, DEFAULT_SUBJECT_PREFIX, "the beginning of every subject; streams are named after it"
    )
    stream_replicas: int = _setting(
        "BRIDGE_STREAM_REPLICAS", 1, "how many servers keep each stream, 1 to 5; 3 survive the loss of one", ge=1, le=5
    )
    # A watch without an event for half of this time is restated. Seconds are for tests, days for production.
    events_max_age_s: Annotated[float, _validate_duration("1s")] = _setting(
        "BRIDGE_EVENTS_MAX_AGE",
        "7d",
        "how long events are kept (duration); a consumer that is away for longer misses some",
    )
    provision: Annotated[Literal["auto", "verify"], Lower] = _setting(
        "BRIDGE_PROVISION",
        "auto",
        "auto creates missing streams; verify creates nothing and stops if one is missing",
    )
    capacity: int = _setting(
        "BRIDGE_CAPACITY", 50_000, "the most watches that one replica holds, which bounds its memory (5 KB each)", ge=1
    )
    follow_max_rate: int = _setting(
        "BRIDGE_FOLLOW_MAX_RATE", 200, "the most watches that one follow starts in a second; more are slowed down", ge=1
    )
    poll_min_s: Annotated[float, _validate_duration("10ms")] = _setting(
        "BRIDGE_POLL_MIN", "1s", "the poll interval of young tasks (duration)"
    )
    poll_max_s: Annotated[float, _validate_duration("10ms")] = _setting(
        "BRIDGE_POLL_MAX", "15s", "the poll interval of old tasks (duration)"
    )
    progress_interval_s: Annotated[float, _validate_duration("0s")] = _setting(
        "BRIDGE_PROGRESS_INTERVAL",
        "2s",
        "at most one progress event per task in this time (duration); 0 publishes each",
    )
    stalled_after_s: Annotated[float, _validate_duration("0s")] = _setting(
        "BRIDGE_STALLED_AFTER",
        "15m",
        "a task that hasn't changed for this long is reported once as stalled (duration); 0 is never",
    )
    not_found_grace_s: Annotated[float, _validate_duration("0s")] = _setting(
        "BRIDGE_NOT_FOUND_GRACE",
        "30s",
        "how long a task that was never seen may be missing in vCenter before it is lost (duration)",
    )
    ack_wait_s: Annotated[float, _validate_duration("1s")] = _setting(
        "BRIDGE_ACK_WAIT", "10s", "a replica that is silent for this long loses its watches to the others (duration)"
    )
    allow_cancel: bool = _setting("BRIDGE_ALLOW_CANCEL", False, "true lets requests cancel tasks in vCenter")
    http_listen: Annotated[
        Listen | None, NoDecode, PlainValidator(values.parse_listen), PlainSerializer(values.format_listen)
    ] = _setting(
        "BRIDGE_HTTP_LISTEN",
        "127.0.0.1:8080",
        "host:port of health, metrics, the board and the API over HTTP; port 0 picks a free one; off disables them",
    )
    http_tokens_file: Annotated[Path, BeforeValidator(values.check_file)] | None = _setting(
        "BRIDGE_HTTP_TOKENS_FILE",
        None,
        "a file with a line for each token of the API over HTTP, made by `task-bridge token`; without it that API is "
        "off; it is read again when it changes",
    )
    http_tls_cert_file: ReadableFile | None = _setting(
        "BRIDGE_HTTP_TLS_CERT_FILE",
        None,
        "PEM file of the certificate (and its chain) for HTTP over TLS; it is read again when it changes",
    )
    http_tls_key_file: ReadableFile | None = _setting(
        "BRIDGE_HTTP_TLS_KEY_FILE", None, "PEM file of its key, without a passphrase"
    )
    http_insecure_tokens: bool = _setting(
        "BRIDGE_HTTP_INSECURE_TOKENS",
        False,
        "true accepts tokens over unencrypted HTTP from other hosts, so everybody between can read them",
    )
    log_format: Annotated[LogFormat, Lower] = _setting(
        "BRIDGE_LOG_FORMAT", "auto", "json is one object per line; auto is console on a terminal, else json"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lower] = _setting(
        "BRIDGE_LOG_LEVEL", "info", "the lowest level that is logged: debug, info, warning, error"
    )
    warnings: tuple[str, ...] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only the arguments, so that a test gets the settings that it gives. `load` reads the environment."""
        return (init_settings,)

    @field_validator("vcenters", mode="before")
    @classmethod
    def _add_names(cls, vcenters: Any) -> Any:
        """Put the name of each vCenter into its settings."""
        if not isinstance(vcenters, dict):
            return vcenters
        return {name: {"name": name, **of} if isinstance(of, dict) else of for name, of in vcenters.items()}

    @field_validator("poll_max_s")
    @classmethod
    def _check_poll_max(cls, poll_max_s: float, info: ValidationInfo) -> float:
        if poll_max_s < info.data.get("poll_min_s", 0.0):
            raise ValueError("must not be below BRIDGE_POLL_MIN")
        return poll_max_s

    @field_validator("http_tls_key_file")
    @classmethod
    def _check_http_tls_key(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        certificate = info.data.get("http_tls_cert_file")
        return values.check_tls_key(certificate, key, "BRIDGE_HTTP_TLS_CERT_FILE") if certificate and key else key

    def describe(self) -> dict[str, Any]:
        """Return what the log shows at the start: all settings without secrets, files by name."""
        nats = {"urls": list(self.nats.urls), "login": self.nats.login, "tls": self.nats.tls_ca_file is not None}
        vcenters = {name: vcenter.url for name, vcenter in self.vcenters.items()}
        deliveries = {name: delivery.origin for name, delivery in self.deliveries.items()}
        plain = self.model_dump(mode="json", exclude={"nats", "vcenters", "deliveries", "warnings"})
        return {"nats": nats, "vcenters": vcenters, "deliveries": deliveries, **plain}
