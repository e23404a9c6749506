"""The settings of the connection to NATS, read without pydantic: clients, which have them too, lack it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..domain.errors import CannotStart
from . import values
from .values import SecretFile

PREFIX = "BRIDGE_"
DOT_ENV = Path(".env")
SUBJECT_PREFIX, DEFAULT_SUBJECT_PREFIX = "BRIDGE_SUBJECT_PREFIX", "vcenter.tasks"
_TLS_CERT = "BRIDGE_NATS_TLS_CERT_FILE"
_SECRET_WORDS = ("USERNAME", "PASSWORD", "TOKEN", "SEED", "CREDS", "KEY")
_PAIRS = (
    ("BRIDGE_NATS_USER", "BRIDGE_NATS_PASSWORD"),
    (_TLS_CERT, "BRIDGE_NATS_TLS_KEY_FILE"),
    ("BRIDGE_HTTP_TLS_CERT_FILE", "BRIDGE_HTTP_TLS_KEY_FILE"),
)
_LOGINS = ("BRIDGE_NATS_CREDS_FILE", "BRIDGE_NATS_NKEY_SEED_FILE", "BRIDGE_NATS_USER", "BRIDGE_NATS_TOKEN")


@dataclass(frozen=True, kw_only=True)
class NatsSettings:
    """The address of NATS and the login: at most one of credentials, seed, user and token."""

    urls: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    creds_file: Path | None = None
    nkey_seed_file: Path | None = None
    user: str | None = None
    given_password: str | None = field(default=None, repr=False)
    password_file: SecretFile | None = None
    given_token: str | None = field(default=None, repr=False)
    token_file: SecretFile | None = None
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    js_domain: str | None = None
    given_inbox_prefix: str | None = None

    @property
    def login(self) -> Literal["creds", "nkey", "user", "token", "none"]:
        """The kind of login that the bridge uses."""
        if self.creds_file or self.nkey_seed_file:
            return "creds" if self.creds_file else "nkey"
        if self.user is not None:
            return "user"
        return "none" if self.token() is None else "token"

    def inbox_prefixes(self, otherwise: str) -> list[str]:
        """Return the prefixes of inboxes to try: the one that is set, or the user's own, then `otherwise`."""
        if self.given_inbox_prefix is not None:
            return [self.given_inbox_prefix]
        own = f"_INBOX_{self.user}"
        return [own, otherwise] if self.user and values.is_subject(own) else [otherwise]

    def password(self) -> str | None:
        """Return the user's password. A file is read again when it has changed."""
        return self.given_password if self.password_file is None else self.password_file.read()

    def token(self) -> str | None:
        """Return the token. A file is read again when it has changed."""
        return self.given_token if self.token_file is None else self.token_file.read()


@dataclass(frozen=True)
class ClientSettings:
    """What a client needs to know: NATS, and the first tokens of every subject."""

    nats: NatsSettings
    subject_prefix: str


class NatsVariable(NamedTuple):
    """The variable of one setting: what it is for, and the parser of its text, which raises ValueError."""

    variable: str
    meaning: str
    parse: Callable[[str], Any] = str


NATS_VARIABLES = {
    "urls": NatsVariable("BRIDGE_NATS_URL", "servers, comma-separated; tls:// requires TLS", values.parse_nats_urls),
    "creds_file": NatsVariable("BRIDGE_NATS_CREDS_FILE", "credentials file (JWT and seed)", values.check_creds_file),
    "nkey_seed_file": NatsVariable("BRIDGE_NATS_NKEY_SEED_FILE", "a file with an NKey seed", values.check_seed_file),
    "user": NatsVariable("BRIDGE_NATS_USER", "the user name; needs one of the next two"),
    "given_password": NatsVariable("BRIDGE_NATS_PASSWORD", "the user's password"),
    "password_file": NatsVariable(
        "BRIDGE_NATS_PASSWORD_FILE", "a file that holds the password", values.open_secret_file
    ),
    "given_token": NatsVariable("BRIDGE_NATS_TOKEN", "the token, if the server requires one"),
    "token_file": NatsVariable("BRIDGE_NATS_TOKEN_FILE", "a file that holds the token", values.open_secret_file),
    "tls_ca_file": NatsVariable(
        "BRIDGE_NATS_TLS_CA_FILE", "PEM file of the CA that signs the server's certificate", values.check_ca_file
    ),
    "tls_cert_file": NatsVariable(
        "BRIDGE_NATS_TLS_CERT_FILE",
        "PEM file of the client's certificate, if the server requires one",
        values.check_readable,
    ),
    "tls_key_file": NatsVariable(
        "BRIDGE_NATS_TLS_KEY_FILE", "PEM file of its key, without a passphrase", values.check_readable
    ),
    "js_domain": NatsVariable(
        "BRIDGE_NATS_JS_DOMAIN", "the JetStream domain, if the bridge connects to a leaf node", values.check_token
    ),
    "given_inbox_prefix": NatsVariable(
        "BRIDGE_NATS_INBOX_PREFIX",
        "the subject below which this user gets answers; default: _INBOX_<user> with BRIDGE_NATS_USER, else _INBOX "
        "(serve: _INBOX.bridge)",
        values.check_subject,
    ),
}
"""By attribute of `NatsSettings`."""


