"""Tokens of the API over HTTP: the lines of their file, and what each may do. Pure."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from .subjects import VERBS, is_vcenter_name

EVENTS_VERB = "events"
TOKEN_VERBS = (*VERBS, EVENTS_VERB)
ALL = "*"

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_FORM = "it must be: NAME SHA256-IN-HEX VERBS [VCENTERS], each list comma-separated without blanks, or *"


class Token(NamedTuple):
    """A token by its SHA-256 in hex. `verbs` and `vcenters`: those that it may use, None for all."""

    name: str
    digest: str
    verbs: frozenset[str] | None = None
    vcenters: frozenset[str] | None = None

    def may(self, verb: str) -> bool:
        return self.verbs is None or verb in self.verbs


class LineMistake(NamedTuple):
    """A line that gives nobody a token. The problem never quotes what may be a token or its hash."""

    line: int
    problem: str


def parse_tokens(text: str) -> tuple[tuple[Token, ...], list[LineMistake]]:
    """Parse the file of tokens: a token a line; empty lines and those that begin with # are skipped.

    A line with a mistake takes nothing from the others.
    """
    tokens: dict[str, Token] = {}
    mistakes: list[LineMistake] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            token = _parse_line(line)
        except ValueError as error:
            mistakes.append(LineMistake(number, str(error)))
            continue
        if token.digest in tokens:
            mistakes.append(LineMistake(number, "has the hash of a line above; make a token of its own for each name"))
        tokens.setdefault(token.digest, token)
    return tuple(tokens.values()), mistakes


def _parse_line(line: str) -> Token:
    fields = line.split()
    if len(fields) not in (3, 4):
        raise ValueError(f"has {len(fields)} fields; {_FORM}")
    name, digest, verbs, vcenters = (*fields, ALL)[:4]
    if not is_token_name(name):
        raise ValueError("has a wrong name: use up to 64 letters, digits and . _ @ -")
    if not _DIGEST.fullmatch(digest):
        raise ValueError("has no SHA-256 as its second field (64 hexadecimal digits); `task-bridge token` prints lines")
    return Token(name, digest.lower(), parse_verbs(verbs), parse_vcenters(vcenters))


def is_token_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def parse_verbs(text: str) -> frozenset[str] | None:
    """Return the verbs of a comma-separated list, None for `*`. Raises ValueError."""
    verbs = _split(text)
    if unknown := [verb for verb in verbs or () if verb not in TOKEN_VERBS]:
        shown = f" {unknown[0]!r}" if re.fullmatch("[a-z]{1,20}", unknown[0]) else ""
        raise ValueError(f"has a verb that doesn't exist{shown}; there is {', '.join(TOKEN_VERBS)}, and * for all")
    return verbs


def parse_vcenters(text: str) -> frozenset[str] | None:
    """Return the names of vCenters in a comma-separated list, None for `*`. Raises ValueError."""
    vcenters = _split(text.lower())
    if not all(map(is_vcenter_name, vcenters or ())):
        raise ValueError("has a name that no vCenter can have; name them as in events, comma-separated, or * for all")
    return vcenters


def _split(text: str) -> frozenset[str] | None:
    return None if text == ALL else frozenset(text.split(","))


def hash_token(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def find_token(tokens: Iterable[Token], secret: bytes) -> Token | None:
    """Return the token whose hash is that of `secret`. The time it takes says nothing about the hashes."""
    digest, found = hash_token(secret), None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest):
            found = token
    return found


def format_token_line(name: str, secret: bytes, verbs: Collection[str] | None, vcenters: Collection[str] | None) -> str:
    """Return the line of a token for the file. None stands for all verbs or vCenters."""
    listed = [ALL if names is None else ",".join(sorted(names)) for names in (verbs, vcenters)]
    return " ".join((name, hash_token(secret), *listed))
