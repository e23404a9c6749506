"""Parsers of the values of settings.

Each takes a text and returns the value, or raises ValueError with a message that follows the variable's name.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from ..domain.durations import parse_duration
from ..domain.subjects import is_prefix

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", re.ASCII)
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")


class Listen(NamedTuple):
    """The address that HTTP listens on. With port 0 the system chooses one."""

    host: str
    port: int


class SecretFile:
    """A secret in a file, which is read again when it changes. Each call costs one stat."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version: tuple[int, ...] = ()
        self._text = ""
        self._refresh()
        if not self._text:
            raise ValueError("can't be right: the file is empty")

    def read(self) -> str:
        """Return the secret. While the file is missing or empty (it is being replaced), return the last one."""
        try:
            self._refresh()
        except (OSError, UnicodeDecodeError):
            return self._text  # an empty password would be a failed login, and SSO counts those
        return self._text

    def _refresh(self) -> None:
        stat = self.path.stat()
        version = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
        if version != self._version:
            text = self.path.read_text("utf-8-sig").rstrip("\r\n")
            self._text, self._version = text or self._text, version

    def __repr__(self) -> str:
        return f"SecretFile({str(self.path)!r})"


def open_secret_file(text: str) -> SecretFile:
    """Open a secret file, which must not be empty. Errors don't quote `text`: it may be the secret itself."""
    try:
        return SecretFile(Path(text))
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("can't be read: the file is not UTF-8 text") from None


def check_readable(text: str | Path) -> Path:
    """Return the path of a file that is readable and not empty."""
    path = Path(text)
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from None
    if empty:
        raise ValueError("can't be right: the file is empty")
    return path


def check_file(text: str | Path) -> Path:
    """Return the path of a file that is readable; it may be empty."""
    path = Path(text)
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from None
    return path


def check_ca_file(text: str | Path) -> Path:
    """Return the path of a file with at least one CA certificate."""
    path = check_readable(text)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise ValueError("can't be right: the file holds no certificate in PEM form") from None
    return path


def check_seed_file(text: str | Path) -> Path:
    """Return the path of a file with an NKey seed."""
    path = check_readable(text)
    if not _is_seed(path.read_bytes()):
        raise ValueError("can't be right: the file holds no NKey seed, like SU…")
    return path


def check_creds_file(text: str | Path) -> Path:
    """Return the path of a NATS credentials file."""
    path = check_readable(text)
    read_credentials(path)
    return path


def read_credentials(path: Path) -> str:
    """Return the text of a credentials file, as `nsc` writes it. Raises ValueError (a part is missing), OSError."""
    text = path.read_text("utf-8", "replace")

    def find_line_after(mark: str) -> str:
        lines = iter(text.splitlines())
        return next((next(lines, "").strip() for line in lines if mark in line), "")

    jwt, seed = find_line_after("BEGIN NATS USER JWT"), find_line_after("BEGIN USER NKEY SEED")
    if not (jwt and _is_seed(seed.encode())):
        raise ValueError("can't be right: the file doesn't hold both a NATS user's JWT and its seed")
    return text


def _is_seed(text: bytes) -> bool:
    import nkeys  # type: ignore[import-untyped] # noqa: PLC0415 - few installations need it

    try:
        nkeys.from_seed(bytearray(text.strip()))
    except (nkeys.NkeysError, ValueError, IndexError):
        return False
    return True