def load_client_settings(environ: Mapping[str, str] | None = None, *, env_file: Path | None = None) -> ClientSettings:
    """Return what a client needs of the process's environment, over `.env` in the working directory.

    `environ` replaces both; with `env_file` it replaces the environment only. Raises CannotStart (exit code 2) with one
    line per mistake.
    """
    if environ is None:
        environ, env_file = os.environ, env_file or DOT_ENV
    variables = read_variables(environ, env_file)
    given = {name: value for name, value in variables.items() if name.startswith("BRIDGE_NATS_")}
    mistakes = list(check_contradictions(given))
    nats = read_nats_settings(given, mistakes)
    prefix = _parse(
        SUBJECT_PREFIX, variables.get(SUBJECT_PREFIX, DEFAULT_SUBJECT_PREFIX), values.check_prefix, mistakes
    )
    if mistakes:
        raise CannotStart(*sorted(mistakes), exit_code=2)
    return ClientSettings(nats, prefix)


def read_variables(environ: Mapping[str, str], env_file: Path | None) -> dict[str, str]:
    """Return the variables of the bridge. `environ` wins over `env_file`; empty ones count as not set.

    Raises CannotStart if the file can't be read.
    """
    variables = {**_read_env_file(env_file), **environ}
    return {name: value for name, value in variables.items() if name.startswith(PREFIX) and value}


def _read_env_file(file: Path | None) -> dict[str, str | None]:
    if file is None or not (file.is_file() or file.is_fifo()):
        return {}
    from dotenv import dotenv_values  # noqa: PLC0415 - most clients have no such file

    try:
        return dotenv_values(file, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"{file}: can't be read: {error}", exit_code=2) from None


def read_nats_settings(given: Mapping[str, str], mistakes: list[str]) -> NatsSettings:
    """Return the settings of NATS by their variables. Add a line for each mistake, whose setting is left out."""
    read = {
        name: _parse(variable, given[variable], parse, mistakes)
        for name, (variable, _, parse) in NATS_VARIABLES.items()
        if variable in given
    }
    certificate, key = read.get("tls_cert_file"), read.get("tls_key_file")
    if certificate and key:
        _parse(
            "BRIDGE_NATS_TLS_KEY_FILE", str(key), lambda _: values.check_tls_key(certificate, key, _TLS_CERT), mistakes
        )
    return NatsSettings(**{name: value for name, value in read.items() if value is not None})


def _parse(variable: str, text: str, parse: Callable[[str], Any], mistakes: list[str]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        mistakes.append(describe_mistake(variable, str(error), text))
        return None


def describe_mistake(variable: str, message: str, value: str) -> str:
    """Return the line of a mistake, with the value unless that may be a secret or isn't as given."""
    if not value or "@" in value or any(word in variable for word in _SECRET_WORDS):
        return f"{variable}: {message}"
    return f"{variable}: {message} (got {value[:100]!r})"


def check_contradictions(given: Collection[str]) -> Iterator[str]:
    """Yield a line for each pair of variables that exclude or need each other."""
    for name in sorted(name for name in given if name + "_FILE" in given):
        yield f"{name}: given twice, here and as {name}_FILE; keep one"
    for pair in _PAIRS:
        missing = [name for name in pair if not is_set(name, given)]
        if len(missing) == 1:
            (other,) = set(pair) - set(missing)
            yield f"{missing[0]}: missing; {other} is of no use without it"
    logins = [name for name in _LOGINS if is_set(name, given)]
    if len(logins) > 1:
        yield f"{logins[0]}: more than one way to log in to NATS ({', '.join(logins)}); keep one"


def is_set(variable: str, given: Collection[str]) -> bool:
    """Return whether a variable is given, by itself or as a file."""
    return variable in given or variable + "_FILE" in given
