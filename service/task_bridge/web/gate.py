"""Who may use the API over HTTP: the file of tokens, and the checks that each request passes."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import structlog
from starlette.requests import HTTPConnection

from ..domain.access import Token, find_token, parse_tokens
from ..domain.errors import Refused
from ..logs import FailureLog
from .rates import RequestRate

log = structlog.get_logger(__name__)

REQUESTS_PER_S = 20
MAX_STREAMS, MAX_STREAMS_OF_TOKEN = 100, 10
_STREAM_RETRY_S = 10


class HttpRefused(Refused):
    """A refusal that HTTP alone has, with the headers of its answer."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, code, message)
        self.headers = headers or {}


class TokensFile:
    """The tokens in a file, which is read again when it changes. Each call costs one stat."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, ...] = ()
        self._tokens: tuple[Token, ...] = ()
        self._failures = FailureLog(log, "tokens_unreadable", "tokens_readable_again")

    def read(self) -> tuple[Token, ...]:
        """Return the tokens. While the file can't be read (it is being replaced), return the last ones."""
        try:
            stat = self._path.stat()
            version = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
            if version != self._version:
                self._parse(self._path.read_text("utf-8-sig", "replace"))
                self._version = version
        except OSError as error:
            self._failures.report_failure(file=str(self._path), reason=str(error.strerror))
        else:
            self._failures.report_recovery()
        return self._tokens

    def _parse(self, text: str) -> None:
        self._tokens, mistakes = parse_tokens(text)
        for mistake in mistakes:
            log.warning("token_line_refused", file=str(self._path), line=mistake.line, problem=mistake.problem)
        log.info("tokens_read", file=str(self._path), tokens=len(self._tokens))


class Gate:
    """Lets requests in by their tokens. `insecure`: also tokens that come unencrypted from other hosts."""

    def __init__(self, tokens: TokensFile, *, insecure: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._insecure = insecure
        self._clock = clock
        self._rates: dict[str, RequestRate] = {}
        self._streams: Counter[str] = Counter()

    def admit(self, connection: HTTPConnection) -> Token:
        """Return the token of a request. Raises Refused: 403, 400, 401 or 429."""
        if not (self._insecure or is_private(connection)):
            raise HttpRefused(
                403,
                "forbidden",
                "A token is refused over unencrypted HTTP from another host. Use https (BRIDGE_HTTP_TLS_CERT_FILE), "
                "or set BRIDGE_HTTP_INSECURE_TOKENS=true if something else encrypts. "
                "Replace a token that was sent like this.",
            )
        token = find_token(self._tokens.read(), _read_bearer(connection))
        if token is None:
            raise _unauthorized("The token isn't one of this bridge.", error="invalid_token")
        self._check_rate(token)
        return token

    def _check_rate(self, token: Token) -> None:
        if token.digest not in self._rates:
            known = {one.digest for one in self._tokens.read()}
            self._rates = {digest: rate for digest, rate in self._rates.items() if digest in known}
            self._rates[token.digest] = RequestRate(REQUESTS_PER_S)
        if wait_s := self._rates[token.digest].take(self._clock()):
            message = f"This token has sent {REQUESTS_PER_S} requests within a second. Try again later."
            raise _too_many(message, math.ceil(wait_s))

    def is_current(self, token: Token) -> bool:
        """Return whether the token is still in the file, with the same rights."""
        return token in self._tokens.read()

    @contextmanager
    def stream(self, token: Token) -> Iterator[None]:
        """Count a stream of events while the context is entered. Raises Refused (429) if there are too many."""
        if self._streams.total() >= MAX_STREAMS:
            raise _too_many(f"{MAX_STREAMS} streams of events are open already. Try again later.", _STREAM_RETRY_S)
        if self._streams[token.digest] >= MAX_STREAMS_OF_TOKEN:
            message = f"This token has {MAX_STREAMS_OF_TOKEN} streams of events open already. Close one."
            raise _too_many(message, _STREAM_RETRY_S)
        self._streams[token.digest] += 1
        try:
            yield
        finally:
            self._streams[token.digest] -= 1
            self._streams += Counter()  # drops those that have none


def is_private(connection: HTTPConnection) -> bool:
    """Return whether nobody between both ends can read along: TLS, or the same host."""
    if connection.scope["scheme"] == "https":
        return True
    try:
        address = ipaddress.ip_address(connection.client.host if connection.client else "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _read_bearer(connection: HTTPConnection) -> bytes:
    given = connection.headers.getlist("authorization")
    if len(given) > 1:
        raise HttpRefused(400, "invalid_request", "The header Authorization is given twice; send one.")
    scheme, _, secret = given[0].strip().partition(" ") if given else ("", "", "")
    if scheme.lower() != "bearer" or not secret.strip():
        raise _unauthorized("A token is needed: send the header Authorization: Bearer TOKEN.")
    return secret.strip().encode("latin-1")


def _unauthorized(message: str, *, error: str = "") -> HttpRefused:
    challenge = 'Bearer realm="vcenter-task-bridge"' + (f', error="{error}"' if error else "")
    return HttpRefused(401, "unauthorized", message, {"WWW-Authenticate": challenge})


def _too_many(message: str, retry_s: int) -> HttpRefused:
    return HttpRefused(429, "too_many_requests", message, {"Retry-After": str(retry_s)})
