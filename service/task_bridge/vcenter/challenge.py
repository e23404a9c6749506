"""Challenges of HTTP: the schemes by which a server lets clients log in. Pure."""

from __future__ import annotations

import re

_PART = re.compile(r'(?:[^",]|"(?:\\.|[^"\\])*")+')
_SCHEME = re.compile(r"([A-Za-z][\w!#$%&'*+.^`|~-]{0,31})(?:\s+[^=\s]|\s*$)")
_NAMED_MAX = 8
_CHALLENGE_MAX = 2_000
"""Characters of a challenge that are read: vCenter's have some 200."""


def parse_schemes(challenge: str) -> list[str]:
    """Return the schemes that a challenge offers, such as `Basic realm="a, b",SIGN realm=c`, in order."""
    found = (_SCHEME.match(part.strip()) for part in _PART.findall(challenge[:_CHALLENGE_MAX]))
    return list(dict.fromkeys(match[1] for match in found if match))


def describe_unknown_schemes(*challenges: str) -> str | None:
    """Return a sentence if the server offers schemes, but none that the bridge speaks."""
    schemes = list(dict.fromkeys(scheme for challenge in challenges for scheme in parse_schemes(challenge)))
    if not schemes or any(scheme.lower() == "basic" for scheme in schemes):
        return None
    return f"It wants {' or '.join(schemes[:_NAMED_MAX])}, and the bridge speaks only Basic."
