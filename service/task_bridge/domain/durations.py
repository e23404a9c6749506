"""Durations and times, as users write them and as events carry them. Pure."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from functools import lru_cache

MAX_DURATION_S = 365 * 86_400.0
_FIRST_S, _LAST_S = -62_135_596_800.0, 253_402_300_799.0  # years of four digits
_UNITS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_NUMBER = r"(\d+(?:\.\d+)?)"
_SIMPLE = re.compile(rf"{_NUMBER}(ms|s|m|h|d)?", re.ASCII)
_ISO = re.compile(rf"P(?!$)(?:{_NUMBER}D)?(?:T(?!$)(?:{_NUMBER}H)?(?:{_NUMBER}M)?(?:{_NUMBER}S)?)?", re.ASCII)
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?\s*([Zz]|[+-]\d\d:?\d\d)?", re.ASCII)


def parse_duration(value: object) -> float:
    """Return seconds for a number of seconds, `"90"`, `"1.5h"` (ms s m h d), or ISO 8601 days and time (`"PT2H"`).

    Raises ValueError, with a sentence for the user, for anything else and outside 0 to 365 days.
    """
    seconds = _seconds(value)
    if not 0 <= seconds <= MAX_DURATION_S:  # also refuses NaN
        raise ValueError("must be between 0 and 365 days")
    return seconds


def _seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) <= MAX_DURATION_S else math.inf
    if isinstance(value, str) and len(value) <= 64:
        if match := _SIMPLE.fullmatch(value):
            return float(match[1]) * _UNITS_S[match[2] or ""]
        if match := _ISO.fullmatch(value):
            parts = zip(match.groups(), (86_400.0, 3_600.0, 60.0, 1.0), strict=True)
            return sum(float(number) * unit for number, unit in parts if number)
    raise ValueError('must be a duration: seconds, or like "90s", "15m", "2h", "7d", "PT2H"')


def rfc3339(timestamp: float) -> str:
    """Format Unix seconds as RFC 3339 in UTC with milliseconds: `2026-11-24T22:40:55.123Z`."""
    seconds, milliseconds = divmod(round(timestamp * 1000), 1000)
    return f"{_format_second(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=64)  # an event has several times, most of them within the current second
def _format_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")


def parse_time(value: object) -> float | None:
    """Return the Unix seconds of a date-time as vCenter writes it, None for anything else.

    vCenter sends UTC with milliseconds. Any number of fraction digits, a numeric offset, or no offset at all (taken
    as UTC) is accepted too.
    """
    match = _RFC3339.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    date, time, fraction, offset = match.groups()
    zone = "+00:00" if offset in (None, "Z", "z") else offset
    try:
        whole = datetime.fromisoformat(f"{date}T{time}{zone}").timestamp()
    except (ValueError, OverflowError):
        return None
    moment = whole + float(fraction or 0)
    return moment if _FIRST_S <= moment <= _LAST_S else None
