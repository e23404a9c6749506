"""Durations and times: what users may write, and what events carry."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_bridge.domain.durations import MAX_DURATION_S, parse_duration, parse_time, rfc3339

YEAR_S = 365 * 86_400


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0.0),
        (90, 90.0),
        (1.5, 1.5),
        (YEAR_S, float(YEAR_S)),
        ("0", 0.0),
        ("90", 90.0),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("90s", 90.0),
        ("15m", 900.0),
        ("2h", 7_200.0),
        ("1.5h", 5_400.0),
        ("7d", 604_800.0),
        ("365d", float(YEAR_S)),
        ("PT2H", 7_200.0),
        ("P1D", 86_400.0),
        ("P1DT2H3M4S", 93_784.0),
        ("PT0.5S", 0.5),
        ("PT1.5M", 90.0),
        ("PT0S", 0.0),
    ],
)
def test_a_duration_is_seconds_or_a_number_with_a_unit_or_iso_8601(written: object, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    [
        True,
        False,
        None,
        [],
        {},
        b"5s",
        "",
        " ",
        "5 s",
        " 5s",
        "5s\n",
        "5S",
        "5w",
        "1h30m",
        "+5",
        "1e3",
        ".5",
        "5.",
        "five",
        "\u0665s",
        "NaN",
        "Infinity",
        "P",
        "PT",
        "P1DT",
        "P1W",
        "P1M",
        "P1Y",
        "pt2h",
        "PT2H\n",
        "PT-2H",
        "PT1S1H",
        "0" * 65,
    ],
)
def test_anything_else_is_refused_with_examples(written: object) -> None:
    with pytest.raises(ValueError, match=r'must be a duration: .*"15m"'):
        parse_duration(written)


@pytest.mark.parametrize(
    "written",
    [
        -1,
        -0.001,
        YEAR_S + 1,
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        -(10**400),
        "366d",
        "P366D",
        "9" * 64,
    ],
)
def test_a_duration_outside_0_to_365_days_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="must be between 0 and 365 days"):
        parse_duration(written)


@given(st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.binary(), st.lists(st.integers())))
def test_whatever_is_written_is_a_duration_within_bounds_or_a_value_error(written: object) -> None:
    try:
        seconds = parse_duration(written)
    except ValueError:
        return
    assert 0 <= seconds <= MAX_DURATION_S


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_764_024_055.123, "2025-11-24T22:40:55.123Z"),
        (1_764_024_055.0, "2025-11-24T22:40:55.000Z"),
        (1_764_024_055.9996, "2025-11-24T22:40:56.000Z"),
        (-0.001, "1969-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_told_in_utc_with_milliseconds(timestamp: float, text: str) -> None:
    assert rfc3339(timestamp) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2025-11-24T22:40:55.123Z", "2025-11-24T22:40:55.123Z"),
        ("2025-11-24T22:40:55Z", "2025-11-24T22:40:55.000Z"),
        ("2025-11-24T22:40:55.123456789Z", "2025-11-24T22:40:55.123Z"),
        ("2025-11-24T22:40:55.1", "2025-11-24T22:40:55.100Z"),
        ("2025-11-24 22:40:55z", "2025-11-24T22:40:55.000Z"),
        ("2025-11-25T00:10:55.5+01:30", "2025-11-24T22:40:55.500Z"),
        ("2025-11-24T21:40:55-0100", "2025-11-24T22:40:55.000Z"),
        (" 2025-11-24T22:40:55Z ", "2025-11-24T22:40:55.000Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
    ],
)
def test_a_time_of_vcenter_is_read_whatever_its_digits_and_offset(text: str, told: str) -> None:
    timestamp = parse_time(text)

    assert timestamp is not None
    assert rfc3339(timestamp) == told


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        5,
        1_764_024_055.1,
        True,
        [],
        {},
        "yesterday",
        "2025-11-24",
        "22:40:55Z",
        "2025-11-24T22:40Z",
        "2025-02-30T22:40:55Z",
        "2025-11-24T25:40:55Z",
        "2025-11-24T22:40:61Z",
        "2025-11-24T22:40:55+99:00",
        "2025-11-24T22:40:55 CET",
        "0000-01-01T00:00:00Z",
        "\u0662\u0660\u0662\u0665-11-24T22:40:55Z",
    ],
)
def test_what_is_no_time_is_none(text: object) -> None:
    assert parse_time(text) is None


@pytest.mark.parametrize(
    "text",
    ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59.9999Z"],
)
def test_a_time_that_utc_cannot_name_is_none(text: str) -> None:
    assert parse_time(text) is None


@given(st.floats(0, 7e9))
def test_a_time_survives_being_told_and_read(moment: float) -> None:
    timestamp = round(moment, 3)

    read = parse_time(rfc3339(timestamp))

    assert read is not None
    assert abs(read - timestamp) < 0.0005


@given(st.from_regex(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:?\d\d)?", fullmatch=True))
def test_whatever_can_be_read_as_a_time_can_be_told(text: str) -> None:
    timestamp = parse_time(text)

    assert timestamp is None or rfc3339(timestamp).endswith("Z")
