"""`--since` of `events`: a time, or a duration ago."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
import typer

from task_bridge.cli.client_commands import parse_moment


@pytest.mark.parametrize("text", ["2026-11-29T00:00:00Z", "2026-11-29T01:00:00+01:00", "2026-11-29T00:00:00.000Z"])
def test_a_time_is_that_moment(text: str) -> None:
    assert parse_moment(text) == datetime(2026, 11, 29, tzinfo=UTC)


def test_a_duration_is_so_long_ago() -> None:
    assert abs(parse_moment("1h").timestamp() - (time.time() - 3600)) < 60


@pytest.mark.parametrize("text", ["yesterday", "", "-1h", "2026-13-01T00:00:00Z"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_moment(text)
