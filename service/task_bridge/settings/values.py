"""What the values of settings look like, and what about them is wrong: each function takes a text and returns the
value or raises ValueError with the rest of a sentence that begins with the variable's name."""

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


class Listen(NamedTuple):
    """Where HTTP listens; port 0 lets the system choose."""

    host: str
    port: int


class SecretFile:
    """A secret in a file, read again when the file changes: one stat a call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version: tuple[int, ...] = ()
        self._text = ""
        self._refresh()
        if not self._text:
            raise ValueError("can't be right: the file is empty")

    def read(self) -> str:
        """The secret as it is now; while the file is away or empty (it is being replaced), as it was last."""
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


def secret_file(text: str) -> SecretFile:
    """A file that can be read and isn't empty. Mistakes are told without `text`: it may be the secret itself."""
    try:
        return SecretFile(Path(text))
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("can't be read: the file is not UTF-8 text") from None


def readable(text: str | Path) -> Path:
    """The path of a file that can be read and isn't empty."""
    path = Path(text)
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from None
    if empty:
        raise ValueError("can't be right: the file is empty")
    return path


def ca_file(text: str | Path) -> Path:
    """The path of a file with at least one certificate to trust."""
    path = readable(text)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise ValueError("can't be right: the file holds no certificate in PEM form") from None
    return path


def seed_file(text: str | Path) -> Path:
    """The path of a file with an NKey's seed."""
    path = readable(text)
    if not _is_seed(path.read_bytes()):
        raise ValueError("can't be right: the file holds no NKey seed, like SU…")
    return path


def creds_file(text: str | Path) -> Path:
    """The path of a credentials file."""
    path = readable(text)
    read_credentials(path)
    return path


def read_credentials(path: Path) -> str:
    """What a credentials file holds, as `nsc` writes it. Raises ValueError where a part is missing, and OSError."""
    text = path.read_text("utf-8", "replace")
    jwt, seed = (_line_after(f"BEGIN {what}", text) for what in ("NATS USER JWT", "USER NKEY SEED"))
    if not (jwt and _is_seed(seed.encode())):
        raise ValueError("can't be right: the file doesn't hold both a NATS user's JWT and its seed")
    return text


def _line_after(mark: str, text: str) -> str:
    lines = iter(text.splitlines())
    return next((next(lines, "").strip() for line in lines if mark in line), "")


def _is_seed(text: bytes) -> bool:
    import nkeys  # type: ignore[import-untyped] # noqa: PLC0415 - nearly nobody needs it

    try:
        nkeys.from_seed(bytearray(text.strip()))
    except (nkeys.NkeysError, ValueError, IndexError):
        return False
    return True


def key_of(certificate: Path, key: Path) -> Path:
    """`key`, when it is the one of `certificate` and can be used without asking for a passphrase."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError):
        raise ValueError(
            "can't be right: it must be the key of BRIDGE_NATS_TLS_CERT_FILE, both PEM, without a passphrase"
        ) from None
    return key


def duration(low: str, high: str = "365d") -> Callable[[object], float]:
    """What parses a duration into seconds, from `low` to `high`."""
    low_s, high_s = parse_duration(low), parse_duration(high)

    def parse(value: object) -> float:
        seconds = parse_duration(value)
        if not low_s <= seconds <= high_s:
            raise ValueError(f"must be between {low} and {high}")
        return seconds

    return parse


def vcenter_url(text: str) -> str:
    """`https://host[:port]`, a trailing slash taken off."""
    if "@" in text:
        raise ValueError("must not hold credentials; set this vCenter's USERNAME and PASSWORD (or …_FILE) instead")
    _origin(text, ("https", "http"), "must be https://host or http://host, without a path")
    return text.removesuffix("/")


def proxy_url(text: str) -> str:
    """`http://host:port` of a proxy."""
    if "@" in text:
        raise ValueError("must not hold credentials; use a proxy that knows this host without them")
    _origin(text, ("http", "https"), "must be http://host:port, without a path")
    return text.removesuffix("/")


def nats_urls(text: object) -> tuple[str, ...]:
    """NATS servers, comma-separated; `nats://` may be left out."""
    parts = text.split(",") if isinstance(text, str) else text
    if not isinstance(parts, list | tuple):
        raise ValueError("must be nats://host:port, more of them after commas")  # noqa: TRY004 - told as a mistake
    if not any(part.strip() for part in parts):
        raise ValueError("must name at least one server, like nats://127.0.0.1:4222")
    if not all(part.strip() for part in parts):
        raise ValueError("must name a server before and after each comma")
    return tuple(_nats_url(part.strip()) for part in parts)


def _nats_url(text: str) -> str:
    if "@" in text:
        raise ValueError(
            "must not hold credentials; set BRIDGE_NATS_USER and BRIDGE_NATS_PASSWORD, BRIDGE_NATS_TOKEN"
            " or BRIDGE_NATS_CREDS_FILE instead"
        )
    url = text if "://" in text else f"nats://{text}"
    _origin(url, ("nats", "tls"), "must be nats://host:port or tls://host:port, more of them after commas")
    return url.removesuffix("/")


def _origin(text: str, schemes: Collection[str], rule: str) -> None:
    try:
        parts = urlsplit(text)
        good = text.isprintable() and " " not in text and parts.port != 0 and _is_origin(parts)
    except ValueError:  # a port or an address that is none
        good = False
    if not good or parts.scheme not in schemes:
        raise ValueError(rule)


def _is_origin(parts: SplitResult) -> bool:
    rest = (parts.path.removesuffix("/"), parts.query, parts.fragment)
    return _HOST.fullmatch(parts.hostname or "") is not None and not any(rest)


def listen(text: object) -> Listen | None:
    """`host:port`, `[address]:port`, or `off` as None."""
    if text is None or (isinstance(text, str) and text.lower() == "off"):
        return None
    match = _LISTEN.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[3]) > 65_535:
        raise ValueError("must be host:port, like 127.0.0.1:8080 or 0.0.0.0:8080 for all interfaces, or off")
    return Listen(match[1] or match[2], int(match[3]))


def listen_text(where: Listen | None) -> str:
    """What `listen` made `where` of."""
    if where is None:
        return "off"
    return f"[{where.host}]:{where.port}" if ":" in where.host else f"{where.host}:{where.port}"


def prefix(text: str) -> str:
    """The first tokens of every subject."""
    if not is_prefix(text):
        raise ValueError("must be subject tokens of letters, digits, - and _, joined by dots, at most 64 characters")
    return text


def token(text: str) -> str:
    """One subject token."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("must be letters, digits, - and _")
    return text