def check_tls_key(certificate: Path, key: Path, certificate_variable: str) -> Path:
    """Return `key` if it belongs to `certificate` and needs no passphrase."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError):
        raise ValueError(
            f"can't be right: it must be the key of {certificate_variable}, both PEM, without a passphrase"
        ) from None
    return key


def duration_parser(low: str, high: str = "365d") -> Callable[[object], float]:
    """Return a parser of durations between `low` and `high`. It returns seconds."""
    low_s, high_s = parse_duration(low), parse_duration(high)

    def parse(value: object) -> float:
        seconds = parse_duration(value)
        if not low_s <= seconds <= high_s:
            raise ValueError(f"must be between {low} and {high}")
        return seconds

    return parse


def parse_vcenter_url(text: str) -> str:
    """Return `https://host[:port]` without a trailing slash."""
    if "@" in text:
        raise ValueError("must not hold credentials; set this vCenter's USERNAME and PASSWORD (or …_FILE) instead")
    return _parse_origin(text, ("https", "http"), "must be https://host or http://host, without a path")


def parse_proxy_url(text: str) -> str:
    """Return the `http://host:port` of a proxy."""
    if "@" in text:
        raise ValueError("must not hold credentials; use a proxy that lets this host in without them")
    return _parse_origin(text, ("http", "https"), "must be http://host:port, without a path")


def parse_nats_urls(text: object) -> tuple[str, ...]:
    """Return the URLs of NATS servers, which are comma-separated; `nats://` is optional."""
    parts = text.split(",") if isinstance(text, str) else text
    if not isinstance(parts, list | tuple):
        raise ValueError("must be nats://host:port, more of them after commas")  # noqa: TRY004 - pydantic reports ValueError
    if not any(part.strip() for part in parts):
        raise ValueError("must name at least one server, like nats://127.0.0.1:4222")
    if not all(part.strip() for part in parts):
        raise ValueError("must name a server before and after each comma")
    return tuple(_parse_nats_url(part.strip()) for part in parts)


def _parse_nats_url(text: str) -> str:
    if "@" in text:
        raise ValueError(
            "must not hold credentials; set BRIDGE_NATS_USER and BRIDGE_NATS_PASSWORD, BRIDGE_NATS_TOKEN"
            " or BRIDGE_NATS_CREDS_FILE instead"
        )
    url = text if "://" in text else f"nats://{text}"
    return _parse_origin(url, ("nats", "tls"), "must be nats://host:port or tls://host:port, more of them after commas")


def _parse_origin(text: str, schemes: Collection[str], rule: str) -> str:
    """Return the URL without a trailing slash, its scheme in lower case."""
    try:
        parts = urlsplit(text)
        good = text.isprintable() and " " not in text and parts.port != 0 and _is_origin(parts)
    except ValueError:  # an invalid port or address
        good = False
    if not good or parts.scheme not in schemes:
        raise ValueError(rule)
    return parts.scheme + text[len(parts.scheme) :].removesuffix("/")


def _is_origin(parts: SplitResult) -> bool:
    rest = (parts.path.removesuffix("/"), parts.query, parts.fragment)
    return _HOST.fullmatch(parts.hostname or "") is not None and not any(rest)


def parse_listen(text: object) -> Listen | None:
    """Parse `host:port` or `[address]:port`; `off` gives None."""
    if text is None or (isinstance(text, str) and text.lower() == "off"):
        return None
    match = _LISTEN.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[3]) > 65_535:
        raise ValueError("must be host:port, like 127.0.0.1:8080 or 0.0.0.0:8080 for all interfaces, or off")
    return Listen(match[1] or match[2], int(match[3]))


def format_listen(where: Listen | None) -> str:
    """Return the text that `parse_listen` parses."""
    if where is None:
        return "off"
    return f"[{where.host}]:{where.port}" if ":" in where.host else f"{where.host}:{where.port}"


def check_prefix(text: str) -> str:
    """Return the first tokens of every subject."""
    if not is_prefix(text):
        raise ValueError("must be subject tokens of letters, digits, - and _, joined by dots, at most 64 characters")
    return text


def is_subject(text: str) -> bool:
    """Return whether NATS accepts `text` as a subject, without wildcards."""
    return text.isprintable() and _SUBJECT.fullmatch(text) is not None


def check_subject(text: str) -> str:
    """Return a subject without wildcards."""
    if not is_subject(text):
        raise ValueError("must be a NATS subject without wildcards, like _INBOX_alice")
    return text


def check_token(text: str) -> str:
    """Return one subject token."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("must be letters, digits, - and _")
    return text
