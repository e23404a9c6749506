"""What an answer of a target means, and when an event is tried again. Pure."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Literal, NamedTuple

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 300.0
_TRY_AGAIN = (408, 425, 429)
_GONE = 410


class Verdict(NamedTuple):
    """What becomes of an event after a try.

    `gone`: the target wants no more events (410). `code`: the status, or the kind of failure, for metrics.
    `retry_after_s`: how long the target asks to wait.
    """

    outcome: Literal["delivered", "retry", "refused", "gone"]
    code: str
    reason: str
    retry_after_s: float = 0.0


def judge_answer(status: int, retry_after: str | None, now: float) -> Verdict:
    """Return what an HTTP answer means. `now`: Unix seconds, for a `Retry-After` that is a date."""
    reason = _describe_status(status)
    if 200 <= status < 300:
        return Verdict("delivered", str(status), reason)
    if status in _TRY_AGAIN or status >= 500:
        return Verdict("retry", str(status), reason, _parse_retry_after(retry_after, now))
    if status == _GONE:
        return Verdict("gone", str(status), reason)
    if 300 <= status < 400:
        return Verdict("refused", str(status), f"{reason}; redirects are not followed: set the URL that it names")
    return Verdict("refused", str(status), reason)


def _describe_status(status: int) -> str:
    try:
        return f"the target answered {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"the target answered {status}"


def _parse_retry_after(text: str | None, now: float) -> float:
    """Return how long to wait: a number of seconds, or until a date. Anything else asks for nothing."""
    if text is None:
        return 0.0
    if text.strip().isascii() and text.strip().isdigit():
        return float(text.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def compute_retry_delay(tries: int, retry_after_s: float, chance: float) -> float:
    """Return how long to wait after so many tries (s): 1 s, doubling to 5 minutes; never less than the target asks.

    `chance`: a random number from 0 to 1, which spreads the delay by a fifth, so that many events don't come at once.
    """
    delay_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(tries - 1, 20))
    return max(delay_s * (0.9 + 0.2 * chance), retry_after_s)
